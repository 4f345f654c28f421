"""A contact sheet of what varies: `std sheet`.

Every combination of inputs, styles and varied settings is a cell, a picture of its own in the
folder of the cells, named by what it shows and by all that it follows from. Cells that are there
are not made again, so an interrupted sheet resumes and a larger one adds to it.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from std_cli import __version__
from std_cli.config import CELL_SIDE, ImageSettings, parse_style, parse_time
from std_cli.errors import InputError, quote
from std_cli.events import Event, OnEvent
from std_cli.interruption import resumable
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import expand_inputs, read_picture
from std_cli.media.sheets import draw_sheet
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.media.write_picture import check_writable, read_metadata, save_picture
from std_cli.paths import check_path, remove, user_path
from std_cli.stylize.frames import input_fingerprint
from std_cli.stylize.options import LoadOptions
from std_cli.stylize.outputs import check_outputs
from std_cli.stylize.pictures import prepare_images
from std_cli.stylize.request import new_folder, read_references, request_facts, weigh_styles
from std_cli.stylize.settings import read_settings
from std_cli.stylize.stylizer import Stylizer
from std_cli.stylize.videos import prepare_video, video_facts
from std_cli.stylize.workload import evaluations_of

MOST_CELLS = 1000
VARIED = tuple(name for name in ImageSettings.model_fields if name not in ("compare", "labels"))
"""Settings that can be varied; of frames of a video the motion adapter, too."""
_OF_A_FRAME = ("start", "max_frames", "codec", "audio", "subtitles")
"""Settings by which a frame of a video is made: a cell's record is without them, so that
`std repeat` makes the whole video."""


@dataclass(frozen=True)
class Subject:
    """What is stylized: a picture, or a frame of a video."""

    path: Path
    at: Fraction | None
    """The frame's time in seconds; None of a picture."""


@dataclass(frozen=True)
class Value:
    """One of the values of something that varies."""

    label: str
    value: Any
    """A Subject, a style as it was given, or a setting as text."""
    picture: Image.Image | None = None
    """What is shown of it."""


@dataclass(frozen=True)
class Axis:
    """Something that varies, or has one value."""

    name: str
    values: list[Value]

    @property
    def varies(self) -> bool:
        return len(self.values) > 1


@dataclass
class Cell:
    """One combination."""

    subject: Subject
    style: str
    options: dict[str, Any]
    path: Path = field(init=False)
    facts: dict[str, Any] = field(init=False)
    """What the record of a finished cell has."""
    weights: tuple[str, str] = field(init=False)
    """Files that are loaded for it."""
    evaluations: int = field(init=False)
    """Of the network."""

    @property
    def loaded_by(self) -> dict[str, Any]:
        """The options of its `Stylizer`."""
        return {k: v for k, v in self.options.items() if k in LoadOptions.__annotations__}

    @property
    def is_made(self) -> bool:
        """Whether its picture is there, whole and of these facts."""
        try:
            kept = read_metadata(self.path)
        except InputError:
            return False
        return kept is not None and all(kept.get(k) == v for k, v in self.facts.items())


