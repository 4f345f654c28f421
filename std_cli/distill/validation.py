"""How near the student is to the teacher on held-out samples, and a sheet of pictures to look at."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from std_cli.distill.monitor import sample, sheet
from std_cli.distill.samples import Data
from std_cli.distill.step import jump, noisy_pair, teacher_step
from std_cli.distill.trainer import Trainer
from std_cli.errors import StdError
from std_cli.schedule import timesteps

NO_STEP = 10**9  # in place of the step, for random numbers that no step has


class Validation:
    """The same samples and noise every time."""

    def __init__(self, trainer: Trainer, held_out: list[Any], found: Any) -> None:
        self.trainer = trainer
        whole = trainer.data
        self.data = Data(
            replace(found, entries=held_out), whole.size, frames=whole.frames, stride=whole.stride, flip=0.0,
            references=whole.references,
        )  # fmt: skip
        self.ends: dict[int, Tensor] = {}

    def measure(self, step: int) -> dict[str, float]:
        """Mean distance of the student's last latents to the teacher's, over that of the teacher's to the input's.

        Both start from the same x_eta of held-out samples: the student runs `distill.steps` steps without guidance, the
        teacher all its points under the middle w. A sheet of pictures goes to monitor/.
        """
        t = self.trainer
        if not t.world.is_main_process:
            t.world.wait_for_everyone()
            return {}
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
        folder.mkdir(exist_ok=True)
        if rows:
            sheet(rows, t.around.decode, folder / f"step-{step:06d}.png")
        if t.world.num_processes > 1:
            t.world.wait_for_everyone()
        return {"validation": float(np.mean(distances))} if distances else {}

    @torch.no_grad()
    def _one(self, i: int) -> tuple[float, list[Tensor]]:
        """(distance, the sheet's latents) of one sample."""
        t, d = self.trainer, self.trainer.config.distill
        solver, roles, around = t.solver, t.roles, t.around
        random = t.generator(NO_STEP, i)
        picture = self.data.read(i, np.random.default_rng((t.config.run.seed, NO_STEP, i)))
        x0 = around.encode(torch.from_numpy(picture.pixels))[None]
        c = t.conditions(picture.caption, list(picture.original_size), list(picture.crop), picture.reference)
        c = {k: v[None] for k, v in c.items()}
        noise = torch.randn(x0.shape, generator=random).to(x0)
        x, w = solver.begin(x0, noise, t.n_eta), torch.tensor([(d.w_min + d.w_max) / 2])
        if i not in self.ends:
            end = x
            for k in range(t.n_eta, -1, -1):
                end = teacher_step(roles.teacher, solver, end, torch.tensor([k]), c, around.unconditional(c), w)
            self.ends[i] = end.cpu()
        end = self.ends[i].to(x)
        made = sample(roles.student, solver, x, timesteps(d.steps, d.eta, "aligned"), c)
        n, s = torch.tensor([t.n_eta]), torch.tensor([max(0, t.n_eta - t.reach)])
        x_prev = teacher_step(roles.teacher, solver, x, n, c, around.unconditional(c), w)
        x_s, x0_hat = jump(roles.student, solver, x, n, c, s)
        goal, _ = jump(roles.target, solver, x_prev, n - 1, c, s)
        _, real = noisy_pair(t.config.adversarial.mode, solver, x_s, x0_hat, x0, n, s, noise, random)
        distance = ((made - end).square().mean() / (end - x0).square().mean()).sqrt().item()
        return distance, [x0, x, x0_hat, x_s, goal, real, made, end]
