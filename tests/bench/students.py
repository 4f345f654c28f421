"""The students on pictures: `python -m tests.bench.students gap|train|evaluate OUTPUT [--data DRAWN] ...`.

Teacher: the embedded pack, its 50-point DDIM grid from x_eta under guidance. Students: LoRAs that `std_cli.distill`
trains from examples/distill-compare.toml with the few changes below; guidance is distilled into them. What is measured
is where few steps end, against where the teacher ends from the same x_eta, on pictures and styles that no training saw.

gap: how far the teacher's own few steps end from its end point. train: what is there already is kept, what was
interrupted goes on. evaluate: each student once; results.jsonl, results.md and grid.png of all that there are.

The data: python -m std_cli.tinypack.pictures DRAWN --scenes 400 --clips 0 --styles 120
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photographs
from torch import Tensor

from std_cli.distill import train as distill_train
from std_cli.distill.bank import Conditions, Entry
from std_cli.distill.config import DistillConfig, config_hash, load_config
from std_cli.distill.export import DIFFUSERS
from std_cli.distill.monitor import sample
from std_cli.distill.network import Surroundings
from std_cli.distill.solver import Solver
from std_cli.distill.step import Network
from std_cli.distill.trainer import Trainer
from std_cli.image import replace_file
from std_cli.lora import resolve_lora
from std_cli.pipeline import Pipeline
from std_cli.schedule import timesteps
from std_cli.tinypack import styles
from std_cli.tinypack.scenes import scene, vary
from std_cli.weights import fingerprint, resolve_model
from tests.bench.students_report import CFGS, STEPS, Line, report
from tests.measures import colour_quantiles, edge_correlation, sharpness, texture_energies

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "distill-compare.toml"
HELD_OUT = 99  # seed of the drawn scenes and styles; training's is 7
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "hubble_deep_field", "motorcycle")
SHOWN = 8  # samples whose pictures are kept


# --- students --------------------------------------------------------------------------------------------------------


class MixedUp(Trainer):
    """x_t from the bank with x_0 and conditions of the batch's own samples: as the reference code has it."""

    def train_lane(self, step, lane, batch):
        for i, held in enumerate(lane.bank.slots):
            if held is not None:
                other = self._fresh(batch, i % len(batch.captions), torch.Generator())
                lane.bank.slots[i] = Entry(other.x0, held.x, other.c, held.n)
        return super().train_lane(step, lane, batch)


class NoisedData(Trainer):
    """Fresh samples begin anywhere on the grid, at x_0 noised: how consistency models are trained without a bank."""

    def _fresh(self, batch, i, random):
        fresh = super()._fresh(batch, i, random)
        n = torch.randint(1, self.n_eta + 1, (1,), generator=random)
        noise = torch.randn(fresh.x0.shape, generator=random).to(fresh.x0)
        x = self.solver.add_noise(fresh.x0[None], noise[None], self.solver.timestep(n))[0]
        return Entry(fresh.x0, x, fresh.c, int(n))


@dataclass(frozen=True)
class Student:
    name: str
    changes: tuple[str, ...] = ()
    """Of the configuration, as --set takes them."""
    trainer: type[Trainer] = Trainer


