"""A small learned network over latents, through which student and target are compared."""

from itertools import pairwise

import torch
from torch import Tensor, nn

_SHARE = 0.05
"""How far the target's head moves towards the student's at each update: a decay of 0.95, as in
MCM."""


class SpatialHead(nn.Module):
    """A residual network over latents whose output is compared instead of them (MCM, Zhai et al.
    2024, arXiv 2406.06890). Its last layer starts at zero, so it begins as the identity.
    """

    def __init__(self, heavy: bool = False, channels: int = 4, width: int = 64) -> None:
        """By default ("learn") two layers of 1x1 convolutions; `heavy` ("hlearn"): five of 3x3."""
        super().__init__()
        kernel, depth = (3, 5) if heavy else (1, 2)
        sizes = [channels, *[width] * (depth - 1)]
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(sizes):
            layers += [
                nn.Conv2d(before, after, kernel, padding=kernel // 2),
                nn.GroupNorm(32, after),
                nn.SiLU(),
            ]
        last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) or (B, 4, F, h, w) -> the same shape; each frame by itself."""
        # (B, 4, F, h, w) -> (B F, 4, h, w)
        flat = z.transpose(1, 2).flatten(0, 1) if z.ndim == 5 else z
        out = self.layers(flat)
        if z.ndim == 5:
            out = out.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
        return z + out  # type: ignore[no-any-return]


class HeadPair:
    """The student's spatial head, which learns, and the target's, which is its moving average."""

    def __init__(self, heavy: bool, device: torch.device) -> None:
        """The first values come from torch's global random state."""
        self.student = SpatialHead(heavy).to(device)
        self.target = SpatialHead(heavy).to(device)
        self.target.load_state_dict(self.student.state_dict())
        self.target.requires_grad_(False)

    @torch.no_grad()
    def average(self) -> None:
        """Move the target's head towards the student's."""
        for average, learned in zip(
            self.target.parameters(), self.student.parameters(), strict=True
        ):
            average.lerp_(learned, _SHARE)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"head": self.student.state_dict(), "head_average": self.target.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take the two entries of `state_dict` out of a checkpoint's state."""
        self.student.load_state_dict(state["head"])
        self.target.load_state_dict(state["head_average"])
