"""What a person, or a program reading `--json`, sees of a run. The only module that knows Rich.

Results go to stdout, one line each; progress, notices and errors to stderr. Progress is drawn on a terminal only.
"""

import json
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Event = dict[str, Any]


class Reporter:
    """Shows events as they come; use as a context manager, so that the terminal is left clean."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out, self.err = (
            Console(highlight=False, soft_wrap=True),
            Console(stderr=True, highlight=False, soft_wrap=True),
        )
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.err,
            transient=True,
            disable=as_json or quiet or not self.err.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, count="")
        self.video = self.started = ""
        self.videos: list[tuple[str, str, str]] = []
        self.models: list[Event] = []

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if len(self.videos) > 1 and not self.as_json and not self.quiet:
            self._summary()
        if self.models and not self.as_json:
            self._table()

    def __call__(self, event: Event) -> None:
        if self.as_json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif event["event"] == "error":
            if "input" in event:  # one of several videos: the others go on
                self.videos.append((event["input"], "failed", event["message"]))
            else:
                self.bar.stop()
            self._line(Text.assemble(("error: ", "bold red"), event["message"]))
        elif not self.quiet:
            getattr(self, f"_{event['event']}")(event)

    def _start(self, e: Event) -> None:
        lora = f" + {e['lora']}" if e["lora"] else ""
        started = f"{e['model']}{lora} on {e['device']} in {e['dtype']}"
        if started != self.started:  # it is told for every video
            self._line(Text(started, "dim"))
        self.started = started

    def _notice(self, e: Event) -> None:
        self._line(Text.assemble(("note: ", "yellow"), e["message"]))

    def _progress(self, e: Event) -> None:
        if e["stage"] == "load":
            self.bar.update(self.task, description=f"loading {e['model']}", total=None)
            return
        if e["stage"] == "pull":
            done, total = e["done"], e["total"]
            count = f"{done / 1e9:.2f}/{total / 1e9:.2f} GB"
            self.bar.update(self.task, description="downloading", completed=done, total=total, count=count)
            return
        if e["stage"] == "video":
            self._video(e)
            return
        which = f" {e['index']}/{e['total']}" if e["total"] > 1 else ""
        # the steps of all pictures on one bar, so that its ETA is the whole run's
        done, steps = (e["index"] - 1) * e["steps"] + e["step"], e["total"] * e["steps"]
        if done == 0:
            self.bar.reset(self.task)  # loading must not count in the ETA
        self.bar.update(
            self.task, description=f"{_short(e['input'])}{which}", completed=done, total=steps, count=f"{done}/{steps}"
        )

    def _video(self, e: Event) -> None:
        if e["input"] != self.video:  # its own bar: frames of the next cannot be known yet
            self.video = e["input"]
            self.bar.reset(self.task)
        which = f" {e['index']}/{e['total']}" if e["total"] > 1 else ""
        frames = f"{e['frame']}/{e['frames']}" if e["frames"] else f"{e['frame']}"
        where = f"  shot {e['shot']}  step {e['step']}/{e['steps']}"
        self.bar.update(
            self.task,
            description=f"{_short(e['input'])}{which}",
            completed=e["progress"],
            total=e["frames"],
            count=f"{frames}  {e['fps']:.1f} fps{where if self.err.width >= 100 else ''}",
        )

    def _result(self, e: Event) -> None:
        if "frames" in e:
            self.videos.append((e["input"], "done", f"{e['output']}, {e['frames']} frames, {e['seconds']:.1f} s"))
        frames = f"  {e['frames']} frames" if "frames" in e else ""
        rate = f"  {e['fps']:.1f} fps" if "fps" in e else ""
        line = Text.assemble(
            (e["output"] or e["input"], "bold"),
            f"  {e['width']} x {e['height']}{frames}  {e['seconds']:.1f} s{rate}",
        )
        (self.bar.console if self.out.is_terminal and not self.bar.disable else self.out).print(line)

    def _model(self, e: Event) -> None:
        self.models.append(e)

    def _pulled(self, e: Event) -> None:
        self._say(f"{e['name']}  {e['path']}  {e['bytes'] / 1e9:.2f} GB" if e["bytes"] else f"{e['name']} is here")

    def _verified(self, e: Event) -> None:
        self._say(f"{e['name']}  {'; '.join(e['problems']) or 'right'} ({e['files']} files)")

    def _removed(self, e: Event) -> None:
        self._say(f"{e['name']}  {e['bytes'] / 1e9:.2f} GB freed")

    def _converted(self, e: Event) -> None:
        for message in e["notices"]:
            self._notice({"message": message})
        self._say(e["output"])

    def _inspected(self, e: Event) -> None:
        for name, value in e.items():
            if name != "event":
                told = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
                told = ", ".join(told) if isinstance(told, list) else told
                self._say(f"{name:<12}  {'-' if told in (None, '') else told}")

    def _say(self, line: str) -> None:
        (self.bar.console if self.out.is_terminal and not self.bar.disable else self.out).print(Text(line))

    def _table(self) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("name", "here", "GB", "for", "what it is"):
            table.add_column(column, justify="right" if column == "GB" else "left")
        for e in self.models:
            unsure = "" if e["checked"] else " (not checked)"
            tasks = ", ".join(e["needed_by"])
            table.add_row(e["name"], "yes" if e["here"] else "", f"{e['gb']:.2f}", tasks, e["title"] + unsure)
        self.out.print(table)

    def _summary(self) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(overflow="fold")
        table.add_column()
        table.add_column(overflow="fold")
        for name, how, what in self.videos:
            table.add_row(Text(name), Text(how, "green" if how == "done" else "bold red"), Text(what))
        self.err.print(table)

    def _line(self, text: Text) -> None:
        (self.bar.console if not self.bar.disable else self.err).print(text)


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else name[: width // 2 - 1] + "…" + name[-(width // 2) :]
