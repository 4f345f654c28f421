"""The students on pictures:
`python -m tests.bench.students gap|train|evaluate|pictures OUTPUT [--data DRAWN] ...`.

Teacher: the embedded pack, its 50-point DDIM grid from x_eta under guidance. Students: LoRAs that
`std_cli.distill` trains from examples/distill-compare.toml with the few changes below; guidance is
distilled into them. What is measured is where few steps end, against where the teacher ends from
the same x_eta, on pictures and styles that no training saw.

gap: how far the teacher's own few steps end from its end point. train: what is there already is
kept, what was interrupted resumes. evaluate: each student once; results.jsonl, results.md and
grid.png of all that there are. pictures: the held-out pictures and styles as files, for `std
compare`, which measures how near the students come to a style.

The data: python -m std_cli.tinypack.draw_data DRAWN --scenes 240 --clips 0 --styles 160
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from std_cli.distill import build
from std_cli.distill.bank import BankEntry
from std_cli.distill.config import DistillConfig, config_hash, load_config
from std_cli.distill.export import DIFFUSERS
from std_cli.distill.train import distill
from std_cli.distill.trainer import Trainer
from std_cli.errors import StdError
from std_cli.media.measures import sharpness
from std_cli.paths import replace_file
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.resolve import resolve_model
from tests.bench.students_report import CFGS, STEPS, Line, report
from tests.bench.students_walk import Model, Samples, held_out, make_samples, relative, to_picture

CONFIG = Path(__file__).parents[2] / "examples" / "distill-compare.toml"
# of the model, that count
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "ip_adapter")
SHOWN = 8  # samples whose pictures are kept


# --- students ----------------------------------------------------------------------------------


class MixedUp(Trainer):
    """x_t from the bank with x_0 and conditions of another sample, as the reference code has it:
    there of the batch that was read, here of the next slot, since what the bank supplies is not
    read.
    """

    def train_lane(self, step, lane, batch):
        held = [i for i, entry in enumerate(lane.bank.slots) if entry is not None]
        entries = [lane.bank.slots[i] for i in held]
        for i, own, other in zip(held, entries, entries[1:] + entries[:1], strict=True):
            lane.bank.slots[i] = BankEntry(other.x0, own.x, other.c, own.n)
        return super().train_lane(step, lane, batch)


class NoisedData(Trainer):
    """Fresh samples begin anywhere on the grid, at x_0 noised: how consistency models are trained
    without a bank."""

    def start_trajectory(self, batch, i, random):
        fresh = super().start_trajectory(batch, i, random)
        n = torch.randint(1, self.n_eta + 1, (1,), generator=random)
        noise = torch.randn(fresh.x0.shape, generator=random).to(fresh.x0)
        x = self.solver.add_noise(fresh.x0[None], noise[None], self.solver.timestep(n))[0]
        return BankEntry(fresh.x0, x, fresh.c, int(n))


@dataclass(frozen=True)
class Student:
    name: str
    changes: tuple[str, ...] = ()
    """Of the configuration, as --set takes them."""
    trainer: type[Trainer] = Trainer
    seeds: tuple[int, ...] = (0,)


SEEDS = (0, 1, 2)
STUDENTS = [
    Student("lcm", ("distill.mode=lcm",), seeds=SEEDS),
    Student("tcd", ("distill.mode=tcd",), seeds=SEEDS),
    Student("pcm", ("distill.mode=pcm",), seeds=SEEDS),
    Student("std", seeds=SEEDS),
    Student("std-adversarial", ("adversarial.features=random",)),
    Student("std-no-bank", ("bank.length=0",)),
    Student("std-noised-data", ("bank.length=0",), NoisedData, SEEDS),
    Student("std-mixed-up", (), MixedUp, SEEDS),
]


def read_config(changes: list[str], drawn: Path | None, steps: int | None) -> DistillConfig:
    """The comparison's configuration."""
    changes = list(changes)
    if drawn is not None:
        changes += [f"data.sources={json.dumps([str(drawn / 'scenes')])}"]
        changes += [f"style.folder={json.dumps(str(drawn / 'styles'))}"]
    if steps is not None:
        changes += [f"run.max_steps={steps}"]
    return load_config(CONFIG, changes)


