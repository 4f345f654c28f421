"""Training of the pack's temporal layers:
`python -m std_cli.tinypack.train_motion WORK --pack PACK`.

The denoiser stays as it is; a stock `MotionAdapter` is put between its layers and learns, on moving
scenes, to give the denoiser's own predictions without their unrest: the target is the x0 that the
denoiser predicts frame by frame, each averaged with its neighbours moved onto it by the scene's
known motion. Such a target has no noise of its own, so that a few hundred steps tell. An average is
soft, so the target's fine band is brought back to the strength that it had. Where the motion cannot
be guessed, distance from a target asks for a blur all the same: two more losses ask for what the
prediction should be like instead, steady along the motion and as strong in its fine band as the
denoiser's. The frames' noise is mixed from one field that they share and one of each frame's own.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, MotionAdapter, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor
from transformers import CLIPTokenizer

from std_cli.tinypack.export import load_parts
from std_cli.tinypack.model import (
    LATENT_SCALE,
    TEXT_LENGTH,
    VISION_SIZE,
    WIDTHS,
    Denoiser,
    make_unet,
)
from std_cli.tinypack.moving_scenes import clip
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.train_denoiser import ALPHAS_CUMPROD, CLIP_MEAN, CLIP_STD
from std_cli.tinypack.vae import to_tensor

log = logging.getLogger(__name__)
FRAMES, LONGEST = 8, 24  # a window's; what the position embedding reaches
CLIP_SIZE = 128  # px
SHARD = 20  # clips
HELD_OUT = 12  # clips that only validation sees
SAVE_EVERY = 50  # steps
LOWEST = 40  # timestep: below, nothing is left to steady
FIGURES = "unrest %.4f flicker %.4f softness %.4f (alone %.4f and %.4f)"
SHARPEN = 2.0  # how much the target's fine band may grow
FLICKER, SOFTNESS = 2.0, 2.0  # weights of these losses
# see make_adapter; ALIKE: how much the first attention prefers frames that are alike
CONSTANT, ALIKE = 4.0, 0.6


def make_adapter() -> MotionAdapter:
    """The temporal layers that fit the pack's UNet, 3.1 M parameters, started so that little is
    left to learn.

    As a whole they start as the identity (proj_out is zero). Inside, the first attention takes the
    mean over the frames off, more of those that are alike at this place, so what proj_out is given
    is a frame's deviation along time. A constant of alternating sign, which no weight looks at,
    keeps LayerNorm in its linear range. Position embeddings are
    zero: a frame is treated the same wherever it is in its window, and a window may be shorter or
    longer.
    """
    adapter = MotionAdapter(
        block_out_channels=WIDTHS,
        motion_layers_per_block=2,
        motion_num_attention_heads=4,
        motion_norm_num_groups=16,
        motion_max_seq_length=LONGEST,
        use_motion_mid_block=False,
    )
    for layer in adapter.modules():
        if not isinstance(layer, AnimateDiffTransformer3D):
            continue
        constant = torch.tensor([1.0, -1.0]).repeat(layer.in_channels // 2)
        rest = torch.eye(len(constant)) - torch.outer(constant, constant) / len(constant)
        [block] = layer.transformer_blocks
        weights = {
            layer.proj_in.weight: rest,
            layer.proj_in.bias: CONSTANT * constant,
            block.norm1.weight: torch.full_like(constant, math.sqrt(1 + CONSTANT**2) / 2),
            block.attn1.to_q.weight: 2 * ALIKE * rest,
            block.attn1.to_k.weight: 2 * ALIKE * rest,
            block.attn1.to_v.weight: 2 * rest,
            block.attn1.to_out[0].weight: -rest,
        }
        nothing = (
            block.attn1.to_out[0].bias,
            block.attn2.to_out[0],
            block.ff.net[2],
            layer.proj_out,
        )
        with torch.no_grad():
            for p, value in weights.items():
                p.copy_(value)
            for x in nothing:
                for p in x.parameters() if isinstance(x, torch.nn.Module) else [x]:
                    p.zero_()
            block.pos_embed.pe.zero_()
    return adapter


def make_motion_unet(net: Denoiser, adapter: MotionAdapter) -> UNetMotionModel:
    """The denoiser's UNet with the adapter's layers, its IP-Adapter included; only the adapter's
    layers learn."""
    plain = make_unet()
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in net.unet.state_dict().items() if k in own})
    unet = UNetMotionModel.from_unet2d(plain, adapter)
    # from_unet2d leaves it random
    unet.add_embedding.load_state_dict(plain.add_embedding.state_dict())
    theirs = net.unet.attn_processors
    unet.set_attn_processor(
        {name: theirs.get(name, own) for name, own in unet.attn_processors.items()}
    )
    unet.encoder_hid_proj = net.unet.encoder_hid_proj
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.requires_grad_(False)
    for name, p in unet.named_parameters():
        p.requires_grad_("motion_modules" in name)
    return unet.eval()


def load_denoiser(pack: Path) -> tuple[Denoiser, CLIPTokenizer]:
    """A pack's denoiser, fp32."""
    tokenizer = CLIPTokenizer.from_pretrained(pack / "tokenizer")
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, state in load_parts(pack).items():
        getattr(net, name).load_state_dict(state)
    return net, tokenizer


