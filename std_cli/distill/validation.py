"""How near the student is to the teacher on held-out samples, and a sheet of pictures to look
at."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from std_cli.distill.bank import Conditions
from std_cli.distill.dataset import Data
from std_cli.distill.find_samples import Found
from std_cli.distill.monitor import sample, sheet
from std_cli.distill.step import Network, jump, noisy_pair, teacher_step
from std_cli.distill.trainer import Trainer
from std_cli.errors import StdError
from std_cli.paths import writing
from std_cli.schedule import Schedule, timesteps

SCHEDULES: tuple[Schedule, ...] = ("aligned", "quickstart")
NO_STEP = 10**9  # in place of the step, for random numbers that no step has


class Validation:
    """The same samples and noise every time."""

    def __init__(self, trainer: Trainer, held_out: Found) -> None:
        self.trainer = trainer
        whole = trainer.data
        self.data = Data(
            held_out, whole.size, frames=whole.frames, stride=whole.stride, flip=0.0,
            references=whole.references,
        )  # fmt: skip
        self.ends: dict[int, Tensor] = {}
        d = trainer.config.distill
        self.w = torch.tensor([(d.w_min + d.w_max) / 2])

    def measure(self, step: int) -> dict[str, float]:
        """Mean distance of the student's last latents to the teacher's, over that of the teacher's
        to the input's.

        Both start from the same x_eta of held-out samples: the student runs `distill.steps` steps
        without guidance, the teacher all its points under the middle w. A sheet of pictures goes to
        monitor/.
        """
        t = self.trainer
        distances, rows = [], []
        for i in range(len(self.data.entries)):
            try:
                distance, row = self._one(i)
            except StdError as e:
                if step == 0:
                    t.on_event({"event": "notice", "message": f"left out of the validation: {e}"})
                continue
            distances.append(distance)
            if i < 4:
                rows.append(row)
        folder = t.folder / "monitor"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        if rows:
            sheet(rows, t.around.decode, folder / f"step-{step:06d}.png")
        return {"validation": float(np.mean(distances))} if distances else {}

    def compare(self) -> dict[str, dict[str, float]]:
        """{weights: {schedule: distance as of `measure`}} of what can be exported, in each schedule
        of `std stylize`.

        Both schedules aim at where the teacher ends from x_eta. quickstart begins at another
        timestep, to which the same x_0 is noised with the same noise. Where both visit the same
        timesteps they are the same.
        """
        roles = self.trainer.roles
        networks: dict[str, Network] = {"student": roles.student}
        if self.trainer.config.distill.ema:
            networks["average"] = roles.target
        found: dict[str, dict[str, list[float]]] = {
            name: {s: [] for s in SCHEDULES} for name in networks
        }
        for i in range(len(self.data.entries)):
            try:
                start = self.start(i)
            except StdError:  # `measure` has said so
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
    def _distance(
        self, i: int, start: "Start", network: Network, schedule: Schedule
    ) -> tuple[float, Tensor]:
        """(distance to the teacher's end point, where the network ends)."""
        t, d = self.trainer, self.trainer.config.distill
        steps, end = timesteps(d.steps, d.eta, schedule), self._end(i, start)
        x = start.x
        if steps != timesteps(d.steps, d.eta, "aligned"):
            x = t.solver.add_noise(start.x0, start.noise, torch.tensor(steps[:1]))
        made = sample(network, t.solver, x, steps, start.c)
        return ((made - end).square().mean() / (end - start.x0).square().mean()).sqrt().item(), made

    @torch.no_grad()
    def _end(self, i: int, start: "Start") -> Tensor:
        """Where the teacher ends from x_eta of sample i; kept."""
        t, end = self.trainer, start.x
        if i not in self.ends:
            u = t.around.unconditional(start.c)
            for k in range(t.n_eta, -1, -1):
                end = teacher_step(
                    t.roles.teacher, t.solver, end, torch.tensor([k]), start.c, u, self.w
                )
            self.ends[i] = end.cpu()
        return self.ends[i].to(start.x)

    @torch.no_grad()
    def start(self, i: int) -> "Start":
        """Held-out sample i, noised to x_eta. Raises StdError if it cannot be read."""
        t = self.trainer
        random = t.generator(NO_STEP, i)
        picture = self.data.read(i, np.random.default_rng((t.config.run.seed, NO_STEP, i)))
        x0 = t.around.encode(torch.from_numpy(picture.pixels))[None]
        c = t.conditions(
            picture.caption, list(picture.original_size), list(picture.crop), picture.reference
        )
        c = {k: v[None] for k, v in c.items()}
        noise = torch.randn(x0.shape, generator=random).to(x0)
        return Start(x0, noise, t.solver.begin(x0, noise, t.n_eta), c, random)

    @torch.no_grad()
    def _one(self, i: int) -> tuple[float, list[Tensor]]:
        """(distance, the sheet's latents) of one sample."""
        t, solver, roles = self.trainer, self.trainer.solver, self.trainer.roles
        start = self.start(i)
        x0, noise, x, c, random = start.x0, start.noise, start.x, start.c, start.random
        distance, made = self._distance(i, start, roles.student, "aligned")
        n, s = torch.tensor([t.n_eta]), torch.tensor([max(0, t.n_eta - t.reach)])
        x_prev = teacher_step(roles.teacher, solver, x, n, c, t.around.unconditional(c), self.w)
        x_s, x0_hat = jump(roles.student, solver, x, n, c, s)
        goal, _ = jump(roles.target, solver, x_prev, n - 1, c, s)
        _, real = noisy_pair(
            t.config.adversarial.mode, solver, x_s, x0_hat, x0, n, s, noise, random
        )
        return distance, [x0, x, x0_hat, x_s, goal, real, made, self._end(i, start)]


@dataclass(frozen=True)
class Start:
    """One held-out sample, a batch of 1."""

    x0: Tensor
    noise: Tensor
    x: Tensor  # x_eta
    c: Conditions
    random: torch.Generator
