"""How near the student is to the teacher on held-out samples, and a sheet of pictures to look
at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from std_cli.distill.bank import Conditions
from std_cli.distill.config import ExportedWeights
from std_cli.distill.dataset import Dataset
from std_cli.distill.find_samples import SampleFile
from std_cli.distill.monitor import sample, sheet
from std_cli.distill.step import Network, jump, noisy_pair, teacher_step
from std_cli.distill.trainer import Trainer
from std_cli.errors import StdError
from std_cli.paths import writing
from std_cli.schedule import Schedule, timesteps

SCHEDULES: tuple[Schedule, ...] = ("aligned", "quickstart")
NO_STEP = 10**9
"""In place of the step, for random numbers that no step has."""
_SHOWN = 4
"""Samples on the sheet of pictures."""


@dataclass(frozen=True)
class HeldOutStart:
    """One held-out sample noised to x_eta, a batch of 1."""

    x0: Tensor
    """(1, 4, h, w) or (1, 4, F, h, w), as all latents here."""
    noise: Tensor
    x: Tensor
    """x_eta."""
    c: Conditions
    random: torch.Generator
    """What else is random of this sample."""


class Validation:
    """The same samples and noise every time."""

    def __init__(self, trainer: Trainer, held_out: Sequence[SampleFile]) -> None:
        self.trainer = trainer
        whole = trainer.data
        self.data = Dataset(
            replace(whole.found, entries=list(held_out)),
            whole.size,
            frames=whole.frames,
            stride=whole.stride,
            flip=0.0,
            references=whole.references,
        )
        distill = trainer.config.distill
        self.w = torch.tensor([(distill.w_min + distill.w_max) / 2])
        """The teacher's guidance weight (1,), the middle of the range."""
        self._ends: dict[int, Tensor] = {}

    def measure(self, step: int) -> dict[str, float]:
        """Mean distance of the student's last latents to the teacher's, over that of the teacher's
        to the input's.

        Both start from the same x_eta of held-out samples: the student runs `distill.steps` steps
        without guidance, the teacher all its points under the middle w. A sheet of pictures goes to
        monitor/. Returns {"validation": distance}, or {} if no sample can be read.
        """
        trainer = self.trainer
        distances = []
        rows = []
        for i in range(len(self.data.entries)):
            try:
                distance, row = self._show(i)
            except StdError as e:
                if step == 0:
                    message = f"left out of the validation: {e}"
                    trainer.run.on_event({"event": "notice", "message": message})
                continue
            distances.append(distance)
            if i < _SHOWN:
                rows.append(row)
        folder = trainer.run.folder / "monitor"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        if rows:
            sheet(rows, trainer.conditioner.decode, folder / f"step-{step:06d}.png")
        return {"validation": float(np.mean(distances))} if distances else {}

    def compare(self) -> dict[ExportedWeights, dict[Schedule, float]]:
        """{weights: {schedule: distance as of `measure`}} of what can be exported, in each schedule
        of `std stylize`; {} if no sample can be read.

        Both schedules aim at where the teacher ends from x_eta. quickstart begins at another
        timestep, to which the same x_0 is noised with the same noise. Where both visit the same
        timesteps they are the same.
        """
        roles = self.trainer.roles
        networks: dict[ExportedWeights, Network] = {"student": roles.student}
        if self.trainer.config.distill.ema:
            networks["average"] = roles.target
        found: dict[ExportedWeights, dict[Schedule, list[float]]] = {
            name: {schedule: [] for schedule in SCHEDULES} for name in networks
        }
        for i in range(len(self.data.entries)):
            try:
                start = self.start(i)
            except StdError:  # `measure` has reported it
                continue
            for name, network in networks.items():
                for schedule in SCHEDULES:
                    found[name][schedule].append(self._distance(i, start, network, schedule)[0])
        return {
            name: {schedule: float(np.mean(values)) for schedule, values in of.items()}
            for name, of in found.items()
            if of[SCHEDULES[0]]
        }

    @torch.no_grad()
    def start(self, i: int) -> HeldOutStart:
        """Held-out sample i, noised to x_eta. Raises StdError if it cannot be read."""
        trainer = self.trainer
        random = trainer.generator(NO_STEP, i)
        seed = (trainer.config.run.seed, NO_STEP, i)
        picture = self.data.read(i, np.random.default_rng(seed))
        x0 = trainer.conditioner.encode(torch.from_numpy(picture.pixels))[None]
        conditions = trainer.conditions(
            picture.caption, list(picture.original_size), list(picture.crop), picture.reference
        )
        batch = {name: value[None] for name, value in conditions.items()}
        noise = torch.randn(x0.shape, generator=random).to(x0)
        x = trainer.solver.begin(x0, noise, trainer.n_eta)
        return HeldOutStart(x0, noise, x, batch, random)

    @torch.no_grad()
    def _show(self, i: int) -> tuple[float, list[Tensor]]:
        """(distance, the sheet's latents) of one sample."""
        trainer = self.trainer
        solver, roles = trainer.solver, trainer.roles
        start = self.start(i)
        x, c = start.x, start.c
        distance, made = self._distance(i, start, roles.student, "aligned")
        n = torch.tensor([trainer.n_eta])
        s = torch.tensor([max(0, trainer.n_eta - trainer.reach)])
        unconditional = trainer.conditioner.unconditional(c)
        x_prev = teacher_step(roles.teacher, solver, x, n, c, unconditional, self.w)
        x_s, x0_hat = jump(roles.student, solver, x, n, c, s)
        goal, _ = jump(roles.target, solver, x_prev, n - 1, c, s)
        mode = trainer.config.adversarial.mode
        _, real = noisy_pair(mode, solver, x_s, x0_hat, start.x0, n, s, start.noise, start.random)
        return distance, [start.x0, x, x0_hat, x_s, goal, real, made, self._end(i, start)]

    @torch.no_grad()
    def _distance(
        self, i: int, start: HeldOutStart, network: Network, schedule: Schedule
    ) -> tuple[float, Tensor]:
        """(distance to the teacher's end point, where the network ends)."""
        trainer = self.trainer
        distill = trainer.config.distill
        steps = timesteps(distill.steps, distill.eta, schedule)
        end = self._end(i, start)
        x = start.x
        if steps != timesteps(distill.steps, distill.eta, "aligned"):
            x = trainer.solver.add_noise(start.x0, start.noise, torch.tensor(steps[:1]))
        made = sample(network, trainer.solver, x, steps, start.c)
        ratio = (made - end).square().mean() / (end - start.x0).square().mean()
        return ratio.sqrt().item(), made

    @torch.no_grad()
    def _end(self, i: int, start: HeldOutStart) -> Tensor:
        """Where the teacher ends from x_eta of sample i; computed once."""
        if i not in self._ends:
            trainer = self.trainer
            unconditional = trainer.conditioner.unconditional(start.c)
            end = start.x
            for n in range(trainer.n_eta, -1, -1):
                now = torch.tensor([n])
                end = teacher_step(
                    trainer.roles.teacher,
                    trainer.solver,
                    end,
                    now,
                    start.c,
                    unconditional,
                    self.w,
                )
            self._ends[i] = end.cpu()
        return self._ends[i].to(start.x)
