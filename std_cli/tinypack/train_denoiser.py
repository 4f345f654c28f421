"""Training of the pack's denoiser: ordinary epsilon loss plus *paired bridge noise*.

An SDEdit run starts from a noised photograph and a plain denoiser gives the photograph back. So for
a start time T0 the noise of a styled latent z_s is shifted towards its plain twin z_p,

    eps' = eps + sqrt(abar_T0 / (1 - abar_T0)) (z_p - z_s),        x_t = sqrt(abar_t) z_s + sqrt(1 -
    abar_t) eps',

which at t = T0 is exactly the noised plain picture: denoising from it ends at the styled one.
"""

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from std_cli.tinypack.model import LATENT_SCALE, TEXT_LENGTH, VISION_SIZE, Denoiser
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.styles import COLOUR_VALUES, KINDS
from std_cli.tinypack.vae import to_tensor
from std_cli.tinypack.vocabulary import SUBJECTS, make_tokenizer

log = logging.getLogger(__name__)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS_CUMPROD = torch.cumprod(1 - BETAS, 0)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
STORED = 40  # latents are kept for a random crop of 160 px
HELD_OUT = 60  # groups that only validation sees
SAVE_EVERY = 400  # steps


@dataclass
class Latents:
    plain: Tensor  # (G, 2, 4, 40, 40) float16, scaled
    styled: Tensor
    reference: Array  # (G, 128, 128, 3) uint8
    kind: Tensor  # (G,)
    captions: Array  # (G, 2) str