def make_sheet(
    inputs: Sequence[str | Path],
    styles: Sequence[str],
    output: str | Path,
    *,
    vary: Mapping[str, Sequence[str]],
    frames: Sequence[str] = (),
    side: int = CELL_SIDE,
    overwrite: bool = False,
    verbose: bool = False,
    on_event: OnEvent = lambda event: None,
    **options: Any,
) -> None:
    """Write a labelled sheet of every combination of inputs, styles and values of `vary`.

    What varies last are the columns, all else the rows. vary: settings by name, with their values
    as text. frames: times; the inputs are then videos, of which these frames are stylized with the
    settings of videos. side: long side of a cell in the sheet, pixels; the folder NAME.cells next
    to `output` keeps the cells in their own size. options: as of `stylize_images`.

    Raises InputError for every problem of the request before a weight is loaded.
    """
    begin = time.monotonic()
    path = user_path(output, "-o")
    check_writable(path, overwrite)
    given = {name: value for name, value in options.items() if value is not None}
    axes = [
        Axis("input", _subjects(inputs, frames, side)),
        Axis(
            "style",
            [Value(Path(style).name, style, _reference(style)) for style in dict.fromkeys(styles)],
        ),
        *_varied(vary, given, bool(frames)),
    ]
    for name in ("compare", "labels"):
        if given.get(name):
            raise InputError(f"--{name}: a sheet shows its inputs and has labels: leave it out")
    references = [parse_style(str(style))[0] for style in styles]
    check_outputs([path], None, [*map(Path, inputs), *references])
    folder = check_path(path.with_name(f"{path.stem}.cells"), "-o")
    with new_folder(folder):
        cells = _cells(axes, given)
        for cell in cells:
            _prepare(cell, folder)
        missing = [cell for cell in cells if not cell.is_made]
        with resumable("what is made is kept: give the command again to resume"):
            _make(missing, cells, verbose, on_event)
        sheet = _draw(axes, [read_picture(cell.path, side=side).on_white() for cell in cells], side)
        about: dict[str, Any] = {"inputs": [str(item) for item in inputs], "styles": list(styles)}
        about |= {"frames": list(frames), "vary": {k: list(v) for k, v in vary.items()}}
        record = {"version": __version__, "sheet": about, "cells": folder.name}
        save_picture(sheet, path, record, overwrite)
    on_event(
        {
            "event": "result",
            "output": str(path),
            "width": sheet.width,
            "height": sheet.height,
            "seconds": round(time.monotonic() - begin, 3),
            "cells": len(cells),
            "cached": len(cells) - len(missing),
        }
    )


