"""The table of a comparison: means of what was measured, with their intervals, the differences to
the baseline, and what is better by more than the noise."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from std_cli.comparison.cells import Cell, Skipped, Variant, text_of
from std_cli.comparison.measures import Measure
from std_cli.comparison.statistics import Estimate, Figures, Interval, difference, estimate, winner

COSTS = {"seconds": "", "evaluations": "", "memory": "GiB"}
"""What is known of the making of a cell, with its unit in the report."""


@dataclass(frozen=True)
class Entry:
    """A measure of a row."""

    estimate: Estimate | None
    """None if no cell of the row has the figure."""
    difference: Estimate | None
    """To the baseline's row, of the same samples and seeds; None where there is none."""


@dataclass(frozen=True)
class Row:
    """Something that is compared, at one combination of what varies."""

    variant: Variant
    cells: int
    failed: int
    entries: Mapping[str, Entry]
    """By measure."""
    costs: Mapping[str, float | None]
    """Means of seconds and evaluations, and the most bytes of memory; None where not known."""
    of_peer: bool


@dataclass(frozen=True)
class Verdict:
    """What is best by a measure, where what varies has these values."""

    measure: str
    varied: Mapping[str, str]
    best: str | None
    """None where no one is better than all others by more than the noise."""


@dataclass(frozen=True)
class Table:
    """What a comparison came to."""

    measures: Mapping[str, Measure]
    baseline: str
    rows: Sequence[Row]
    cells: Sequence[Cell]
    verdicts: Sequence[Verdict]
    skipped: Sequence[Skipped]
    """What could not be compared or measured, with the reason."""
    about: Mapping[str, object] = field(default_factory=dict)
    """The command, versions, hashes."""

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.failure]

    def row(self, contender: str, **varied: object) -> Row:
        """The row of something that is compared, by the values of what varies for it. Raises
        KeyError."""
        for row in self.rows:
            values = {name: text_of(value) for name, value in varied.items()}
            if row.variant.contender == contender and dict(row.variant.varied) == values:
                return row
        raise KeyError(f"{contender} {varied}")

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            **self.about,
            "baseline": self.baseline,
            "measures": {name: measure_facts(each) for name, each in self.measures.items()},
            "rows": [row_facts(row) for row in self.rows],
            "best": [asdict(verdict) for verdict in self.verdicts],
            "skipped": [asdict(each) for each in self.skipped],
            "cells": [cell_facts(cell) for cell in self.cells],
        }

    def to_csv(self) -> str:
        """A line for each cell."""
        varied = list(dict.fromkeys(name for row in self.rows for name in row.variant.varied))
        heads = ["compared", *varied, "content", "style", "seed", "result", *COSTS, *self.measures]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*heads, "failed"])
        for cell in self.cells:
            facts = cell_facts(cell)
            values = [cell.variant.varied.get(name, "") for name in varied]
            writer.writerow([
                cell.variant.contender, *values, cell.content.name, cell.style.name, cell.seed,
                facts["result"], *(facts["cost"].get(name) for name in COSTS),
                *(facts["figures"].get(name) for name in self.measures), cell.failure,
            ])  # fmt: skip
        return text.getvalue()

    def rows_csv(self) -> str:
        """A line for each row: means, halves of the intervals over samples and over seeds, and the
        differences to the baseline."""
        varied = list(dict.fromkeys(name for row in self.rows for name in row.variant.varied))
        parts = ("", " ± samples", " ± seeds", " - baseline", " - baseline ± samples")
        figures = [f"{name}{part}" for name in self.measures for part in parts]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["compared", *varied, "cells", "failed", *COSTS, *figures])
        for row in self.rows:
            values = [row.variant.varied.get(name, "") for name in varied]
            costs = [row.costs[name] for name in COSTS]
            line = [row.variant.contender, *values, row.cells, row.failed, *costs]
            for name in self.measures:
                own, apart = row.entries[name].estimate, row.entries[name].difference
                line += (
                    [own.mean, own.over_samples.half, own.over_seeds.half] if own else [None] * 3
                )
                line += [apart.mean, apart.over_samples.half] if apart else [None] * 2
            writer.writerow(line)
        return text.getvalue()


def make_table(
    cells: Sequence[Cell],
    measures: Mapping[str, Measure],
    baseline: str,
    skipped: Sequence[Skipped],
    about: Mapping[str, object],
) -> Table:
    """The table of cells that are measured."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.variant.label, []).append(cell)
    rows = [_row(group, groups, measures, baseline) for group in groups.values()]
    return Table(measures, baseline, rows, cells, _verdicts(groups, measures, rows), skipped, about)


def figures_of(cells: Sequence[Cell], measure: str) -> Figures:
    """{(sample, seed): figure} of those that have it; another tool's has seed 0."""
    found = {}
    for cell in cells:
        value = None if cell.failure else cell.record["figures"].get(measure, {}).get("value")
        if value is not None:
            found[cell.sample, cell.seed or 0] = float(value)
    return found


