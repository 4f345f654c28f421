"""The report of a comparison: one page for a browser, with the numbers as CSV and JSON next to it.

The page needs nothing else: pictures are inside it, and its policy forbids every connection. Names
and texts come from files of anyone; Jinja escapes all of them.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from std_cli.comparison.cells import Cell
from std_cli.comparison.charts import contenders, line_charts, scatters
from std_cli.comparison.statistics import Estimate, Interval
from std_cli.comparison.subjects import Subject
from std_cli.comparison.table import COSTS, Row, Table
from std_cli.comparison.thumbnails import data_uri, thumbnail
from std_cli.errors import counted, printable
from std_cli.media.pictures import read_picture
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.paths import draft, move, replace_file, writing

MOST_PICTURES = 500
"""Cells that are shown with pictures; of those after them the table has the figures."""
NOTHING_BEST = "nothing is better than all others by more than the noise"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shown:
    """A cell in the grid."""

    label: str
    text: str
    """Its figures."""
    link: str
    """Its result, relative to the page."""
    thumbnail: Path | None
    failure: str

    @property
    def picture(self) -> str:
        """Read when the page is written, so that one picture is in memory at a time."""
        return data_uri(self.thumbnail.read_bytes()) if self.thumbnail else ""


@dataclass(frozen=True)
class Group:
    """What was made of one content in one style with one seed."""

    content: int
    """Its number among the contents."""
    style: int
    seed: str
    rows: list[tuple[str, list[Shown]]]
    """(what is compared, its cells)."""


def write_report(table: Table, folder: Path) -> Path:
    """Write report.html, report.json, table.csv and cells.csv into a folder, each whole or not at
    all; returns the page's path."""
    texts = {
        "report.json": json.dumps(table.to_json(), indent=1, ensure_ascii=False) + "\n",
        "table.csv": table.rows_csv(),
        "cells.csv": table.to_csv(),
    }
    for name, text in texts.items():
        replace_file(folder / name, text.encode("utf-8", "replace"))
    path = folder / "report.html"
    with writing(path), draft(path, b"") as temporary:
        with temporary.open("wb") as file:
            for part in page(table):
                file.write(part.encode("utf-8", "replace"))
        move(temporary, path, overwrite=True)
    return path


def page(table: Table) -> Iterator[str]:
    """The page, in parts: it is never in memory as a whole."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "line": printable}
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    contents = list(dict.fromkeys(cell.content for cell in table.cells))
    styles = list(dict.fromkeys(cell.style for cell in table.cells))
    seeds = list(dict.fromkeys(cell.seed for cell in table.cells if cell.seed is not None))
    groups = _groups(table, contents, styles, seeds)
    shown = sum(len(cells) for group in groups for _, cells in group.rows)
    seeded = sum(1 if cell.seed is not None else max(1, len(seeds)) for cell in table.cells)
    return environment.get_template("report.html").generate(
        table=table,
        about=table.about,
        summary=_summary(table, contents, styles, seeds),
        numbers=contenders(table),
        varied=list(dict.fromkeys(name for row in table.rows for name in row.variant.varied)),
        costs={
            name: unit for name, unit in COSTS.items() if any(r.costs[name] for r in table.rows)
        },
        cost=_cost,
        estimate_parts=_parts,
        verdicts=_verdicts(table),
        lines=line_charts(table),
        scatters=scatters(table),
        contents=[_given(subject) for subject in contents],
        styles=[_given(subject) for subject in styles],
        seeds=[str(seed) for seed in seeds] or [""],
        groups=groups,
        clips=any(subject.kind == "clip" for subject in contents),
        failures=_failures(table),
        marker=_marker,
        hidden=max(0, seeded - shown),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def _summary(table: Table, contents: list[Subject], styles: list[Subject], seeds: list[int]) -> str:
    compared = len(contenders(table))
    parts = [
        counted(len(contents), "content"), counted(len(styles), "style"),
        f"{compared} compared", counted(len(seeds), "seed"), counted(len(table.cells), "cell"),
    ]  # fmt: skip
    if table.failed:
        parts.append(f"{len(table.failed)} failed")
    return ", ".join(parts)


def _groups(
    table: Table, contents: list[Subject], styles: list[Subject], seeds: list[int]
) -> list[Group]:
    """The cells as the grid shows them; another tool's are in the group of every seed."""
    found: list[Group] = []
    count = 0
    each_seed: list[int | None] = [*seeds] or [None]
    for seed in each_seed:
        for content, subject in enumerate(contents):
            for style, reference in enumerate(styles):
                own = [
                    cell
                    for cell in table.cells
                    if (cell.content, cell.style) == (subject, reference)
                    and cell.seed in (seed, None)
                ]
                count += len(own)
                if count > MOST_PICTURES:
                    return found
                rows = [
                    (name, [_shown(cell, table) for cell in cells])
                    for name, cells in groupby(own, key=lambda cell: cell.variant.contender)
                ]
                found.append(Group(content, style, "" if seed is None else str(seed), rows))
    return found


