"""What the motion adapter's losses are made of: shared noise, and steadiness along a scene."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mix_noise(shared: Tensor, own: Tensor, m: Tensor | float) -> Tensor:
    """Noise of unit variance, of which the share m is common to the frames."""
    m = torch.as_tensor(m)
    return m.sqrt() * shared + (1 - m).sqrt() * own


def along(x: Tensor, flow: Tensor) -> Tensor:
    """Move each frame except the first onto the one before it, along the motion.

    (B, C, N, h, w) -> (B, C, N - 1, h, w); `flow` is (B, N - 1, h, w, 2), in pixels of x.
    """
    b, c, n, h, w = x.shape
    here = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1], -1)
    places = (2 * (here + flow) + 1) / torch.tensor([w, h]) - 1
    nexts = x[:, :, 1:].transpose(1, 2).reshape(-1, c, h, w)
    out = F.grid_sample(
        nexts, places.reshape(-1, h, w, 2), padding_mode="border", align_corners=False
    )
    return out.view(b, n - 1, c, h, w).transpose(1, 2)


def steadied(x: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
    """Average each frame with its neighbours, moved onto it; a neighbour that does not show a place
    is left out there.

    x (B, C, N, h, w), flow (B, N - 1, h, w, 2), seen (B, N - 1, h, w).
    """
    total = x.clone()
    weight = torch.ones_like(x[:, :1])
    visible = seen[:, None]
    total[:, :, :-1] += along(x, flow) * visible
    weight[:, :, :-1] += visible
    # onto the later frame by the same motion backwards, close enough for a latent pixel
    back = x.flip(2)
    its = seen.flip(1)[:, None]
    total[:, :, 1:] += (along(back, -flow.flip(1)) * its).flip(2)
    weight[:, :, 1:] += its.flip(2)
    return total / weight


def fine(x: Tensor) -> Tensor:
    """Return what a 5 x 5 binomial filter removes from each frame; x (B, C, N, h, w)."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    each = F.pad(x.transpose(1, 2).reshape(-1, 1, *x.shape[-2:]), (2, 2, 2, 2), mode="reflect")
    low: Tensor = F.conv2d(F.conv2d(each, row.view(1, 1, 1, 5)), row.view(1, 1, 5, 1))
    return x - low.view(x.shape[0], x.shape[2], x.shape[1], *x.shape[-2:]).transpose(1, 2)


def strength(x: Tensor) -> Tensor:
    """Return the root mean square over the 8 x 8 places around each place; x and the result are (B,
    C, N, h, w)."""
    each = F.pad(x.transpose(1, 2).flatten(0, 1) ** 2, (4, 3, 4, 3), mode="reflect")
    means: Tensor = F.avg_pool2d(each, 8, 1).unflatten(0, (x.shape[0], x.shape[2]))
    return (means.transpose(1, 2) + 1e-6).sqrt()