def train(student: Student, seed: int, output: Path, drawn: Path | None, steps: int | None) -> None:
    """Train one student, or resume it; nothing if its LoRA is there."""
    folder = output / student.name / str(seed)
    if (folder / DIFFUSERS).exists():
        print(f"{student.name}, seed {seed}: is there", flush=True)
        return
    own = [*student.changes, f"run.output={json.dumps(str(folder))}", f"run.seed={seed}"]

    def show(event):
        if event["event"] == "notice":
            print(event["message"], flush=True)
        if event.get("stage") == "distill" and event["step"] % 10 == 0:
            figures = {
                k: round(event[k], 5)
                for k in ("loss", "adversarial", "discriminator", "norm")
                if k in event
            }
            print(f"{student.name}, seed {seed}: {event['step']}/{event['steps']} {figures} "
                  f"{event['eta']:.0f} s left",
                  flush=True)  # fmt: skip

    with patch.object(build, "Trainer", student.trainer):
        distill(read_config(own, drawn, steps), on_event=show)


def train_all(
    output: Path, drawn: Path | None, steps: int | None, names: list[str], seeds: list[int] | None
) -> None:
    """Seed after seed, so that every student is there early."""
    for seed in seeds or SEEDS:
        for student in STUDENTS:
            if student.name in names and (seeds or seed in student.seeds):
                train(student, seed, output, drawn, steps)


# --- gap ---------------------------------------------------------------------------------------


def gap(teacher: Model, samples: Samples) -> Iterator[str]:
    """Lines of a table: for each CFG, how far the end point is from the input, and few steps from
    the end point."""
    yield (
        f"{len(samples.x)} samples. Distance to the end point, over its norm (over how far it "
        f"is from the input).\n"
    )
    heads = [f"{k} step{'s'[: k != 1]}" for k in STEPS]
    yield "| CFG | the end point moves the input, over its norm | " + " | ".join(heads) + " |"
    yield "|---|---|" + "---|" * len(STEPS)
    for cfg in CFGS:
        norms, moved = [], []
        off: dict[int, list[float]] = {k: [] for k in STEPS}
        of_norm: dict[int, list[float]] = {k: [] for k in STEPS}
        for part, x, c in samples.batches():
            x0, end = samples.x0[part], teacher.walk(x, c, cfg, teacher.n_eta + 1)
            moved += (end - x0).flatten(1).norm(dim=1).tolist()
            norms += end.flatten(1).norm(dim=1).tolist()
            for k in STEPS:
                made = teacher.walk(x, c, cfg, k)
                off[k] += relative(made, end, x0)
                of_norm[k] += relative(made, end, torch.zeros_like(x0))
        ratio = np.mean(np.divide(moved, norms))
        cells = [f"{np.mean(of_norm[k]):.1%} ({np.mean(off[k]):.1%})" for k in STEPS]
        yield f"| {cfg} | {ratio:.2f} | " + " | ".join(cells) + " |"


# --- evaluate ----------------------------------------------------------------------------------


@dataclass
class Truth:
    """Where the teacher ends under the CFG that is distilled, and what the measures need of every
    sample."""

    end: Tensor  # (B, 4, h, w)
    end_pixels: Tensor  # (B, 3, H, W) in [0, 1]
    input_pixels: Tensor
    sharp: list[float]


def to_pixels(model: Model, latents: Tensor) -> Tensor:
    return (model.conditioner.decode(latents) / 2 + 0.5).clamp(0, 1)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    return [to_picture(p.permute(1, 2, 0).numpy()) for p in pixels]


