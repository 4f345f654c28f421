"""Networks, optimizers and lanes of one process of a training run: one micro-batch, one update."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from std_cli import __version__
from std_cli.diffusion.pipeline import (
    STYLE_BLOCK,
    Pipeline,
    choose_device,
    choose_dtype,
    name_dtype,
    scaled,
)
from std_cli.distill.augment import augment, prepare
from std_cli.distill.bank import Bank, Conditions, Entry, Forecast, stack
from std_cli.distill.caption_cache import Captions
from std_cli.distill.conditioner import Roles, SpatialHead, Surroundings
from std_cli.distill.config import DistillConfig
from std_cli.distill.dataset import Data, fingerprint_references, fingerprint_samples
from std_cli.distill.discriminator import (
    Discriminator,
    PenaltyWeight,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from std_cli.distill.loader import Batch
from std_cli.distill.solver import Solver, draw_target
from std_cli.distill.step import consistency_loss, jump, noisy_pair, teacher_step
from std_cli.distill.text_condition import load_text_condition
from std_cli.errors import InputError, StdError
from std_cli.paths import user_path
from std_cli.weights.dino import Dino, load_dino, tiny_dino
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.parts import check_model
from std_cli.weights.resolve import (
    blind_at_the_end,
    resolve_features,
    resolve_model,
    resolve_motion,
)

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


@dataclass
class Lane:
    number: int
    bank: Bank


class Trainer:
    """Networks, optimizers and lanes of one process."""

    def __init__(
        self,
        config: DistillConfig,
        entries: list[Any],
        found: Any,
        references: list[Path],
        folder: Path,
        state: PartialState,
        steps: int,
        lane_count: int,
        on_event: OnEvent,
    ) -> None:
        self.config, self.folder, self.world, self.steps, self.lane_count = (
            config,
            folder,
            state,
            steps,
            lane_count,
        )
        self.on_event = on_event
        m, d, a, o = config.model, config.distill, config.adversarial, config.optimizer
        files = resolve_model(m.name)
        motion = resolve_motion(m.motion, files) if config.run.task == "v2v" else None
        check_model(files, motion)
        if blind_at_the_end(files) and math.ceil(round(d.points * d.eta, 9)) >= d.points - 1:
            raise InputError(
                f"distill.eta {d.eta:g}: training begins at the last timestep, where model.name "
                f"{m.name} predicts "
                "nothing (its scheduler_config.json says epsilon and rescale_betas_zero_snr): "
                "use 0.95"
            )
        if motion is not None and config.data.frames > (
            most := int(motion.config.get("motion_max_seq_length", 32))
        ):
            raise InputError(
                f"data.frames {config.data.frames}: the motion adapter {motion.name} takes at "
                f"most {most}: lower it"
            )
        features = None if a.features == "none" or not a.weight else self._features(a.features)
        self.device = choose_device(m.device) if state.num_processes == 1 else state.device
        dtype = choose_dtype(m.dtype, self.device)
        on_event({"event": "progress", "stage": "load", "model": files.name})
        pipeline = Pipeline(files, None, self.device, dtype, compile=m.compile, motion=motion)
        if references:
            blocks = (
                config.style.scale
                if config.style.blocks == "all"
                else scaled(STYLE_BLOCK, config.style.scale)
            )
            pipeline.pipe.set_ip_adapter_scale(blocks)
        self.base = fingerprint(files.base)
        self.samples = {
            "data": fingerprint_samples(entries),
            "style": fingerprint_references(references),
        }
        self.weights = {"model.name": self.base}
        if motion is not None:
            self.weights["model.motion"] = fingerprint(motion.weights)
        if a.weight:
            network = (
                a.features
                if a.features in ("none", "random")
                else fingerprint(resolve_features(a.features))
            )
            self.weights["adversarial.features"] = network
            text = user_path(a.text, "adversarial.text") if a.text != "pooled" else None
            self.weights["adversarial.text"] = fingerprint(text) if text is not None else a.text
        self.around = Surroundings(
            pipeline, unconditional_pooled=d.unconditional_pooled, style=bool(references)
        )
        self.size = config.data.size
        self.data = Data(
            replace(found, entries=entries),
            self.size,
            frames=config.data.frames,
            stride=config.data.stride,
            flip=config.data.flip,
            references=references,
        )
        self.captions = Captions(
            [e.caption for e in found.entries],
            self.around.encode_text,
            folder,
            self.base,
            config.data.text_cache * 2**30,
        )
        if self.captions.cached:
            for encoder in (pipeline.pipe.text_encoder, pipeline.pipe.text_encoder_2):
                encoder.to("cpu")
        torch.manual_seed(config.run.seed)  # the adapters' first values
        lora = config.lora
        self.roles = Roles(
            pipeline.pipe.unet,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            motion=lora.motion,
            ema=d.ema,
        )
        if m.gradient_checkpointing:
            self.roles.checkpoint_activations()
        self.solver = Solver(
            pipeline.pipe.scheduler.alphas_cumprod,
            d.points,
            pipeline.pipe.scheduler.config.prediction_type,
        )
        self.n_eta, self.span = self.solver.start(d.eta), self.solver.span(d.eta)
        self.reach = self.solver.reach(d.eta, d.range_rate)
        self.head = self.head_average = None
        if d.head != "raw":
            self.head, self.head_average = (
                SpatialHead(d.head == "hlearn").to(self.device) for _ in range(2)
            )
            self.head_average.load_state_dict(self.head.state_dict())
            self.head_average.requires_grad_(False)
        self.learning = [
            *self.roles.parameters.values(),
            *(self.head.parameters() if self.head else ()),
        ]
        self.scale = lane_count * o.batch / 128 if o.scale_lr else 1.0
        self.optimizer = _optimizer(config, self.learning, o.lr * self.scale, self.device)
        half = dtype == torch.float16 and self.device.type in ("cuda", "cpu")
        self.scaler = torch.amp.GradScaler(self.device.type if half else "cpu", enabled=half)
        self.features = features.to(self.device) if features is not None else None
        self.discriminator: Discriminator | None = None
        self.text = None
        self.penalty = PenaltyWeight(a.gradient_penalty)
        if self.features is not None:
            if a.text != "pooled":
                self.text = load_text_condition(user_path(a.text, "adversarial.text"))
            width = (
                self.captions.shapes["pooled"].numel()
                if self.text is None
                else self.text([""]).shape[1]
            )
            channels, heads = self.features.channels, len(self.features.blocks)
            self.discriminator = Discriminator(channels, width, heads).to(self.device).eval()
            self.d_optimizer = _optimizer(
                config, list(self.discriminator.parameters()), a.lr * self.scale, self.device
            )
        mine = range(
            state.process_index * o.accumulation, (state.process_index + 1) * o.accumulation
        )
        slots = config.bank.length * o.batch
        self.lanes = [Lane(i, Bank(slots, config.bank.retire_at, self.n_eta)) for i in mine]
        self.facts = {
            "version": __version__,
            "model": files.name,
            "lora": None,
            "device": str(self.device),
            "dtype": name_dtype(dtype),
            "trainable": sum(p.numel() for p in self.learning),
            "samples": len(entries),
        }

    @staticmethod
    def _features(name: str) -> Dino:
        return tiny_dino() if name == "random" else load_dino(resolve_features(name))

    # --- one micro-batch ---

    def train_lane(self, step: int, lane: Lane, batch: Batch) -> dict[str, float]:
        """Gradients of one micro-batch, added to those of the update's others; its figures.

        batch: its fresh samples, as many as `forecast` says.
        """
        random = self.generator(step, lane.number)
        slots = lane.bank.draw(self.config.optimizer.batch, self.config.bank.rate, random)
        fresh = itertools.count()
        rows = [
            self._fresh(batch, next(fresh), random) if slot is None else _held(lane.bank, slot)
            for slot in slots
        ]
        x0, x, cond, n = stack(rows, self.device)
        x_prev, figures = self.learn(
            x0, x, cond, n, random, f"update {step + 1}, lane {lane.number}"
        )
        for i, slot in enumerate(slots):
            entry = Entry(x0[i], x_prev[i], {k: v[i] for k, v in cond.items()}, int(n[i]) - 1)
            if slot is None:
                entry = self._walk(entry, lane.bank.lead(), random)
            lane.bank.put(slot, entry)
        return figures

    def forecast(self, lane: Lane) -> Forecast:
        """Of the lane's fresh samples from now on."""
        rate, seed = self.config.bank.rate, self.config.run.seed
        draws = partial(_lane_generator, seed, lane.number)
        return Forecast(lane.bank, self.config.optimizer.batch, rate, self.n_eta, draws)

    def _walk(self, entry: Entry, steps: int, random: torch.Generator) -> Entry:
        """An entry so many teacher steps further down its trajectory."""
        x, n = entry.x[None], entry.n
        c = {k: v[None] for k, v in entry.c.items()}
        for _ in range(steps):
            w = self._guidance(1, random)
            x = teacher_step(
                self.roles.teacher,
                self.solver,
                x,
                torch.tensor([n]),
                c,
                self.around.unconditional(c),
                w,
            )
            n -= 1
        return Entry(entry.x0, x[0], entry.c, n)

    def _guidance(self, count: int, random: torch.Generator) -> Tensor:
        """The teacher's weight w for each of `count` samples (count,)."""
        d = self.config.distill
        return d.w_min + (d.w_max - d.w_min) * torch.rand(count, generator=random)

    def learn(
        self,
        x0: Tensor,
        x: Tensor,
        cond: Conditions,
        n: Tensor,
        random: torch.Generator,
        where: str,
    ) -> tuple[Tensor, dict[str, float]]:
        """Add the gradients of samples (B, ...) at indices n (B,) of their trajectories.

        Gives x at n - 1, and the figures. `where` it is, for errors.
        """
        d, a = self.config.distill, self.config.adversarial
        s = draw_target(d.mode, n, self.span, self.reach, d.phases, random)
        w = self._guidance(len(n), random)
        x_prev = teacher_step(
            self.roles.teacher, self.solver, x, n, cond, self.around.unconditional(cond), w
        )

        # student against target
        clean = d.mode == "lcm"
        x_s, x0_hat = jump(self.roles.student, self.solver, x, n, cond, s, clean)
        with torch.no_grad():
            goal, _ = jump(self.roles.target, self.solver, x_prev, n - 1, cond, s, clean)
            goal = self.head_average(goal) if self.head_average else goal
        loss = consistency_loss(self.head(x_s) if self.head else x_s, goal, d.loss, d.huber_c)
        figures = {"loss": loss.item(), "n": n.float().mean().item()}

        # student against discriminator; each network's gradients come from the same pictures
        total = loss
        if self.discriminator is not None:
            noise = torch.randn(x.shape, generator=random).to(x)
            fake_z, real_z = noisy_pair(a.mode, self.solver, x_s, x0_hat, x0, n, s, noise, random)
            fake_z, real_z, repeat = self._some_frames(fake_z, real_z, random)
            text = cond.get("text", cond["pooled"]).float().repeat_interleave(repeat, 0)
            fake = self._features_of(self.around.decode(fake_z), random)
            with torch.no_grad():
                real = self._features_of(self.around.decode(real_z), random)
            self.discriminator.requires_grad_(False)
            adversarial = generator_loss(self.discriminator(fake, text), a.loss)
            total = loss + a.weight * adversarial
            figures["adversarial"] = adversarial.item()
        _check(where, figures, self.roles.dtype)
        self.scaler.scale(total / self.lane_count).backward()
        if self.discriminator is not None:
            figures |= self._train_discriminator([f.detach() for f in fake], real, text, random)
            _check(where, figures, self.roles.dtype)
        return x_prev, figures

    def _train_discriminator(
        self, fake: list[Tensor], real: list[Tensor], text: Tensor, random: torch.Generator
    ) -> dict[str, float]:
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(
            self.discriminator(real, text),
            self.discriminator(fake, text),
            self.config.adversarial.loss,
        )
        u = torch.rand(len(text), generator=random).to(self.device)
        penalty = gradient_penalty(self.discriminator, real, fake, text, u)
        ((loss + self.penalty.weight * penalty) / self.lane_count).backward()
        return {"discriminator": loss.item(), "penalty": penalty.item()}

    def _fresh(self, batch: Batch, i: int, random: torch.Generator) -> Entry:
        x0 = self.around.encode(batch.pixels[i])
        noise = torch.randn(x0.shape, generator=random).to(x0)
        reference = batch.references[i] if batch.references else None
        c = self.conditions(
            batch.captions[i], batch.original_size[i].tolist(), batch.crop[i].tolist(), reference
        )
        return Entry(x0, self.solver.begin(x0[None], noise[None], self.n_eta)[0], c, self.n_eta)

    def conditions(
        self, caption: str, original: list[int], crop: list[int], reference: Image.Image | None
    ) -> Conditions:
        c = {k: v.to(self.device) for k, v in self.captions[caption].items()}
        if self.text is not None:  # it goes with its sample into the bank
            c["text"] = self.text([caption])[0].to(self.device)
        c["time_ids"] = self.around.time_ids(original, crop, self.size).to(self.device)
        if reference is not None:
            c["style"] = self.around.encode_style(reference)[1]
        return {k: v.float() if self.device.type == "cpu" else v for k, v in c.items()}

    def _some_frames(
        self, fake: Tensor, real: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor, int]:
        """Latents of pictures (B', 4, h, w): of clips some frames, the same of both; and how many
        of each sample."""
        if fake.ndim == 4:
            return fake, real, 1
        count = min(self.config.adversarial.frames, fake.shape[2])
        chosen = torch.stack(
            [torch.randperm(fake.shape[2], generator=random)[:count] for _ in fake]
        ).to(fake.device)
        picked = [
            torch.cat([z[i, :, chosen[i]].transpose(0, 1) for i in range(len(z))])
            for z in (fake, real)
        ]  # (B, 4, F, h, w) -> (B count, 4, h, w)
        return picked[0], picked[1], count

    def _features_of(self, pixels: Tensor, random: torch.Generator) -> list[Tensor]:
        assert self.features is not None
        return self.features(prepare(augment(pixels, random), self.features.size, random))  # type: ignore[no-any-return]

    def generator(self, step: int, lane: int) -> torch.Generator:
        random = _lane_generator(self.config.run.seed, lane, step)
        torch.manual_seed(random.initial_seed())  # dropout
        return random

    # --- one update ---

    def update(self, step: int, figures: list[dict[str, float]]) -> dict[str, Any]:
        """Average the gradients over processes, move every network; the update's figures."""
        o, a = self.config.optimizer, self.config.adversarial
        mean = self._mean(figures)
        facts: dict[str, Any] = dict(mean)
        pairs = [("norm", self.optimizer, o.lr)]
        if self.discriminator is not None:
            pairs.append(("d_norm", self.d_optimizer, a.lr))
        for name, optimizer, lr in pairs:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._reduce(parameters)
            if optimizer is self.optimizer:
                # after the sum, so that all processes skip the same updates
                self.scaler.unscale_(optimizer)
            facts[name] = torch.nn.utils.clip_grad_norm_(parameters, o.clip).item()
            if not math.isfinite(facts[name]):
                if not (self.scaler.is_enabled() and optimizer is self.optimizer):
                    raise StdError(
                        f"the gradient is not finite in update {step + 1} ({name} "
                        f"{facts[name]}): no weight was "
                        "changed; lower the learning rate, and resume from the last checkpoint"
                    )
                facts[name] = None  # the scaler skips the update, and scales less from now on
            for group in optimizer.param_groups:
                group["lr"] = lr * self.scale * self._rate(step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.discriminator is not None:
            self.d_optimizer.step()
            self.d_optimizer.zero_grad(set_to_none=True)
            self.discriminator.iterate()
            self.penalty.update(mean["penalty"], step)
        self.roles.average()
        if self.head is not None and self.head_average is not None:
            with torch.no_grad():
                for average, p in zip(
                    self.head_average.parameters(), self.head.parameters(), strict=True
                ):
                    average.lerp_(p, 0.05)  # decay 0.95, as in MCM
        return facts | {"lr": self.optimizer.param_groups[0]["lr"], **self._held()}

    def _held(self) -> dict[str, Any]:
        """Entries of all banks and their indices, of all processes; the most memory that one of
        these has used."""
        held = [n for lane in self.lanes for n in lane.bank.indices]
        histogram = torch.from_numpy(np.histogram(held, bins=8, range=(0, self.n_eta + 1))[0])
        memory = torch.tensor(
            torch.cuda.max_memory_allocated(self.device)
            if self.device.type == "cuda"
            else _peak_rss()
        )
        if self.world.num_processes > 1:
            histogram, memory = histogram.to(self.device), memory.to(self.device)
            dist.all_reduce(histogram)
            dist.all_reduce(memory, dist.ReduceOp.MAX)
        counts = histogram.tolist()
        return {"bank": sum(counts), "bank_histogram": counts, "memory": int(memory)}

    def _rate(self, step: int) -> float:
        """The learning rate's factor at a step: linear warm-up, then half a cosine, or 1."""
        o = self.config.optimizer
        if step < o.warmup_steps:
            return (step + 1) / o.warmup_steps
        if o.schedule == "constant":
            return 1.0
        progress = (step - o.warmup_steps) / max(1, self.steps - o.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _reduce(self, parameters: list[Tensor]) -> None:
        """Sum the gradients over processes; each lane's is divided by the count of lanes
        already."""
        if self.world.num_processes == 1:
            return
        flat = torch.cat(
            [
                p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten()
                for p in parameters
            ]
        )
        dist.all_reduce(flat)
        for p in parameters:
            p.grad, flat = flat[: p.numel()].view_as(p).clone(), flat[p.numel() :]

    def _mean(self, figures: list[dict[str, float]]) -> dict[str, float]:
        names = list(figures[0])
        total = torch.tensor([sum(f[n] for f in figures) for n in names], dtype=torch.float64)
        if self.world.num_processes > 1:
            total = total.float().to(self.device)
            dist.all_reduce(total)
        return {n: v / self.lane_count for n, v in zip(names, total.tolist(), strict=True)}

    def agree(self, stop: bool) -> bool:
        """Whether any process was asked to stop."""
        if self.world.num_processes == 1:
            return stop
        flag = torch.tensor([float(stop)], device=self.device)
        dist.all_reduce(flag)
        return bool(flag.item())


def _check(where: str, figures: dict[str, float], dtype: torch.dtype) -> None:
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        facts = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        wider = " or use --set model.dtype=bf16" if dtype == torch.float16 else ""
        raise StdError(
            f"{wrong[0]} is not finite in {where} ({facts}): no weight was changed; lower the "
            f"learning rate{wider}, "
            "and resume from the last checkpoint"
        )


def _lane_generator(seed: int, lane: int, step: int) -> torch.Generator:
    """All random numbers of a lane's micro-batch come from it."""
    own = int(np.random.SeedSequence((seed, step, lane)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator("cpu").manual_seed(own)


def _held(bank: Bank, slot: int) -> Entry:
    entry = bank.slots[slot]
    assert entry is not None
    return entry


def _optimizer(
    config: DistillConfig, parameters: list[Any], lr: float, device: torch.device
) -> torch.optim.Optimizer:
    o = config.optimizer
    how: dict[str, Any] = {"lr": lr, "betas": o.betas, "eps": o.eps, "weight_decay": o.weight_decay}
    if o.name == "adamw":
        return torch.optim.AdamW(parameters, fused=device.type == "cuda", **how)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            "optimizer.name adamw8bit: needs bitsandbytes: pip install 'std-cli[8bit]', or use "
            "adamw"
        ) from None
    return AdamW8bit(parameters, **how)  # type: ignore[no-any-return]


def _peak_rss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
