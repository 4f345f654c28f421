"""Training of the pack's temporal layers: `python -m std_cli.tinypack.motion WORK --pack PACK`.

The denoiser stays as it is; a stock `MotionAdapter` is put between its layers. All that its layers see is how a frame
deviates from those around it, so what frames have in common, colours and texture, passes whatever they learn.

They learn on walks: moving scenes are stylized as in use, from one noise that the frames share, under guidance, each
step from where the layers' own last step led. (States made from the scenes' true styles are too easy: a shift that is
small there grows from step to step.) The guided x0 of every step is asked to be steady along the scene's known motion,
near to what the denoiser itself predicts from the same state, averaged along the motion, and as strong in its fine band
as in a walk of the denoiser alone.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
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

from std_cli.schedule import timesteps
from std_cli.tinypack.export import load_parts
from std_cli.tinypack.model import LATENT_SCALE, TEXT_LENGTH, VISION_SIZE, WIDTHS, Denoiser, make_unet
from std_cli.tinypack.moving import clip
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.train import ALPHAS_CUMPROD, CLIP_MEAN, CLIP_STD
from std_cli.tinypack.vae import to_tensor

log = logging.getLogger(__name__)
FRAMES, WINDOW, LONGEST = 16, 8, 24  # a clip's; a walk's, mostly; what the position embedding reaches
CLIP_SIZE = 128  # px
CROP = 24  # latent pixels, of a walk
SHARD = 8  # clips
HELD_OUT = 8  # clips that only validation sees
SAVE_EVERY = 10  # walks
FIGURES = "unrest %.4f flicker %.4f softness %.4f (the denoiser's flicker %.4f)"
SHARPEN = 2.0  # how much the target's fine band may grow
SOFTNESS = 2.0  # weight of this loss
STILL = 0.003  # squared distance in latents that is no flicker
LEARN = (".proj_out.weight", ".attn1.to_q.weight", ".attn1.to_k.weight")
CONSTANT, ALIKE, STEADY = 16.0, 1.5, 2.0  # see make_adapter


def alternating(width: int) -> Tensor:
    """+1, -1, +1, ..., (width,)."""
    return torch.tensor([1.0, -1.0]).repeat(width // 2)


def deviations(width: int) -> Tensor:
    """What takes the mean and the alternating part off features, (width, width)."""
    constant = alternating(width)
    return torch.eye(width) - torch.outer(constant, constant) / width - 1 / width


def make_adapter() -> MotionAdapter:
    """The temporal layers that fit the pack's UNet, 3.1 M parameters, started so that little is left to learn.

    Inside each, the first attention takes the mean over the frames off, more of those that are alike at this place
    (ALIKE), so what proj_out is given is a frame's deviation along time. At the middle level proj_out takes most of it
    off (STEADY, in units of the features); elsewhere it is zero: at the finest level the features hold what the noisy
    latents deviate by, and an epsilon without it leaves it in x0. A constant of alternating sign, which no weight looks
    at, keeps LayerNorm in its linear range. Position embeddings are zero: a frame is treated the same wherever it is in
    its window, and a window may be shorter or longer.
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
        constant, rest = alternating(layer.in_channels), deviations(layer.in_channels)
        [block] = layer.transformer_blocks
        weights = {
            layer.proj_in.weight: rest,
            layer.proj_in.bias: CONSTANT * constant,
            block.norm1.weight: torch.full_like(constant, math.sqrt(1 + CONSTANT**2) / 2),
            block.attn1.to_q.weight: 2 * ALIKE * rest,
            block.attn1.to_k.weight: 2 * ALIKE * rest,
            block.attn1.to_v.weight: 2 * rest,
            block.attn1.to_out[0].weight: -rest,
            layer.proj_out.weight: -(STEADY if layer.in_channels == WIDTHS[1] else 0) * rest,
        }
        nothing = (block.attn1.to_out[0].bias, block.attn2.to_out[0], block.ff.net[2], layer.proj_out.bias)
        with torch.no_grad():
            for p, value in weights.items():
                p.copy_(value)
            for x in nothing:
                for p in x.parameters() if isinstance(x, torch.nn.Module) else [x]:
                    p.zero_()
            block.pos_embed.pe.zero_()
    return adapter


