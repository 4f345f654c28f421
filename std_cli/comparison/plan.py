"""What a comparison would take: `std compare --dry-run`."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from std_cli.comparison.cells import CLIP_SUFFIX, OF_CLIPS, Cell, Variant, options_for
from std_cli.comparison.config import CompareConfig
from std_cli.comparison.make import loaded_for
from std_cli.comparison.run import Comparison, prepared
from std_cli.comparison.subjects import Kind
from std_cli.environment import silent_libraries
from std_cli.events import OnEvent, Plan, PlannedComparison
from std_cli.stylize.plan import plan_images, plan_video
from std_cli.stylize.workload import area, evaluations_of


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


COUNTED = ("steps", "cfg", "cfg_steps", "cfg_every")
"""Settings that change nothing but how often the network is evaluated."""
AS_DEAR = (
    *COUNTED, "method", "lora", "allow_partial", "eta", "schedule", "prompt", "negative_prompt",
    "style_scale", "style_blocks",
)  # fmt: skip
"""Settings whose values take the same time, memory and disk space, but for that number."""


def _needs(
    request: Comparison, missing: Sequence[Cell], probe: bool, notes: list[str], on_event: OnEvent
) -> tuple[float, list[Need]]:
    """(seconds of loading, what each of the cells takes). Cells that are as dear as each other but
    for their number of evaluations are planned once, and timed once."""
    loads: dict[str, float] = {}
    said: set[tuple[object, ...]] = set()
    plans: dict[str, _Planned] = {}
    needs = []
    for cell in missing:
        assert cell.checked is not None
        kind = cell.content.kind
        distinct = {k: v for k, v in cell.options.items() if k not in AS_DEAR}
        key = f"{kind} {sorted(distinct.items())}"
        if key not in plans:
            plan = _plan(request, cell.variant, kind, probe, on_event)
            plans[key] = _Planned(plan, cell.checked.settings.guided_steps > 0)
            notes += [note for note in plan["notes"] if note != "no time measured, by --no-probe"]
        # one for all guidance scales of a contender
        about = cell.variant.contender, cell.checked.weights, cell.checked.settings.steps
        if about not in said:
            said.add(about)
            notes += cell.checked.notices
        planned = plans[key]
        loads[f"{loaded_for(cell)}"] = planned.load
        place = [each.path for each in request.contents if each.kind == kind].index(
            cell.content.path
        )
        needs.append(planned.need(place, evaluations_of(cell.checked.settings)))
    if missing and not probe:
        notes.append("no time measured, by --no-probe")
    return sum(loads.values()), needs


@dataclass(frozen=True)
class _Planned:
    """The plan of one variant, for all contents of a kind, from which others are estimated."""

    plan: Plan
    guided: bool
    """Whether the step that was timed took two of them."""

    @property
    def load(self) -> float:
        """Seconds; 0 where they were not measured."""
        return self.plan["time"]["load"] if self.plan["time"] else 0.0

    def need(self, place: int, evaluations: int) -> Need:
        """What a content takes with another number of evaluations. place: of the content."""
        own, took = self.plan["inputs"][place], self.plan["time"]
        if own["frames"] is None or own["windows"] is None:
            return Need(None, None, own["disk"])
        count = own["windows"] * evaluations
        if took is None:
            return Need(count, None, own["disk"])
        largest = max(area(each["working"]) for each in self.plan["inputs"])
        seconds = own["frames"] * (took["encode"] + took["decode"])
        seconds += count * took["evaluation"] / (2 if self.guided else 1)
        return Need(count, seconds * area(own["working"]) / largest, own["disk"])


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
