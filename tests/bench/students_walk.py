"""How the students and their teacher walk, and the held-out samples that they start from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor

from std_cli.diffusion.pipeline import Pipeline
from std_cli.distill.bank import Conditions
from std_cli.distill.conditioner import Conditioner
from std_cli.distill.config import DistillConfig
from std_cli.distill.monitor import sample
from std_cli.distill.solver import Solver
from std_cli.distill.step import Network
from std_cli.schedule import timesteps
from std_cli.tinypack import styles
from std_cli.tinypack.scenes import scene, vary
from std_cli.weights.lora import resolve_lora
from std_cli.weights.resolve import resolve_model

STYLES = Path(__file__).parents[2] / "examples"
HELD_OUT = 99  # seed of the drawn scenes and styles; training's is 7
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "camera",
    "coins",
    "hubble_deep_field",
    "motorcycle",
)


# --- sampling ----------------------------------------------------------------------------------


def predict(unet, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
    added = {"text_embeds": c["pooled"], "time_ids": c["time_ids"], "image_embeds": [c["style"]]}
    return unet(x, t, c["states"], added_cond_kwargs=added, return_dict=False)[0]


def predict_both(unet, x: Tensor, t: Tensor, c: Conditions, u: Conditions) -> list[Tensor]:
    """The conditional and unconditional predictions, from one batch; `u` has what differs from
    `c`."""
    both = {k: torch.cat([v, u.get(k, v)]) for k, v in c.items()}
    return list(predict(unet, torch.cat([x, x]), torch.cat([t, t]), both).chunk(2))


def guided(
    unet, u: Conditions, cfg: float, start: int = -1, first: list[Tensor] | None = None
) -> Network:
    """A UNet under guidance. `first`: `predict_both` at timestep `start`, which runs of any cfg and
    length share."""

    def network(x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        if cfg == 1 and t[0] != start:
            return predict(unet, x, t, c)
        conditional, unconditional = first if t[0] == start else predict_both(unet, x, t, c, u)
        return unconditional + cfg * (conditional - unconditional)

    return network


class Model:
    """The pack as users load it, with a LoRA or without: its pipeline, solver, and what goes
    around."""

    def __init__(self, lora: Path | None, config: DistillConfig) -> None:
        files = resolve_model(config.model.name)
        eta = config.distill.eta
        found = None if lora is None else resolve_lora(str(lora), model=files, task="i2i", eta=eta)
        pipeline = Pipeline(files, found, torch.device("cpu"), torch.float32)
        pipeline.pipe.set_ip_adapter_scale(config.style.scale)
        self.unet = pipeline.pipe.unet
        self.conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=True)
        scheduler = pipeline.pipe.scheduler
        self.solver = Solver(
            scheduler.alphas_cumprod, config.distill.points, scheduler.config.prediction_type
        )
        self.eta, self.n_eta = eta, self.solver.start(eta)

    def walk(
        self, x: Tensor, c: Conditions, cfg: float, steps: int, first: list[Tensor] | None = None
    ) -> Tensor:
        """`steps` steps of the tool's `aligned` schedule from x_eta; n_eta + 1 are all points of
        the grid."""
        times = timesteps(steps, self.eta, "aligned")
        network = guided(
            self.unet, self.conditioner.unconditional(c), cfg, times[0] if first else -1, first
        )
        return sample(network, self.solver, x, times, c)

    def first(self, x: Tensor, c: Conditions) -> list[Tensor]:
        """Both predictions at x_eta."""
        t = torch.full((len(x),), int(self.solver.timestep(torch.tensor(self.n_eta))))
        with torch.no_grad():
            return predict_both(self.unet, x, t, c, self.conditioner.unconditional(c))


# --- samples -----------------------------------------------------------------------------------


@dataclass
class Samples:
    """Held-out pictures, half of them drawn and then photographs, each with a style; where the
    teacher takes them."""

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


def to_picture(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def photograph(i: int, size: int) -> Image.Image:
    """Each photograph in turn: first its middle, then parts anywhere, of a half to all of the
    shorter side."""
    name, r = PHOTOGRAPHS[i % len(PHOTOGRAPHS)], np.random.default_rng((HELD_OUT, i))
    whole = (
        photographs.stereo_motorcycle()[0] if name == "motorcycle" else getattr(photographs, name)()
    )
    picture = Image.fromarray(whole).convert("RGB")
    side = min(picture.size) * (r.uniform(0.5, 1) if i >= len(PHOTOGRAPHS) else 1)
    at = [
        (length - side) * (r.random() if i >= len(PHOTOGRAPHS) else 0.5) for length in picture.size
    ]
    box = (at[0], at[1], at[0] + side, at[1] + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)


def held_out(count: int, size: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """`count` pictures, half drawn, half photographs; and styles: the examples' and as many drawn
    ones."""
    drawn = []
    for i in range(count - count // 2):
        r = np.random.default_rng((HELD_OUT, 1, i))
        drawn.append(to_picture(vary(scene(r), r)).resize((size, size), Image.Resampling.LANCZOS))
    looks = [Image.open(path).convert("RGB") for path in sorted(STYLES.glob("style-*.png"))]
    for i in range(len(looks)):
        r = np.random.default_rng((HELD_OUT, 2, i))
        looks.append(to_picture(styles.stylize(vary(scene(r), r), styles.random_style(r), r)))
    return drawn + [photograph(i, size) for i in range(count // 2)], looks


def make_samples(teacher: Model, count: int, size: int) -> Samples:
    """Conditions as `std stylize` gives them to the pack at its defaults: no words, the sizes of
    the whole picture."""
    pictures, looks = held_out(count, size)
    conditioner = teacher.conditioner
    pixels = [torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures]
    x0 = torch.stack([conditioner.encode(p[None]) for p in pixels])
    style_of = [i % len(looks) for i in range(count)]
    text = conditioner.encode_text([""])[0]
    c = {k: v.expand(count, *v.shape) for k, v in text.items()}
    c["time_ids"] = conditioner.time_ids((size, size), (0, 0), (size, size)).expand(count, -1)
    c["style"] = torch.stack([conditioner.encode_style(look)[1] for look in looks])[style_of]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(HELD_OUT))
    return Samples(pictures, looks, style_of, c, x0, teacher.solver.begin(x0, noise, teacher.n_eta))


def relative(made: Tensor, end: Tensor, x0: Tensor) -> list[float]:
    """Each sample's distance to the end point over how far that is from the input."""
    return ((made - end).flatten(1).norm(dim=1) / (end - x0).flatten(1).norm(dim=1)).tolist()
