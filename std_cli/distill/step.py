"""The mathematics of one training step, as functions of networks: nothing here knows what they are.

A network takes (x (B, ...), timesteps (B,), conditions) and gives its raw output, like x. Where
paper and reference code differ the paper is followed (STD, arXiv 2412.18945).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from std_cli.distill.bank import Conditions
from std_cli.distill.solver import Solver

Network = Callable[[Tensor, Tensor, Conditions], Tensor]
ConsistencyLoss = Literal["huber", "l2"]
NoiseMode = Literal["xs-xr", "xs", "xs-x0", "x0", "xs-xR"]


@torch.no_grad()
def teacher_step(
    teacher: Network,
    solver: Solver,
    x: Tensor,
    n: Tensor,
    c: Conditions,
    unconditional: Conditions,
    w: Tensor,
) -> Tensor:
    """x at index n - 1 of the teacher's trajectory: one DDIM step under guidance, both passes as
    one batch.

    Guidance is p_c + w (p_c - p_u) on x0_hat and eps_hat, w (B,) (LCM, arXiv 2310.04378, eq. 10):
    CFG's scale is w + 1. `unconditional` has what differs from `c`.
    """
    both = {k: torch.cat([v, unconditional.get(k, v)]) for k, v in c.items()}
    t = solver.timestep(n).to(x.device)
    output, output_u = teacher(torch.cat([x, x]), torch.cat([t, t]), both).float().chunk(2)
    (x0, eps), (x0_u, eps_u) = solver.split(output, x, n), solver.split(output_u, x, n)
    w = w.to(x).view(-1, *[1] * (x.ndim - 1))
    return solver.move(x0 + w * (x0 - x0_u), eps + w * (eps - eps_u), n)


def jump(
    network: Network,
    solver: Solver,
    x: Tensor,
    n: Tensor,
    c: Conditions,
    s: Tensor,
    clean: bool = False,
) -> tuple[Tensor, Tensor]:
    """(x_s, x0_hat): a network's move from index n straight to s, the trajectory consistency
    function.

    clean: x_s is x0_hat itself, without the noise that timestep 0 still has, whatever s: LCM's
    consistency function (arXiv 2310.04378).
    """
    output = network(x, solver.timestep(n).to(x.device), c).float()
    x0, eps = solver.split(output, x, n)
    return x0 if clean else solver.move(x0, eps, s), x0


def consistency_loss(
    student: Tensor, target: Tensor, loss: ConsistencyLoss = "huber", c: float = 0.001
) -> Tensor:
    """Mean pseudo-Huber distance sqrt(d^2 + c^2) - c (Song and Dhariwal 2023, arXiv 2310.14189), or
    mean d^2."""
    d = student - target
    return d.square().mean() if loss == "l2" else ((d.square() + c * c).sqrt() - c).mean()


def noisy_pair(
    mode: NoiseMode,
    solver: Solver,
    x_s: Tensor,
    x0_hat: Tensor,
    x0: Tensor,
    n: Tensor,
    s: Tensor,
    noise: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(fake, real) latents for the discriminator: the student's x_s as noisy as it is, against x_0
    noised to level r.

    xs-xr: r uniform below the timestep of s, so the real one is cleaner (the asymmetry of STD); xs:
    r = s; xs-xR: r uniform from it to below t_n, the student's own level; xs-x0: x_0 not noised at
    all; x0: x0_hat against x_0, neither noised.
    """
    if mode == "x0":
        return x0_hat, x0
    if mode == "xs-x0":
        return x_s, x0
    t = solver.level(s)
    u = torch.rand(len(s), generator=generator)
    if mode == "xs-xr":
        t = (u * t).long()
    elif mode == "xs-xR":
        t = t + (u * (solver.timestep(n) - t)).long()
    return x_s, solver.add_noise(x0, noise, t)
