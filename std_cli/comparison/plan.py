"""What a comparison would take: `std compare --dry-run`."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from std_cli.comparison.cells import CLIP_SUFFIX, OF_CLIPS, Cell, Variant, options_for
from std_cli.comparison.config import CompareConfig
from std_cli.comparison.run import Comparison, prepared
from std_cli.comparison.subjects import Kind
from std_cli.environment import silent_libraries
from std_cli.events import OnEvent, Plan, PlannedComparison
from std_cli.stylize.plan import plan_images, plan_video


@dataclass(frozen=True)
class Need:
    """What one cell takes."""

    evaluations: int | None
    seconds: float | None
    disk: int | None


def plan_comparison(
    config: CompareConfig, *, probe: bool = True, on_event: OnEvent = lambda event: None
) -> PlannedComparison:
    """The cells of a comparison, and the time and the disk space of those that are to be made; only
    what is there of them is read. probe: load each model that is compared, and time a step or two.

    Raises the errors that `compare` raises before anything is computed.
    """
    with silent_libraries, prepared(config) as request:
        missing = [cell for cell in request.cells if not cell.of_peer and not cell.is_made()]
        notes = list(request.notices)
        load, needs = _needs(request, missing, probe, notes, on_event)
        seconds = _total([need.seconds for need in needs])
        where = request.folder.absolute().parent
        compared = Counter(cell.variant.contender for cell in request.cells)
        return {
            "event": "comparison",
            "output": str(request.folder),
            "cells": len(request.cells),
            "cached": sum(1 for cell in request.cells if not cell.of_peer) - len(missing),
            "compared": dict(compared),
            "measures": list(request.measures),
            "skipped": {each.name: each.reason for each in request.skipped},
            "evaluations": _whole(_total([need.evaluations for need in needs])),
            "seconds": None if seconds is None else round(seconds + load, 3),
            "disk": {
                "free": shutil.disk_usage(where).free,
                "needed": _whole(_total([need.disk for need in needs])),
                "where": str(where),
            },
            "notes": list(dict.fromkeys(notes)),
        }


def _needs(
    request: Comparison, missing: Sequence[Cell], probe: bool, notes: list[str], on_event: OnEvent
) -> tuple[float, list[Need]]:
    """(seconds of loading, what each of the cells takes). What is compared is timed once for
    pictures and once for clips; of its other variants the evaluations are counted."""
    load = 0.0
    timed: dict[tuple[str, Kind], Plan] = {}
    plans: dict[tuple[str, Kind], Plan] = {}
    needs = []
    for cell in missing:
        kind, label = cell.content.kind, cell.variant.label
        first = (cell.variant.contender, kind)
        if (label, kind) not in plans:
            plan = _plan(request, cell.variant, kind, probe and first not in timed, on_event)
            plans[label, kind] = plan
            notes += [note for note in plan["notes"] if note != "no time measured, by --no-probe"]
            if first not in timed:
                timed[first] = plan
                load += plan["time"]["load"] if plan["time"] else 0.0
        plan = plans[label, kind]
        place = [each.path for each in request.contents if each.kind == kind].index(
            cell.content.path
        )
        own, measured = plan["inputs"][place], timed[first]["inputs"][place]
        seconds, evaluations = measured["seconds"], own["evaluations"]
        if seconds is not None and evaluations is not None and measured["evaluations"]:
            seconds *= evaluations / measured["evaluations"]
        needs.append(Need(evaluations, seconds, own["disk"]))
    if missing and not probe:
        notes.append("no time measured, by --no-probe")
    return load, needs


def _plan(
    request: Comparison, variant: Variant, kind: Kind, probe: bool, on_event: OnEvent
) -> Plan:
    """The plan of `std stylize` for all contents of a kind."""
    contents = [each.path for each in request.contents if each.kind == kind]
    options = options_for(kind, variant.options)
    style, folder = request.styles[0].path, request.folder / "cells"
    if kind == "picture":
        return plan_images(contents, style, folder, probe=probe, on_event=on_event, **options)
    options |= OF_CLIPS
    target = folder / f"draft{CLIP_SUFFIX}" if len(contents) == 1 else folder
    return plan_video(contents, style, target, probe=probe, on_event=on_event, **options)


def _total(values: Sequence[float | int | None]) -> float | None:
    """The sum; None if one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