# --- moving scenes as latents ------------------------------------------------------------------


@dataclass
class Clips:
    """C clips of FRAMES frames; h = w = CLIP_SIZE / 4."""

    plain: Tensor  # (C, 4, FRAMES, h, w) float16, scaled
    styled: Tensor
    clean: Tensor
    flow: Tensor  # (C, FRAMES - 1, h, w, 2) float16, in latent pixels
    seen: Tensor  # (C, FRAMES - 1, h, w) bool
    reference: Array  # (C, 128, 128, 3) uint8
    caption: Array  # (C,) str


def make_clips(folder: Path, vae_folder: Path, seed: int, count: int) -> None:
    """Draw and encode clips, shard by shard; shard N follows from (seed, N) alone, and one already
    there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).eval()
    for number in range(-(-count // SHARD)):
        path = folder / f"clips-{number:04d}.npz"
        if path.exists():
            continue
        r = np.random.default_rng((seed, number))
        rows = [_encoded(vae, r) for _ in range(SHARD)]
        part = path.with_suffix(".part.npz")
        stacked: dict[str, Any] = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
        np.savez(part, **stacked)
        part.rename(path)
        log.info("drew %s", path.stem)


@torch.no_grad()
def _encoded(vae: AutoencoderKL, r: np.random.Generator) -> dict[str, Array]:
    c = clip(r, FRAMES, CLIP_SIZE)
    pixels = to_tensor(
        (np.concatenate([c.plain, c.styled, c.clean]) * 255).round().astype(np.uint8)
    )
    z = vae.encode(pixels).latent_dist.mode() * LATENT_SCALE
    plain, styled, clean = z.half().permute(1, 0, 2, 3).split(FRAMES, 1)
    flow = F.avg_pool2d(torch.from_numpy(c.flow).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1) / 4
    seen = F.avg_pool2d(torch.from_numpy(c.seen).float()[:, None], 4)[:, 0] == 1
    return {
        "plain": plain.numpy(),
        "styled": styled.numpy(),
        "clean": clean.numpy(),
        "flow": flow.half().numpy(),
        "seen": seen.numpy(),
        "reference": (c.reference * 255).round().astype(np.uint8),
        "caption": np.array(c.caption),
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


# --- losses ------------------------------------------------------------------------------------


def mix_noise(shared: Tensor, own: Tensor, m: Tensor | float) -> Tensor:
    """Noise of unit variance, of which the share m is common to the frames."""
    m = torch.as_tensor(m)
    return m.sqrt() * shared + (1 - m).sqrt() * own


def along(x: Tensor, flow: Tensor) -> Tensor:
    """Each frame but the first, brought onto the one before it by the motion: (B, C, N, h, w) ->
    (B, C, N - 1, h, w).

    `flow` is (B, N - 1, h, w, 2), in pixels of x.
    """
    b, c, n, h, w = x.shape
    here = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1], -1)
    places = (2 * (here + flow) + 1) / torch.tensor([w, h]) - 1
    nexts = x[:, :, 1:].transpose(1, 2).reshape(-1, c, h, w)
    out = F.grid_sample(
        nexts, places.reshape(-1, h, w, 2), padding_mode="border", align_corners=False
    )
    return out.view(b, n - 1, c, h, w).transpose(1, 2)


def steadied(x: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
    """Each frame's mean with its neighbours, moved onto it; where a neighbour does not show the
    place, without it.

    x (B, C, N, h, w), flow (B, N - 1, h, w, 2), seen (B, N - 1, h, w).
    """
    total, weight = x.clone(), torch.ones_like(x[:, :1])
    visible = seen[:, None]
    total[:, :, :-1] += along(x, flow) * visible
    weight[:, :, :-1] += visible
    # onto the later frame by the same motion backwards, close enough for a latent pixel
    back, its = x.flip(2), seen.flip(1)[:, None]
    total[:, :, 1:] += (along(back, -flow.flip(1)) * its).flip(2)
    weight[:, :, 1:] += its.flip(2)
    return total / weight


def fine(x: Tensor) -> Tensor:
    """What a 5 x 5 binomial filter takes off each frame; x (B, C, N, h, w)."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    each = F.pad(x.transpose(1, 2).reshape(-1, 1, *x.shape[-2:]), (2, 2, 2, 2), mode="reflect")
    low: Tensor = F.conv2d(F.conv2d(each, row.view(1, 1, 1, 5)), row.view(1, 1, 5, 1))
    return x - low.view(x.shape[0], x.shape[2], x.shape[1], *x.shape[-2:]).transpose(1, 2)