def find_truth(teacher: Model, samples: Samples, cfg: float, path: Path) -> Truth:
    """The end points are kept in a file."""
    if not path.exists():
        ends = [teacher.walk(x, c, cfg, teacher.n_eta + 1) for _, x, c in samples.batches()]
        save_file({"end": torch.cat(ends)}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    end = load_file(path)["end"]
    end_pixels = to_pixels(teacher, end)
    inputs = torch.stack(
        [torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in samples.pictures]
    )
    return Truth(
        end,
        end_pixels,
        inputs,
        [sharpness(np.asarray(p)) for p in to_pictures(end_pixels)],
    )


def look_at(pixels: Tensor, truth: Truth) -> dict[str, list[float]]:
    """Measures of finished pictures (B, 3, H, W)."""
    made = [np.asarray(picture) for picture in to_pictures(pixels)]
    return {
        "pixel": relative(pixels, truth.end_pixels, truth.input_pixels),
        "sharpness": [sharpness(p) / s for p, s in zip(made, truth.sharp, strict=True)],
    }


def shown_of(count: int) -> list[int]:
    """The samples that the grid shows: the first of the drawn ones and of the photographs, each
    with another style."""
    half = count - count // 2
    return [*range(min(SHOWN // 2, half)), *range(half, min(half + SHOWN // 2, count))]


def evaluate(
    name: str,
    seed: int,
    model: Model,
    samples: Samples,
    truth: Truth,
    folder: Path,
    cfgs: Sequence[float],
) -> None:
    """Write folder/evaluation.jsonl, a line for each number of steps and CFG, and the first
    pictures of each."""
    made: dict[tuple[int, float], list[Tensor]] = {(k, cfg): [] for k in STEPS for cfg in cfgs}
    for _, x, c in samples.batches():
        first = model.first(x, c)
        for (k, cfg), parts in made.items():
            parts.append(model.walk(x, c, cfg, k, first))
    lines, shown = [], {}
    for (k, cfg), parts in made.items():
        z = torch.cat(parts)
        pixels = to_pixels(model, z)
        values = {"latent": relative(z, truth.end, samples.x0), **look_at(pixels, truth)}
        lines.append(Line(name, seed, k, cfg, values))
        shown[f"{k} {cfg:g}"] = np.stack(
            [np.asarray(p) for p in to_pictures(pixels[shown_of(len(z))])]
        )
    np.savez(folder / "pictures.npz", **shown)
    replace_file(folder / "evaluation.jsonl", "".join(line.to_json() for line in lines).encode())


def evaluate_all(
    trained: Path,
    config: DistillConfig,
    updates: int,
    count: int,
    grid_steps: int,
    side: int | None,
) -> None:
    """Every student that is trained and not yet measured; then the report of all. side: of the
    samples, if not the configuration's; then students are run without guidance alone."""
    teacher = Model(None, config)
    output = trained / f"{side}px" if side else trained
    size = side or config.data.size[0]
    samples = make_samples(teacher, count, size)
    cfg = (config.distill.w_min + config.distill.w_max) / 2 + 1
    output.mkdir(exist_ok=True)
    truth = find_truth(teacher, samples, cfg, output / f"end-{count}.safetensors")
    found = [(s.name, seed) for s in STUDENTS for seed in _seeds(trained / s.name)]
    folders = [output / name / str(seed) for name, seed in [("none", 0), *found]]
    for folder in folders:
        if _measured(folder / "evaluation.jsonl", count):
            continue
        began, name = time.monotonic(), folder.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        lora = trained / name / folder.name / DIFFUSERS
        model = teacher if name == "none" else Model(lora, config)
        cfgs = CFGS if side is None else (1, cfg) if name == "none" else (1,)
        evaluate(name, int(folder.name), model, samples, truth, folder, cfgs)
        print(
            f"{name}, seed {folder.name}: measured in {time.monotonic() - began:.0f} s",
            flush=True,
        )
    fixed = {"input": truth.input_pixels, "the teacher's end point": truth.end_pixels}
    ends = [Line(name, 0, 0, cfg, look_at(pixels, truth)) for name, pixels in fixed.items()]
    chosen = shown_of(count)
    columns = {
        "input": [samples.pictures[i] for i in chosen],
        "style": [samples.styles[samples.style_of[i]] for i in chosen],
        f"teacher, {teacher.n_eta + 1} steps": to_pictures(truth.end_pixels[chosen]),
    }
    d = config.distill
    facts = (
        f"{count} held-out samples of {size} x {size}, half drawn, half photographs. "
        f"Teacher: `{config.model.name}`, {teacher.n_eta + 1} steps from x_eta (eta {d.eta:g}) "
        f"at CFG {cfg:g}. "
        f"Students: {updates} updates of {config.optimizer.batch} samples, "
        f"CFG {d.w_min + 1:g} to {d.w_max + 1:g} distilled."
    )
    report(output, facts, folders, ends, columns, grid_steps)


def _seeds(folder: Path) -> list[int]:
    """Those whose LoRA is there."""
    return sorted(int(f.parent.name) for f in folder.glob(f"*/{DIFFUSERS}"))


def _measured(path: Path, count: int) -> bool:
    """Whether an evaluation is there, of as many samples."""
    if not path.exists():
        return False
    [line, *_] = path.read_text(encoding="utf-8").splitlines()
    return len(Line.of_json(line).values["latent"]) == count


def write_pictures(output: Path, count: int, side: int) -> None:
    """Write held-out pictures into output/contents/ and styles into output/styles/."""
    for name, pictures in zip(("contents", "styles"), held_out(count, side), strict=True):
        (output / name).mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(pictures):
            picture.save(output / name / f"{name[:-1]}-{i:02}.png")


# --- the command -------------------------------------------------------------------------------


def claim(output: Path, now: dict[str, str | int | None]) -> dict[str, str | int | None]:
    """Everything in a folder is made with the same weights and settings; returns them."""
    config = read_config([], None, None)
    base = resolve_model(config.model.name).base
    now |= {
        "weights": " ".join(fingerprint(base / part) for part in PARTS),
        "configuration": config_hash(config),
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "made-with.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if differing := [k for k in now if k in before and before[k] != now[k]]:
        raise SystemExit(
            f"{output} was made with other {', '.join(differing)}: name another folder"
        )
    replace_file(path, json.dumps(before | now).encode())
    return before | now


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [s.name for s in STUDENTS]
    p.add_argument("command", choices=["gap", "train", "evaluate", "pictures"])
    p.add_argument("output", type=Path, help="folder of the comparison")
    p.add_argument("--data", type=Path, help="train: the folder with drawn scenes/ and styles/")
    p.add_argument(
        "--students", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    p.add_argument("--seeds", nargs="+", type=int, help="train: 0 of all students, 1 and 2 of most")
    p.add_argument(
        "--steps", type=int, help="updates of each student, in place of the configuration's"
    )
    p.add_argument("--samples", type=int, help="64 (gap: 16, pictures: 8)")
    p.add_argument(
        "--grid-steps",
        type=int,
        choices=STEPS,
        default=2,
        help="evaluate: steps of the grid's pictures",
    )
    p.add_argument(
        "--side",
        type=int,
        help="of the samples, pixels; evaluate: students without guidance alone",
    )
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    config = read_config([], a.data, a.steps)
    if a.command == "train":
        claim(a.output, {"updates": config.run.max_steps, "data": str(a.data)})
        return train_all(a.output, a.data, a.steps, a.students, a.seeds)
    if a.command == "pictures":
        return write_pictures(a.output, a.samples or 8, a.side or config.data.size[0])
    made_with = claim(a.output, {})
    if a.command == "evaluate":
        return evaluate_all(
            a.output, config, made_with.get("updates", 0), a.samples or 64, a.grid_steps, a.side
        )
    teacher, lines = Model(None, config), []
    for line in gap(teacher, make_samples(teacher, a.samples or 16, config.data.size[0])):
        print(line, flush=True)
        lines.append(line)
    replace_file(a.output / "gap.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    try:
        main()
    except StdError as e:
        sys.exit(str(e))
    except KeyboardInterrupt:
        sys.exit(130)