# --- what varies -------------------------------------------------------------------------------


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """["eta=0.55,0.65"] -> {"eta": ["0.55", "0.65"]}; values that have commas are separated by |.

    Raises InputError.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        parts = [part.strip() for part in values.split("|" if "|" in values else ",")]
        if not equals or not name or not all(parts):
            raise InputError(f"--vary {text}: give NAME=VALUE,VALUE, such as eta=0.55,0.65,0.75")
        if name in found:
            raise InputError(f"--vary {text}: --vary {name} is given twice: join their values")
        found[name] = list(dict.fromkeys(parts))
    return found


def _varied(
    vary: Mapping[str, Sequence[str]], given: Mapping[str, Any], of_videos: bool
) -> list[Axis]:
    known = (*VARIED, "motion") if of_videos else VARIED
    for name in vary:
        flag = name.replace("_", "-")
        if name not in known:
            names = ", ".join(each.replace("_", "-") for each in known)
            raise InputError(f"--vary {quote(flag)}: cannot be varied; these can: {names}")
        if name in given:
            raise InputError(f"--{flag} is varied, too: give it once")
    return [
        Axis(name, [Value(f"{name.replace('_', '-')} {value}", value) for value in values])
        for name, values in vary.items()
    ]


def _subjects(inputs: Sequence[str | Path], frames: Sequence[str], side: int) -> list[Value]:
    if not frames:
        for item in inputs:
            if Path(item).suffix.lower() in VIDEO_SUFFIXES - PICTURE_SUFFIXES:
                raise InputError(f"{item} is a video: say which frames, such as --frame 0:02.5")
        paths = expand_inputs(inputs)
        return [
            Value(path.name, Subject(path, None), read_picture(path, side=side).on_white())
            for path in paths
        ]
    times = [_time(text) for text in frames]
    paths = expand_inputs(inputs, VIDEO_SUFFIXES, "video")
    found = []
    for path, at in product(paths, dict.fromkeys(times)):
        label = f"{float(at):g} s" if len(paths) == 1 else f"{path.name}, {float(at):g} s"
        found.append(Value(label, Subject(path, at), _frame(path, at)))
    return found


def _time(text: str) -> Fraction:
    try:
        return parse_time(text)
    except ValueError as e:
        raise InputError(f"--frame {text}: {e}") from None


def _frame(path: Path, at: Fraction) -> Image.Image:
    """The frame of a video that is shown at a time, upright and with square pixels."""
    clip = open_clip(path)
    frame = next(read_frames(clip, start=at, max_frames=1), None)
    if frame is None:
        raise InputError(f"--frame {float(at):g}: {path.name} ends before: give an earlier time")
    return Image.fromarray(frame.rgb).resize(clip.display_size)


def _reference(style: str) -> Image.Image:
    [reference], _ = read_references(weigh_styles(style))
    return reference.on_white()


# --- cells -------------------------------------------------------------------------------------


def _cells(axes: list[Axis], given: Mapping[str, Any]) -> list[Cell]:
    """All combinations, those of the last axis next to each other."""
    sizes = [len(axis.values) for axis in axes]
    count = 1
    for size in sizes:
        count *= size
    if count > MOST_CELLS:
        text = " x ".join(map(str, sizes))
        raise InputError(f"a sheet of {text} = {count} cells: vary less, {MOST_CELLS} at most")
    names = [axis.name for axis in axes[2:]]
    cells = []
    for subject, style, *rest in product(*(axis.values for axis in axes)):
        varied = {name: value.value for name, value in zip(names, rest, strict=True)}
        cells.append(Cell(subject.value, style.value, {**given, **varied}))
    return cells


def _prepare(cell: Cell, folder: Path) -> None:
    """Check the request of a cell, and name it by all that it follows from."""
    subject = cell.subject
    if subject.at is None:
        request = prepare_images(subject.path, cell.style, **cell.options)
        lora, motion, settled = request.lora, None, request.s
        assert request.files is not None
        facts = request_facts(
            request.s, request.schedule, request.files, lora, request.styles, request.references
        )
    else:
        of_video = prepare_video(
            subject.path,
            cell.style,
            folder / ".frame",
            existing="replace",
            **_of_frame(subject.at, cell.options),
        )
        lora, motion, settled = of_video.lora, of_video.motion, of_video.s
        facts = video_facts(of_video)
    settings = {k: v for k, v in facts["settings"].items() if k not in _OF_A_FRAME}
    cell.facts = json.loads(json.dumps(dict(facts) | {"settings": settings}))
    cell.weights = (str(lora.path) if lora else "", str(motion.weights) if motion else "")
    cell.evaluations = evaluations_of(settled)
    follows = [cell.facts, input_fingerprint(subject.path), str(subject.at)]
    key = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", f"{subject.path.stem}_{Path(cell.style).stem}")[:60]
    cell.path = check_path(folder / f"{name}_{key}.png", "-o")


def _of_frame(at: Fraction | None, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which a video's frame is made as a folder of one picture."""
    only = {"start": at, "max_frames": 1, "codec": "png", "audio": "none", "subtitles": "none"}
    return {**options, **only}


def _make(missing: list[Cell], cells: list[Cell], verbose: bool, on_event: OnEvent) -> None:
    """Make the cells that are not there, those of the same weights after each other."""
    if len(missing) < len(cells):
        found = len(cells) - len(missing)
        on_event({"event": "notice", "message": f"{found} of {len(cells)} cells are there already"})
    known: list[object] = []
    for cell in missing:
        for kind in (cell.loaded_by, cell.weights):
            if kind not in known:
                known.append(kind)
    missing.sort(key=lambda cell: (known.index(cell.loaded_by), known.index(cell.weights)))
    report = Numbered(len(cells), len(cells) - len(missing), on_event)
    report.costs = [cell.evaluations for cell in missing]
    stylizer: Stylizer | None = None
    loaded: dict[str, Any] | None = None
    try:
        for cell in missing:
            if stylizer is None or cell.loaded_by != loaded:
                if stylizer is not None:
                    stylizer.close()
                loaded = cell.loaded_by
                stylizer = Stylizer(verbose=verbose, **loaded)
            report.next()
            look = {k: v for k, v in cell.options.items() if k not in loaded}
            _make_one(cell, stylizer, look, report)
    finally:
        if stylizer is not None:
            stylizer.close()


