"""What a person, or a program reading `--json`, sees of a run. The only module that knows Rich.

Results go to stdout, one line each; progress, notices and errors to stderr. Progress is drawn on a
terminal; elsewhere it is a line now and then.
"""

import json
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

from std_cli.cli.progress_lines import ProgressLines
from std_cli.cli.tables import (
    comparison_lines,
    config_lines,
    doctor_lines,
    duration,
    help_lines,
    model_lines,
    plan_lines,
    record_lines,
    version_lines,
)
from std_cli.errors import counted, printable

if TYPE_CHECKING:
    from std_cli.cli.help import Page

Shown = dict[str, Any]
"""An event of any kind, printable."""


class _Elapsed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How long the work has taken."""
        return Text(duration(task.elapsed or 0.0), "progress.elapsed")


class _Left(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """How long the rest will take, once that can be said."""
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left else "", "progress.remaining")


class Reporter:
    """Shows events as they come; use as a context manager, so that the terminal is left clean."""

    def __init__(
        self, as_json: bool = False, quiet: bool = False, only_stderr: bool = False
    ) -> None:
        """only_stderr: standard output holds something else."""
        self.as_json, self.quiet = as_json, quiet
        self.out, self.err = (
            Console(stderr=only_stderr, highlight=False, soft_wrap=True),
            Console(stderr=True, highlight=False, soft_wrap=True),
        )
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            _Elapsed(),
            _Left(),
            console=self.err,
            transient=True,
            disable=as_json or quiet or not self.err.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=None, count="")
        plain = not (as_json or quiet or self.err.is_terminal)
        self.lines = ProgressLines(self.err.print) if plain else None
        self.video = self.started = self.stage = ""
        self.inputs: list[tuple[str, str, str]] = []
        """(input, done or failed, what) of each video, and of pictures that failed: the table."""
        self.models: list[Shown] = []

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        failed = any(how == "failed" for _, how, _ in self.inputs)
        if (len(self.inputs) > 1 or failed) and not self.as_json and not self.quiet:
            self._summary()
        if self.models and not self.as_json:
            for line in model_lines(self.models):  # type: ignore[arg-type]
                self.out.print(line)

    def __call__(self, given: Mapping[str, object]) -> None:
        """Show one of `std_cli.events`."""
        if self.as_json:
            _write_line(_json(given))
            return
        event: Shown = _printable(given)
        if event["event"] == "error":
            if "input" in event:  # one of several inputs: the others continue
                self.inputs.append((event["input"], "failed", ""))  # the reason is said here
            else:
                self._end()
            self._line(Text.assemble(("error: ", "bold red"), event["message"]))
        elif not self.quiet:
            getattr(self, f"_{event['event']}")(event)

    def _start(self, e: Shown) -> None:
        if "trainable" in e:
            shown = (
                f"{counted(e['samples'], 'sample')}, {e['trainable'] / 1e6:.1f} M trainable "
                f"parameters, {counted(e['steps'], 'update')}"
            )
            self._line(Text(f"{e['model']} on {e['device']} in {e['dtype']}: {shown}", "dim"))
            self._restart()
            return
        lora = f" + {e['lora']}" if e["lora"] else ""
        started = f"{e['model']}{lora} on {e['device']} in {e['dtype']}"
        if started != self.started:  # every video reports it
            self._line(Text(started, "dim"))
        self.started = started

    def _notice(self, e: Shown) -> None:
        self._line(Text.assemble(("note: ", "yellow"), e["message"]))

    def _progress(self, e: Shown) -> None:
        stage, before = e["stage"], self.stage
        self.stage = stage
        if stage == "load":
            self._advance(f"loading {e['model']}")
        elif stage in ("count", "check", "report"):
            words = {"count": "counting the shots of", "check": "checking", "report": "reading"}
            self._advance(f"{words[stage]} {_short(e.get('input') or e['what'])}")
        elif stage == "measure":
            if before != stage:
                self._restart()  # the time of what was made must not count in the time left
            self._advance("measuring", e["index"], e["total"], f"{e['index']}/{e['total']}")
        elif stage in ("pull", "copy"):
            done, total = e["done"], e["total"]
            self._advance(
                "downloading" if stage == "pull" else "copying",
                done,
                total,
                f"{done / 1e9:.2f}/{total / 1e9:.2f} GB",
            )
        elif stage == "distill":
            self._distill(e)
        elif stage == "video":
            self._video(e)
        elif stage == "spread":
            self._spread(e)
        else:
            self._picture(e)

    def _picture(self, e: Shown) -> None:
        # the steps of all pictures on one bar, so that its time left is the whole run's
        done, steps = (e["index"] - 1) * e["steps"] + e["step"], e["total"] * e["steps"]
        if done == 0 or e.get("share") == 0:
            self._restart()  # loading must not count in the time left
        if "share" in e:
            self._advance(_which(e), e["share"], 1, f"step {e['step']}/{e['steps']}")
        else:
            self._advance(_which(e), done, steps, f"{done}/{steps}")

    def _video(self, e: Shown) -> None:
        if e["input"] != self.video:  # its own bar: frames of the next cannot be known yet
            self.video = e["input"]
            self._restart()
        frames = f"{e['frame']}/{e['frames']}" if e["frames"] else f"{e['frame']}"
        where = f"  shot {e['shot']}  step {e['step']}/{e['steps']}"
        more = f"  {e['fps']:.1f} fps{where if self.err.width >= 100 else ''}"
        self._advance(_which(e), e["progress"], e["frames"], frames, more, e["eta"])

    def _spread(self, e: Shown) -> None:
        units = f"{e['unit']}/{counted(e['units'], 'unit')} on {counted(e['workers'], 'worker')}"
        lost = f"  {e['lost']} lost, {counted(e['retried'], 'unit')} retried" if e["lost"] else ""
        more = f"  {e['fps']:.1f} fps"
        self._advance("stylizing", e["frame"], e["frames"], f"{units}{lost}", more, e["eta"])

    def _distill(self, e: Shown) -> None:
        losses = [f"{short} {e[name]:.4f}" for name, short in _LOSSES.items() if name in e]
        bank = f"bank {e['bank']} {_bars(e['bank_histogram'])}"
        more = f"  {bank}  {e['samples_per_second']:.2f}/s  {e['memory'] / 2**30:.1f} GiB"
        updates = f"{e['step']}/{e['steps']}  {'  '.join(losses)}"
        more = more if self.err.width >= 110 else ""
        self._advance("distilling", e["step"], e["steps"], updates, more, e["eta"])

    def _advance(
        self,
        what: str,
        done: float = 0.0,
        total: float | None = None,
        amount: str = "",
        more: str = "",
        left: float | None = None,
    ) -> None:
        """Show where the work is; `more` has room on the bar only."""
        self.bar.update(
            self.task, description=what, completed=done, total=total, count=f"{amount}{more}"
        )
        if self.lines is not None:
            self.lines.update(what, done, total, amount.replace("  ", ", "), left)

    def _restart(self) -> None:
        """Other work begins."""
        self.bar.reset(self.task)
        if self.lines is not None:
            self.lines.restart()

    def _end(self) -> None:
        self.bar.stop()
        if self.lines is not None:
            self.lines.stop()

    def _check(self, e: Shown) -> None:
        for name, value in e.items():
            if name != "event":
                shown = (
                    ", ".join(f"{k} {v}" for k, v in value.items())
                    if isinstance(value, dict)
                    else str(value)
                )
                self.out.print(Text.assemble((f"{name.replace('_', ' ')}: ", "bold"), shown))

    def _result(self, e: Shown) -> None:
        if "steps" in e and "width" not in e:
            score = f"  validation {e['validation']:.4f}" if "validation" in e else ""
            score += (
                f"  {e['weights']} weights, schedule {e['schedule']}" if "schedule" in e else ""
            )
            line = Text.assemble(
                (e["output"], "bold"),
                f"  {counted(e['steps'], 'update')}  {duration(e['seconds'])}{score}",
            )
            (self.bar.console if self.out.is_terminal and not self.bar.disable else self.out).print(
                line
            )
            return
        if "failed" in e:
            there = f", {e['cached']} of them were there" if e["cached"] else ""
            self._say(
                f"{e['output']}  {counted(e['cells'], 'cell')}{there}  {duration(e['seconds'])}"
            )
            return
        if "frames" in e:
            self.inputs.append(
                (
                    e["input"],
                    "done",
                    f"{e['output']}, {counted(e['frames'], 'frame')}, {duration(e['seconds'])}",
                )
            )
        frames = f"  {counted(e['frames'], 'frame')}" if "frames" in e else ""
        rate = f"  {e['fps']:.1f} fps" if "fps" in e else ""
        rate += f"  thumbnail {e['thumbnail']}" if "thumbnail" in e else ""
        line = Text.assemble(
            (e["output"] or e["input"], "bold"),
            f"  {e['width']} x {e['height']}{frames}  {duration(e['seconds'])}{rate}",
        )
        (self.bar.console if self.out.is_terminal and not self.bar.disable else self.out).print(
            line
        )

    def _unit(self, e: Shown) -> None:
        which = f"{e['unit']}  {e['number']} of {e['total']}"
        self._say(f"{which}  {counted(e['frames'], 'frame')}  {duration(e['seconds'])}")

    def _plan(self, e: Shown) -> None:
        self._print(plan_lines(e))  # type: ignore[arg-type]

    def _comparison(self, e: Shown) -> None:
        self._print(comparison_lines(e))  # type: ignore[arg-type]

    def _doctor(self, e: Shown) -> None:
        self._print(doctor_lines(e))  # type: ignore[arg-type]

    def _config(self, e: Shown) -> None:
        self._print(config_lines(e))  # type: ignore[arg-type]

    def _version(self, e: Shown) -> None:
        self._print(version_lines(e))  # type: ignore[arg-type]

    def _record(self, e: Shown) -> None:
        self._print(record_lines(e))  # type: ignore[arg-type]

    def _print(self, lines: Iterable[RenderableType]) -> None:
        """Tables fit the terminal; lines are left to it."""
        self._end()
        for line in lines:
            self.out.print(line, soft_wrap=not isinstance(line, Table))

    def _model(self, e: Shown) -> None:
        self.models.append(e)

    def _pulled(self, e: Shown) -> None:
        self._say(
            f"{e['name']}  {e['path']}  {_gb(e['bytes'])}" if e["bytes"] else f"{e['name']} is here"
        )

    def _verified(self, e: Shown) -> None:
        self._say(
            f"{e['name']}  {'; '.join(e['problems']) or 'right'} ({counted(e['files'], 'file')})"
        )

    def _removed(self, e: Shown) -> None:
        others = "nothing freed: other models that are here need its files"
        self._say(
            f"{e['name']}  {_gb(e['bytes'])} freed" if e["bytes"] else f"{e['name']}  {others}"
        )

    def _converted(self, e: Shown) -> None:
        for message in e["notices"]:
            self._notice({"message": message})
        self._say(e["output"])

    def _inspected(self, e: Shown) -> None:
        for name, value in e.items():
            if name in ("event", "metadata_cut"):
                continue
            shown = _short_metadata(value, e["metadata_cut"]) if name == "metadata" else value
            text = (
                ", ".join(f"{k}: {v}" for k, v in shown.items())
                if isinstance(shown, dict)
                else shown
            )
            text = ", ".join(text) if isinstance(text, list) else text
            text = text or ("as the ranks" if name == "alphas" and e["ranks"] else text)
            self._say(f"{name:<12}  {'-' if text in (None, '') else text}")

    def _say(self, line: str) -> None:
        (self.bar.console if self.out.is_terminal and not self.bar.disable else self.out).print(
            Text(line)
        )

    def _summary(self) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(overflow="fold")
        table.add_column()
        table.add_column(overflow="fold")
        for name, how, what in self.inputs:
            table.add_row(
                Text(name), Text(how, "green" if how == "done" else "bold red"), Text(what)
            )
        self.err.print(table)

    def _line(self, text: Text) -> None:
        (self.bar.console if not self.bar.disable else self.err).print(text)


def print_help(page: "Page") -> None:
    """The help of a command, in lines of 110 characters at most."""
    console = Console(highlight=False)
    console.width = min(console.width, 110)
    for line in help_lines(page, console.width):
        console.print(line)


def _printable(value: Any) -> Any:
    """An event without control characters: names and metadata in it come from files."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list | tuple) else value


