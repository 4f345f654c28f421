"""What VGG16 sees of pictures: the losses by which the embedded pack learns what is looked at.

The weights are those that the package stlpips-pytorch ships in its wheel (BSD-2; Ghildyal and Liu
2022, arXiv 2207.13686: VGG16 with low-pass filters before its strides). They serve training alone.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from std_cli.tinypack.model import half_precision

# convolutions of each level, and the filter before it
LEVELS = (
    ("1", (0, 2), None),
    ("2", (6, 8), 5),
    ("3", (12, 14, 16), 11),
    ("4", (20, 22, 24), 19),
)


GRAIN = 1.5  # weight of fine detail
LEAST_GRAIN = 0.01  # 1.3 levels of 255
WINDOW = 16  # px, in which the features' statistics are taken
SMOOTH = 0.1  # of the mean of what is seen: what is smoother counts no more


class VGG16(nn.Module):
    """The first levels of VGG16, frozen; for pictures (B, 3, H, W) in [-1, 1]."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            if key.startswith(("net.slice", "scaling_layer")):
                self.register_buffer(key.replace(".", "_"), value)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last activations of each level, the finest first, (B, 64, H, W)."""
        b = dict(self.named_buffers())
        x = (x - b["scaling_layer_shift"]) / b["scaling_layer_scale"]
        out = []
        for level, convolutions, filtered in LEVELS:
            if filtered is not None:
                x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)
                low_pass = b[f"net_slice{level}_{filtered}_filt"]
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
                x = F.conv2d(x, low_pass, stride=2, groups=x.shape[1])
            for i in convolutions:
                name = f"net_slice{level}_{i}"
                x = F.relu(F.conv2d(x, b[f"{name}_weight"], b[f"{name}_bias"], padding=1))
            out.append(x)
        return out


def load_vgg16() -> VGG16:
    """Return the network of the installed package stlpips-pytorch.

    Raises ImportError where the package is not installed.
    """
    spec = find_spec("stlpips_pytorch")
    if spec is None or spec.origin is None:
        raise ImportError("stlpips-pytorch is not installed: pip install --no-deps stlpips-pytorch")
    path = Path(spec.origin).parent / "weights" / "vST0.0" / "vgg_shift_tolerant.pth"
    return VGG16(torch.load(path, map_location="cpu", weights_only=True)).eval()


class Looks:
    """What is seen of predicted latents."""

    def __init__(self, vae: AutoencoderKL, vgg: VGG16) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.vgg = vgg

    def loss(self, latents: Tensor, pictures: Tensor) -> Tensor:
        """How far decoded latents (B, C, h, w) look from pictures (B, 3, H, W) in [-1, 1]:
        texture, structure, colours and fine detail."""
        with half_precision(True):
            got = self.vae.decode(latents / self.vae.config.scaling_factor).sample
            with torch.no_grad():
                want = self.vgg(pictures)
            seen = self.vgg(got)
        got = got.float()
        colours = F.l1_loss(F.avg_pool2d(got, 8), F.avg_pool2d(pictures, 8))
        features = 2 * style_loss(seen, want) + content_loss(seen[2:], want[2:])
        return features + 2 * colours + GRAIN * F.l1_loss(grain(got), grain(pictures))


def grain(x: Tensor) -> Tensor:
    """The logarithm of how much fine detail there is in each 8 x 8 pixels of pictures (B, 3, H, W):
    the mean distance of a pixel to the mean of the 3 x 3 about it, and the same of pictures of half
    the size, (B, 6, H / 8, W / 8).

    By the logarithm, grain on a smooth picture counts as much as missing detail on a rough one.
    """
    out = []
    for side in (8, 4):
        fine = (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).abs()
        out.append((F.avg_pool2d(fine, side) + LEAST_GRAIN).log())
        x = F.avg_pool2d(x, 2)
    return torch.cat(out, 1)


def normalised(x: Tensor) -> Tensor:
    """Features (B, C, h, w) with mean 0 and deviation 1 in every channel of every picture: the
    structure without the style."""
    x = x.float()
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)


def content_loss(got: list[Tensor], want: list[Tensor]) -> Tensor:
    """Mean over levels of the squared distance between normalised features."""
    pairs = list(zip(got, want, strict=True))
    return sum((F.mse_loss(normalised(a), normalised(b)) for a, b in pairs), torch.zeros(())) / len(
        pairs
    )


def style_loss(got: list[Tensor], want: list[Tensor]) -> Tensor:
    """How far the features' means and deviations (Huang and Belongie 2017, arXiv 1703.06868) are
    apart in windows of WINDOW px, 0 to 1: the mean over levels, of which the finest, mostly grain,
    counts a quarter and the next a half.

    In windows, because grain on smooth places would make up for edges that are too soft in the
    statistics of a whole picture (and Gram matrices, Gatys et al. 2016, are such).
    """
    total = torch.zeros(())
    for level, (weight, a, b) in enumerate(zip((0.25, 0.5, 1.0, 1.0), got, want, strict=True)):
        pairs = zip(_moments(a, WINDOW >> level), _moments(b, WINDOW >> level), strict=True)
        total = total + weight * sum((_apart(x, y) for x, y in pairs), torch.zeros(())) / 2
    return total / 2.75


def _moments(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Means and deviations of features (B, C, h, w) in windows that overlap by half."""
    x = x.float()
    mean, square = (F.avg_pool2d(y, side, side // 2) for y in (x, x * x))
    return mean, ((square - mean * mean).clamp(min=0) + 1e-4).sqrt()


def _apart(got: Tensor, want: Tensor) -> Tensor:
    """Squared distance over both sizes, in each window of (B, C, h, w): one without texture cannot
    outweigh the others, as it would with its own size alone, and one that is smooth counts as much
    as one that is rough, down to SMOOTH of their mean size."""
    size = want.square().sum(1)
    least = SMOOTH**2 * size.mean((1, 2), keepdim=True)
    both = got.detach().square().sum(1) + size + least
    return ((got - want).square().sum(1) / both).mean()
