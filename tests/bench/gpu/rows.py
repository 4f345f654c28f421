"""The rows of a bench: kept in a file one by one, read back, and printed as tables."""

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Facts = dict[str, object]
"""What a row says: numbers and short texts, JSON-ready."""


@dataclass(frozen=True)
class Goal:
    """What a figure of a row should be on an H100 with SDXL's real shapes."""

    figure: str
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{self.figure} {'>=' if self.at_least else '<='} {self.limit:g}"

    def met(self, facts: Facts) -> bool | None:
        """None if the row lacks the figure."""
        value = facts.get(self.figure)
        if not isinstance(value, int | float):
            return None
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One measurement of a slice."""

    name: str
    measure: Callable[[], Facts]
    goal: Goal | None = None


class Rows:
    """The rows of a folder: `rows.jsonl`, to which each is added at once.

    A row is known by its card, its shapes, its slice and its name; of several with the same key the
    last one counts.
    """

    def __init__(self, folder: Path, card: str, shapes: str, run: str) -> None:
        self.file, self.errors = folder / "rows.jsonl", folder / "errors.txt"
        self.where: Facts = {"card": card, "shapes": shapes}
        self.run = run
        """The command that measures now: a row that failed in another one is measured again."""
        self.all: dict[tuple[object, ...], Facts] = {}
        if self.file.exists():
            text = self.file.read_text(encoding="utf-8")
            for line in text.splitlines():
                self._note(_read(line))
            if text and not text.endswith("\n"):  # a process was killed while it wrote
                self.file.write_text(text + "\n", encoding="utf-8")

    def has(self, slice_name: str, row: str) -> bool:
        """Whether the row is measured, or failed in this run."""
        found = self.all.get(_key(self.where | {"slice": slice_name, "row": row}))
        return found is not None and ("error" not in found or found["run"] == self.run)

    def find(self, slice_name: str, row: str) -> Facts | None:
        return self.all.get(_key(self.where | {"slice": slice_name, "row": row}))

    def add(self, slice_name: str, row: str, facts: Facts) -> None:
        """Print a row and keep it."""
        kept = self.where | {"slice": slice_name, "row": row, "run": self.run} | facts
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept) + "\n")
        self._note(kept)
        said = ", ".join(f"{name} {_shown(value)}" for name, value in facts.items())
        print(f"{slice_name}: {row}: {said}", flush=True)

    def fail(self, slice_name: str, row: str, error: BaseException) -> None:
        """Keep the error of a row in one line, and its traceback in `errors.txt`."""
        with self.errors.open("a", encoding="utf-8") as file:
            file.write(f"{slice_name}: {row}\n{''.join(traceback.format_exception(error))}\n")
        text = " ".join(str(error).split())[:300]
        self.add(slice_name, row, {"error": f"{type(error).__name__}: {text}"})

    def failed(self) -> int:
        return sum("error" in facts for facts in self.all.values())

    def tables(self) -> str:
        """All rows as Markdown: a table for each card, shapes and slice."""
        groups: dict[tuple[object, object], dict[object, list[Facts]]] = {}
        for facts in self.all.values():
            place = groups.setdefault((facts["card"], facts["shapes"]), {})
            place.setdefault(facts["slice"], []).append(facts)
        lines: list[str] = []
        for (card, shapes), slices in groups.items():
            lines += [f"# {card}, {shapes}", ""]
            for name, found in slices.items():
                lines += [f"## {name}", "", *_table(found), ""]
        return "\n".join(lines)

    def _note(self, facts: Facts | None) -> None:
        if facts is not None:
            self.all[_key(facts)] = facts


KEY = ("card", "shapes", "slice", "row")


def digits(value: float) -> float:
    """With four significant digits, which is more than any measurement has."""
    return float(f"{value:.4g}")


def _key(facts: Facts) -> tuple[object, ...]:
    return tuple(facts[name] for name in KEY)


def _read(line: str) -> Facts | None:
    """A line of the file; None of one that a killed process left unfinished."""
    try:
        facts: Facts = json.loads(line)
        return facts if facts.keys() >= {*KEY, "run"} else None
    except (ValueError, AttributeError):
        return None


def _table(rows: list[Facts]) -> Iterator[str]:
    """A table with a column for each figure that one of the rows has."""
    columns = dict.fromkeys(name for facts in rows for name in facts if name not in (*KEY, "run"))
    yield f"| row | {' | '.join(columns)} |"
    yield f"|---{'|---' * len(columns)}|"
    for facts in rows:
        cells = (_shown(facts[name]) if name in facts else "" for name in columns)
        yield f"| {facts['row']} | {' | '.join(cells)} |"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return str(value).replace("|", "/")