def _row(
    group: list[Cell],
    groups: Mapping[str, list[Cell]],
    measures: Mapping[str, Measure],
    baseline: str,
) -> Row:
    variant = group[0].variant
    other = _counterpart(variant, groups, baseline)
    entries = {}
    for name in measures:
        own = figures_of(group, name)
        theirs = figures_of(other, name) if other is not None else {}
        entries[name] = Entry(estimate(own), _paired(own, theirs) if theirs else None)
    made = [cell.record["cost"] for cell in group if cell.record.get("cost")]
    costs: dict[str, float | None] = {
        name: fmean(known) if (known := [c[name] for c in made if c[name] is not None]) else None
        for name in ("seconds", "evaluations")
    }
    costs["memory"] = max((cost["memory"] for cost in made), default=None)
    failed = sum(bool(cell.failure) for cell in group)
    return Row(variant, len(group), failed, entries, costs, group[0].of_peer)


def _counterpart(
    variant: Variant, groups: Mapping[str, list[Cell]], baseline: str
) -> list[Cell] | None:
    """The baseline's cells at the same values of what varies, or is set once for this; None of the
    baseline itself, and where these are several rows."""
    if variant.contender == baseline:
        return None
    own = {name: text_of(value) for name, value in variant.options.items()} | dict(variant.varied)
    found = [
        group
        for group in groups.values()
        if group[0].variant.contender == baseline and _agree(group[0].variant, own)
    ]
    return found[0] if len(found) == 1 else None


def _agree(variant: Variant, varied: Mapping[str, str]) -> bool:
    """Whether what varies for both has the same values."""
    return all(varied.get(name, value) == value for name, value in variant.varied.items())


def _paired(own: Figures, theirs: Figures) -> Estimate | None:
    """What figures are above others'; those of another tool have one seed, and are compared to
    every seed."""
    if len({seed for _, seed in own}) == 1 < len({seed for _, seed in theirs}):
        turned = difference(theirs, own)
        return turned and Estimate(_minus(turned.over_samples), _minus(turned.over_seeds))
    return difference(own, theirs)


def _minus(interval: Interval) -> Interval:
    return Interval(-interval.mean, interval.half, interval.count)


def _verdicts(
    groups: Mapping[str, list[Cell]], measures: Mapping[str, Measure], rows: Sequence[Row]
) -> list[Verdict]:
    """The best by each measure at each combination of what varies. What does not vary takes part
    in all."""
    combinations: list[Mapping[str, str]] = []
    most = max((len(row.variant.varied) for row in rows), default=0)
    for row in rows:
        if len(row.variant.varied) == most and dict(row.variant.varied) not in combinations:
            combinations.append(dict(row.variant.varied))
    found = []
    for name, each in measures.items():
        if each.direction == "none":
            continue
        for varied in combinations:
            taking_part = {
                group[0].variant.contender: figures
                for group in groups.values()
                if _agree(group[0].variant, varied) and (figures := figures_of(group, name))
            }
            if len(taking_part) > 1:
                found.append(Verdict(name, varied, winner(taking_part, each.direction)))
    return found


# --- as JSON -----------------------------------------------------------------------------------


def measure_facts(measure: Measure) -> dict[str, Any]:
    """What there is to know of a measure."""
    low, high = measure.range
    return {
        "direction": measure.direction,
        "range": [low, high if high < float("inf") else None],
        "source": measure.source,
        "weights": list(measure.weights),
        "licence": measure.licence,
    }


def row_facts(row: Row) -> dict[str, Any]:
    """A row."""
    return {
        "compared": row.variant.contender,
        "varied": dict(row.variant.varied),
        "cells": row.cells,
        "failed": row.failed,
        "cost": dict(row.costs),
        "figures": {name: _entry_facts(entry) for name, entry in row.entries.items()},
    }


def _entry_facts(entry: Entry) -> dict[str, Any] | None:
    if entry.estimate is None:
        return None
    facts: dict[str, Any] = _estimate_facts(entry.estimate)
    apart = entry.difference
    facts["difference"] = _estimate_facts(apart) if apart else None
    return facts


def _estimate_facts(found: Estimate) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "over_samples": {"half": found.over_samples.half, "count": found.over_samples.count},
        "over_seeds": {"half": found.over_seeds.half, "count": found.over_seeds.count},
    }


def cell_facts(cell: Cell) -> dict[str, Any]:
    """A cell."""
    figures = cell.record.get("figures", {})
    return {
        "compared": cell.variant.contender,
        "varied": dict(cell.variant.varied),
        "content": cell.content.name,
        "style": cell.style.name,
        "seed": cell.seed,
        "key": cell.key,
        "result": str(cell.path) if cell.of_peer else f"cells/{cell.path.name}",
        "sha256": cell.record.get("result"),
        "cost": cell.record.get("cost", {}),
        "figures": {name: figure["value"] for name, figure in figures.items()},
        "lacks": {name: f["lacks"] for name, f in figures.items() if f["lacks"]},
        "failed": cell.failure or None,
    }
