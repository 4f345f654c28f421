"""Distillation where the truth is known:
`python -m tests.bench.mixture [--seeds 10] [--steps N] [--output FILE.md]`.

Data: a mixture of Gaussians in the plane, with classes. The score of its diffusion has a closed
form: an exact teacher.
Students: that teacher without guidance plus a small MLP that starts at zero, as a LoRA does;
guidance is distilled into them. What is measured: the distance from where a student ends, in few
steps from x_eta, to where the teacher's guided 50-step grid ends from the same x_eta. Everything
but the loop here is `std_cli.distill`.
"""

import argparse
import copy
import multiprocessing
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import t as student_t
from torch import Tensor, nn

from std_cli.distill.bank import Bank, BankEntry, Conditions, stack
from std_cli.distill.solver import Solver, TargetMode, draw_target, phase_edges
from std_cli.distill.step import Network, consistency_loss, jump, teacher_step
from std_cli.schedule import timesteps

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)  # SDXL's
W = 5.0  # CFG 6
NFE = (1, 2, 4, 8)


class Mixture:
    """Equal Gaussians in the plane, `modes` of them to each class; zero mean, unit variance in
    all."""

    def __init__(self, classes: int = 4, modes: int = 3, spread: float = 0.2) -> None:
        centres = torch.randn(classes, modes, 2, generator=torch.Generator().manual_seed(0))
        centres = centres - centres.mean((0, 1))
        # (classes, modes, 2)
        self.centres = centres * ((1 - spread**2) / centres.square().mean()).sqrt()
        self.spread = spread
        self.unconditional = torch.full((classes,), 1 / classes)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Conditions]:
        """x_0 (B, 2) and its class, (B, classes) of probabilities."""
        classes, modes, _ = self.centres.shape
        k = torch.randint(classes, (count,), generator=generator)
        j = torch.randint(modes, (count,), generator=generator)
        x0 = self.centres[k, j] + self.spread * torch.randn(count, 2, generator=generator)
        return x0, {"class": nn.functional.one_hot(k, classes).float()}

    def epsilon(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        """The exact prediction -sqrt(1 - abar) times the score of the diffused mixture, whose
        classes weigh c."""
        a, b = ABAR[t].sqrt()[:, None], (1 - ABAR[t]).sqrt()[:, None]
        variance = (a * self.spread) ** 2 + b**2
        centres = self.centres.flatten(0, 1)
        distance = (x[:, None] - a[:, None] * centres).square().sum(2)  # (B, classes * modes)
        weights = (
            c["class"].log().repeat_interleave(self.centres.shape[1], 1) - distance / (2 * variance)
        ).softmax(1)
        return b * (x - a * weights @ centres) / variance


class Student(nn.Module):
    """The teacher's conditional prediction plus an MLP of (x, t, class) whose last layer starts at
    zero."""

    def __init__(self, mixture: Mixture, width: int = 64) -> None:
        super().__init__()
        self.base = mixture.epsilon
        self.mlp = nn.Sequential(
            nn.Linear(2 + 9 + len(mixture.centres), width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
        u = t[:, None] / len(ABAR)
        waves = torch.pi * u * torch.tensor([1.0, 2.0, 4.0, 8.0])
        return self.base(x, t, c) + self.mlp(
            torch.cat([x, u, waves.sin(), waves.cos(), c["class"]], 1)
        )


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    mode: TargetMode = "std"
    bank_rate: float = 0.8  # 0: no bank
    # where what is not from the bank starts; "any": the data noised to the level of any index
    fresh: str = "x_eta"
    range_rate: float = 0.5
    phases: int = 8
    decay: float = 0.95  # of the target's moving average; 0: the student itself
    # the bank's x_t with the condition of another sample, as the reference code has it
    mix_up: bool = False
    w_range: float = 0.0  # w is drawn at every step, within W -+ this


STD = Arm("std")
ARMS = [
    Arm("lcm, no bank", "lcm", 0, "any"),
    Arm("lcm", "lcm"),
    Arm("tcd, no bank", "tcd", 0, "any"),
    Arm("tcd (std with range 1.0)", "tcd"),
    Arm("pcm, no bank", "pcm", 0, "any"),
    Arm("pcm", "pcm"),
    Arm("pcm, 4 phases", "pcm", phases=4),
    Arm("pcm, 2 phases", "pcm", phases=2),
    STD,
    Arm("std, range 0.3", range_rate=0.3),
    Arm("std, target is the student itself", decay=0),
    Arm("std, no bank, noised data", bank_rate=0, fresh="any"),
    Arm("std, no bank, x_eta only", bank_rate=0),
    Arm("std, mixed-up captions", mix_up=True),
    Arm("std, w from 3 to 7", w_range=2),
]


def train(
    arm: Arm, mixture: Mixture, seed: int, eta: float, updates: int, batch: int = 128
) -> Student:
    """A student after `updates` steps; the loop differs between arms only in what the arm says."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the student's first weights
    student = Student(mixture)
    target = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.mlp.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    solver, bank = Solver(ABAR, 50, "epsilon"), Bank(4 * batch)
    n_eta, reach = solver.start(eta), solver.reach(eta, arm.range_rate)
    unconditional = {"class": mixture.unconditional.expand(batch, -1)}
    for _ in range(updates):
        slots = bank.draw(batch, arm.bank_rate, g)
        x0, x, c, n = fresh_batch(arm, mixture, solver, n_eta, batch, g)
        if kept := [i for i, slot in enumerate(slots) if slot is not None]:
            held_x0, x[kept], held_c, n[kept] = stack(
                [bank.slots[slots[i]] for i in kept], x.device
            )
            if not arm.mix_up:
                x0[kept], c["class"][kept] = held_x0, held_c["class"]
        w = W + arm.w_range * (2 * torch.rand(batch, generator=g) - 1)
        x_prev = teacher_step(mixture.epsilon, solver, x, n, c, unconditional, w)
        s, clean = (
            draw_target(arm.mode, n, solver.span(eta), reach, arm.phases, g),
            arm.mode == "lcm",
        )
        x_s, _ = jump(student, solver, x, n, c, s, clean)
        with torch.no_grad():
            aim, _ = jump(target, solver, x_prev, n - 1, c, s, clean)
        optimizer.zero_grad()
        consistency_loss(x_s, aim).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for p, q in zip(target.parameters(), student.parameters(), strict=True):
                p.lerp_(q, 1 - arm.decay)
        if arm.bank_rate:
            for i, slot in enumerate(slots):
                bank.put(slot, BankEntry(x0[i], x_prev[i], {"class": c["class"][i]}, int(n[i]) - 1))
    return student


def fresh_batch(
    arm: Arm, mixture: Mixture, solver: Solver, n_eta: int, batch: int, g: torch.Generator
) -> tuple[Tensor, Tensor, Conditions, Tensor]:
    """(x_0, x_t, c, n) of new data."""
    x0, c = mixture.sample(batch, g)
    noise = torch.randn(x0.shape, generator=g)
    if arm.fresh == "x_eta":
        return x0, solver.begin(x0, noise, n_eta), c, torch.full((batch,), n_eta)
    n = torch.randint(1, n_eta + 1, (batch,), generator=g)
    return x0, solver.add_noise(x0, noise, solver.timestep(n)), c, n


@torch.no_grad()
def sample(
    network: Network, solver: Solver, x: Tensor, c: Conditions, indices: list[int]
) -> Tensor:
    """DDIM from grid index to grid index and to the end: TCD's sampler at gamma 0."""
    for n, after in zip(indices, [*indices[1:], -1], strict=True):
        x, _ = jump(
            network, solver, x, torch.full((len(x),), n), c, torch.full((len(x),), after + 1)
        )
    return x


@torch.no_grad()
def sample_lcm(
    network: Network,
    solver: Solver,
    x: Tensor,
    c: Conditions,
    indices: list[int],
    g: torch.Generator,
) -> Tensor:
    """LCM's own sampler: the clean sample, then new noise of the next level (arXiv 2310.04378,
    algorithm 3)."""
    for n, after in zip(indices, [*indices[1:], None], strict=True):
        x, x0 = jump(
            network,
            solver,
            x,
            torch.full((len(x),), n),
            c,
            torch.zeros(len(x), dtype=torch.long),
            clean=True,
        )
        if after is not None:
            noise = torch.randn(x.shape, generator=g)
            x = solver.add_noise(x0, noise, solver.timestep(torch.full((len(x),), after)))
    return x


def guided(mixture: Mixture, x: Tensor, t: Tensor, c: Conditions) -> Tensor:
    """The teacher's epsilon under guidance, in the LCM form."""
    conditional = mixture.epsilon(x, t, c)
    return conditional + W * (
        conditional - mixture.epsilon(x, t, {"class": mixture.unconditional.expand(len(x), -1)})
    )


def aligned(steps: int, eta: float) -> list[int]:
    """The grid indices that the tool's `aligned` schedule visits."""
    return [(t + 1) // 20 - 1 for t in timesteps(steps, eta, "aligned")]


class Truth:
    """A seed's test samples: x_eta, class, and the exact end point of the teacher's guided
    trajectory."""

    def __init__(self, mixture: Mixture, seed: int, eta: float, count: int = 2048) -> None:
        self.eta, self.solver = eta, Solver(ABAR, 50, "epsilon")
        self.n_eta = self.solver.start(eta)
        g = torch.Generator().manual_seed(10_000 + seed)
        x0, self.c = mixture.sample(count, g)
        self.x = self.solver.begin(x0, torch.randn(x0.shape, generator=g), self.n_eta)
        teacher = partial(guided, mixture)
        self.end = sample(teacher, self.solver, self.x, self.c, list(range(self.n_eta, -1, -1)))

    def error(self, end: Tensor) -> float:
        """Mean distance to the exact end points."""
        return (end - self.end).norm(dim=1).mean().item()

    def errors(self, network: Network) -> list[float]:
        """At each of NFE steps of the tool's `aligned` schedule."""
        return [
            self.error(sample(network, self.solver, self.x, self.c, aligned(k, self.eta)))
            for k in NFE
        ]

    def errors_lcm(self, network: Network) -> list[float]:
        """The same steps with LCM's own sampler."""
        g = torch.Generator().manual_seed(0)
        return [
            self.error(sample_lcm(network, self.solver, self.x, self.c, aligned(k, self.eta), g))
            for k in NFE
        ]

    def errors_pcm(self, network: Network, phases: int) -> list[float | None]:
        """One step per phase between the phases' own edges, which the `aligned` schedule does not
        quite visit."""
        edges = phase_edges(self.solver.span(self.eta), phases).tolist()
        indices = [self.n_eta, *(edge - 1 for edge in reversed(edges[1:]))]
        error = self.error(sample(network, self.solver, self.x, self.c, indices))
        return [error if k == phases else None for k in NFE]


def measure(job: tuple[Arm | None, int, float], updates: int) -> dict[str, list[float | None]]:
    """The errors of one arm (None: of what is not trained) for one seed and eta, by row of the
    table."""
    arm, seed, eta = job
    torch.set_num_threads(1)
    mixture = Mixture()
    truth = Truth(mixture, seed, eta)
    if arm is None:
        teacher = truth.errors(partial(guided, mixture))
        return {
            "none: the guided teacher": teacher,
            "none: the student before training": truth.errors(mixture.epsilon),
        }
    student = train(arm, mixture, seed, eta, updates)
    rows = {arm.name: truth.errors(student)}
    if arm.mode == "lcm":
        rows[arm.name + "; LCM's own sampler"] = truth.errors_lcm(student)
    if arm.mode == "pcm":
        rows[arm.name + "; between its own edges"] = truth.errors_pcm(student, arm.phases)
    return rows


def table(found: list[dict[str, list[float | None]]]) -> str:
    """Means over seeds with 95% confidence intervals; the best mean of each column in bold."""
    cells = {}  # (row, column) -> (mean, half width)
    names = list(dict.fromkeys(name for rows in found for name in rows))
    for name in names:
        columns = zip(*(rows[name] for rows in found if name in rows), strict=True)
        for column, values in enumerate(columns):
            if None not in values:
                v = torch.tensor(values, dtype=torch.float64)
                half = student_t.ppf(0.975, len(v) - 1) * (v.std() / len(v) ** 0.5).item()
                cells[name, column] = v.mean().item(), half
    lines = ["| steps | " + " | ".join(map(str, NFE)) + " |", "|---|" + "---|" * len(NFE)]
    best = [
        min(mean for (_, c), (mean, _) in cells.items() if c == column)
        for column in range(len(NFE))
    ]
    for name in names:
        line = f"| {name} |"
        for column in range(len(NFE)):
            mean, half = cells.get((name, column), (None, None))
            mark = "**" if mean == best[column] else ""
            line += " |" if mean is None else f" {mark}{mean:.3f}{mark} ± {half:.3f} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--seeds", type=int, default=10, help="at least 2")
    p.add_argument("--steps", type=int, default=2000, help="updates of each student")
    p.add_argument("--eta", type=float, nargs="*", default=[0.75, 0.95])
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--output", type=Path)
    a = p.parse_args()
    began, parts = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(a.jobs) as pool:
        for eta in a.eta:
            jobs = [(arm, seed, eta) for arm in [None, *ARMS] for seed in range(a.seeds)]
            found = pool.map(partial(measure, updates=a.steps), jobs, chunksize=1)
            parts.append(f"eta {eta}:\n\n{table(found)}\n")
            print(parts[-1], flush=True)
    minutes = (time.monotonic() - began) / 60
    parts.append(
        f"{a.seeds} seeds, {a.steps} updates, {minutes:.0f} minutes with {a.jobs} processes.\n"
    )
    print(parts[-1], end="")
    if a.output:
        a.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