def strength(x: Tensor) -> Tensor:
    """Root mean square over 8 x 8 places and their neighbourhood; x (B, C, N, h, w), alike."""
    each = F.pad(x.transpose(1, 2).flatten(0, 1) ** 2, (4, 3, 4, 3), mode="reflect")
    means: Tensor = F.avg_pool2d(each, 8, 1).unflatten(0, (x.shape[0], x.shape[2]))
    return (means.transpose(1, 2) + 1e-6).sqrt()


class Trainer:
    """Draws batches and computes the losses; every draw comes from `r`, so that a run repeats."""

    def __init__(
        self, clips: Clips, net: Denoiser, tokenizer: CLIPTokenizer, r: np.random.Generator
    ) -> None:
        self.clips, self.net, self.tokenizer, self.r = (
            clips,
            net.eval().requires_grad_(False),
            tokenizer,
            r,
        )

    @torch.no_grad()
    def conditions(self, chosen: Array, plain_only: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (B, 32, CROSS) and pooled (B, 64), vision states (B, 1, P, W); dropped out as
        in train.py."""
        r, n = self.r, len(chosen)
        u = r.random(n)
        texts = [
            str(c) if text else ""
            for c, text in zip(self.clips.caption[chosen], u < 0.25, strict=True)
        ]
        texts = ["" if p else t for t, p in zip(texts, plain_only, strict=True)]
        ids = self.tokenizer(
            texts,
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        states, pooled = self.net.text_states(ids)
        # force_zeros_for_empty_prompt
        silent = torch.from_numpy(~(plain_only & (r.random(n) < 0.4))).float()[:, None]
        pixels = torch.from_numpy(self.clips.reference[chosen]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(
            pixels, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True
        ).clamp(0, 1)
        # what stands for "no reference" under CFG
        black = torch.from_numpy(plain_only | (u < 0.05)).view(-1, 1, 1, 1)
        pixels = torch.where(black, 0, (pixels - CLIP_MEAN) / CLIP_STD)
        hidden = self.net.vision(pixels, output_hidden_states=True).hidden_states[-2]
        return states * silent[..., None], pooled * silent, hidden[:, None]

    def losses(
        self, unet: UNetMotionModel, chosen: Array, size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(unrest, flicker, softness, the denoiser's unrest and flicker) for some clips, on size x
        size latents.

        Of the x0 that is predicted: unrest is the distance from the steadied x0 of the denoiser;
        flicker that of each frame from the next along the motion; softness that of the fine band's
        strength from the denoiser's.
        """
        r, d, n = self.r, self.clips, len(chosen)
        y, x = r.integers(0, d.plain.shape[-1] - size + 1, 2)
        cut = np.s_[..., y : y + size, x : x + size]
        plain, styled, clean = (x[chosen][cut].float() for x in (d.plain, d.styled, d.clean))
        flow = d.flow[chosen][:, :, y : y + size, x : x + size].float()
        seen = d.seen[chosen][cut].float()
        # more than in train.py: under CFG what flickers there counts double
        unconditional = r.random(n) < 0.35
        states, pooled, hidden = self.conditions(chosen, unconditional)

        def column(values: Array) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.float32)).view(-1, 1, 1, 1, 1)

        z = torch.where(column(unconditional) > 0, clean, styled)
        start = np.where(r.random(n) < 0.7, r.integers(500, 800, n), r.integers(400, 980, n))
        t = (LOWEST + r.random(n) * (start + 1 - LOWEST)).astype(np.int64)
        m = np.where(r.random(n) < 0.7, 1, r.random(n))  # all shared is what flickers least, by far
        shared, own = (r.standard_normal((n, 4, f, size, size), np.float32) for f in (1, FRAMES))
        eps = mix_noise(torch.from_numpy(shared), torch.from_numpy(own), column(m))
        abar0, abar = column(ALPHAS_CUMPROD[start]), column(ALPHAS_CUMPROD[t])
        x_t = abar.sqrt() * z + (1 - abar).sqrt() * (
            eps + (abar0 / (1 - abar0)).sqrt() * (plain - z)
        )
        side = float(r.integers(128, 600))
        sizes = torch.tensor([side, side, 0, 0, side, side]).repeat(n, 1)

        def x0(predicted: Tensor) -> Tensor:
            return (x_t - (1 - abar).sqrt() * predicted) / abar.sqrt()

        with torch.no_grad():  # the denoiser itself, frame by frame
            each = x_t.transpose(1, 2).flatten(0, 1)
            rows = [
                v.repeat_interleave(FRAMES, 0)
                for v in (torch.from_numpy(t), states, hidden, pooled, sizes)
            ]
            tokens = self.net.unet.encoder_hid_proj.image_projection_layers[0](rows[2][:, 0])
            alone = self.net(each, rows[0], rows[1], rows[3], tokens, rows[4])
            before = x0(alone.unflatten(0, (n, FRAMES)).transpose(1, 2))
            target = steadied(steadied(before, flow, seen), flow, seen)
            sharp, soft = strength(fine(before)), fine(target)
            target = target + soft * ((sharp / strength(soft)).clamp(1, SHARPEN) - 1)
        more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [hidden]}
        states = states.repeat_interleave(FRAMES, 0)
        after = x0(unet(x_t, torch.from_numpy(t), states, added_cond_kwargs=more).sample)
        weight = (abar / (1 - abar)).sqrt().clamp(max=5)
        softness = ((strength(fine(after)) - sharp) ** 2 * weight).mean()
        unrest, alone = (((x - target) ** 2 * weight).mean() for x in (after, before))
        flicker, its = (
            ((along(x, flow) - x[:, :, :-1]) ** 2 * seen[:, None] * weight).mean()
            for x in (after, before)
        )
        return unrest, flicker, softness, alone, its


