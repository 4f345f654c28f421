"""Cells made: those that are not there, in this process with one loaded model after another."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

from std_cli.comparison.cells import OF_CLIPS, Cell, prepare_clip
from std_cli.comparison.cost import Memory
from std_cli.errors import Cancelled, StdError
from std_cli.events import Event, OnEvent
from std_cli.paths import remove_stale_drafts
from std_cli.stylize.sheet import Numbered
from std_cli.stylize.stylizer import Stylizer
from std_cli.stylize.workload import evaluations_of, video_input
from std_cli.weights.fingerprints import fingerprint

MakeMissing = Callable[[Sequence[Cell], Numbered], None]
"""Makes cells that are missing; one that fails keeps the reason."""


def make(cells: Sequence[Cell], make_missing: MakeMissing, on_event: OnEvent) -> int:
    """Make the cells that are not there; returns how many were there. One that fails keeps the
    reason, and the others are made."""
    missing = []
    for cell in cells:
        if cell.is_made():
            continue
        if cell.of_peer:
            cell.record = {"key": cell.key, "result": fingerprint(cell.path), "figures": {}}
            cell.save()
            continue
        missing.append(cell)
    own = sum(not cell.of_peer for cell in cells)
    here = own - len(missing)
    if missing and here:
        on_event({"event": "notice", "message": f"{here} of {own} cells are there already"})
    remove_stale_drafts(cells[0].record_path.parent)
    if missing:
        make_missing(missing, Numbered(len(missing), 0, on_event))
    return here


def make_here(missing: Sequence[Cell], report: Numbered, verbose: bool) -> None:
    """Make cells in this process, one after another."""
    ordered = in_order(missing)
    if all(cell.content.kind == "picture" for cell in ordered):
        report.costs = [evaluations(cell) or 0 for cell in ordered]
    with closing(CellMaker(verbose)) as maker:
        for cell in ordered:
            report.next()
            try:
                maker.make(cell, report)
            except Cancelled:
                raise
            except StdError as e:
                cell.failure = str(e)
                report({"event": "notice", "message": f"{cell.path.name}: failed: {e}"})


class CellMaker:
    """Makes cells with one loaded model, which is loaded again where a cell needs another."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._stylizer: Stylizer | None = None
        self._loaded: dict[str, Any] | None = None

    def make(self, cell: Cell, on_event: OnEvent) -> None:
        """Make a cell. Raises StdError if it fails."""
        if self._stylizer is None or cell.loaded_by != self._loaded:
            self.close()
            self._loaded = cell.loaded_by
            self._stylizer = Stylizer(verbose=self._verbose, **self._loaded)
        _make_one(cell, self._stylizer, on_event)

    def close(self) -> None:
        """Free the memory of the model."""
        if self._stylizer is not None:
            self._stylizer.close()
            self._stylizer = None


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Those of the same weights after each other, and of these the ones of the same style, so that
    nothing is loaded or encoded twice."""
    places: dict[str, int] = {}
    for cell in cells:
        for part in _parts(cell):
            places.setdefault(part, len(places))
    return sorted(cells, key=lambda cell: [places[part] for part in _parts(cell)])


def loaded_for(cell: Cell) -> list[str]:
    """What is loaded for a cell, in words: equal for those that need the same."""
    return [
        f"options {sorted(cell.loaded_by.items())}",
        f"kind {cell.content.kind}",
        f"weights {cell.checked.weights if cell.checked else ()}",
    ]


def _parts(cell: Cell) -> list[str]:
    style = f"style {cell.style.path} {cell.options.get('style_scale')}"
    return [*loaded_for(cell), style]


def _make_one(cell: Cell, stylizer: Stylizer, on_event: OnEvent) -> None:
    """Make a cell's result, then its record: one without it is made again."""
    options = {k: v for k, v in cell.options.items() if k not in cell.loaded_by}
    options["seed"] = cell.seed
    content, style = cell.content.path, cell.style.path
    with ExitStack() as stack:
        watched = _Watched(on_event, stack)
        if cell.content.kind == "picture":
            for _ in stylizer.images(
                content, style, cell.path, overwrite=True, on_event=watched, **options
            ):
                pass
        else:
            options |= OF_CLIPS
            stylizer.video(content, style, cell.path, overwrite=True, on_event=watched, **options)
    cell.record = {
        "key": cell.key,
        "result": fingerprint(cell.path),
        "cost": {
            "seconds": watched.seconds,
            "evaluations": evaluations(cell),
            "memory": watched.memory.peak,
        },
        "figures": {},
    }
    cell.save()


def evaluations(cell: Cell) -> int | None:
    """Evaluations of the network for a cell, of every window of frames; None of a clip that is too
    long to be counted."""
    assert cell.checked is not None
    if cell.content.kind == "picture":
        return evaluations_of(cell.checked.settings)
    request = prepare_clip(cell)
    stride = request.window - request.overlap
    [job] = request.jobs
    return video_input(job, request.s, request.window, stride, lambda _: None)["evaluations"]


class _Watched:
    """Passes the events of a cell on, and takes its cost from them: time and memory count from when
    its model is loaded."""

    def __init__(self, on_event: OnEvent, stack: ExitStack) -> None:
        self.on_event, self.stack = on_event, stack
        self.seconds = 0.0
        self.memory = Memory()
        self.begun = False

    def __call__(self, event: Event) -> None:
        if event["event"] == "result" and "seconds" in event:
            self.seconds = float(event["seconds"])
        works = event["event"] == "progress" and event["stage"] in ("picture", "video")
        if works and not self.begun:
            self.begun = True
            self.stack.enter_context(self.memory)
        self.on_event(event)
