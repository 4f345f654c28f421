"""The networks of one process and its lanes: one micro-batch, one update.

A step of training (STD, arXiv 2412.18945) reads top to bottom in `Trainer.train_lane`,
`Trainer.learn` and `Trainer.update`; `std_cli.distill.step` has the mathematics.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from std_cli.distill.bank import Bank, BankEntry, Conditions, Forecast, stack
from std_cli.distill.caption_cache import CaptionCache
from std_cli.distill.conditioner import Conditioner
from std_cli.distill.config import DistillConfig, OptimizerSection
from std_cli.distill.dataset import Dataset
from std_cli.distill.judge import Judge
from std_cli.distill.loader import Batch
from std_cli.distill.processes import any_process, mean_figures, sum_and_most, sum_gradients
from std_cli.distill.roles import Roles
from std_cli.distill.solver import Solver, draw_target
from std_cli.distill.spatial_head import HeadPair
from std_cli.distill.step import consistency_loss, jump, noisy_pair, teacher_step
from std_cli.distill.training_run import TrainingRun
from std_cli.errors import StdError


@dataclass
class Lane:
    """One micro-batch of every update: its number among those of all processes, and its bank."""

    number: int
    bank: Bank


@dataclass(eq=False)
class Trainer:
    """All that learns, and what it learns from. `std_cli.distill.build` makes it."""

    run: TrainingRun
    data: Dataset
    """The samples that are trained on."""
    captions: CaptionCache
    conditioner: Conditioner
    roles: Roles
    solver: Solver
    head: HeadPair | None
    """The network that student and target are compared through; None: latents as they are."""
    judge: Judge | None
    """The discriminator's side; None: no adversarial loss."""
    optimizer: torch.optim.Optimizer
    """The optimizer of the student's adapter and head."""
    scaler: torch.amp.GradScaler
    lanes: list[Lane]
    """The lanes of this process."""
    weights: dict[str, str]
    """{key of the configuration: what identifies the weights that it names}."""
    model_name: str

    @property
    def config(self) -> DistillConfig:
        return self.run.config

    @property
    def device(self) -> torch.device:
        return self.conditioner.device

    @property
    def n_eta(self) -> int:
        """The index of the grid at which trajectories start."""
        return self.solver.start(self.config.distill.eta)

    @property
    def reach(self) -> int:
        """How far below n the target index s of mode std may be."""
        distill = self.config.distill
        return self.solver.reach(distill.eta, distill.range_rate)

    @property
    def learning(self) -> list[nn.Parameter]:
        """The parameters that the student's optimizer moves."""
        head = self.head.student.parameters() if self.head is not None else ()
        return [*self.roles.parameters.values(), *head]

    # --- one micro-batch ---

    def train_lane(self, step: int, lane: Lane, batch: Batch) -> dict[str, float]:
        """Add the gradients of one micro-batch to those of the update's others; its figures.

        batch: its fresh samples, as many as `forecast` says.
        """
        random = self.generator(step, lane.number)
        slots = lane.bank.draw(self.config.optimizer.batch, self.config.bank.rate, random)
        fresh = itertools.count()
        rows = [
            self.start_trajectory(batch, next(fresh), random)
            if slot is None
            else lane.bank.held(slot)
            for slot in slots
        ]
        x0, x, cond, n = stack(rows, self.device)
        where = f"update {step + 1}, lane {lane.number}"
        x_prev, figures = self.learn(x0, x, cond, n, random, where)
        # each trajectory is one teacher step further now, and waits in the bank for its next turn
        for i, slot in enumerate(slots):
            own = {name: values[i] for name, values in cond.items()}
            entry = BankEntry(x0[i], x_prev[i], own, int(n[i]) - 1)
            if slot is None:
                entry = self._walk(entry, lane.bank.lead(), random)
            lane.bank.put(slot, entry)
        return figures

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

        Returns x at n - 1 (B, ...), and the losses for the log. where: for errors.
        """
        distill = self.config.distill
        adversarial = self.config.adversarial
        roles, solver = self.roles, self.solver

        # the teacher's step
        span = solver.span(distill.eta)
        s = draw_target(distill.mode, n, span, self.reach, distill.phases, random)
        w = self._guidance(len(n), random)
        unconditional = self.conditioner.unconditional(cond)
        x_prev = teacher_step(roles.teacher, solver, x, n, cond, unconditional, w)

        # student against target
        clean = distill.mode == "lcm"
        x_s, x0_hat = jump(roles.student, solver, x, n, cond, s, clean)
        with torch.no_grad():
            goal, _ = jump(roles.target, solver, x_prev, n - 1, cond, s, clean)
            goal = self.head.target(goal) if self.head is not None else goal
        seen = self.head.student(x_s) if self.head is not None else x_s
        loss = consistency_loss(seen, goal, distill.loss, distill.huber_c)
        figures = {"loss": loss.item(), "n": n.float().mean().item()}

        # student against discriminator; each network's gradients come from the same pictures
        judge = self.judge
        if judge is not None:
            noise = torch.randn(x.shape, generator=random).to(x)
            pair = noisy_pair(adversarial.mode, solver, x_s, x0_hat, x0, n, s, noise, random)
            text = cond.get("text", cond["pooled"])
            shown = judge.look(*pair, text, self.conditioner.decode, random)
            against = judge.student_loss(shown)
            loss = loss + adversarial.weight * against
            figures["adversarial"] = against.item()
        _check_finite(where, figures, roles.dtype)
        self.scaler.scale(loss / self.run.lane_count).backward()
        if judge is not None:
            figures |= judge.learn(shown, self.run.lane_count, random)
            _check_finite(where, figures, roles.dtype)
        return x_prev, figures

    def _guidance(self, count: int, random: torch.Generator) -> Tensor:
        """The teacher's guidance weight w for each of `count` samples (count,)."""
        distill = self.config.distill
        u = torch.rand(count, generator=random)
        return distill.w_min + (distill.w_max - distill.w_min) * u

    # --- where samples come from ---

    def forecast(self, lane: Lane) -> Forecast:
        """How many fresh samples the lane needs at each step from now on."""
        optimizer, bank = self.config.optimizer, self.config.bank
        draws = partial(_lane_generator, self.config.run.seed, lane.number)
        return Forecast(lane.bank, optimizer.batch, bank.rate, self.n_eta, draws)

    def start_trajectory(self, batch: Batch, i: int, random: torch.Generator) -> BankEntry:
        """Sample i of a batch at x_eta, where its trajectory starts."""
        x0 = self.conditioner.encode(batch.pixels[i])
        noise = torch.randn(x0.shape, generator=random).to(x0)
        reference = batch.references[i] if batch.references else None
        size, crop = batch.original_size[i].tolist(), batch.crop[i].tolist()
        conditions = self.conditions(batch.captions[i], size, crop, reference)
        x = self.solver.begin(x0[None], noise[None], self.n_eta)[0]
        return BankEntry(x0, x, conditions, self.n_eta)

    def conditions(
        self,
        caption: str,
        original_size: list[int],
        crop: list[int],
        reference: Image.Image | None,
    ) -> Conditions:
        """The conditions of one sample, without a batch dimension, on the device.

        original_size: (height, width) of the file's picture. crop: (top, left). They are in
        float32 on a CPU, and as the encoders give them elsewhere.
        """
        found = {name: value.to(self.device) for name, value in self.captions[caption].items()}
        if self.judge is not None and self.judge.text is not None:
            # the bank keeps it with its sample
            found["text"] = self.judge.text([caption])[0].to(self.device)
        ids = self.conditioner.time_ids(original_size, crop, self.config.data.size)
        found["time_ids"] = ids.to(self.device)
        if reference is not None:
            found["style"] = self.conditioner.encode_style(reference)[1]
        on_cpu = self.device.type == "cpu"
        return {name: value.float() if on_cpu else value for name, value in found.items()}

    def _walk(self, entry: BankEntry, steps: int, random: torch.Generator) -> BankEntry:
        """An entry so many teacher steps further down its trajectory."""
        x = entry.x[None]
        n = entry.n
        cond = {name: value[None] for name, value in entry.c.items()}
        for _ in range(steps):
            w = self._guidance(1, random)
            unconditional = self.conditioner.unconditional(cond)
            now = torch.tensor([n])
            x = teacher_step(self.roles.teacher, self.solver, x, now, cond, unconditional, w)
            n -= 1
        return BankEntry(entry.x0, x[0], entry.c, n)

    def generator(self, step: int, lane: int) -> torch.Generator:
        """The random numbers of a lane at a step. It seeds torch's global ones too, from which
        dropout draws."""
        random = _lane_generator(self.config.run.seed, lane, step)
        torch.manual_seed(random.initial_seed())
        return random

    # --- one update ---

    def update(self, step: int, figures: list[dict[str, float]]) -> dict[str, Any]:
        """Sum the gradients over processes and move every network.

        figures: of each lane of this process. Returns the update's figures for the log: means over
        all lanes, "norm" and "d_norm" of the gradients (None: the update was skipped as half
        precision overflowed), the learning rate, and what the banks and the memory hold.
        """
        optimizer = self.config.optimizer
        judge = self.judge
        means = mean_figures(self.run.world, figures, self.run.lane_count, self.device)
        factor = lr_factor(optimizer, step, self.run.steps)
        lr = optimizer.lr * self.run.lr_scale * factor
        norms: dict[str, float | None] = {"norm": self._clip(self.optimizer, lr, self.scaler)}
        if judge is not None:
            lr = self.config.adversarial.lr * self.run.lr_scale * factor
            norms["d_norm"] = self._clip(judge.optimizer, lr)
        self._check_norms(norms, step)

        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if judge is not None:
            judge.update(step, means["penalty"])
        self.roles.average()
        if self.head is not None:
            self.head.average()
        return {**means, **norms, "lr": self.optimizer.param_groups[0]["lr"], **self._held()}

    def agree(self, stop: bool) -> bool:
        """Whether any process was asked to stop."""
        return any_process(self.run.world, stop, self.device)

    def _clip(
        self,
        optimizer: torch.optim.Optimizer,
        lr: float,
        scaler: torch.amp.GradScaler | None = None,
    ) -> float:
        """Make an optimizer ready for its step; the norm of its gradients, before it is clipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sum_gradients(self.run.world, parameters)
        if scaler is not None:
            # after the sum, so that all processes skip the same updates
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip).item()
        for group in optimizer.param_groups:
            group["lr"] = lr
        return norm

    def _check_norms(self, norms: dict[str, float | None], step: int) -> None:
        """Raises StdError for a gradient that is not finite, unless the scaler will skip the update
        and scale less from now on; the student's norm is None then."""
        for name, norm in norms.items():
            if norm is None or math.isfinite(norm):
                continue
            if name == "norm" and self.scaler.is_enabled():
                norms[name] = None
                continue
            raise StdError(
                f"the gradient is not finite in update {step + 1} ({name} {norm}): no weight was "
                "changed; lower the learning rate, and resume from the last checkpoint"
            )

    def _held(self) -> dict[str, Any]:
        """Entries of all banks and their indices, of all processes; the most memory that one of
        these has used, in bytes."""
        held = [n for lane in self.lanes for n in lane.bank.indices]
        histogram = np.histogram(held, bins=8, range=(0, self.n_eta + 1))[0]
        on_gpu = self.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(self.device) if on_gpu else _peak_rss()
        counts, most = sum_and_most(
            self.run.world, torch.from_numpy(histogram), memory, self.device
        )
        return {"bank": sum(counts), "bank_histogram": counts, "memory": most}


def lr_factor(section: OptimizerSection, step: int, steps: int) -> float:
    """The factor of the learning rate at a step from 0: linear warm-up, then half a cosine that
    ends at 0 after `steps`, or 1."""
    if step < section.warmup_steps:
        return (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return 1.0
    progress = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _check_finite(where: str, figures: Mapping[str, float], dtype: torch.dtype) -> None:
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        facts = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        wider = " or use --set model.dtype=bf16" if dtype == torch.float16 else ""
        raise StdError(
            f"{wrong[0]} is not finite in {where} ({facts}): no weight was changed; lower the "
            f"learning rate{wider}, and resume from the last checkpoint"
        )


def _lane_generator(seed: int, lane: int, step: int) -> torch.Generator:
    """All random numbers of a lane's micro-batch come from it."""
    sequence = np.random.SeedSequence((seed, step, lane))
    # torch takes seeds below 2^63
    return torch.Generator("cpu").manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def _peak_rss() -> int:
    """The most memory that this process had, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
