"""What is transparent: found in every kind of picture, and kept from having an effect that cannot
be seen."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FAINT = 32
"""Alpha from which on a colour counts in full. Below it is hardly seen and, stored premultiplied,
hardly known."""
_NEUTRAL = 127.5
"""Where nothing at all can be seen."""


def find_alpha(image: Image.Image) -> Image.Image | None:
    """The transparency in mode L, from a channel, a palette or a transparent colour; None if all is
    opaque."""
    if not image.has_transparency_data:
        return None
    key = image.info.get("transparency")
    # of a PNG of 16 bits, cut to 8
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        key = tuple(sample >> 8 for sample in key)
    if image.mode in ("L", "RGB") or image.mode.startswith("I"):
        if not isinstance(key, tuple if image.mode == "RGB" else int):
            return None  # left over from a picture of another mode
        # Pillow itself takes no colour that has a sample above 255.
        differs = np.asarray(image) != np.asarray(key)  # (H, W[, 3])
        opaque = differs.any(-1) if image.mode == "RGB" else differs
        alpha = Image.fromarray(opaque.astype(np.uint8) * 255)
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def attach_alpha(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB with the input's alpha (mode L, any size) put back -> RGBA of the size of `rgb`."""
    if alpha.size != rgb.size:
        # Lanczos rings: opaque parts would become less so
        alpha = alpha.resize(rgb.size, Image.Resampling.BILINEAR)
    result = rgb.convert("RGBA")
    result.putalpha(alpha)
    return result


def over_white(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """RGB, laid over white where `alpha` (mode L, the same size) is less than 255."""
    return (
        rgb if alpha is None else Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    )


def fill_hidden(image: Image.Image) -> Image.Image:
    """RGBA -> RGB, with the colours that cannot be seen replaced by those that are seen around
    them.

    Colours under alpha 0 have no effect at all; those under an alpha below FAINT are mixed with
    what is around them. What can be seen stays as it is; a picture of which nothing can be seen
    becomes grey.
    """
    pixels = np.asarray(image, np.float32)  # (H, W, 4)
    alpha = pixels[..., 3:] / 255
    around = _spread(np.concatenate([pixels[..., :3] * alpha, alpha], -1))
    sure = np.minimum(pixels[..., 3:] / FAINT, 1)
    return Image.fromarray(
        (pixels[..., :3] * sure + around * (1 - sure)).round().clip(0, 255).astype(np.uint8)
    )


def _spread(weighted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours times weight, and the weight from 0 to 1, (H, W, 4) -> the colours of what is around,
    (H, W, 3).

    Pull and push (Gortler et al., The Lumigraph, 1996, section 3.4): where the weight is less than
    1, the rest is taken from the picture of half the size, and so on.
    """
    height, width = weighted.shape[:2]
    weight = weighted[..., 3:]
    if height == width == 1:
        rest = np.full_like(weighted[..., :3], _NEUTRAL)
        return np.divide(weighted[..., :3], weight, out=rest, where=weight > 0)
    padded = np.pad(weighted, ((0, height % 2), (0, width % 2), (0, 0)))
    # (H/2, W/2, 4)
    half = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, 4).sum((1, 3))
    half /= np.maximum(half[..., 3:], 1)
    coarse = _spread(half)
    channels = [Image.fromarray(np.ascontiguousarray(coarse[..., c])) for c in range(3)]
    grown = [np.asarray(c.resize((width, height), Image.Resampling.BILINEAR)) for c in channels]
    return np.asarray(weighted[..., :3] + np.stack(grown, -1) * (1 - weight), np.float32)