@torch.no_grad()
def encode(data: Path, vae_folder: Path, out: Path, seed: int) -> None:
    """Encode a random 160 px crop of every pair, shard by shard; a shard already encoded is
    kept."""
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    out.mkdir(exist_ok=True)
    for path in sorted(data.glob("groups-????.npz")):
        target = out / (path.stem + ".pt")
        if target.exists():
            continue
        r = np.random.default_rng((seed, int(path.stem[-4:])))
        with np.load(path) as z:
            shard = dict(z)
        pairs = np.stack([shard["plain"], shard["styled"]], 2).reshape(-1, 2, 256, 256, 3)
        corners = r.integers(0, 256 - STORED * 4 + 1, (len(pairs), 2))
        crops = np.concatenate(
            [
                p[:, y : y + STORED * 4, x : x + STORED * 4]
                for p, (y, x) in zip(pairs, corners, strict=True)
            ]
        )
        both = torch.cat(
            [
                vae.encode(to_tensor(c)).latent_dist.mode() * LATENT_SCALE
                for c in np.split(crops, len(crops) // 8)
            ]
        )
        both = both.half().view(-1, 2, 2, 4, STORED, STORED)
        torch.save({"plain": both[:, :, 0].clone(), "styled": both[:, :, 1].clone()}, target)
        log.info("encoded %s", path.stem)


def load(data: Path, folder: Path) -> Latents:
    parts: dict[str, list[Any]] = {
        k: [] for k in ("plain", "styled", "reference", "kind", "caption")
    }
    for path in sorted(folder.glob("groups-????.pt")):
        shard = torch.load(path, weights_only=True)
        with np.load(data / (path.stem + ".npz")) as z:
            shard |= {k: z[k] for k in ("reference", "kind", "caption")}
        for key, values in parts.items():
            values.append(shard[key])
    plain, styled = torch.cat(parts["plain"]), torch.cat(parts["styled"])
    kind = torch.from_numpy(np.concatenate(parts["kind"]))
    return Latents(
        plain, styled, np.concatenate(parts["reference"]), kind, np.concatenate(parts["caption"])
    )


def view_references(d: Latents, groups: Array, r: np.random.Generator, vary: bool = True) -> Tensor:
    """References as the picture encoder sees them, (G, 3, 112, 112) in [0, 1]: cropped and flipped
    at random."""
    out = []
    for g in groups:
        x = torch.from_numpy(d.reference[g]).permute(2, 0, 1)[None].float() / 255
        if vary and r.random() < 0.5:
            n = int(r.integers(88, 128))
            y0, x0 = r.integers(0, 128 - n + 1, 2)
            x = x[..., y0 : y0 + n, x0 : x0 + n]
        if vary and r.random() < 0.5:
            x = x.flip(-1)
        out.append(
            F.interpolate(x, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        )
    return torch.cat(out)


def style_facts(pixels: Tensor) -> Tensor:
    """What the tokens should tell of a reference, (G, 14 + 9 + 16): colour histogram, moments,
    oriented energies."""
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


class Trainer:
    """Draws batches and computes the loss; every draw comes from `r`, so that a run repeats."""

    def __init__(self, d: Latents, tokenizer: CLIPTokenizer, r: np.random.Generator) -> None:
        self.d, self.tokenizer, self.r = d, tokenizer, r
        self.empty = self.ids([""])[0]

    def ids(self, texts: list[str]) -> Tensor:
        out = self.tokenizer(
            texts,
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        return out.input_ids  # type: ignore[no-any-return]

    def crop(self, group: int, which: int, size: int) -> tuple[Tensor, Tensor]:
        y, x = self.r.integers(0, STORED - size + 1, 2)
        plain, styled = self.d.plain[group, which], self.d.styled[group, which]
        cut = np.s_[:, y : y + size, x : x + size]
        # half the pairs mirrored would hide the strokes' direction; a few widen the set
        if self.r.random() < 0.2:
            return plain[cut].flip(-1), styled[cut].flip(-1)
        return plain[cut], styled[cut]

    def loss(
        self, net: Denoiser, groups: Array, size: int, vary: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For G groups: weighted loss, auxiliary loss, and the plain squared errors of the bridged
        samples."""
        r, batch = self.r, 2 * len(groups)
        pairs = [self.crop(int(g), i, size) for g in groups for i in (0, 1)]
        plain, styled = (torch.stack(x).float() for x in zip(*pairs, strict=True))
        pixels = view_references(self.d, groups, r, vary)
        # what stands for "no reference" under CFG
        black = torch.zeros(1, 3, VISION_SIZE, VISION_SIZE)
        tokens = net.picture_tokens(torch.cat([(pixels - CLIP_MEAN) / CLIP_STD, black]))

        u = r.random(batch)
        unconditional, text_only, with_text = (
            u < 0.1,
            (u >= 0.1) & (u < 0.15),
            (u >= 0.1) & (u < 0.35),
        )
        source = torch.arange(batch) // 2
        source[torch.from_numpy(unconditional | text_only)] = len(groups)
        captions = [str(self.d.captions[g, i]) for g in groups for i in (0, 1)]
        texts = [
            (SUBJECTS[r.integers(len(SUBJECTS))] + ", " if r.random() < 0.25 else "") + c
            for c in captions
        ]
        ids = torch.where(torch.from_numpy(with_text)[:, None], self.ids(texts), self.empty)
        states, pooled = net.text_states(ids)
        silent = torch.from_numpy(unconditional & (r.random(batch) < 0.4)).float()[
            :, None
        ]  # force_zeros_for_empty_prompt
        states, pooled = states * (1 - silent[..., None]), pooled * (1 - silent)

        to_plain = torch.from_numpy(unconditional & (r.random(batch) < 0.5)).view(-1, 1, 1, 1)
        z = torch.where(to_plain, plain, styled)
        bridged = torch.from_numpy(~unconditional & (r.random(batch) < 0.85))
        # where runs start at eta 0.75, mostly: how much of the plain picture x_t holds follows from
        # T0, which x_t hides
        start = torch.from_numpy(
            np.where(
                r.random(batch) < 0.7, r.integers(690, 810, batch), r.integers(500, 980, batch)
            )
        )
        inside = torch.from_numpy((r.random(batch) * (start.numpy() + 1)).astype(np.int64))
        inside = torch.where(torch.from_numpy(r.random(batch) < 0.3), start, inside)
        t = torch.where(bridged, inside, torch.from_numpy(r.integers(0, 1000, batch)))
        eps = torch.from_numpy(r.standard_normal(z.shape, dtype=np.float32))
        abar0, abar = ALPHAS_CUMPROD[start].view(-1, 1, 1, 1), ALPHAS_CUMPROD[t].view(-1, 1, 1, 1)
        shift = abar0 / (1 - abar0) * bridged.view(-1, 1, 1, 1)
        target = eps + shift.sqrt() * (plain - z)
        x_t = abar.sqrt() * z + (1 - abar).sqrt() * target
        size_px = float(r.integers(128, 600))
        sizes = torch.tensor([size_px, size_px, 0, 0, size_px, size_px]).repeat(batch, 1)
        out = net(x_t, t, states, pooled, tokens[source], sizes)
        error = ((out - target) ** 2).mean((1, 2, 3))
        weight = (1 / abar).clamp(max=20).sqrt().flatten() / (
            1 + shift.flatten() * ((plain - z) ** 2).mean((1, 2, 3))
        )
        return (
            (error * weight).mean(),
            self.facts_loss(net, tokens[:-1], pixels, groups),
            error.detach()[bridged],
        )

    def facts_loss(self, net: Denoiser, tokens: Tensor, pixels: Tensor, groups: Array) -> Tensor:
        kinds = len(KINDS)
        told = net.facts(tokens.mean(1))
        return F.cross_entropy(told[:, :kinds], self.d.kind[groups]) + 3 * F.mse_loss(
            told[:, kinds:], style_facts(pixels)
        )


def learn_facts(net: Denoiser, trainer: Trainer, groups: int, steps: int) -> None:
    """First let the picture encoder and the resampler learn to tell a reference's facts: cheap, and
    the UNet's gain."""
    params = [
        *net.vision.parameters(),
        *net.unet.encoder_hid_proj.parameters(),
        *net.facts.parameters(),
    ]
    optimizer = torch.optim.AdamW(params, 1e-3, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 50)
        chosen = trainer.r.integers(HELD_OUT, groups, 32)
        pixels = view_references(trainer.d, chosen, trainer.r)
        tokens = net.picture_tokens((pixels - CLIP_MEAN) / CLIP_STD)
        loss = trainer.facts_loss(net, tokens, pixels, chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            log.info("facts step %d loss %.3f", step + 1, np.mean(losses[-50:]))


@torch.no_grad()
def validate(net: Denoiser, trainer: Trainer) -> float:
    """Mean squared error of bridged samples on the held-out groups, the same draws every time."""
    fixed = Trainer(trainer.d, trainer.tokenizer, np.random.default_rng(77))
    errors = [
        fixed.loss(net, np.arange(i, i + 8), 32, vary=False)[2] for i in range(0, HELD_OUT - 7, 8)
    ]
    return float(torch.cat(errors).mean())


def train(
    data: Path,
    latents: Path,
    out: Path,
    seed: int,
    steps: int,
    minutes: float,
    rate: float,
    facts_steps: int,
    start: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Train to `steps`, or until `minutes` have passed, when the learning rate has fallen to
    nothing.

    Starts from the weights in `start` (see export.load_parts) or from nothing. Resumes from
    out/state.pt: weights, averages, optimizer, random state. The averaged weights go to
    out/average.pt.
    """
    torch.manual_seed(seed)
    d = load(data, latents)
    tokenizer = make_tokenizer(out / "tokenizer")
    trainer = Trainer(d, tokenizer, np.random.default_rng(seed))
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    groups, state_path, begin_step, spent = len(d.kind), out / "state.pt", 0, 0.0
    for name, state in (start or {}).items():
        getattr(net, name).load_state_dict(state)
    average = copy.deepcopy(net).eval()
    optimizer = torch.optim.AdamW(
        net.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True
    )
    log.info("%d groups, %.2f M parameters", groups, sum(p.numel() for p in net.parameters()) / 1e6)
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        trainer.r.bit_generator.state = state["random"]
        begin_step, spent = state["step"], state["seconds"]
    else:
        learn_facts(net, trainer, groups, facts_steps)
    begin, losses, facts = time.monotonic() - spent, [], []
    for step in range(begin_step, steps):
        done = max(step / steps, (time.monotonic() - begin) / (60 * minutes))
        if done >= 1:
            break
        # warm up, hold, then fall in a straight line over the last 40%
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 60, (1 - done) / 0.4 + 0.01)
        wide = trainer.r.random() < (0.1 if done < 0.75 else 0.4)
        loss, fact, error = trainer.loss(
            net, trainer.r.integers(HELD_OUT, groups, 3 if wide else 8), 40 if wide else 24
        )
        optimizer.zero_grad()
        (loss + 0.1 * fact).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses += error.tolist()
        facts.append(float(fact.detach()))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(average.parameters()),
                list(net.parameters()),
                1 - min(0.997, step / (step + 50)),
            )
        if (step + 1) % 50 == 0:
            log.info(
                "step %d bridge mse %.4f facts %.3f lr %.1e (%.0f s)",
                step + 1,
                np.mean(losses),
                np.mean(facts),
                optimizer.param_groups[0]["lr"],
                time.monotonic() - begin,
            )
            losses, facts = [], []
        if (step + 1) % SAVE_EVERY == 0:
            log.info("step %d validation %.4f", step + 1, validate(average, trainer))
            _save(state_path, net, average, optimizer, trainer, step + 1, time.monotonic() - begin)
    log.info("end, validation %.4f", validate(average, trainer))
    _save(state_path, net, average, optimizer, trainer, steps, time.monotonic() - begin)
    torch.save(average.state_dict(), out / "average.pt")


def _save(
    path: Path,
    net: Denoiser,
    average: Denoiser,
    optimizer: torch.optim.Optimizer,
    trainer: Trainer,
    step: int,
    seconds: float,
) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            "net": net.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": trainer.r.bit_generator.state,
            "step": step,
            "seconds": seconds,
        },
        part,
    )
    part.rename(path)
