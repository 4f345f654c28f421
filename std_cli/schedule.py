"""Which timesteps a run visits: plain integer arithmetic, so nothing here loads torch.

The base is TCD's inference grid (Zheng et al. 2024, arXiv 2402.19159, as in diffusers'
`TCDScheduler.set_timesteps`): N grid points t_i = k (i + 1) - 1 with k = 1000 / N, of which some
are taken, evenly spaced by index, from the top down. N is 50, the grid on which STD is trained. TCD
refuses more steps than the grid has points; we then take the coarsest finer grid that has enough.
Each finer grid contains the 50 points, so a finer run still starts at a trained timestep.
"""

import math
from typing import Literal

from std_cli.errors import InputError, counted

TRAIN_TIMESTEPS = 1000
TRAIN_GRID = 50
MAX_STEPS = 50
MAX_CFG = 50.0
GRIDS = (TRAIN_GRID, 100, 200, 250, 500, TRAIN_TIMESTEPS)  # every multiple of 50 that divides 1000

Schedule = Literal["quickstart", "aligned", "trailing", "leading"]


def timesteps(steps: int, eta: float, schedule: Schedule, grid: int = TRAIN_GRID) -> list[int]:
    """The timesteps that run, strictly descending: exactly `steps` of them for steps in 1..50 and
    eta in (0, 1].

    quickstart: what diffusers' SDXL img2img pipeline with TCD runs at strength = eta. The start
    moves with `steps`.
    aligned: from where STD's training starts at this eta (0.65 / 0.75 / 0.85 / 0.95: 679 / 779 /
    879 / 979), whatever `steps` is.

    trailing, leading: what img2img runs at strength = eta with DDIM or Euler and this
    `timestep_spacing` (Lin et al. 2023, arXiv 2305.08891, table 2), leading with steps_offset 1.
    `grid` is the coarsest that the first two take; LCM's points are TCD's, and quickstart is what
    img2img runs with it, too.

    Where eta is so small that even the grid of all 1000 timesteps has fewer than `steps` points
    below it, the lowest ones run: steps - 1 down to 0. That starts a little noisier than eta asks
    for, never above t = 49.
    """
    _check(steps, eta)
    if schedule in ("trailing", "leading"):
        whole = spread_num_inference_steps(steps, eta)
        if schedule == "leading":
            return [i * (TRAIN_TIMESTEPS // whole) + 1 for i in reversed(range(steps))]
        # as numpy.arange has it
        stride = (TRAIN_TIMESTEPS - TRAIN_TIMESTEPS / whole) - TRAIN_TIMESTEPS
        return [round(TRAIN_TIMESTEPS + i * stride) - 1 for i in range(whole - steps, whole)]
    for grid in (g for g in GRIDS if g >= grid):
        if schedule == "aligned":
            points = (_training_start(eta) + 1) * grid // TRAIN_TIMESTEPS
            if points >= steps:
                return _evenly_spaced(grid, points, steps)
        elif int(grid * eta) >= steps:
            # img2img sets n timesteps over the whole grid and skips all but the last int(n * eta)
            return _evenly_spaced(grid, grid, quickstart_num_inference_steps(steps, eta))[-steps:]
    return list(range(steps - 1, -1, -1))


def quickstart_num_inference_steps(steps: int, eta: float) -> int:
    """The smallest n for which img2img at strength = eta runs `steps` steps: min(int(n * eta), n)
    == steps.

    Searched, as ceil(steps / eta) is not always it: 29 steps at eta 0.29 take n = 101, because
    int(100 * 0.29) is 28.
    """
    _check(steps, eta)
    if steps / eta > 2**50:  # n and n + 1 would soon be the same float
        raise InputError(
            f"--eta {eta} is too small: no count of steps leaves {steps} of them; raise it"
        )
    n = max(math.floor(steps / eta) - 1, 1)
    while min(int(n * eta), n) < steps:
        n += 1
    return n


def spread_num_inference_steps(steps: int, eta: float) -> int:
    """`quickstart_num_inference_steps` where steps spread over all 1000 timesteps, which must be
    enough of them."""
    whole = quickstart_num_inference_steps(steps, eta)
    if whole > TRAIN_TIMESTEPS:
        raise InputError(
            f"--eta {eta} is too small for {counted(steps, 'step')} of this method: raise it, or "
            f"take fewer "
            f"--steps"
        )
    return whole


def _evenly_spaced(grid: int, points: int, count: int) -> list[int]:
    """`count` of the lowest `points` points of a grid, top down; the index is floor(linspace(0,
    points, count)) as TCD computes it, rounding included.
    """
    spacing = points / count
    return [TRAIN_TIMESTEPS // grid * (points - int(i * spacing)) - 1 for i in range(count)]


def _training_start(eta: float) -> int:
    """The timestep of grid index n_eta = ceil(N * eta), clamped to the last one, where a training
    trajectory starts."""
    index = min(math.ceil(TRAIN_GRID * eta), TRAIN_GRID - 1)
    return TRAIN_TIMESTEPS // TRAIN_GRID * (index + 1) - 1


def _check(steps: int, eta: float) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(
            f"--steps {steps} is out of range: give a whole number from 1 to {MAX_STEPS}"
        )
    if not 0 < eta <= 1:  # also refuses nan
        raise InputError(
            f"--eta {eta} is out of range: give a number above 0 and up to 1, such as 0.75"
        )
