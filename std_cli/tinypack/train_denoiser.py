"""Training of the pack's denoiser: ordinary epsilon loss plus *paired bridge noise*, and what VGG16
sees of the decoded prediction.

An SDEdit run starts from a noised photograph and a plain denoiser gives the photograph back. So for
a start time T0 the noise of a styled latent z_s is shifted towards its plain twin z_p,

    eps' = eps + sqrt(abar_T0 / (1 - abar_T0)) (z_p - z_s),
    x_t  = sqrt(abar_t) z_s + sqrt(1 - abar_t) eps',

which at t = T0 is exactly the noised plain picture: denoising from it ends at the styled one.

Squared errors alone teach the mean of all strokes that could be, which is a blur. So in the last
part of a run the prediction of the styled latent is decoded as well, and compared with the styled
picture by the statistics of VGG16's features (texture, in small windows), by the features
themselves (structure) and by its colours. In some of these batches x_t comes from the network's own
first evaluation, as in a run of two.

Dots, lines and cells have one right place in each target (`styles.Style.aligned`), so that they are
learned by squared errors, too. What repeats in the error counts more.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from std_cli.tinypack.denoiser_data import STORED, Latents, load, style_facts, view_references
from std_cli.tinypack.groups import OTHER_KIND
from std_cli.tinypack.model import (
    ALPHAS_CUMPROD,
    FACTOR,
    TEXT_LENGTH,
    VISION_SIZE,
    Denoiser,
    half_precision,
)
from std_cli.tinypack.perceptual import Looks, load_vgg16
from std_cli.tinypack.scenes import Array
from std_cli.tinypack.styles import KINDS, LATTICE
from std_cli.tinypack.vae import to_tensor
from std_cli.tinypack.vocabulary import SUBJECTS, make_tokenizer

log = logging.getLogger(__name__)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
HELD_OUT = 60  # groups that only validation sees
SAVE_EVERY = 400  # steps
ALONE = 0.6  # share of a run that learns by squared errors alone, which is faster
WIDE = 0.75  # later, share of the batches that are looked at: 8 samples of 128 px, not 16 of 112
LOOKS = 1.0  # weight of what is seen
PATTERN = 10.0  # weight of what repeats in the error
LEAST_T = 80  # below, a prediction hardly differs from x_t
ORDINARY = 0.2  # weight of the samples without bridge noise
SECOND_WEIGHT = 0.05
SECOND = 0.5  # share of the batches that start from the network's own first evaluation


@dataclass(frozen=True)
class Noised:
    """B noised latents, and what the network should say of them."""

    x_t: Tensor  # (B, 4, h, w)
    t: Tensor  # (B,) int64
    target: Tensor  # (B, 4, h, w): the noise to predict
    weight: Tensor  # (B,), of the squared error
    bridged: Tensor  # (B,) bool: with bridge noise
    start: Tensor  # (B,) int64: T0 of those


class Losses(NamedTuple):
    noise: Tensor  # weighted squared error
    looks: Tensor
    facts: Tensor  # auxiliary: style facts read off the picture tokens
    bridged: Tensor  # squared errors of the bridged samples, one for each


class Trainer:
    """Draws batches and computes the loss. Every draw comes from `rng`, so that a run repeats."""

    def __init__(
        self, latents: Latents, tokenizer: CLIPTokenizer, rng: np.random.Generator
    ) -> None:
        self.latents = latents
        self.tokenizer = tokenizer
        self.rng = rng
        self.empty = self.ids([""])[0]
        self.added: Tensor | float = 0.0
        """What `learn_places` adds to every styled latent."""

    def ids(self, texts: list[str]) -> Tensor:
        """Token numbers (B, TEXT_LENGTH)."""
        out = self.tokenizer(
            texts,
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        return out.input_ids  # type: ignore[no-any-return]

    def crop(self, group: int, which: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same random crop of a plain latent, of its styled twin (C, size, size), and of the
        styled picture (3, FACTOR size, FACTOR size) in [-1, 1]."""
        step = LATTICE // FACTOR
        y, x = step * self.rng.integers(0, (STORED - size) // step + 1, 2)
        cut = np.s_[group, which, :, y : y + size, x : x + size]
        plain, styled = self.latents.plain[cut], self.latents.styled[cut]
        y, x, side = FACTOR * y, FACTOR * x, FACTOR * size
        picture = self.latents.pixels[group, which, y : y + side, x : x + side]
        return plain.float(), styled.float() + self.added, to_tensor(picture[None])[0]

    def loss(
        self, net: Denoiser, groups: Array, size: int, looks: Looks | None, vary: bool = True
    ) -> Losses:
        """The losses of G groups; with `looks` some batches start from the network's own first
        evaluation."""
        pairs = [self.crop(int(group), i, size) for group in groups for i in (0, 1)]
        plain, styled, pictures = (torch.stack(x) for x in zip(*pairs, strict=True))
        pixels = view_references(self.latents, groups, self.rng, vary)
        # a black picture stands for "no reference" under CFG
        black = torch.zeros(1, 3, VISION_SIZE, VISION_SIZE)
        tokens = net.picture_tokens(torch.cat([(pixels - CLIP_MEAN) / CLIP_STD, black]))
        unconditional, source, states, pooled = self.conditions(net, groups)
        side = float(self.rng.integers(128, 600))
        sizes = torch.tensor([side, side, 0, 0, side, side]).repeat(len(plain), 1)

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            with half_precision(True):
                out: Tensor = net(x_t, t, states, pooled, tokens[source], sizes)
            return out

        noised = self.bridge(plain, styled, unconditional)
        if looks and self.rng.random() < SECOND:
            noised = self.second(noised, plain, styled, predict)
        out = predict(noised.x_t, noised.t)
        apart = out - noised.target
        error = (apart**2).mean((1, 2, 3))
        pattern = (repeated(apart) ** 2).mean(1)
        look = torch.zeros(())
        seen = noised.bridged & (noised.t >= LEAST_T)
        if looks and seen.any():
            abar = ALPHAS_CUMPROD[noised.t].view(-1, 1, 1, 1)
            predicted = (noised.x_t - (1 - abar).sqrt() * out) / abar.sqrt()
            look = looks.loss(predicted[seen], pictures[seen])
        return Losses(
            ((error + PATTERN * pattern) * noised.weight).mean(),
            look,
            self.facts_loss(net, tokens[:-1].float(), pixels, groups),
            error.detach()[noised.bridged],
        )

    def conditions(self, net: Denoiser, groups: Array) -> tuple[Array, Tensor, Tensor, Tensor]:
        """Conditions of the 2 G samples, some of them dropped for CFG.

        Returns which are unconditional (bool), the number of each one's reference, or G for none,
        and the text states (2 G, TEXT_LENGTH, CROSS) and pooled (2 G, 64).
        """
        rng = self.rng
        batch = 2 * len(groups)
        u = rng.random(batch)
        unconditional = u < 0.1
        text_only = (u >= 0.1) & (u < 0.15)
        with_text = (u >= 0.1) & (u < 0.35)
        source = torch.arange(batch) // 2
        source[torch.from_numpy(unconditional | text_only)] = len(groups)
        texts = []
        for caption in (str(self.latents.captions[group, i]) for group in groups for i in (0, 1)):
            subject = SUBJECTS[rng.integers(len(SUBJECTS))] + ", " if rng.random() < 0.25 else ""
            texts.append(subject + caption)
        ids = torch.where(torch.from_numpy(with_text)[:, None], self.ids(texts), self.empty)
        states, pooled = net.text_states(ids)
        # zeros for some empty prompts, as force_zeros_for_empty_prompt of the pipeline has it
        silent = torch.from_numpy(unconditional & (rng.random(batch) < 0.4)).float()[:, None]
        return unconditional, source, states * (1 - silent[..., None]), pooled * (1 - silent)

    def bridge(self, plain: Tensor, styled: Tensor, unconditional: Array) -> Noised:
        """Noised latents of B pairs (B, 4, h, w): with bridge noise, or with ordinary noise."""
        rng = self.rng
        batch = len(plain)
        to_plain = torch.from_numpy(unconditional & (rng.random(batch) < 0.5)).view(-1, 1, 1, 1)
        z = torch.where(to_plain, plain, styled)
        bridged = torch.from_numpy(~unconditional)
        # mostly where runs start at eta 0.2 to 0.33: how much of the plain picture x_t holds
        # follows from T0, which cannot be seen in x_t
        near = rng.random(batch) < 0.8
        start = torch.from_numpy(
            np.where(near, rng.integers(200, 340, batch), rng.integers(200, 980, batch))
        )
        inside = torch.from_numpy((rng.random(batch) * (start.numpy() + 1)).astype(np.int64))
        inside = torch.where(torch.from_numpy(rng.random(batch) < 0.6), start, inside)
        t = torch.where(bridged, inside, torch.from_numpy(rng.integers(0, 1000, batch)))
        eps = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        abar0, abar = ALPHAS_CUMPROD[start].view(-1, 1, 1, 1), ALPHAS_CUMPROD[t].view(-1, 1, 1, 1)
        shift = abar0 / (1 - abar0) * bridged.view(-1, 1, 1, 1)
        target = eps + shift.sqrt() * (plain - z)
        x_t = abar.sqrt() * z + (1 - abar).sqrt() * target
        # of bridged samples the error of the latents themselves, in the signal's share
        abar = abar.flatten()
        weight = torch.where(bridged, 1 - abar, ORDINARY / abar.clamp(min=0.05).sqrt())
        return Noised(x_t, t, target, weight, bridged, start)

    @torch.no_grad()
    def second(
        self,
        noised: Noised,
        plain: Tensor,
        styled: Tensor,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> Noised:
        """The same, but bridged samples are at a later step of a run that began at T0 from the
        plain picture and has made one evaluation."""
        start = torch.where(noised.bridged, noised.start, noised.t)
        share = torch.from_numpy(self.rng.uniform(0.3, 0.7, len(plain)))
        t = torch.where(noised.bridged, (start * share).long(), noised.t)
        abar0, abar = (ALPHAS_CUMPROD[x].view(-1, 1, 1, 1) for x in (start, t))
        eps = torch.from_numpy(self.rng.standard_normal(plain.shape, dtype=np.float32))
        x_start = abar0.sqrt() * plain + (1 - abar0).sqrt() * eps
        first = predict(x_start, start)
        x_0 = (x_start - (1 - abar0).sqrt() * first) / abar0.sqrt()
        x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * first
        target = (x_t - abar.sqrt() * styled) / (1 - abar).sqrt()
        chosen = noised.bridged.view(-1, 1, 1, 1)
        return replace(
            noised,
            x_t=torch.where(chosen, x_t, noised.x_t),
            t=t,
            target=torch.where(chosen, target, noised.target),
            # of the latents themselves: near the end of a run a small error of theirs is much noise
            weight=torch.where(
                noised.bridged, SECOND_WEIGHT * (1 / abar - 1).flatten(), noised.weight
            ),
        )

    def facts_loss(self, net: Denoiser, tokens: Tensor, pixels: Tensor, groups: Array) -> Tensor:
        """How far the style facts that the head reads off the picture tokens are from the true
        ones: cross entropy of the kind, squared error of the rest."""
        kinds = len(KINDS)
        predicted = net.facts(tokens.mean(1))
        kind = self.latents.kind[groups]
        named = F.cross_entropy(
            predicted[:, :kinds], kind, ignore_index=OTHER_KIND, reduction="sum"
        )
        named = named / max(1, int((kind != OTHER_KIND).sum()))
        return named + 3 * F.mse_loss(predicted[:, kinds:], style_facts(pixels))


def repeated(x: Tensor) -> Tensor:
    """What repeats every LATTICE px in each 4 x 4 of them, of latents (B, C, h, w): their means,
    less the colour of all, in one row (B, N). All else nearly cancels out, so that a pattern weighs
    more by this."""
    side = LATTICE // FACTOR
    x = x[..., : x.shape[-2] // (4 * side) * 4 * side, : x.shape[-1] // (4 * side) * 4 * side]
    b, c, h, w = x.shape
    cells = x.reshape(b, c, h // (4 * side), 4, side, w // (4 * side), 4, side).mean((3, 6))
    return (cells - cells.mean((3, 5), keepdim=True)).flatten(1)


def learn_facts(net: Denoiser, trainer: Trainer, groups: int, steps: int) -> None:
    """Train the picture encoder and the resampler on style facts first, which is cheap and helps
    the UNet."""
    params = [
        *net.vision.parameters(),
        *net.unet.encoder_hid_proj.parameters(),
        *net.facts.parameters(),
    ]
    optimizer = torch.optim.AdamW(params, 1e-3, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 50)
        chosen = trainer.rng.integers(HELD_OUT, groups, 32)
        pixels = view_references(trainer.latents, chosen, trainer.rng)
        tokens = net.picture_tokens((pixels - CLIP_MEAN) / CLIP_STD)
        loss = trainer.facts_loss(net, tokens, pixels, chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            log.info("facts step %d loss %.3f", step + 1, np.mean(losses[-50:]))


def learn_places(net: Denoiser, trainer: Trainer, groups: int, steps: int) -> None:
    """Teach the UNet where in LATTICE x LATTICE px each latent lies: every styled latent has the
    waves added that tell the places apart.

    A network of convolutions sees the same everywhere, but for its sampling by 2. That breaks the
    symmetry after about 100 steps when all targets have the same pattern, and had not in 300 when
    each style had its own (of 16 px).
    """
    side = 112 // FACTOR
    phase = 2 * torch.pi * FACTOR / LATTICE * torch.arange(side) + 0.3
    wave = torch.stack([phase.cos(), phase.sin()])
    down, right = wave[:, :, None].expand(2, side, side), wave[:, None].expand(2, side, side)
    trainer.added = 2 * torch.cat([down, right])
    optimizer = torch.optim.AdamW(net.unet.parameters(), 1.5e-3, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 20)
        chosen = trainer.rng.integers(HELD_OUT, groups, 8)
        losses = trainer.loss(net, chosen, side, None)
        optimizer.zero_grad()
        losses.noise.backward()
        torch.nn.utils.clip_grad_norm_(net.unet.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            log.info("places step %d loss %.3f", step + 1, losses.noise)
    trainer.added = 0.0


@torch.no_grad()
def validate(net: Denoiser, trainer: Trainer) -> float:
    """Mean squared error of bridged samples on the held-out groups, the same draws every time."""
    fixed = Trainer(trainer.latents, trainer.tokenizer, np.random.default_rng(77))
    errors = [
        fixed.loss(net, np.arange(i, i + 8), 128 // FACTOR, None, vary=False).bridged
        for i in range(0, HELD_OUT - 7, 8)
    ]
    return float(torch.cat(errors).mean())


@dataclass
class Run:
    """All that a training resumes from."""

    net: Denoiser
    average: Denoiser
    optimizer: torch.optim.Optimizer
    trainer: Trainer
    looks: Looks | None = None
    facts: float = 0.1  # weight of the auxiliary loss
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
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
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.trainer.rng.bit_generator.state = state["random"]
        self.step = state["step"]
        self.seconds = state["seconds"]


def begin_run(
    latents: Latents,
    tokenizer: CLIPTokenizer,
    seed: int,
    rate: float,
    start: dict[str, dict[str, Tensor]] | None,
    looks: Looks | None = None,
) -> Run:
    """A run at step 0, from the weights in `start` (see export.load_parts) or from nothing."""
    torch.manual_seed(seed)
    trainer = Trainer(latents, tokenizer, np.random.default_rng(seed))
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    for name, state in (start or {}).items():
        getattr(net, name).load_state_dict(state)
    optimizer = torch.optim.AdamW(
        net.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True
    )
    # the head for style facts is not in a pack: a new one would lead the picture encoder astray
    return Run(net, copy.deepcopy(net).eval(), optimizer, trainer, looks, 0.0 if start else 0.1)


def update(run: Run, alone: bool) -> Losses:
    """One update of the network and its average, by squared errors `alone` or with what is seen."""
    rng = run.trainer.rng
    wide = not alone and rng.random() < WIDE
    chosen = rng.integers(HELD_OUT, len(run.trainer.latents.kind), 4 if wide else 8)
    size = (128 if wide else 112) // FACTOR
    losses = run.trainer.loss(run.net, chosen, size, run.looks if wide else None)
    run.optimizer.zero_grad()
    (losses.noise + LOOKS * losses.looks + run.facts * losses.facts).backward()
    torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
    run.optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(
            list(run.average.parameters()),
            list(run.net.parameters()),
            1 - min(0.997, run.step / (run.step + 50)),
        )
    run.step += 1
    return Losses(*(x.detach() for x in losses))


def describe(recent: list[Losses]) -> str:
    """The means of some updates' losses."""
    errors = torch.cat([x.bridged for x in recent]).mean()
    facts = torch.stack([x.facts for x in recent]).mean()
    looks = torch.stack([x.looks for x in recent if x.looks > 0] or [torch.zeros(())]).mean()
    return f"bridge mse {errors:.4f} looks {looks:.4f} facts {facts:.3f}"


def train(
    data: Path,
    latents: Path,
    out: Path,
    seed: int,
    steps: int,
    minutes: float,
    rate: float,
    facts_steps: int,
    places_steps: int,
    start: dict[str, dict[str, Tensor]] | None = None,
    vae_folder: Path | None = None,
) -> None:
    """Train to `steps`, or until `minutes` have passed, when the learning rate has fallen to
    nothing.

    Starts from the weights in `start` (see export.load_parts) or from nothing. With `vae_folder`
    predictions are decoded and looked at. Resumes from out/state.pt: weights, averages, optimizer,
    random state. The averaged weights go to out/average.pt.
    """
    pairs = load(data, latents)
    looks = None
    if vae_folder:
        looks = Looks(AutoencoderKL.from_pretrained(vae_folder), load_vgg16())
    run = begin_run(pairs, make_tokenizer(out / "tokenizer"), seed, rate, start, looks)
    groups = len(pairs.kind)
    parameters = sum(p.numel() for p in run.net.parameters())
    log.info("%d groups, %.2f M parameters", groups, parameters / 1e6)
    state_path = out / "state.pt"
    if state_path.exists():
        run.load(state_path)
    elif start is None:
        learn_facts(run.net, run.trainer, groups, facts_steps)
        learn_places(run.net, run.trainer, groups, places_steps)
    begin = time.monotonic() - run.seconds
    recent: list[Losses] = []
    while (done := max(run.step / steps, (time.monotonic() - begin) / (60 * minutes))) < 1:
        # warm up, hold, then fall in a straight line over the last 70%
        lr = rate * min(1, (run.step + 1) / 60, (1 - done) / 0.7 + 0.01)
        run.optimizer.param_groups[0]["lr"] = lr
        # the plain kernel of attention is faster here than the fused one, whose gradient is slow
        with sdpa_kernel(SDPBackend.MATH):
            recent.append(update(run, alone=done < ALONE))
        run.seconds = time.monotonic() - begin
        if run.step % 50 == 0:
            figures = (lr, run.seconds)
            log.info("step %d %s lr %.1e (%.0f s)", run.step, describe(recent), *figures)
            recent = []
        if run.step % SAVE_EVERY == 0:
            log.info("step %d validation %.4f", run.step, validate(run.average, run.trainer))
            run.save(state_path)
    log.info("end, validation %.4f", validate(run.average, run.trainer))
    run.step = steps  # a run that its minutes ended is finished, too
    run.save(state_path)
    torch.save(run.average.state_dict(), out / "average.pt")
