"""Cells measured: every figure is kept with the cell, and taken once."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from std_cli import __version__
from std_cli.comparison.cells import Cell, Skipped
from std_cli.comparison.measures import MEASURES, Measure
from std_cli.comparison.samples import sample_of
from std_cli.comparison.thumbnails import write_thumbnail
from std_cli.errors import Cancelled, InputError, StdError, at_work
from std_cli.events import OnEvent
from std_cli.weights.cache import path_of
from std_cli.weights.fingerprints import fingerprint


def choose_measures(
    names: Sequence[str], with_clips: bool, device: str
) -> tuple[dict[str, Measure], list[Skipped]]:
    """The measures of these names, all that there are if none is given; and those that cannot be
    taken, with the reason. device: where their networks run, as torch names it.

    Raises InputError for a name that is not known, and where none of those that are named can be
    taken.
    """
    for name in names:
        if name not in MEASURES:
            close = get_close_matches(name, MEASURES, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(f"--measures {name}: {hint}these are known: {', '.join(MEASURES)}")
    chosen: dict[str, Measure] = {}
    skipped = []
    for name, kind in MEASURES.items():
        if (names and name not in names) or (
            not names and kind.domain == "clip" and not with_clips
        ):
            continue
        measure = kind(device)
        if reason := measure.available():
            skipped.append(Skipped(name, reason, measure.missing))
        elif kind.domain == "clip" and not with_clips:
            skipped.append(Skipped(name, "it is a measure of clips, and no clip is compared"))
        else:
            chosen[name] = measure
    if names and not chosen:
        raise InputError(f"--measures {skipped[0].name}: nothing is left to be measured: "
                         f"{skipped[0].reason}")  # fmt: skip
    return chosen, skipped


def measure(cells: Sequence[Cell], measures: Mapping[str, Measure], on_event: OnEvent) -> None:
    """Take the figures of the cells that are made and lack any, and what the report shows of them.

    A cell whose files cannot be read any more keeps the reason.
    """
    keys = {name: key_of(each) for name, each in measures.items()}
    for number, cell in enumerate(cells, 1):
        if cell.failure:
            continue
        missing = {
            name: each
            for name, each in measures.items()
            if cell.record["figures"].get(name, {}).get("key") != keys[name]
        }
        if not missing and cell.thumbnail.exists():
            continue
        on_event(
            {
                "event": "progress",
                "stage": "measure",
                "input": cell.path.name,
                "index": number,
                "total": len(cells),
            }
        )
        try:
            with at_work():
                _measure_one(cell, missing, keys, on_event)
        except Cancelled:
            raise
        except StdError as e:
            cell.failure = str(e)
            on_event({"event": "notice", "message": f"{cell.path.name}: not measured: {e}"})


def _measure_one(
    cell: Cell, measures: Mapping[str, Measure], keys: Mapping[str, str], on_event: OnEvent
) -> None:
    sample = sample_of(cell)
    figures: dict[str, Any] = cell.record["figures"]
    for name, each in measures.items():
        reason = each.lacks(sample)
        value = None if reason else each.compute(sample)
        if value is not None and not math.isfinite(value):
            value, reason = None, f"it came out as {value}"
            message = f"{cell.path.name}: {name} is left out: {reason}"
            on_event({"event": "notice", "message": message})
        figures[name] = {"key": keys[name], "value": value, "lacks": reason}
    write_thumbnail(sample.result[0], cell.thumbnail)
    cell.save()


def key_of(measure: Measure) -> str:
    """A hash of what a figure follows from, in addition to the cell."""
    weights = {name: fingerprint_of(name) for name in measure.weights}
    follows = [__version__, measure.name, measure.source, weights]
    return hashlib.sha256(json.dumps(follows).encode()).hexdigest()[:16]


def fingerprint_of(model: str) -> str:
    """Of the weights of a model that is here."""
    from pathlib import Path

    return fingerprint(Path(path_of(model)))