def _make_one(cell: Cell, stylizer: Stylizer, look: dict[str, Any], on_event: OnEvent) -> None:
    subject = cell.subject
    if subject.at is None:
        for _ in stylizer.images(
            subject.path, cell.style, cell.path, overwrite=True, on_event=on_event, **look
        ):
            pass
        return
    draft = cell.path.with_name(".frame")
    look = _of_frame(subject.at, look)
    stylizer.video(
        subject.path, cell.style, draft, overwrite=True, resume=False, on_event=on_event, **look
    )
    record = read_settings(draft) or {}
    record["settings"] = {k: v for k, v in record["settings"].items() if k not in _OF_A_FRAME}
    save_picture(read_picture(draft / "000001.png").rgb, cell.path, record, overwrite=True)
    remove(draft)


class Numbered:
    """Passes events of single cells on as those of one run: numbered, without results, and without
    starts and notices that are repeated."""

    def __init__(self, total: int, done: int, on_event: OnEvent) -> None:
        self.total, self.done, self.on_event = total, done, on_event
        self.said: list[object] = []
        self.costs: Sequence[int] = ()
        """Evaluations of the network for each cell that is to be made, in order."""
        self._made = 0

    def next(self) -> None:
        """Another cell is begun."""
        self.done += 1
        self._made += 1

    def __call__(self, event: Event) -> None:
        if event["event"] == "result":
            return
        if event["event"] in ("start", "notice"):
            what = event.get("message") or (event["model"], event["lora"])  # type: ignore[typeddict-item]
            if what in self.said:
                return
            self.said.append(what)
        if event["event"] == "progress" and (
            event["stage"] == "picture" or event["stage"] == "video"
        ):
            event["index"], event["total"] = self.done, self.total
        if event["event"] == "progress" and event["stage"] == "picture" and self.costs:
            own = self.costs[self._made - 1] * event["step"] / event["steps"]
            event["share"] = (sum(self.costs[: self._made - 1]) + own) / sum(self.costs)
        self.on_event(event)


# --- the sheet ---------------------------------------------------------------------------------


def _draw(axes: list[Axis], cells: list[Image.Image], side: int) -> Image.Image:
    """The sheet: the last axis that varies are the columns, combinations of the others the rows.

    Pictures of inputs and styles are at the heads of what they belong to.
    """
    across = next((axis for axis in reversed(axes) if axis.varies), axes[-1])
    down = [axis for axis in axes if axis is not across]
    shown = [axis for axis in down if axis.values[0].picture is not None]
    heads = ["" if axis.varies else axis.values[0].label for axis in shown]
    heads += [value.label for value in across.values]
    rows: list[list[Image.Image | None]] = []
    names: list[str] = []
    if across.values[0].picture is not None:
        pictures = [_small(value.picture, side) for value in across.values]
        rows.append([*([None] * len(shown)), *pictures])
        names.append("")
    before: dict[str, Value] = {}
    remaining = iter(cells)
    for combination in product(*(axis.values for axis in down)):
        row: list[Image.Image | None] = []
        for axis, value in zip(down, combination, strict=True):
            if axis in shown:
                new = before.get(axis.name) is not value
                row.append(_small(value.picture, side) if new else None)
            before[axis.name] = value
        row += [_small(next(remaining), side) for _ in across.values]
        rows.append(row)
        labels = [v.label for axis, v in zip(down, combination, strict=True) if axis.varies]
        names.append("\n".join(labels))
    return draw_sheet(rows, heads, names)


def _small(picture: Image.Image | None, side: int) -> Image.Image | None:
    if picture is None:
        return None
    return ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
