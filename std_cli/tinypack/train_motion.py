"""Training of the pack's temporal layers:
`python -m std_cli.tinypack.train_motion WORK --pack PACK`.

The denoiser is not changed. A stock `MotionAdapter` is put between its layers and learns, on moving
scenes, to give the denoiser's own predictions without their unrest. The target is the x0 that the
denoiser predicts frame by frame, each averaged with its neighbours, which are moved onto it by the
scene's known motion. Such a target has no noise, so that a few hundred steps have an effect. An
average is soft, so the target's fine band is scaled back to its former strength. Where the motion
cannot be guessed, the distance from a target rewards a blur nevertheless. Two more losses therefore
describe the prediction itself: it should be steady along the motion, and as strong in its fine band
as the denoiser's. The frames' noise is mixed from a field that they share and one for each frame.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor
from transformers import CLIPTokenizer

from std_cli.diffusion.pipeline import join_motion
from std_cli.tinypack.export import load_parts
from std_cli.tinypack.model import (
    ALPHAS_CUMPROD,
    TEXT_LENGTH,
    VISION_SIZE,
    WIDTHS,
    Denoiser,
    make_unet,
    noise_from_v,
)
from std_cli.tinypack.motion_clips import FRAMES, Clips, load_clips, make_clips
from std_cli.tinypack.motion_losses import along, fine, mix_noise, steadied, strength
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.train_denoiser import CLIP_MEAN, CLIP_STD

log = logging.getLogger(__name__)
LONGEST = 24  # frames that the position embedding reaches
HELD_OUT = 12  # clips that only validation sees
SAVE_EVERY = 50  # steps
LOWEST = 40  # timestep: below, nothing is left to steady
FIGURES = "unrest %.4f flicker %.4f softness %.4f (alone %.4f and %.4f)"
SHARPEN = 2.0  # how much the target's fine band may grow
FLICKER, SOFTNESS = 2.0, 2.0  # weights of these losses
# see make_adapter; ALIKE: how much the first attention prefers frames that are alike
CONSTANT = 4.0
ALIKE = 0.6


def make_adapter() -> MotionAdapter:
    """Return temporal layers for the pack's UNet, 3.1 M parameters, started so that little is left
    to learn.

    As a whole they start as the identity (proj_out is zero). Inside, the first attention subtracts
    the mean over the frames, weighted towards those that are alike at this place, so that proj_out
    receives a frame's deviation along time. A constant of alternating sign, which no weight reads,
    keeps LayerNorm in its linear range. Position embeddings are zero: a frame is treated the same
    wherever it is in its window, and a window may be shorter or longer.
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
    """Return the denoiser's UNet with the adapter's layers, its IP-Adapter included; only the
    adapter's layers learn."""
    plain = make_unet()
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in net.unet.state_dict().items() if k in own})
    unet = join_motion(plain, adapter)
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
    """Return a pack's denoiser, fp32, and its tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(pack / "tokenizer")
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, state in load_parts(pack).items():
        getattr(net, name).load_state_dict(state)
    return net, tokenizer


class Trainer:
    """Draws batches and computes the losses. Every draw comes from `rng`, so that a run
    repeats."""

    def __init__(
        self, clips: Clips, net: Denoiser, tokenizer: CLIPTokenizer, rng: np.random.Generator
    ) -> None:
        self.clips = clips
        self.net = net.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.rng = rng

    @torch.no_grad()
    def conditions(self, chosen: Array, plain_only: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (B, 32, CROSS) and pooled (B, 64), vision states (B, 1, P, W); some are
        dropped as in train_denoiser.py."""
        rng = self.rng
        n = len(chosen)
        u = rng.random(n)
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
        silent = torch.from_numpy(~(plain_only & (rng.random(n) < 0.4))).float()[:, None]
        pixels = torch.from_numpy(self.clips.reference[chosen]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(
            pixels, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True
        ).clamp(0, 1)
        # a black picture stands for "no reference" under CFG
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
        flicker is the distance of each frame from the next along the motion; softness is the
        distance of the fine band's strength from the denoiser's.
        """
        clips = self.clips
        n = len(chosen)
        y, x = self.rng.integers(0, clips.plain.shape[-1] - size + 1, 2)
        cut = np.s_[..., y : y + size, x : x + size]
        plain, styled, clean = (
            part[chosen][cut].float() for part in (clips.plain, clips.styled, clips.clean)
        )
        flow = clips.flow[chosen][:, :, y : y + size, x : x + size].float()
        seen = clips.seen[chosen][cut].float()
        # more than in train_denoiser.py: what flickers there counts double under CFG
        unconditional = self.rng.random(n) < 0.35
        states, pooled, hidden = self.conditions(chosen, unconditional)
        z = torch.where(_column(unconditional) > 0, clean, styled)
        x_t, t, abar = self.noised(plain, z)
        side = float(self.rng.integers(128, 600))
        sizes = torch.tensor([side, side, 0, 0, side, side]).repeat(n, 1)

        def x0(predicted: Tensor) -> Tensor:
            return (x_t - (1 - abar).sqrt() * predicted) / abar.sqrt()

        with torch.no_grad():
            before = x0(self.alone(x_t, t, states, pooled, hidden, sizes))
            target = steadied(steadied(before, flow, seen), flow, seen)
            sharp = strength(fine(before))
            soft = fine(target)
            target = target + soft * ((sharp / strength(soft)).clamp(1, SHARPEN) - 1)
        more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [hidden]}
        rows = states.repeat_interleave(FRAMES, 0)
        v = unet(x_t, t, rows, added_cond_kwargs=more).sample
        after = x0(noise_from_v(v, x_t, abar))
        weight = (abar / (1 - abar)).sqrt().clamp(max=5)

        def unrest(x: Tensor) -> Tensor:
            distance: Tensor = ((x - target) ** 2 * weight).mean()
            return distance

        def flicker(x: Tensor) -> Tensor:
            return ((along(x, flow) - x[:, :, :-1]) ** 2 * seen[:, None] * weight).mean()

        softness = ((strength(fine(after)) - sharp) ** 2 * weight).mean()
        return unrest(after), flicker(after), softness, unrest(before), flicker(before)

    def noised(self, plain: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, abar_t) of B clips z (B, 4, FRAMES, h, w), with the bridge noise of
        train_denoiser.py; t is int64 (B,), abar_t (B, 1, 1, 1, 1)."""
        rng = self.rng
        n, size = len(z), z.shape[-1]
        near = rng.random(n) < 0.7
        start = np.where(near, rng.integers(500, 800, n), rng.integers(400, 980, n))
        t = (LOWEST + rng.random(n) * (start + 1 - LOWEST)).astype(np.int64)
        # noise that all frames share flickers least by far, so most of the clips have it
        m = np.where(rng.random(n) < 0.7, 1, rng.random(n))
        shared, own = (rng.standard_normal((n, 4, f, size, size), np.float32) for f in (1, FRAMES))
        eps = mix_noise(torch.from_numpy(shared), torch.from_numpy(own), _column(m))
        abar0, abar = _column(ALPHAS_CUMPROD[start]), _column(ALPHAS_CUMPROD[t])
        shift = (abar0 / (1 - abar0)).sqrt() * (plain - z)
        return abar.sqrt() * z + (1 - abar).sqrt() * (eps + shift), torch.from_numpy(t), abar

    def alone(
        self, x_t: Tensor, t: Tensor, states: Tensor, pooled: Tensor, hidden: Tensor, sizes: Tensor
    ) -> Tensor:
        """The noise that the denoiser predicts frame by frame, without temporal layers: (B, 4,
        FRAMES, h, w)."""
        t, states, pooled, hidden, sizes = (
            value.repeat_interleave(FRAMES, 0) for value in (t, states, pooled, hidden, sizes)
        )
        tokens = self.net.unet.encoder_hid_proj.image_projection_layers[0](hidden[:, 0])
        each = x_t.transpose(1, 2).flatten(0, 1)
        predicted = self.net(each, t, states, pooled, tokens, sizes)
        clips: Tensor = predicted.unflatten(0, (len(x_t), FRAMES)).transpose(1, 2)
        return clips


def _column(values: Array) -> Tensor:
    """(B,) -> float32 (B, 1, 1, 1, 1)."""
    return torch.from_numpy(np.asarray(values, np.float32)).view(-1, 1, 1, 1, 1)


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


@dataclass
class Run:
    """All that a training resumes from."""

    unet: UNetMotionModel
    trainer: Trainer
    params: list[Tensor]
    """What learns: the temporal layers of `unet`."""
    average: list[Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        torch.save(
            {
                "params": [p.detach() for p in self.params],
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "random": self.trainer.rng.bit_generator.state,
                "step": self.step,
                "seconds": self.seconds,
            },
            part,
        )
        part.rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for own, saved in ((self.params, state["params"]), (self.average, state["average"])):
            _copy(saved, own)
        self.optimizer.load_state_dict(state["optimizer"])
        self.trainer.rng.bit_generator.state = state["random"]
        self.step = state["step"]
        self.seconds = state["seconds"]


def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    for p, value in zip(into, values, strict=True):
        p.data.copy_(value)


def begin_run(unet: UNetMotionModel, trainer: Trainer, rate: float) -> Run:
    """A run at step 0."""
    learnt = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    # the layers' outputs are several units in size, so proj_out learns at four times the rate
    last = [p for name, p in learnt.items() if ".proj_out." in name]
    others = [p for name, p in learnt.items() if ".proj_out." not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": last}],
        rate,
        betas=(0.9, 0.98),
        weight_decay=1e-3,
        fused=True,
    )
    params = list(learnt.values())
    return Run(unet, trainer, params, [p.detach().clone() for p in params], optimizer)


def update(run: Run) -> list[float]:
    """One update of the temporal layers and their average; returns the figures of
    `Trainer.losses`."""
    trainer = run.trainer
    side = trainer.clips.plain.shape[-1]
    few = trainer.rng.random() < 0.25
    chosen = trainer.rng.integers(HELD_OUT, len(trainer.clips.plain), 1 if few else 2)
    figures = trainer.losses(run.unet, chosen, side if few else side * 3 // 4)
    unrest, flicker, softness, *_ = figures
    run.optimizer.zero_grad()
    (unrest + FLICKER * flicker + SOFTNESS * softness).backward()
    torch.nn.utils.clip_grad_norm_(run.params, 1.0)
    run.optimizer.step()
    run.step += 1
    with torch.no_grad():
        torch._foreach_lerp_(run.average, run.params, 1 - min(0.99, run.step / (run.step + 20)))
    return torch.stack(figures).tolist()


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

    Begins with `start`, or with a new adapter of `make_adapter`; resumes from out/state.pt. Returns
    the adapter with its averaged weights, fp32.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    state_path = out / "state.pt"
    adapter = start or make_adapter()
    unet = make_motion_unet(net, adapter)
    trainer = Trainer(clips, net, tokenizer, np.random.default_rng(seed))
    run = begin_run(unet, trainer, rate)
    if state_path.exists():
        run.load(state_path)
    else:
        log.info(f"%d clips, validation: {FIGURES}", len(clips.plain), *validate(unet, trainer))
    begin = time.monotonic() - run.seconds
    figures: list[list[float]] = []
    while (done := max(run.step / steps, (time.monotonic() - begin) / (60 * minutes))) < 1:
        # warm up, hold, then fall in a straight line over the last 40%
        for group, times in zip(run.optimizer.param_groups, (1, 4), strict=True):
            group["lr"] = times * rate * min(1, (run.step + 1) / 20, (1 - done) / 0.4 + 0.01)
        figures.append(update(run))
        run.seconds = time.monotonic() - begin
        if run.step % SAVE_EVERY == 0:
            means = np.mean(figures, 0)
            log.info(f"motion step %d {FIGURES} (%.0f s)", run.step, *means, run.seconds)
            figures = []
            run.save(state_path)
    _copy(run.average, run.params)
    log.info(f"motion end, %d steps, validation: {FIGURES}", run.step, *validate(unet, trainer))
    adapter.load_state_dict({k: v for k, v in unet.state_dict().items() if "motion_modules" in k})
    return adapter


def save(adapter: MotionAdapter, folder: Path) -> None:
    """Write the adapter as a diffusers folder in fp16, completely or not at all."""
    part = folder.with_name(folder.name + ".part")
    adapter.half().save_pretrained(part)
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a folder on this machine
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    part.rename(folder)


def blend(folders: list[Path], share: float, out: Path) -> None:
    """Write the mean of two adapters' weights, with `share` of the second: something between a
    soft, steady one and a crisp one."""
    one, two = (MotionAdapter.from_pretrained(f, dtype=torch.float32) for f in folders)
    with torch.no_grad():
        for p, other in zip(one.parameters(), two.parameters(), strict=True):
            p.lerp_(other, share)
    save(one, out)


def weaken(folder: Path, share: float, out: Path) -> None:
    """Write the same adapter with `share` of its effect: what its layers add to the denoiser's is
    multiplied by it."""
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
    """Train temporal layers for the pack at `pack`. Clips and state are kept in work/motion, the
    result in work/motion_adapter."""
    if (work / "motion_adapter").exists():
        return
    make_clips(work / "motion" / "clips", pack / "vae", seed, clips)
    net, tokenizer = load_denoiser(pack)
    adapter = MotionAdapter.from_pretrained(start, dtype=torch.float32) if start else None
    data = load_clips(work / "motion" / "clips")
    out = work / "motion"
    save(
        train(data, net, tokenizer, adapter, out, seed, steps, minutes, rate),
        work / "motion_adapter",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack.train_motion", description="Train temporal layers."
    )
    parser.add_argument(
        "work",
        type=Path,
        help="folder for what the training makes; with --blend or --weaken, the adapter's",
    )
    parser.add_argument(
        "--pack", type=Path, help="the pack folder that they are for; it is only read"
    )
    parser.add_argument(
        "--blend",
        type=Path,
        nargs=2,
        metavar="FOLDER",
        help="no training: the mean of two adapters",
    )
    parser.add_argument(
        "--weaken",
        type=Path,
        metavar="FOLDER",
        help="no training: an adapter with a share of its effect",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="of the second, with --blend; of the effect, with --weaken",
    )
    parser.add_argument("--start", type=Path, help="folder of an adapter to start from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=20, help="of training, at most")
    parser.add_argument("--steps", type=int, default=100_000, help="at most")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)
    if options.blend:
        return blend(options.blend, options.share, options.work)
    if options.weaken:
        return weaken(options.weaken, options.share, options.work)
    if not options.pack:
        parser.error("--pack is needed, or --blend, or --weaken")
    run(
        options.work,
        options.pack,
        options.start,
        options.seed,
        options.clips,
        options.minutes,
        options.steps,
        options.rate,
    )


if __name__ == "__main__":
    main()
