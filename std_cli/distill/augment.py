"""Pictures as the discriminator's feature network sees them: augmented, cropped, of one size,
normalised.

Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738) as StyleGAN-T (Sauer et al. 2023,
arXiv 2301.09515) applies it. All that is random comes from a CPU generator, so that it repeats on
every device.
"""

import torch
import torch.nn.functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHIFT, CUT = 1 / 8, 1 / 5  # of a side


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """DiffAugment of (B, 3, H, W) in [-1, 1], each picture on its own: colour, translation, cutout;
    float32."""
    batch, _, *sides = images.shape
    brightness, saturation, contrast = torch.rand(3, batch, generator=generator).to(images.device)
    images = jitter_color(images.float(), brightness - 0.5, 2 * saturation, contrast + 0.5)
    reach = [_round(side * SHIFT) for side in sides]
    images = translate(
        images, _randint([-r for r in reach], [r + 1 for r in reach], batch, generator)
    )
    cut = [_round(side * CUT) for side in sides]
    # half of it may be outside
    ends = [side + 1 - size % 2 for side, size in zip(sides, cut, strict=True)]
    return cut_out(images, _randint([0, 0], ends, batch, generator), cut)


def prepare(
    images: torch.Tensor, size: int, generator: torch.Generator, crop: float = 0.5
) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 3, size, size), normalised by ImageNet's mean and std;
    float32.

    With probability `crop` a picture that is larger than `size` is cropped to it at random; what is
    not of this size then is resized by area (a picture that is not square is squeezed, as in the
    reference).
    """
    images = (images.float() + 1) / 2
    height, width = images.shape[2:]
    larger = min(height, width) >= size and max(height, width) > size
    # drawn in any case, so that the numbers that follow do not depend on the size
    chosen = (torch.rand(len(images), generator=generator) < crop).tolist()
    corners = _randint(
        [0, 0], [max(side - size, 0) + 1 for side in (height, width)], len(images), generator
    )
    seen = []
    for image, cropped, (top, left) in zip(images, chosen, corners, strict=True):
        window = image[:, top : top + size, left : left + size] if larger and cropped else image
        seen.append(F.interpolate(window[None], (size, size), mode="area"))
    return _normalised(torch.cat(seen))


def _normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean) / std


def jitter_color(
    images: torch.Tensor, brightness: torch.Tensor, saturation: torch.Tensor, contrast: torch.Tensor
) -> torch.Tensor:
    """Add `brightness` (B,), then scale by (B,) the distance to a pixel's grey, then that to the
    picture's mean."""
    images = images + brightness.view(-1, 1, 1, 1)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation.view(-1, 1, 1, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast.view(-1, 1, 1, 1)


def translate(images: torch.Tensor, offsets: list[list[int]]) -> torch.Tensor:
    """Move each picture down and right by its (rows, columns), in pixels, over 0: mid-grey."""
    height, width = images.shape[2:]
    reach = max(abs(offset) for pair in offsets for offset in pair)
    padded = F.pad(images, (reach, reach, reach, reach))
    moved = [
        picture[:, reach - down : reach - down + height, reach - right : reach - right + width]
        for picture, (down, right) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(moved)


def cut_out(images: torch.Tensor, centers: list[list[int]], size: list[int]) -> torch.Tensor:
    """Set to 0 (mid-grey) what is inside of a picture of a rectangle of `size` (rows, columns)
    about its centre."""
    mask = torch.ones_like(images[:, :1])
    for keep, (row, column) in zip(mask, centers, strict=True):
        top, left = row - size[0] // 2, column - size[1] // 2
        keep[:, max(top, 0) : top + size[0], max(left, 0) : left + size[1]] = 0
    return images * mask


def _round(value: float) -> int:
    return int(value + 0.5)


def _randint(
    low: list[int], high: list[int], count: int, generator: torch.Generator
) -> list[list[int]]:
    """`count` random (row, column), each at least `low` and less than `high`."""
    columns = [
        torch.randint(a, b, (count,), generator=generator).tolist()
        for a, b in zip(low, high, strict=True)
    ]
    return [list(pair) for pair in zip(*columns, strict=True)]