STUDENTS = [
    Student("lcm", ("distill.mode=lcm",)),
    Student("tcd", ("distill.mode=tcd",)),
    Student("pcm", ("distill.mode=pcm",)),
    Student("std"),
    Student("std-adversarial", ("adversarial.features=random",)),
    Student("std-no-bank", ("bank.length=0",)),
    Student("std-noised-data", ("bank.length=0",), NoisedData),
    Student("std-mixed-up", (), MixedUp),
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
    """Train one student, or go on with it; nothing if its LoRA is there."""
    folder = output / student.name / str(seed)
    if (folder / DIFFUSERS).exists():
        print(f"{student.name}, seed {seed}: is there", flush=True)
        return
    own = [*student.changes, f"run.output={json.dumps(str(folder))}", f"run.seed={seed}"]

    def told(event):
        if event["event"] == "notice":
            print(event["message"], flush=True)
        if event.get("stage") == "distill" and event["step"] % 10 == 0:
            figures = {k: round(event[k], 5) for k in ("loss", "adversarial", "discriminator", "norm") if k in event}
            print(f"{student.name}, seed {seed}: {event['step']}/{event['steps']} {figures} {event['eta']:.0f} s left",
                  flush=True)  # fmt: skip

    with patch.object(distill_train, "Trainer", student.trainer):
        distill_train.distill(read_config(own, drawn, steps), on_event=told)


# --- sampling --------------------------------------------------------------------------------------------------------


def predict(unet, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
    added = {"text_embeds": c["pooled"], "time_ids": c["time_ids"], "image_embeds": [c["style"]]}
    return unet(x, t, c["states"], added_cond_kwargs=added, return_dict=False)[0]


def predict_both(unet, x: Tensor, t: Tensor, c: Conditions, u: Conditions) -> list[Tensor]:
    """The conditional and unconditional predictions, from one batch; `u` has what differs from `c`."""
    both = {k: torch.cat([v, u.get(k, v)]) for k, v in c.items()}
    return list(predict(unet, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2))


def guided(unet, u: Conditions, cfg: float, start: int = -1, first: list[Tensor] | None = None) -> Network:
    """A UNet under guidance. `first`: `predict_both` at timestep `start`, which runs of any cfg and length share."""

    def network(x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        if cfg == 1 and t[0] != start:
            return predict(unet, x, t, c)
        conditional, unconditional = first if t[0] == start else predict_both(unet, x, t, c, u)
        return unconditional + cfg * (conditional - unconditional)

    return network


class Model:
    """The pack as users load it, with a LoRA or without: its pipeline, solver, and what goes around."""

    def __init__(self, lora: Path | None, config: DistillConfig) -> None:
        files = resolve_model(config.model.name)
        eta = config.distill.eta
        found = None if lora is None else resolve_lora(str(lora), model=files, task="i2i", eta=eta)
        pipeline = Pipeline(files, found, torch.device("cpu"), torch.float32)
        pipeline.pipe.set_ip_adapter_scale(config.style.scale)
        self.unet = pipeline.pipe.unet
        self.around = Surroundings(pipeline, unconditional_pooled="empty", style=True)
        self.solver = Solver(pipeline.pipe.scheduler.alphas_cumprod, config.distill.points)
        self.eta, self.n_eta = eta, self.solver.start(eta)

    def walk(self, x: Tensor, c: Conditions, cfg: float, steps: int, first: list[Tensor] | None = None) -> Tensor:
        """`steps` steps of the tool's `aligned` schedule from x_eta; n_eta + 1 are all points of the grid."""
        times = timesteps(steps, self.eta, "aligned")
        network = guided(self.unet, self.around.unconditional(c), cfg, times[0] if first else -1, first)
        return sample(network, self.solver, x, times, c)

    def first(self, x: Tensor, c: Conditions) -> list[Tensor]:
        """Both predictions at x_eta."""
        t = torch.full((len(x),), int(self.solver.timestep(torch.tensor(self.n_eta))))
        with torch.no_grad():
            return predict_both(self.unet, x, t, c, self.around.unconditional(c))


# --- samples ---------------------------------------------------------------------------------------------------------


@dataclass
class Samples:
    """Held-out pictures, half of them drawn and then photographs, each with a style; where the teacher takes them."""

    pictures: list[Image.Image]
    styles: list[Image.Image]
    style_of: list[int]
    """Of each picture, which of the styles."""
    c: Conditions
    x0: Tensor  # (B, 4, h, w)
    x: Tensor  # x_eta

    def batches(self, size: int = 16) -> Iterator[tuple[slice, Tensor, Conditions]]:
        for i in range(0, len(self.x), size):
            part = slice(i, i + size)
            yield part, self.x[part], {k: v[part] for k, v in self.c.items()}


def _picture(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def photograph(i: int, size: int) -> Image.Image:
    """Each photograph in turn: first its middle, then parts anywhere, of a half to all of the shorter side."""
    name, r = PHOTOGRAPHS[i % len(PHOTOGRAPHS)], np.random.default_rng((HELD_OUT, i))
    whole = photographs.stereo_motorcycle()[0] if name == "motorcycle" else getattr(photographs, name)()
    picture = Image.fromarray(whole).convert("RGB")
    side = min(picture.size) * (r.uniform(0.5, 1) if i >= len(PHOTOGRAPHS) else 1)
    at = [(length - side) * (r.random() if i >= len(PHOTOGRAPHS) else 0.5) for length in picture.size]
    box = (at[0], at[1], at[0] + side, at[1] + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)


def held_out(count: int, size: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """`count` pictures, half drawn, half photographs; and styles: the examples' and as many drawn ones."""
    drawn = []
    for i in range(count - count // 2):
        r = np.random.default_rng((HELD_OUT, 1, i))
        drawn.append(_picture(vary(scene(r), r)).resize((size, size), Image.Resampling.LANCZOS))
    looks = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("style-*.png"))]
    for i in range(len(looks)):
        r = np.random.default_rng((HELD_OUT, 2, i))
        looks.append(_picture(styles.stylize(vary(scene(r), r), styles.random_style(r), r)))
    return drawn + [photograph(i, size) for i in range(count // 2)], looks


def make_samples(teacher: Model, count: int, size: int) -> Samples:
    """Conditions as `std stylize` gives them to the pack at its defaults: no words, the sizes of the whole picture."""
    pictures, looks = held_out(count, size)
    around = teacher.around
    pixels = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures]
    x0 = torch.stack([around.encode(p[None]) for p in pixels])
    style_of = [i % len(looks) for i in range(count)]
    text = around.encode_text([""])[0]
    c = {k: v.expand(count, *v.shape) for k, v in text.items()}
    c["time_ids"] = around.time_ids((size, size), (0, 0), (size, size)).expand(count, -1)
    c["style"] = torch.stack([around.encode_style(look)[1] for look in looks])[style_of]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(HELD_OUT))
    return Samples(pictures, looks, style_of, c, x0, teacher.solver.begin(x0, noise, teacher.n_eta))


def relative(made: Tensor, end: Tensor, x0: Tensor) -> list[float]:
    """Each sample's distance to the end point over how far that is from the input."""
    return ((made - end).flatten(1).norm(dim=1) / (end - x0).flatten(1).norm(dim=1)).tolist()


# --- gap -------------------------------------------------------------------------------------------------------------


def gap(teacher: Model, samples: Samples) -> Iterator[str]:
    """Lines of a table: for each CFG, how far the end point is from the input, and few steps from the end point."""
    yield "| CFG | the end point moves the input, over its norm | " + " | ".join(f"{k} steps" for k in STEPS) + " |"
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


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """Where the teacher ends under the CFG that is distilled, and what the measures need of every sample."""

    end: Tensor  # (B, 4, h, w)
    end_pixels: Tensor  # (B, 3, H, W) in [0, 1]
    input_pixels: Tensor
    colours: list[np.ndarray]
    textures: list[np.ndarray]
    sharp: list[float]


def to_pixels(model: Model, latents: Tensor) -> Tensor:
    return (model.around.decode(latents) / 2 + 0.5).clamp(0, 1)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    return [_picture(p.permute(1, 2, 0).numpy()) for p in pixels]


def find_truth(teacher: Model, samples: Samples, cfg: float, path: Path) -> Truth:
    """The end points are kept in a file."""
    if not path.exists():
        ends = [teacher.walk(x, c, cfg, teacher.n_eta + 1) for _, x, c in samples.batches()]
        save_file({"end": torch.cat(ends)}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    end = load_file(path)["end"]
    end_pixels = to_pixels(teacher, end)
    inputs = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in samples.pictures])
    size = samples.pictures[0].size
    seen = [(colour_quantiles(look), texture_energies(look.resize(size))) for look in samples.styles]
    colours, textures = ([seen[k][i] for k in samples.style_of] for i in (0, 1))
    return Truth(end, end_pixels, inputs, colours, textures, [sharpness(p) for p in to_pictures(end_pixels)])


def look_at(pixels: Tensor, samples: Samples, truth: Truth) -> dict[str, list[float]]:
    """Measures of finished pictures (B, 3, H, W)."""
    made = to_pictures(pixels)
    pairs = list(zip(made, samples.pictures, truth.colours, truth.textures, truth.sharp, strict=True))
    return {
        "pixel": relative(pixels, truth.end_pixels, truth.input_pixels),
        "colour": [float(np.abs(colour_quantiles(p) - q).mean()) for p, _, q, _, _ in pairs],
        "texture": [float(np.abs(texture_energies(p) - e).mean()) for p, _, _, e, _ in pairs],
        "edges": [edge_correlation(p, source) for p, source, _, _, _ in pairs],
        "sharpness": [sharpness(p) / s for p, _, _, _, s in pairs],
    }


def shown_of(count: int) -> np.ndarray:
    """The samples that the grid shows."""
    return np.linspace(0, count - 1, SHOWN).astype(int)


def evaluate(name: str, seed: int, model: Model, samples: Samples, truth: Truth, folder: Path) -> None:
    """Write folder/evaluation.jsonl, a line for each number of steps and CFG, and the first pictures of each."""
    made: dict[tuple[int, float], list[Tensor]] = {(k, cfg): [] for k in STEPS for cfg in CFGS}
    for _, x, c in samples.batches():
        first = model.first(x, c)
        for (k, cfg), parts in made.items():
            parts.append(model.walk(x, c, cfg, k, first))
    lines, shown = [], {}
    for (k, cfg), parts in made.items():
        z = torch.cat(parts)
        pixels = to_pixels(model, z)
        values = {"latent": relative(z, truth.end, samples.x0), **look_at(pixels, samples, truth)}
        lines.append(Line(name, seed, k, cfg, values))
        shown[f"{k} {cfg}"] = np.stack([np.asarray(p) for p in to_pictures(pixels[shown_of(len(z))])])
    np.savez(folder / "pictures.npz", **shown)
    replace_file(folder / "evaluation.jsonl", "".join(line.to_json() for line in lines).encode())


def evaluate_all(output: Path, config: DistillConfig, count: int, grid_steps: int) -> None:
    """Every student that is trained and not yet measured; then the report of all."""
    teacher = Model(None, config)
    samples = make_samples(teacher, count, config.data.size[0])
    cfg = (config.distill.w_min + config.distill.w_max) / 2 + 1
    truth = find_truth(teacher, samples, cfg, output / f"end-{count}.safetensors")
    none = output / "none" / "0"
    none.mkdir(parents=True, exist_ok=True)
    folders = [none, *(output / s.name / str(seed) for s in STUDENTS for seed in _seeds(output / s.name))]
    for folder in folders:
        if _measured(folder / "evaluation.jsonl", count):
            continue
        began = time.monotonic()
        model = teacher if folder == none else Model(folder / DIFFUSERS, config)
        evaluate(folder.parent.name, int(folder.name), model, samples, truth, folder)
        print(f"{folder.parent.name}, seed {folder.name}: measured in {time.monotonic() - began:.0f} s", flush=True)
    fixed = {"input": truth.input_pixels, "the teacher's end point": truth.end_pixels}
    ends = [Line(name, 0, 0, cfg, look_at(pixels, samples, truth)) for name, pixels in fixed.items()]
    chosen = shown_of(count)
    columns = {
        "input": [samples.pictures[i] for i in chosen],
        "style": [samples.styles[samples.style_of[i]] for i in chosen],
        f"teacher, {teacher.n_eta + 1} steps": to_pictures(truth.end_pixels[chosen]),
    }
    report(output, folders, ends, columns, grid_steps)


def _seeds(folder: Path) -> list[int]:
    """Those whose LoRA is there."""
    return sorted(int(f.parent.name) for f in folder.glob(f"*/{DIFFUSERS}"))


def _measured(path: Path, count: int) -> bool:
    """Whether an evaluation is there, of as many samples."""
    if not path.exists():
        return False
    [line, *_] = path.read_text(encoding="utf-8").splitlines()
    return len(Line.of_json(line).values["latent"]) == count


# --- the command -----------------------------------------------------------------------------------------------------


def claim(output: Path, now: dict[str, str | int | None]) -> None:
    """Everything in a folder is made with the same weights and settings."""
    config = read_config([], None, None)
    now |= {"weights": fingerprint(resolve_model(config.model.name).base), "configuration": config_hash(config)}
    output.mkdir(parents=True, exist_ok=True)
    path = output / "made-with.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if differing := [k for k in now if k in before and before[k] != now[k]]:
        raise SystemExit(f"{output} was made with other {', '.join(differing)}: name another folder")
    replace_file(path, json.dumps(before | now).encode())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [s.name for s in STUDENTS]
    p.add_argument("command", choices=["gap", "train", "evaluate"])
    p.add_argument("output", type=Path, help="folder of the comparison")
    p.add_argument("--data", type=Path, help="train: the folder with drawn scenes/ and styles/")
    p.add_argument("--students", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    p.add_argument("--seeds", nargs="+", type=int, default=[0], help="train: a run of each student for each")
    p.add_argument("--steps", type=int, help="updates of each student, in place of the configuration's")
    p.add_argument("--samples", type=int, help="64 (gap: 16)")
    p.add_argument("--grid-steps", type=int, choices=STEPS, default=2, help="evaluate: steps of the grid's pictures")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    config = read_config([], a.data, a.steps)
    if a.command == "gap":
        teacher = Model(None, config)
        for line in gap(teacher, make_samples(teacher, a.samples or 16, config.data.size[0])):
            print(line, flush=True)
        return
    if a.command == "evaluate":
        claim(a.output, {})
        return evaluate_all(a.output, config, a.samples or 64, a.grid_steps)
    claim(a.output, {"updates": config.run.max_steps, "data": str(a.data)})
    for seed in a.seeds:
        for student in STUDENTS:
            if student.name in a.students:
                train(student, seed, a.output, a.data, a.steps)


if __name__ == "__main__":
    main()
