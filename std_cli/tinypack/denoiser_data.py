"""The training set of the denoiser: latents of pairs, references as the picture encoder sees them,
and the style facts that its tokens should hold.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from std_cli.tinypack.model import FACTOR, VISION_SIZE, half_precision
from std_cli.tinypack.scenes import Array, S
from std_cli.tinypack.styles import COLOUR_VALUES, KINDS, PATTERNED
from std_cli.tinypack.vae import to_tensor

log = logging.getLogger(__name__)
PATTERNED_KINDS = {list(KINDS).index(kind) for kind in PATTERNED}
STORED = S // FACTOR  # side of the latents of a picture


@dataclass
class Latents:
    """The training set of the denoiser, G groups of two pairs."""

    plain: Tensor  # (G, 2, 4, STORED, STORED) float16, scaled
    styled: Tensor
    pixels: Array  # (G, 2, S, S, 3) uint8, the styled pictures
    reference: Array  # (G, 128, 128, 3) uint8
    kind: Tensor  # (G,)
    captions: Array  # (G, 2) str


@torch.no_grad()
def encode(data: Path, vae_folder: Path, out: Path) -> None:
    """Encode every pair, shard by shard; a shard already encoded is kept."""
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    out.mkdir(exist_ok=True)
    for path in sorted(data.glob("groups-????.npz")):
        target = out / (path.stem + ".pt")
        if target.exists():
            continue
        both = {}
        with np.load(path) as z:
            for name in ("plain", "styled"):
                parts = np.split(z[name], len(z[name]))  # a group each
                with half_precision(True):
                    latents = [vae.encode(to_tensor(p[0])).latent_dist.mode() for p in parts]
                both[name] = (torch.stack(latents) * vae.config.scaling_factor).half()
        torch.save(both, target)
        log.info("encoded %s", path.stem)


def load(data: Path, folder: Path) -> Latents:
    """The latents in `folder` with the references and captions of `data`."""
    parts: dict[str, list[Any]] = {
        k: [] for k in ("plain", "styled", "pixels", "reference", "kind", "caption")
    }
    for path in sorted(folder.glob("groups-????.pt")):
        shard = torch.load(path, weights_only=True)
        with np.load(data / (path.stem + ".npz")) as z:
            shard |= {k: z[k] for k in ("reference", "kind", "caption")} | {"pixels": z["styled"]}
        for key, values in parts.items():
            values.append(shard[key])
    return Latents(
        torch.cat(parts["plain"]),
        torch.cat(parts["styled"]),
        np.concatenate(parts["pixels"]),
        np.concatenate(parts["reference"]),
        torch.from_numpy(np.concatenate(parts["kind"])),
        np.concatenate(parts["caption"]),
    )


def view_references(
    latents: Latents, groups: Array, rng: np.random.Generator, vary: bool = True
) -> Tensor:
    """Return references as the picture encoder sees them, (G, 3, 112, 112) in [0, 1]; those whose
    pattern has no direction and size to keep are cropped and flipped at random."""
    out = []
    for group in groups:
        x = torch.from_numpy(latents.reference[group]).permute(2, 0, 1)[None].float() / 255
        free = vary and int(latents.kind[group]) not in PATTERNED_KINDS
        if free and rng.random() < 0.5:
            n = int(rng.integers(88, 128))
            y0, x0 = rng.integers(0, 128 - n + 1, 2)
            x = x[..., y0 : y0 + n, x0 : x0 + n]
        if free and rng.random() < 0.5:
            x = x.flip(-1)
        out.append(
            F.interpolate(x, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        )
    return torch.cat(out)


def style_facts(pixels: Tensor) -> Tensor:
    """The facts that the picture tokens should hold of a reference, (G, 14 + 9 + 16): colour
    histogram, moments, oriented energies. `pixels` is (G, 3, 112, 112) in [0, 1]."""
    flat = pixels[:, :, ::2, ::2].flatten(2).transpose(1, 2)  # (G, 56 * 56, 3)
    histogram = torch.softmax(
        -((flat[:, :, None] - torch.from_numpy(COLOUR_VALUES)) ** 2).sum(-1) * 40, -1
    ).mean(1)
    mean = flat.mean(1)
    centred = flat - mean[:, None]
    covariance = centred.transpose(1, 2) @ centred / flat.shape[1]
    root = covariance[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    energies = []
    for _ in range(4):
        steps = [
            grey[..., 1:, 1:] - grey[..., 1:, :-1],
            grey[..., 1:, 1:] - grey[..., :-1, 1:],
            grey[..., 1:, 1:] - grey[..., :-1, :-1],
            grey[..., 1:, :-1] - grey[..., :-1, 1:],
        ]
        energies += [(s**2).mean((1, 2, 3)).add(1e-5).log() / 3 + 2 for s in steps]
        grey = F.avg_pool2d(grey, 2)
    return torch.cat([histogram * 4, mean * 2, root * 10, torch.stack(energies, 1)], 1)
