"""The teacher's trajectory: a DDIM grid over a noise schedule, and the moves along it. Pure tensor
arithmetic.

The notation is that of examples/method.md (Notation and solver): N grid points t_n = k (n + 1) - 1
with k = T / N. A move to index s arrives at the noise of t_(s-1), and of timestep 0 for s = 0
(DDIM, Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0).
"""

import math
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]
TargetMode = Literal["std", "tcd", "pcm", "lcm"]


class Solver:
    """Moves of samples x (B, ...) between grid indices n, s (B,), which may differ from sample to
    sample."""

    def __init__(self, alphas_cumprod: Tensor, points: int, prediction: Prediction) -> None:
        """`alphas_cumprod`: (T,), of the teacher's noise schedule; `points`: N, which divides T."""
        self.alphas_cumprod = alphas_cumprod.float()
        self.points = points
        self.prediction = prediction
        self.stride = len(alphas_cumprod) // points

    def start(self, eta: float) -> int:
        """n_eta = ceil(N eta), where a trajectory starts; the last point where that is beyond
        it."""
        return min(math.ceil(self.span(eta)), self.points - 1)

    def span(self, eta: float) -> float:
        """N eta, the length of a trajectory in points of the grid, not rounded."""
        return round(self.points * eta, 9)

    def reach(self, eta: float, range_rate: float) -> int:
        """R = ceil(N eta range_rate), how far below n the target index of STD may be."""
        return math.ceil(round(self.points * eta * range_rate, 9))

    def begin(self, x0: Tensor, noise: Tensor, n_eta: int) -> Tensor:
        """x_eta, where a trajectory starts; pure noise where that is the last point of the grid."""
        if n_eta == self.points - 1:
            return noise
        return self.add_noise(x0, noise, torch.full((len(x0),), self.stride * (n_eta + 1) - 1))

    def timestep(self, n: Tensor) -> Tensor:
        """t_n, the timestep of grid index n."""
        return self.stride * (n + 1) - 1

    def level(self, s: Tensor) -> Tensor:
        """The timestep whose noise a move to index s arrives at: t_(s-1), or 0."""
        return (self.stride * s - 1).clamp_min(0)

    def split(self, output: Tensor, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) from a network's output at (x, t_n)."""
        return self.split_at(output, x, self.timestep(n))

    def split_at(self, output: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) from a network's output at (x, t). v-prediction: Salimans and Ho 2022,
        arXiv 2202.00512."""
        a, b = self._scales(t, x)
        if self.prediction == "epsilon":
            return (x - b * output) / a, output
        if self.prediction == "v_prediction":
            return a * x - b * output, a * output + b * x
        return output, (x - a * output) / b

    def move(self, x0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
        """The DDIM move to index s: sqrt(abar) x0 + sqrt(1 - abar) eps at the noise of
        `level(s)`."""
        return self.add_noise(x0, eps, self.level(s))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of the DDPM forward process at timesteps t (B,) (Ho et al. 2020, arXiv 2006.11239,
        eq. 4)."""
        a, b = self._scales(t, x0)
        return a * x0 + b * noise

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.alphas_cumprod.to(like.device)[t.to(like.device)].view(
            -1, *[1] * (like.ndim - 1)
        )
        return abar.sqrt(), (1 - abar).sqrt()


def phase_edges(span: float, phases: int) -> Tensor:
    """floor(i span / phases) for i = 0 .. phases - 1, ascending: the lower edges of PCM's phases
    (phases,)."""
    return torch.tensor([math.floor(round(i * span / phases, 9)) for i in range(phases)])


def draw_target(
    mode: TargetMode, n: Tensor, span: float, reach: int, phases: int, generator: torch.Generator
) -> Tensor:
    """The index s (B,) that student and target move to, for samples at indices n >= 1 of a
    trajectory of `span` points.

    std: uniform on [n - reach, n - 1], not below 0 (STD, arXiv 2412.18945).
    tcd: uniform on [0, n - 1] (TCD, arXiv 2402.19159). lcm: 0, where `jump` ends at the clean
    sample (LCM, arXiv 2310.04378). pcm: the last edge that is not above n, of the edges of `phases`
    equal phases of [0, span), rounded down (PCM, arXiv 2405.18407). At an edge this is n itself, a
    move to t_(n-1): the target is the teacher's own step.
    """
    if mode == "lcm":
        return torch.zeros_like(n)
    if mode == "pcm":
        edges = phase_edges(span, phases)
        return edges[torch.searchsorted(edges, n, side="right") - 1]
    lowest = torch.zeros_like(n) if mode == "tcd" else (n - reach).clamp_min(0)
    u = torch.rand(len(n), generator=generator)
    return lowest + (u * (n - lowest)).long().clamp_max(n - lowest - 1)
