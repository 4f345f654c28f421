"""What help pages, `std plan`, `std doctor` and `std models list` print, as tables and lines for a
terminal."""

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from std_cli.errors import counted
from std_cli.events import (
    Config,
    Doctor,
    Model,
    Picks,
    Plan,
    PlannedComparison,
    PlannedInput,
    PlannedMemory,
    PlannedSpread,
    PlannedTime,
    Record,
    ResolvedSetting,
    Version,
)
from std_cli.weights.zoo import corrections_file

if TYPE_CHECKING:
    from std_cli.cli.help import Page

Rows = list[tuple[str, str]]


def help_lines(page: "Page", width: int) -> Iterator[RenderableType]:
    """A page of help. Long names have a line to themselves, with their text below it."""
    yield Text.assemble(("Usage: ", "bold"), page.usage)
    yield Text(f"\n{page.text}")
    longest = max((len(name) for rows in page.panels.values() for name, _ in rows), default=0)
    column = min(longest, width * 35 // 100)
    for title, rows in page.panels.items():
        yield Text(f"\n{title}", "bold")
        for name, text in rows:
            first, *more = wrap(text, width - column - 4) or [""]
            if len(name) > column:
                yield Text(f"  {name}", "cyan")
                name, more = "", [first, *more]
            else:
                yield Text.assemble((f"  {name:<{column}}", "cyan"), f"  {first}")
            for line in more:
                yield Text(f"{'':{column}}    {line}")
    for note in page.notes:
        yield Text(f"\n{note}", "dim")
    if page.examples:
        yield Text("\nExamples", "bold")
        for example in page.examples:
            yield Text(f"  {example}")


def plan_lines(plan: Plan) -> Iterator[RenderableType]:
    """What a request would take, whether it fits, and notes."""
    yield _two_columns(_plan_rows(plan))
    yield Text()
    yield _settings_table(plan["settings"])
    yield Text()
    yield _verdict(plan["picks"], plan["task"] == "video")
    for note in plan["notes"]:
        yield Text(f"note: {note}", "dim")


def comparison_lines(plan: PlannedComparison) -> Iterator[RenderableType]:
    """What a comparison would take, and notes."""
    to_make = plan["cells"] - plan["cached"]
    disk, seconds = plan["disk"], plan["seconds"]
    needed = "unknown" if disk["needed"] is None else f"about {as_bytes(disk['needed'])}"
    rows = [
        *((name, counted(cells, "cell")) for name, cells in plan["compared"].items()),
        ("all", f"{counted(plan['cells'], 'cell')}, {plan['cached']} of them are there already"),
        ("measures", ", ".join(plan["measures"]) or "none"),
        *((name, f"skipped: {reason}") for name, reason in plan["skipped"].items()),
        ("to make", counted(plan["evaluations"], "evaluation") if to_make else "nothing"),
        ("disk", f"{needed} of {as_bytes(disk['free'])} free in {disk['where']}"),
        ("time", "unknown" if seconds is None else f"about {duration(seconds)}, without measuring"),
    ]
    yield _two_columns(rows)
    for note in plan["notes"]:
        yield Text(f"note: {note}", "dim")


def config_lines(config: Config) -> Iterator[RenderableType]:
    """The settings that a command without other options takes, the files and the looks."""
    yield _settings_table(config["settings"])
    yield Text()
    user = config["user_file"]
    files = config["files"] or [f"none; std.toml in this folder and {user} would be read"]
    looks = [f"{name} ({where})" for name, where in config["looks"].items()]
    yield _two_columns([("files", ", ".join(files)), ("looks", ", ".join(looks) or "none")])


def _settings_table(settings: dict[str, ResolvedSetting]) -> Table:
    """Settings that have a value, with where it comes from."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for name, setting in settings.items():
        if setting["value"] is not None:
            chosen = setting["source"] != "built in"
            place = Text(place_of(setting), "" if chosen else "dim")
            table.add_row(Text(name, "bold" if chosen else ""), Text(shown(name, setting)), place)
    return table


def shown(name: str, setting: ResolvedSetting) -> str:
    """The value of a setting as one would write it."""
    value = setting["value"]
    if isinstance(value, list):
        return ("x" if name in ("size", "output_size") else ", ").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def place_of(setting: ResolvedSetting) -> str:
    """Where the value of a setting comes from."""
    source, where = setting["source"], setting["where"]
    if source in ("method", "LoRA"):
        return f"{source} {where}"
    return source if source == "model" else where or source


def _plan_rows(plan: Plan) -> Rows:
    video, memory = plan["task"] == "video", plan["memory"]
    parts = [plan["model"], plan["lora"], plan["motion"]]
    rows = [
        ("model", " + ".join(part for part in parts if part)),
        ("device", f"{plan['device']}, {plan['device_name']}, {plan['dtype']}"),
        *((each["input"], _input_line(each, video)) for each in plan["inputs"]),
    ]
    if len(plan["inputs"]) > 1:
        frames, evaluations = plan["frames"], plan["evaluations"]
        rows.append(("all", f"{counted(frames, 'frame')}, {counted(evaluations, 'evaluation')}"))
    rows += _memory_rows(memory)
    disk = plan["disk"]
    needed = "unknown" if disk["needed"] is None else f"about {as_bytes(disk['needed'])}"
    rows.append(("disk", f"{needed} of {as_bytes(disk['free'])} free in {disk['where']}"))
    if plan["time"]:
        rows.append(("time", _time_line(plan["time"], video)))
    return rows + (_spread_rows(plan["spread"], video) if "spread" in plan else [])


def _spread_rows(spread: PlannedSpread, video: bool) -> Rows:
    """What it takes on several devices."""
    what = "frame" if video else "picture"
    of_shots = f", {counted(spread['pieces'], 'piece')} of shots" if spread["pieces"] else ""
    seconds, again = spread["seconds"], spread["lost_seconds"]
    took = "" if seconds is None else f", about {duration(seconds)}"
    lost = "" if again is None else f", about {duration(again)}"
    return [
        (
            counted(spread["devices"], "device"),
            f"{counted(spread['units'], 'unit')}{of_shots}, {counted(spread['computed'], what)} "
            f"denoised, {spread['speedup']:g} x as fast as one{took}",
        ),
        ("to copy", f"{as_bytes(spread['copied'])} of inputs, where no disk is shared"),
        ("a lost worker", f"costs {counted(spread['lost'], what)} at most{lost}"),
    ]


def _input_line(each: PlannedInput, video: bool) -> str:
    shape = f"at {each['working'][0]} x {each['working'][1]}"
    counts = f"{shape}, {counted(each['evaluations'], 'evaluation')}"
    if not video:
        return counts
    clip = [counted(each["frames"], "frame"), counted(each["shots"], "shot")]
    return f"{', '.join(clip)}, {counted(each['windows'], 'window')}, {counts}"


def _memory_rows(memory: PlannedMemory) -> Rows:
    rows = [
        (title, ", ".join(f"{part} {as_bytes(size)}" for part, size in sizes.items()))
        for title, sizes in (("weights", memory["weights"]), ("at work", memory["activations"]))
    ]
    free = f"of {as_bytes(memory['free'])} free ({as_bytes(memory['total'])} in all)"
    several = len(memory["modes"]) > 1
    for mode, size in memory["modes"].items():
        held = memory["parts"][mode].items()
        parts = ", ".join(f"{part.replace('_', ' ')} {as_bytes(each)}" for part, each in held)
        line = f"{as_bytes(size)} {free}{f': {parts}' if several else ''}"
        rows.append((f"--offload {mode}" if several else "memory", line))
    loading, main_free = as_bytes(memory["loading"]), as_bytes(memory["main_free"])
    return [*rows, ("loading", f"{loading} of {main_free} of main memory free")]


def _time_line(time: PlannedTime, video: bool) -> str:
    window, frame = ("a window's", "a frame's") if video else ("a", "a picture's")
    parts = f"loading {duration(time['load'])}; {window} step {time['evaluation']:.3f} s; "
    parts += f"{frame} encoding {time['encode']:.3f} s, decoding {time['decode']:.3f} s"
    seconds = time["seconds"]
    return f"{'unknown' if seconds is None else f'about {duration(seconds)}'} ({parts})"


def _verdict(picks: Picks | None, video: bool) -> Text:
    if picks is None:
        remedy = "use --model tiny, or another device"
        return Text(f"does not fit, in no mode and at no size: {remedy}", "bold red")
    if picks["flags"]:
        return Text(f"does not fit as it is; this does: add {picks['flags']}", "yellow")
    shape = f"{picks['size'][0]} x {picks['size'][1]}"
    line = f"fits: {picks['device']}, {picks['dtype']}, --offload {picks['offload']}, {shape}"
    if video:
        line += f", {counted(picks['batch'], 'window')} at once"
    return Text(line, "green")


def doctor_lines(found: Doctor) -> Iterator[RenderableType]:
    """What is here, and what is wrong with it."""
    yield _two_columns(_doctor_rows(found))
    for problem in found["problems"]:
        kind = ("problem: ", "bold red") if problem["breaks"] else ("note: ", "yellow")
        yield Text.assemble(kind, f"{problem['what']}: {problem['remedy']}")
    if any(problem["breaks"] for problem in found["problems"]):
        return
    verdict = "all that a run needs is here"
    cache, hub = found["cache"], found["hub"]
    if cache and cache["missing"]:
        offline = hub is not None and hub["offline"]
        verdict = "what is downloaded can run" if offline else f"{verdict}, or comes from the Hub"
    yield Text(verdict, "green")


def _doctor_rows(found: Doctor) -> Rows:
    versions = (f"{name} {number or 'missing'}" for name, number in found["versions"].items())
    rows = [("versions", ", ".join(versions))]
    for device in found["devices"]:
        free = f"{as_bytes(device['free'])} of {as_bytes(device['total'])} free"
        rows.append((device["device"], f"{device['name']}, {free}"))
    if found["driver"]:
        rows.append(("driver", f"NVIDIA {found['driver']}"))
    for title, works in (("encoders", True), ("not usable", False)):
        names = [name for name, why in found["encoders"].items() if (not why) is works]
        rows.append((title, ", ".join(names) or "none"))
    cache, hub, test = found["cache"], found["hub"], found["self_test"]
    if cache:
        here = ", ".join(name for name, there in cache["models"].items() if there)
        rows.append(
            ("cache", f"{cache['path']}, {as_bytes(cache['free'])} free; models here: {here}")
        )
    if hub:
        answer = "off-line" if hub["offline"] else hub["error"] or "answers"
        rows.append(("hub", f"{hub['endpoint']}: {answer}"))
    if test:
        rows.append(
            ("self-test", test["error"] or f"a picture stylized in {duration(test['seconds'])}")
        )
    return rows


def version_lines(facts: Version) -> Iterator[RenderableType]:
    """The version of std, then those of the libraries and the devices where they are known."""
    yield Text(f"std {facts['version']}")
    if "versions" in facts:
        rows = [(name, number or "missing") for name, number in facts["versions"].items()]
        devices = [(each["device"], each["name"]) for each in facts.get("devices", ())]
        yield _two_columns([*rows[1:], *devices])


def model_lines(models: list[Model]) -> Iterator[RenderableType]:
    """The models of the table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("name", "here", "GB", "for", "what it is"):
        table.add_column(column, justify="right" if column == "GB" else "left")
    for model in models:
        unsure = "" if model["checked"] else " (not checked)"
        size = f"{model['gb']:.2f}" if model["gb"] >= 0.01 else "<0.01"
        here, tasks = "yes" if model["here"] else "", ", ".join(model["needed_by"])
        table.add_row(model["name"], here, size, tasks, model["title"] + unsure)
    yield table
    yield (
        "not checked: repository, file or commit could not be verified; correct them in "
        f"{corrections_file()}"
    )


def record_lines(event: Record) -> Iterator[RenderableType]:
    """What a result of std keeps: what is known of the run, the settings, the figures."""
    record = dict(event["record"])
    settings = record.pop("settings", None)
    inner = dict(settings) if isinstance(settings, Mapping) else {}
    for name in ("model", "lora", "device", "dtype"):  # with hashes in the settings
        if name in inner:
            record.pop(name, None)
    made = record.pop("origin", None)
    facts = made if isinstance(made, Mapping) else {}
    rows = [("file", event["file"])]
    rows += [(_title(name), _shown(value)) for name, value in record.items()]
    rows += [("input sha256", _shown(facts["sha256"]))] if facts.get("sha256") else []
    rows += [(_title(name), _shown(value)) for name, value in inner.items()]
    yield _two_columns(rows)


def _title(name: str) -> str:
    return name.replace("_", "-" if name not in ("seam_ratio",) else " ")


def _shown(value: Any) -> str:
    """A value of a record, which may be anything that JSON can hold."""
    if value is None or value == "":
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, Mapping):
        rest = {k: v for k, v in value.items() if k != "name"}
        inside = ", ".join(f"{k} {_shown(v)}" for k, v in rest.items())
        return f"{_shown(value['name'])} ({inside})" if "name" in value else inside or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _two_columns(rows: Rows) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, what in rows:
        table.add_row(Text(name, "bold"), Text(what))
    return table


def as_bytes(size: int) -> str:
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """8.3 s, 1 min 8 s, 1 h 2 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
