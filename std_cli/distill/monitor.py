"""What a run shows while it trains: the student's pictures next to those that they should be."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from std_cli.distill.bank import Conditions
from std_cli.distill.solver import Solver
from std_cli.distill.step import Network
from std_cli.media.sheets import draw_sheet
from std_cli.paths import replace_file

COLUMNS = (
    "input",
    "x_eta",
    "student x_0",
    "student x_s",
    "target x_s",
    "real x_r",
    "student",
    "teacher",
)
"""What each row of a sheet has: for the fourth and fifth see the method; the last two are results,
each from x_eta."""


@torch.no_grad()
def sample(network: Network, solver: Solver, x: Tensor, steps: list[int], c: Conditions) -> Tensor:
    """Denoise x (B, ...) along descending timesteps by DDIM moves, the last one to timestep 0 (TCD
    with gamma 0)."""
    for t, following in zip(steps, [*steps[1:], 0], strict=True):
        now, then = (torch.full((len(x),), value) for value in (t, following))
        x0, eps = solver.split_at(network(x, now.to(x.device), c).float(), x, now)
        x = solver.add_noise(x0, eps, then)
    return x


def sheet(rows: list[list[Tensor]], decode: Callable[[Tensor], Tensor], path: Path) -> None:
    """Write a PNG with a row for each sample, of latents (1, 4, h, w), or (1, 4, F, h, w) of which
    the first frame is shown, under the names of `COLUMNS`."""
    lines = []
    for row in rows:
        z = torch.cat([r[:, :, 0] if r.ndim == 5 else r for r in row])
        pixels = ((decode(z) / 2 + 0.5).clamp(0, 1) * 255).round().byte()  # (8, 3, H, W)
        lines.append([Image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in pixels])
    content = io.BytesIO()
    draw_sheet(lines, COLUMNS).save(content, "PNG")
    replace_file(path, content.getvalue())