def make_motion_unet(net: Denoiser, adapter: MotionAdapter) -> UNetMotionModel:
    """The denoiser's UNet with the adapter's layers, its IP-Adapter included; only the adapter's layers learn."""
    plain = make_unet()
    own = plain.state_dict().keys()
    plain.load_state_dict({k: v for k, v in net.unet.state_dict().items() if k in own})
    unet = UNetMotionModel.from_unet2d(plain, adapter)
    unet.add_embedding.load_state_dict(plain.add_embedding.state_dict())  # from_unet2d leaves it random
    theirs = net.unet.attn_processors
    unet.set_attn_processor({name: theirs.get(name, own) for name, own in unet.attn_processors.items()})
    unet.encoder_hid_proj = net.unet.encoder_hid_proj
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.requires_grad_(False)
    for name, p in unet.named_parameters():
        p.requires_grad_("motion_modules" in name and name.endswith(LEARN))
    return unet.eval()


def load_denoiser(pack: Path) -> tuple[Denoiser, CLIPTokenizer]:
    """A pack's denoiser, fp32."""
    tokenizer = CLIPTokenizer.from_pretrained(pack / "tokenizer")
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, state in load_parts(pack).items():
        getattr(net, name).load_state_dict(state)
    return net, tokenizer


# --- moving scenes as latents ----------------------------------------------------------------------------------------


@dataclass
class Clips:
    """C clips of FRAMES frames; h = w = CLIP_SIZE / 4."""

    plain: Tensor  # (C, 4, FRAMES, h, w) float16, scaled
    flow: Tensor  # (C, FRAMES - 1, h, w, 2) float16, in latent pixels
    seen: Tensor  # (C, FRAMES - 1, h, w) bool
    reference: Array  # (C, 128, 128, 3) uint8
    caption: Array  # (C,) str


def make_clips(folder: Path, vae_folder: Path, seed: int, count: int) -> None:
    """Draw and encode clips, shard by shard; shard N follows from (seed, N) alone, and one already there is kept."""
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
    pixels = to_tensor((c.plain * 255).round().astype(np.uint8))
    z = vae.encode(pixels).latent_dist.mode() * LATENT_SCALE
    flow = F.avg_pool2d(torch.from_numpy(c.flow).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1) / 4
    seen = F.avg_pool2d(torch.from_numpy(c.seen).float()[:, None], 4)[:, 0] == 1
    return {
        "plain": z.half().permute(1, 0, 2, 3).numpy(),
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
    tensors = {k: torch.from_numpy(p[k]) for k in ("plain", "flow", "seen")}
    return Clips(**tensors, reference=p["reference"], caption=p["caption"])


# --- losses ----------------------------------------------------------------------------------------------------------


def along(x: Tensor, flow: Tensor) -> Tensor:
    """Each frame but the first, brought onto the one before it by the motion: (B, C, N, h, w) -> (B, C, N - 1, h, w).

    `flow` is (B, N - 1, h, w, 2), in pixels of x.
    """
    b, c, n, h, w = x.shape
    here = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1], -1)
    places = (2 * (here + flow) + 1) / torch.tensor([w, h]) - 1
    nexts = x[:, :, 1:].transpose(1, 2).reshape(-1, c, h, w)
    out = F.grid_sample(nexts, places.reshape(-1, h, w, 2), padding_mode="border", align_corners=False)
    return out.view(b, n - 1, c, h, w).transpose(1, 2)


