"""What the students' evaluations come to: results.jsonl, tables in results.md, pictures in
grid.png."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import t as student_t

from std_cli.media.sheets import draw_sheet
from std_cli.paths import replace_file

STEPS = (1, 2, 4, 8)
CFGS = (1, 1.5, 2, 4)
AT = 4  # steps of the tables over CFG
MEASURES = {
    "latent": "distance to the teacher's end point in latents, over how far that is from the input",
    "pixel": "the same in pixels",
    "sharpness": "sharpness, 1 is the teacher's end point's",
}


@dataclass(frozen=True)
class Line:
    """The measures of one student at one number of steps and CFG: a value for each sample."""

    student: str
    seed: int
    steps: int
    cfg: float
    values: dict[str, list[float]]

    def to_json(self) -> str:
        rounded = {name: [round(v, 5) for v in values] for name, values in self.values.items()}
        return json.dumps(asdict(self) | {"values": rounded}) + "\n"

    @staticmethod
    def of_json(text: str) -> "Line":
        return Line(**json.loads(text))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 95% confidence interval (Student's t), over samples."""
    return values.mean(), student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(
        values
    ) ** 0.5


def cell(values: np.ndarray | None) -> str:
    return "–" if values is None else "{:.3f} ± {:.3f}".format(*interval(values))


class Found:
    """All lines there are; samples of several seeds are averaged over the seeds first."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.students = list(dict.fromkeys(line.student for line in lines))

    def seeds(self, student: str) -> list[int]:
        return sorted({line.seed for line in self.lines if line.student == student})

    def values(
        self, student: str, measure: str, steps: int, cfg: float, seed: int | None = None
    ) -> np.ndarray | None:
        """(samples,), or None if that was not measured."""
        each = [
            line.values[measure]
            for line in self.lines
            if (line.student, line.steps, line.cfg) == (student, steps, cfg)
            and seed in (None, line.seed)
        ]
        return np.mean(each, 0) if each else None


def table(heads: list[str], rows: dict[str, list[str]]) -> str:
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    return (
        "\n".join(
            lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
        )
        + "\n"
    )


def over_steps(found: Found, measure: str, teacher_cfg: float, part: slice = slice(None)) -> str:
    """Rows: students without guidance, and the teacher with it; columns: steps."""
    rows = {}
    for name, student, cfg in [
        (f"none, CFG {teacher_cfg:g}: the teacher, twice the evaluations", "none", teacher_cfg),
        *((s, s, 1) for s in found.students),
    ]:
        values = [found.values(student, measure, k, cfg) for k in STEPS]
        rows[name] = [
            str(len(found.seeds(student))),
            *(cell(v if v is None else v[part]) for v in values),
        ]
    return table(["seeds", *(f"{k} step{'s'[: k != 1]}" for k in STEPS)], rows)


def over_cfg(found: Found, measure: str) -> str:
    rows = {s: [cell(found.values(s, measure, AT, cfg)) for cfg in CFGS] for s in found.students}
    return table([f"CFG {cfg}" for cfg in CFGS], rows)


def against(found: Found, base: str) -> str:
    """Latent distance less that of `base` on the same sample, without guidance: below 0 is nearer
    than `base`."""
    rows = {}
    for s in found.students:
        pairs = [
            (found.values(s, "latent", k, 1), found.values(base, "latent", k, 1)) for k in STEPS
        ]
        rows[s] = [cell(None if a is None or b is None else a - b) for a, b in pairs]
    del rows[base]
    return table([f"{k} step{'s'[: k != 1]}" for k in STEPS], rows)


def by_seed(found: Found) -> str:
    """Of students with several seeds, the latent distance of each."""
    rows = {
        f"{s}, seed {seed}": [cell(found.values(s, "latent", k, 1, seed)) for k in STEPS]
        for s in found.students
        for seed in found.seeds(s)
        if len(found.seeds(s)) > 1
    }
    return table([f"{k} step{'s'[: k != 1]}" for k in STEPS], rows)


def tables(found: Found, facts: str, ends: list[Line]) -> str:
    """All tables, after the `facts` of the comparison. `ends`: measures of the inputs and of the
    teacher's end points, whose cfg is the teacher's.
    """
    cfg, half = ends[0].cfg, len(ends[0].values["pixel"]) // 2
    parts = [f"{facts} Means over samples with 95% intervals.\n"]
    for measure, title in MEASURES.items():
        fixed = [
            f"{e.student} {cell(np.array(e.values[measure]))}" for e in ends if measure in e.values
        ]
        parts += [
            f"## {title[0].upper()}{title[1:]}\n",
            *([f"{'; '.join(fixed)}.\n"] if fixed else []),
        ]
        parts += ["Without guidance:\n", over_steps(found, measure, cfg)]
        if {line.cfg for line in found.lines} > {1, cfg}:
            parts += [f"{AT} steps:\n", over_cfg(found, measure)]
    parts += [
        "## Latent distance, photographs alone\n",
        over_steps(found, "latent", cfg, slice(-half, None)),
    ]
    if "std" in found.students:
        parts += ["## Latent distance less std's on the same sample\n", against(found, "std")]
    if any(len(found.seeds(s)) > 1 for s in found.students):
        parts += ["## Latent distance of each seed\n", by_seed(found)]
    return "\n".join(parts)


def report(
    output: Path,
    facts: str,
    folders: list[Path],
    ends: list[Line],
    columns: dict[str, list[Image.Image]],
    grid_steps: int,
) -> None:
    """Write results.jsonl, results.md and grid.png from each folder's evaluation.jsonl and
    pictures.npz.

    `columns`: what the grid begins with.
    """
    texts = [(folder / "evaluation.jsonl").read_text(encoding="utf-8") for folder in folders]
    replace_file(
        output / "results.jsonl",
        ("".join(line.to_json() for line in ends) + "".join(texts)).encode(),
    )
    lines = [Line.of_json(line) for text in texts for line in text.splitlines()]
    replace_file(output / "results.md", tables(Found(lines), facts, ends).encode())
    columns = dict(columns)
    for folder in folders:
        name = folder.parent.name
        with np.load(folder / "pictures.npz") as shown:
            for cfg in (ends[0].cfg, 1) if name == "none" else (1,):
                label = f"{name}, CFG {cfg:g}" if name == "none" else name
                columns.setdefault(
                    label, [Image.fromarray(p) for p in shown[f"{grid_steps} {cfg:g}"]]
                )
    part = output / "grid.part.png"
    draw_sheet(list(zip(*columns.values(), strict=True)), list(columns)).save(part)
    part.replace(output / "grid.png")
    print(f"{output}/results.jsonl, results.md, grid.png", flush=True)
