"""The size that the network sees, and how a picture is fitted into it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.errors import InputError
from std_cli.media.pictures import Picture
from std_cli.media.transparency import fill_hidden

MULTIPLE = 8  # the VAE's downsampling factor
MIN_SIDE, MAX_SIDE = 64, 8192


def working_size(
    width: int, height: int, size: tuple[int, int] | int | None, base: int, area: bool
) -> tuple[int, int]:
    """The size that the network sees for a picture of `width` x `height`.

    `size` (W, H) is taken as it is; N makes the long side N; None keeps `base * base` pixels if
    `area`, else makes the long side `base`. All but (W, H) keep the aspect. Each side is then
    rounded on its own to the nearest multiple of 8, halves up, and raised to 64 if it is less.
    Raises InputError for a side above 8192 and for sizes below 1.
    """
    if isinstance(size, tuple):
        wanted: tuple[float, float] = size
    else:
        target = base if size is None else size
        reference = math.sqrt(width * height) if size is None and area else max(width, height)
        # in this order halves stay exact
        wanted = (width * target / reference, height * target / reference)
    if min(wanted) <= 0:
        raise InputError(f"--size {size} is not above 0; give a number of pixels, or WxH")
    return _rounded(wanted, width, height)


def _rounded(wanted: tuple[float, float], width: int, height: int) -> tuple[int, int]:
    w, h = (max(MIN_SIDE, math.floor(side / MULTIPLE + 0.5) * MULTIPLE) for side in wanted)
    if max(w, h) > MAX_SIDE:
        raise InputError(
            f"a picture of {width}x{height} would be worked on at {w}x{h}, where a side may have "
            f"{MAX_SIDE} pixels; choose a smaller --size or crop the picture"
        )
    return w, h


@dataclass(frozen=True)
class Fit:
    """Where a picture lies in the working size: scaled to fit inside with its aspect kept, centred,
    padded around."""

    size: tuple[int, int]
    """The working size."""
    box: tuple[int, int, int, int]
    """The picture inside it: left, top, right, bottom."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale (Lanczos) and pad by reflection to the working size; a picture of that size is
        returned as it is."""
        box = fit_to(*image.size, self.size).box
        # One pixel of difference: a picture made smaller while it was read has its sides rounded.
        if max(abs(a - b) for a, b in zip(box, self.box, strict=True)) > 1:
            raise ValueError(f"a picture of {image.size} would be stretched to {self}")
        left, top, right, bottom = self.box
        inner = (right - left, bottom - top)
        if image.size != inner:
            image = image.resize(inner, Image.Resampling.LANCZOS)
        if inner == self.size:
            return image
        pixels = np.asarray(image)  # (h, w[, C]) -> (H, W[, C])
        around = [(top, self.size[1] - bottom), (left, self.size[0] - right), (0, 0)]
        return Image.fromarray(np.pad(pixels, around[: pixels.ndim], mode="symmetric"))

    def cover(self, alpha: Image.Image | None) -> NDArray[np.uint8]:
        """How much each pixel of the working size shows of a picture with this alpha (mode L, any
        size; None: opaque), (H, W): 255 in full, 0 not at all, as the padding."""
        left, top, right, bottom = self.box
        cover = np.zeros(self.size[::-1], np.uint8)
        inner = (right - left, bottom - top)
        cover[top:bottom, left:right] = (
            255 if alpha is None else np.asarray(alpha.resize(inner, Image.Resampling.BILINEAR))
        )
        return cover

    def undo(self, image: Image.Image) -> Image.Image:
        """Crop a picture of the working size back to the input's aspect."""
        if image.size != self.size:
            raise ValueError(f"a picture of {image.size} is not of the working size {self.size}")
        return image if self.box == (0, 0, *self.size) else image.crop(self.box)


def fit_to(width: int, height: int, size: tuple[int, int]) -> Fit:
    """How a picture of `width` x `height` fits into the working `size`; at least one side fills
    it."""
    scale = min(size[0] / width, size[1] / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return Fit(size, (left, top, left + w, top + h))


def seen(picture: Picture, fit: Fit) -> Image.Image:
    """What the network sees of a picture: RGB of the working size, on which hidden colours have no
    effect."""
    if picture.alpha is None:
        return fit.apply(picture.rgb)
    rgba = picture.rgb.copy()
    rgba.putalpha(picture.alpha)
    return fill_hidden(fit.apply(rgba))  # Pillow scales RGBA premultiplied