def _shown(cell: Cell, table: Table) -> Shown:
    figures = cell.record.get("figures", {})
    known = {
        name: figures[name]["value"]
        for name in table.measures
        if figures.get(name, {}).get("value") is not None
    }
    label = cell.variant.label.removeprefix(f"{cell.variant.contender}, ")
    text = ", ".join(f"{name} {figure(value)}" for name, value in known.items())
    link = cell.path.resolve().as_uri() if cell.of_peer else f"cells/{quote(cell.path.name)}"
    here = not cell.failure and cell.thumbnail.exists()
    return Shown(label, text, link, cell.thumbnail if here else None, cell.failure)


def _verdicts(table: Table) -> list[tuple[str, list[str]]]:
    """(measure, what is best where) for each measure that has a better direction."""
    found: dict[str, dict[str | None, list[str]]] = {}
    for verdict in table.verdicts:
        at = ", ".join(f"{k.replace('_', '-')} {value}" for k, value in verdict.varied.items())
        found.setdefault(verdict.measure, {}).setdefault(verdict.best, []).append(at)
    return [
        (
            measure,
            [
                (f"best is \u201c{best}\u201d" if best else NOTHING_BEST)
                + _where(places, len(by_best) == 1)
                for best, places in by_best.items()
            ],
        )
        for measure, by_best in found.items()
    ]


def _where(places: list[str], everywhere: bool) -> str:
    """Where something is best, after its name."""
    if places == [""]:
        return ""
    if everywhere and len(places) > 1:
        return f" at each of the {len(places)} combinations of what varies"
    return f" at {'; '.join(places)}"


def _failures(table: Table) -> list[tuple[str, str, str]]:
    """(what is compared, the reason, which of its cells) of all that failed."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell in table.failed:
        which = cell.sample if cell.of_peer else f"{cell.sample} seed {cell.seed}"
        found.setdefault((cell.variant.label, cell.failure), []).append(which)
    return [(label, reason, ", ".join(cells)) for (label, reason), cells in found.items()]


def _marker(number: int) -> int:
    """The marker in charts of what has this number: with its colour, of which there are 8, another
    one for each of the first 32."""
    return (number + number // 8) % 4


def figure(value: float | None) -> str:
    """A number in four digits; a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def _parts(found: Estimate | None) -> dict[str, str]:
    """A mean and its intervals as texts."""
    if found is None:
        return {"mean": "–", "samples": "", "seeds": ""}
    return {
        "mean": figure(found.mean),
        "samples": _half(found.over_samples),
        "seeds": _half(found.over_seeds),
    }


def _half(interval: Interval) -> str:
    return "" if interval.half is None else f"± {interval.half:.2g}"


def _cost(row: Row, name: str) -> float | None:
    value = row.costs[name]
    return value / 2**30 if value is not None and name == "memory" else value


def _given(subject: Subject) -> tuple[str, str, str]:
    """(name, proportions as CSS takes them, a small picture as an address) of a content or a style;
    of a clip of its first frame."""
    if subject.kind == "picture":
        picture = read_picture(subject.path).on_white()
    else:
        frame = next(iter(read_frames(open_clip(subject.path), max_frames=1)))
        picture = Image.fromarray(frame.rgb)
    return subject.name, f"{picture.width} / {picture.height}", data_uri(thumbnail(picture))