def steadied(x: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
    """Each frame's mean with its neighbours, moved onto it; where a neighbour does not show the place, without it.

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

    def __init__(self, clips: Clips, net: Denoiser, tokenizer: CLIPTokenizer, r: np.random.Generator) -> None:
        self.clips, self.net, self.tokenizer, self.r = clips, net.eval().requires_grad_(False), tokenizer, r

    @torch.no_grad()
    def conditions(self, chosen: Array) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (2 B, 32, CROSS), pooled (2 B, 64), vision states (2 B, 1, P, W): unconditional, conditional."""
        r, n = self.r, len(chosen)
        texts = [str(c) if text else "" for c, text in zip(self.clips.caption[chosen], r.random(n) < 0.25, strict=True)]
        ids = self.tokenizer(
            [""] * n + texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        states, pooled = self.net.text_states(ids)
        spoken = torch.ones(2 * n, 1)
        spoken[:n, 0] = torch.from_numpy(r.random(n) >= 0.4)  # force_zeros_for_empty_prompt
        pixels = torch.from_numpy(self.clips.reference[chosen]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - CLIP_MEAN) / CLIP_STD
        pixels = torch.cat([torch.zeros_like(pixels), pixels])  # what stands for "no reference" under CFG
        hidden = self.net.vision(pixels, output_hidden_states=True).hidden_states[-2]
        return states * spoken[..., None], pooled * spoken, hidden[:, None]

    def walk(self, unet: UNetMotionModel, chosen: Array, frames: int, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Stylize some clips, size x size latents of some frames, and tell at every step how the guided x0 does.

        (unrest, flicker, softness, the denoiser's flicker), about in units of the last. Unrest is the distance from the
        steadied x0 that the denoiser predicts here, frame by frame; flicker that of each frame from the next along the
        motion; softness that of the fine band's strength from what it is at this step in a walk of the denoiser's own,
        frame by frame.
        """
        r, d, n = self.r, self.clips, len(chosen)
        first = r.integers(0, d.plain.shape[2] - frames + 1)
        y, x = r.integers(0, d.plain.shape[-1] - size + 1, 2)
        plain = d.plain[chosen][:, :, first : first + frames, y : y + size, x : x + size].float()
        flow = d.flow[chosen][:, first : first + frames - 1, y : y + size, x : x + size].float()
        seen = d.seen[chosen][:, first : first + frames - 1, y : y + size, x : x + size].float()
        states, pooled, hidden = self.conditions(chosen)
        side = float(r.integers(128, 600))
        sizes = torch.tensor([side, side, 0, 0, side, side]).repeat(2 * n, 1)
        cfg = torch.from_numpy(r.uniform(1.5, 3.5, (n, 1, 1, 1, 1)).astype(np.float32))
        tokens = self.net.unet.encoder_hid_proj.image_projection_layers[0](hidden[:, 0])
        more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [hidden]}

        def guided(predicted: Tensor) -> Tensor:
            unconditional, conditional = predicted.chunk(2)
            return unconditional + cfg * (conditional - unconditional)

        def moving(x: Tensor, t: int) -> Tensor:
            return guided(
                unet(torch.cat([x, x]), t, states.repeat_interleave(frames, 0), added_cond_kwargs=more).sample
            )

        @torch.no_grad()
        def alone(x: Tensor, t: int) -> Tensor:
            """The denoiser itself, frame by frame."""
            rows = [v.repeat_interleave(frames, 0) for v in (states, pooled, tokens, sizes)]
            each = torch.cat([x, x]).transpose(1, 2).flatten(0, 1)
            out: Tensor = self.net(each, torch.full((len(each),), t), rows[0], rows[1], rows[2], rows[3])
            return guided(out.unflatten(0, (2 * n, frames)).transpose(1, 2))

        steps = timesteps(int(r.integers(4, 9)), float(r.uniform(0.5, 0.8)), "quickstart")
        abar = float(ALPHAS_CUMPROD[steps[0]])
        eps = torch.from_numpy(r.standard_normal((n, 4, 1, size, size), np.float32))  # one for all frames
        mine = own = math.sqrt(abar) * plain + math.sqrt(1 - abar) * eps
        for t, after in zip(steps, [*steps[1:], 0], strict=True):
            abar, next_abar = float(ALPHAS_CUMPROD[t]), float(ALPHAS_CUMPROD[after])

            def x0(x: Tensor, predicted: Tensor, abar: float = abar) -> Tensor:
                return (x - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)

            def step(x: Tensor, predicted: Tensor, to: float = next_abar) -> Tensor:
                return math.sqrt(to) * x0(x, predicted).detach() + math.sqrt(1 - to) * predicted.detach()

            predicted, its = moving(mine, t), alone(own, t)
            found, lone = x0(mine, predicted), x0(own, its)
            target = steadied(steadied(x0(mine, alone(mine, t)), flow, seen), flow, seen)
            sharp, soft = strength(fine(lone)), fine(target)
            target = target + soft * ((sharp / strength(soft)).clamp(1, SHARPEN) - 1)
            unrest = ((found - target) ** 2).mean()
            softness = ((strength(fine(found)) - sharp) ** 2).mean()
            flicker, its_flicker = (
                ((along(x, flow) - x[:, :, :-1]) ** 2 * seen[:, None]).mean() for x in (found, lone)
            )
            unit = its_flicker + STILL  # a clip in which much moves must not outvote those in which little does
            yield unrest / unit, flicker / unit, softness / unit, its_flicker / unit
            mine, own = step(mine, predicted), step(own, its)


@torch.no_grad()
def validate(unet: UNetMotionModel, trainer: Trainer) -> list[float]:
    """The mean figures of `Trainer.walk` on the held-out clips, the same draws every time."""
    fixed = Trainer(trainer.clips, trainer.net, trainer.tokenizer, np.random.default_rng(77))
    walks = (fixed.walk(unet, np.array([i]), WINDOW, CROP) for i in range(HELD_OUT))
    figures = [torch.stack(f) for walk in walks for f in walk]
    return torch.stack(figures).mean(0).tolist()


# --- the run ---------------------------------------------------------------------------------------------------------


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
    weight: float,
) -> MotionAdapter:
    """Train for `steps` walks, or until `minutes` have passed, when the learning rate has fallen to nothing.

    `weight` is that of the flicker: the higher, the steadier, and the softer.

    Begins with `start`, or what `make_adapter` gives; resumes from out/state.pt. Gives the adapter with its averaged
    weights, fp32.
    """
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    adapter, state_path, begin_step, spent = start or make_adapter(), out / "state.pt", 0, 0.0
    unet = make_motion_unet(net, adapter)
    trainer = Trainer(clips, net, tokenizer, np.random.default_rng(seed))
    learnt = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    params = list(learnt.values())
    average = [p.detach().clone() for p in params]
    slow = [
        ".attn1." in n for n in learnt
    ]  # what is alike is told from features, what is put out from small deviations
    groups = [{"params": [p for p, s in zip(params, slow, strict=True) if s == k]} for k in (False, True)]
    optimizer = torch.optim.Adam(groups, rate, betas=(0.9, 0.98), fused=True)
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
    step = begin_step
    while (done := max(step / steps, (time.monotonic() - begin) / (60 * minutes))) < 1:
        # warm up, hold, then fall in a straight line over the last 40%
        for group, times in zip(optimizer.param_groups, (1, 1 / 30), strict=True):
            group["lr"] = times * rate * min(1, (step + 1) / 5, (1 - done) / 0.4 + 0.01)
        chosen = trainer.r.integers(HELD_OUT, len(clips.plain), 1)
        long = trainer.r.random() < 0.2
        for figures in trainer.walk(unet, chosen, FRAMES if long else WINDOW, CROP):
            unrest, flicker, softness, *_ = figures
            optimizer.zero_grad()
            (unrest + weight * flicker + SOFTNESS * softness).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            with torch.no_grad():
                for p in params:
                    p.copy_(p @ deviations(p.shape[1]))
                torch._foreach_lerp_(average, params, 1 - min(0.995, (step + 1) / (step + 10)))
            losses.append([float(f.detach()) for f in figures])
        step += 1
        if step % SAVE_EVERY == 0:
            log.info(f"motion step %d {FIGURES} (%.0f s)", step, *np.mean(losses, 0), time.monotonic() - begin)
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
    """The mean of two adapters' weights, `share` of the second: between a crisp one and a steady one."""
    one, two = (MotionAdapter.from_pretrained(f, dtype=torch.float32) for f in folders)
    with torch.no_grad():
        for p, other in zip(one.parameters(), two.parameters(), strict=True):
            p.lerp_(other, share)
    save(one, out)


def run(
    work: Path,
    pack: Path,
    start: Path | None = None,
    seed: int = 1,
    clips: int = 256,
    minutes: float = 40,
    steps: int = 100_000,
    rate: float = 4e-2,
    flicker: float = 2.0,
) -> None:
    """Train temporal layers for the pack at `pack`: clips and state in work/motion, the result work/motion_adapter."""
    if (work / "motion_adapter").exists():
        return
    make_clips(work / "motion" / "clips", pack / "vae", seed, clips)
    net, tokenizer = load_denoiser(pack)
    adapter = MotionAdapter.from_pretrained(start, dtype=torch.float32) if start else None
    data, out = load_clips(work / "motion" / "clips"), work / "motion"
    save(train(data, net, tokenizer, adapter, out, seed, steps, minutes, rate, flicker), work / "motion_adapter")


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m std_cli.tinypack.motion", description="Train the temporal layers.")
    p.add_argument("work", type=Path, help="folder for what the training makes; with --blend, the adapter's")
    p.add_argument("--pack", type=Path, help="the pack folder that they are for; it is only read")
    p.add_argument("--blend", type=Path, nargs=2, metavar="FOLDER", help="no training: the mean of two adapters")
    p.add_argument("--share", type=float, default=0.5, help="of the second, with --blend")
    p.add_argument("--flicker", type=float, default=2.0, help="weight of the loss of steadiness")
    p.add_argument("--start", type=Path, help="folder of an adapter to go on from")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--clips", type=int, default=256)
    p.add_argument("--minutes", type=float, default=40, help="of training, at most")
    p.add_argument("--steps", type=int, default=100_000, help="walks, at most")
    p.add_argument("--rate", type=float, default=4e-2, help="learning rate")
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)
    if a.blend:
        return blend(a.blend, a.share, a.work)
    if not a.pack:
        p.error("--pack is needed, or --blend")
    run(a.work, a.pack, a.start, a.seed, a.clips, a.minutes, a.steps, a.rate, a.flicker)


if __name__ == "__main__":
    main()
