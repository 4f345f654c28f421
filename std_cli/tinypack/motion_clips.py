"""Moving scenes as latents: drawn, encoded and kept in shards."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from std_cli.tinypack.model import FACTOR
from std_cli.tinypack.moving_scenes import moving_scene
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.vae import to_tensor

log = logging.getLogger(__name__)
FRAMES = 8  # of a window
CLIP_SIZE = 128  # px


SHARD = 20  # clips


@dataclass
class Clips:
    """C clips of FRAMES frames; h = w = CLIP_SIZE / FACTOR."""

    plain: Tensor  # (C, 4, FRAMES, h, w) float16, scaled
    styled: Tensor
    clean: Tensor
    flow: Tensor  # (C, FRAMES - 1, h, w, 2) float16, in latent pixels
    seen: Tensor  # (C, FRAMES - 1, h, w) bool
    reference: Array  # (C, 128, 128, 3) uint8
    caption: Array  # (C,) str


def make_clips(folder: Path, vae_folder: Path, seed: int, count: int) -> None:
    """Draw and encode clips, shard by shard. Shard N follows from (seed, N) alone; a shard that
    exists is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval()
    for number in range(-(-count // SHARD)):
        path = folder / f"clips-{number:04d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng((seed, number))
        rows = [_encoded(vae, rng) for _ in range(SHARD)]
        part = path.with_suffix(".part.npz")
        stacked: dict[str, Any] = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
        np.savez(part, **stacked)
        part.rename(path)
        log.info("drew %s", path.stem)


@torch.no_grad()
def _encoded(vae: AutoencoderKL, rng: np.random.Generator) -> dict[str, Array]:
    scene = moving_scene(rng, FRAMES, CLIP_SIZE)
    pixels = to_tensor(
        (np.concatenate([scene.plain, scene.styled, scene.clean]) * 255).round().astype(np.uint8)
    )
    z = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    plain, styled, clean = z.half().permute(1, 0, 2, 3).split(FRAMES, 1)
    flow = F.avg_pool2d(torch.from_numpy(scene.flow).permute(0, 3, 1, 2), FACTOR)
    flow = flow.permute(0, 2, 3, 1) / FACTOR
    seen = F.avg_pool2d(torch.from_numpy(scene.seen).float()[:, None], FACTOR)[:, 0] == 1
    return {
        "plain": plain.numpy(),
        "styled": styled.numpy(),
        "clean": clean.numpy(),
        "flow": flow.half().numpy(),
        "seen": seen.numpy(),
        "reference": (scene.reference * 255).round().astype(np.uint8),
        "caption": np.array(scene.caption),
    }


def load_clips(folder: Path) -> Clips:
    parts: dict[str, list[Array]] = {}
    for path in sorted(folder.glob("clips-????.npz")):
        with np.load(path) as z:
            for k in z.files:
                parts.setdefault(k, []).append(z[k])
    p = {k: np.concatenate(v) for k, v in parts.items()}
    tensors = {k: torch.from_numpy(p[k]) for k in ("plain", "styled", "clean", "flow", "seen")}
    return Clips(**tensors, reference=p["reference"], caption=p["caption"])