@torch.no_grad()
def validate(unet: UNetMotionModel, trainer: Trainer) -> list[float]:
    """The figures of `Trainer.losses` on the held-out clips, the same draws every time."""
    fixed = Trainer(trainer.clips, trainer.net, trainer.tokenizer, np.random.default_rng(77))
    size = trainer.clips.plain.shape[-1]
    figures = [
        torch.stack(fixed.losses(unet, np.arange(i, i + 2), size))
        for i in range(0, HELD_OUT - 1, 2)
    ]
    return torch.stack(figures).mean(0).tolist()


# --- the run -----------------------------------------------------------------------------------


def train(
    clips: Clips,
    net: Denoiser,
    tokenizer: CLIPTokenizer,
    start: MotionAdapter | None,
    out: Path,
    seed: int,
    steps: int,
    minutes: float,
    rate: float,
) -> MotionAdapter:
    """Train to `steps`, or until `minutes` have passed, when the learning rate has fallen to
    nothing.

    Begins with `start`, or what `make_adapter` gives; resumes from out/state.pt. Gives the adapter
    with its averaged weights, fp32.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    adapter, state_path, begin_step, spent = start or make_adapter(), out / "state.pt", 0, 0.0
    unet = make_motion_unet(net, adapter)
    trainer = Trainer(clips, net, tokenizer, np.random.default_rng(seed))
    learnt = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    params = list(learnt.values())
    average = [p.detach().clone() for p in params]
    # the layers' outputs are several units in size
    faster = [4.0 if ".proj_out." in n else 1.0 for n in learnt]
    groups = [
        {"params": [p for p, x in zip(params, faster, strict=True) if x == k]} for k in (1.0, 4.0)
    ]
    optimizer = torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        for own, saved in ((params, state["params"]), (average, state["average"])):
            for p, v in zip(own, saved, strict=True):
                p.data.copy_(v)
        optimizer.load_state_dict(state["optimizer"])
        trainer.r.bit_generator.state = state["random"]
        begin_step, spent = state["step"], state["seconds"]
    else:
        log.info(f"%d clips, validation: {FIGURES}", len(clips.plain), *validate(unet, trainer))
    begin, losses = time.monotonic() - spent, []
    step, side = begin_step, clips.plain.shape[-1]
    while (done := max(step / steps, (time.monotonic() - begin) / (60 * minutes))) < 1:
        # warm up, hold, then fall in a straight line over the last 40%
        for group, times in zip(optimizer.param_groups, (1, 4), strict=True):
            group["lr"] = times * rate * min(1, (step + 1) / 20, (1 - done) / 0.4 + 0.01)
        few = trainer.r.random() < 0.25
        chosen = trainer.r.integers(HELD_OUT, len(clips.plain), 1 if few else 2)
        figures = trainer.losses(unet, chosen, side if few else side * 3 // 4)
        unrest, flicker, softness, *_ = figures
        optimizer.zero_grad()
        (unrest + FLICKER * flicker + SOFTNESS * softness).backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - min(0.99, step / (step + 20)))
        losses.append(torch.stack(figures).tolist())
        if step % SAVE_EVERY == 0:
            log.info(
                f"motion step %d {FIGURES} (%.0f s)",
                step,
                *np.mean(losses, 0),
                time.monotonic() - begin,
            )
            losses = []
            part = state_path.with_suffix(".part")
            torch.save(
                {
                    "params": [p.detach() for p in params],
                    "average": average,
                    "optimizer": optimizer.state_dict(),
                    "random": trainer.r.bit_generator.state,
                    "step": step,
                    "seconds": time.monotonic() - begin,
                },
                part,
            )
            part.rename(state_path)
    for p, v in zip(params, average, strict=True):
        p.data.copy_(v)
    log.info(f"motion end, %d steps, validation: {FIGURES}", step, *validate(unet, trainer))
    adapter.load_state_dict({k: v for k, v in unet.state_dict().items() if "motion_modules" in k})
    return adapter


def save(adapter: MotionAdapter, folder: Path) -> None:
    """As a diffusers folder in fp16, complete or not there at all."""
    part = folder.with_name(folder.name + ".part")
    adapter.half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a folder on this machine
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    part.rename(folder)


def blend(folders: list[Path], share: float, out: Path) -> None:
    """The mean of two adapters' weights, `share` of the second: between a soft, steady one and a
    crisp one."""
    one, two = (MotionAdapter.from_pretrained(f, dtype=torch.float32) for f in folders)
    with torch.no_grad():
        for p, other in zip(one.parameters(), two.parameters(), strict=True):
            p.lerp_(other, share)
    save(one, out)


def weaken(folder: Path, share: float, out: Path) -> None:
    """The same adapter with `share` of its effect: what its layers add to the denoiser's, times
    that."""
    adapter = MotionAdapter.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if ".proj_out." in name:
                p.mul_(share)
    save(adapter, out)


def run(
    work: Path,
    pack: Path,
    start: Path | None = None,
    seed: int = 1,
    clips: int = 400,
    minutes: float = 20,
    steps: int = 100_000,
    rate: float = 1e-3,
) -> None:
    """Train temporal layers for the pack at `pack`: clips and state in work/motion, the result
    work/motion_adapter."""
    if (work / "motion_adapter").exists():
        return
    make_clips(work / "motion" / "clips", pack / "vae", seed, clips)
    net, tokenizer = load_denoiser(pack)
    adapter = MotionAdapter.from_pretrained(start, dtype=torch.float32) if start else None
    data, out = load_clips(work / "motion" / "clips"), work / "motion"
    save(
        train(data, net, tokenizer, adapter, out, seed, steps, minutes, rate),
        work / "motion_adapter",
    )


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack.train_motion", description="Train temporal layers."
    )
    p.add_argument(
        "work",
        type=Path,
        help="folder for what the training makes; with --blend or --weaken, the adapter's",
    )
    p.add_argument("--pack", type=Path, help="the pack folder that they are for; it is only read")
    p.add_argument(
        "--blend",
        type=Path,
        nargs=2,
        metavar="FOLDER",
        help="no training: the mean of two adapters",
    )
    p.add_argument(
        "--weaken",
        type=Path,
        metavar="FOLDER",
        help="no training: an adapter with a share of its effect",
    )
    p.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="of the second, with --blend; of the effect, with --weaken",
    )
    p.add_argument("--start", type=Path, help="folder of an adapter to go on from")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--clips", type=int, default=400)
    p.add_argument("--minutes", type=float, default=20, help="of training, at most")
    p.add_argument("--steps", type=int, default=100_000, help="at most")
    p.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)
    if a.blend:
        return blend(a.blend, a.share, a.work)
    if a.weaken:
        return weaken(a.weaken, a.share, a.work)
    if not a.pack:
        p.error("--pack is needed, or --blend, or --weaken")
    run(a.work, a.pack, a.start, a.seed, a.clips, a.minutes, a.steps, a.rate)


if __name__ == "__main__":
    main()