def _json(event: Mapping[str, object]) -> str:
    """An event in one line of JSON; what a terminal would obey, or cannot be written, is
    escaped."""
    unsafe = r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(
        unsafe, lambda match: f"\\u{ord(match[0]):04x}", json.dumps(event, ensure_ascii=False)
    )


_LOSSES = {"loss": "loss", "adversarial": "adv", "discriminator": "D", "validation": "val"}


_WRITING = threading.Lock()


def _write_line(line: str) -> None:
    """A line to stdout in one system call: several processes or threads that write to one pipe or
    file do not mix.

    Half of a surrogate pair, which stands for a byte of a file name, is written as JSON escapes it.
    """
    left = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
    with _WRITING:
        sys.stdout.flush()
        buffer = sys.stdout.buffer
        raw = getattr(buffer, "raw", buffer)
        while left:  # once, unless a signal comes while a pipe is full
            left = left[raw.write(left) or 0 :]


def _bars(counts: list[int]) -> str:
    """A histogram in one line of text."""
    most = max([*counts, 1])
    return "".join(" ▁▂▃▄▅▆▇█"[round(8 * count / most)] for count in counts)


def _gb(size: int) -> str:
    """As the Hub tells sizes."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _short_metadata(metadata: dict[str, str], lengths: dict[str, int]) -> dict[str, str]:
    """The first lines' worth of a file's metadata; `lengths` has the true ones of values that are
    cut already."""
    shown = {}
    for key, value in list(metadata.items())[:20]:
        length = lengths.get(key, len(value))
        line = " ".join(value.split())
        shown[key] = line if length <= 60 else f"{line[:40]}... ({length} characters)"
    if more := len(metadata) - len(shown) + lengths.get("...", 0):
        shown["..."] = counted(more, "more key")
    return shown


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else name[: width // 2 - 1] + "…" + name[-(width // 2) :]


def _which(e: Shown) -> str:
    """Which of the inputs is at work."""
    return _short(e["input"]) + (f" {e['index']}/{e['total']}" if e["total"] > 1 else "")
