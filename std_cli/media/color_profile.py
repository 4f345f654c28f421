"""Colours to sRGB: what an embedded ICC profile, or the code points or the gamma of a PNG, say that
the values of a picture mean."""

import io
from contextlib import suppress
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from std_cli.media.tone_map import HDR, Plane, to_primaries_of_709, tone_mapped

# The mode in which Pillow holds the pixels that a profile of this colour space describes
# (ICC.1:2022, 7.2.6).
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
# Input, display, output and colour space profiles. A device link or a named colour profile
# describes no picture.
_CLASSES = {"scnr", "mntr", "prtr", "spac"}
SAME = 2
"""Levels of 255 that two colours may differ and still count as the same: rounding, and curves held
in a table."""
_SRGB_GAMMA = 0.45455
"""What the PNG specification (sRGB chunk) has writers give for sRGB."""


_SDR_CURVES = (1, 6, 13, 14, 15)
"""Transfers (ITU-T H.273) that screens show with the curve of sRGB."""
_LINEAR = 8
_ROWS = 256
"""Converted at once: a picture of 268 million pixels in floats would not fit into memory."""


def to_srgb(
    image: Image.Image,
    profile: bytes | None,
    gamma: float | None = None,
    code_points: tuple[int, int] | None = None,
) -> Image.Image:
    """L, RGB, CMYK or LAB -> RGB in sRGB.

    A profile is judged by what it does, not by its name: one that leaves patches of colour where
    they are leaves all pixels as they are. One that is damaged, of another kind or of another
    colour space counts as none. gamma: the exponent of a PNG's gAMA chunk, which counts where there
    is no profile. code_points: primaries and transfer of its cICP chunk, which counts before the
    profile (PNG specification, third edition, 4.3); HDR is tone-mapped as that of videos.
    """
    if code_points and image.mode in ("L", "RGB") and _is_known(*code_points):
        return _from_code_points(image.convert("RGB"), *code_points)
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if _describes(source, image.mode):
                converted = None if _is_srgb(source, image.mode) else _converted(image, source)
                return converted or image.convert("RGB")
    if image.mode == "LAB":  # Pillow's convert() does not know the way
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    image = image.convert("RGB")
    # Most PNGs that have the chunk have 1 / 2.2, meaning sRGB; libpng takes differences up to 5%
    # for none, too.
    if gamma and not profile and not 0.95 < gamma / _SRGB_GAMMA < 1.05 and 0.1 < gamma < 10:
        image = image.point(_gamma_table(gamma) * 3)
    return image


def _is_known(primaries: int, transfer: int) -> bool:
    return primaries in (1, 9, 12) and transfer in (*HDR, *_SDR_CURVES, _LINEAR)


def _from_code_points(image: Image.Image, primaries: int, transfer: int) -> Image.Image:
    """RGB -> RGB in sRGB."""
    if primaries == 1 and transfer in _SDR_CURVES:
        return image
    pixels = np.asarray(image)  # (H, W, 3)
    result = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS):
        codes = pixels[top : top + _ROWS].astype(np.uint16)
        r, g, b = codes[..., 0], codes[..., 1], codes[..., 2]
        if transfer in HDR:
            light = tone_mapped(r * 257, g * 257, b * 257, transfer, primaries)  # 16 bits
        else:
            curve = np.arange(256) / 255 if transfer == _LINEAR else _srgb_light()
            table: Plane = curve.astype(np.float32)
            light = to_primaries_of_709(table[r], table[g], table[b], primaries)
        for channel, plane in enumerate(light):
            result[top : top + _ROWS, :, channel] = _srgb_code(plane.clip(0, 1))
    return Image.fromarray(result)


def _srgb_light() -> NDArray[np.float64]:
    """sRGB's codes 0 to 255 -> light from 0 to 1 (IEC 61966-2-1)."""
    code = np.arange(256) / 255
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def _srgb_code(light: Plane | NDArray[np.float64]) -> NDArray[np.uint8]:
    """Light from 0 to 1 -> sRGB's codes (IEC 61966-2-1)."""
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def _describes(source: ImageCms.ImageCmsProfile, mode: str) -> bool:
    core = source.profile
    return core.device_class.strip() in _CLASSES and _MODES.get(core.xcolor_space.strip()) == mode


def _converted(
    image: Image.Image,
    source: ImageCms.ImageCmsProfile,
    intent: ImageCms.Intent = ImageCms.Intent.PERCEPTUAL,
) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), intent, outputMode="RGB"
    )
    assert converted is not None  # it would be if the conversion were in place
    return converted


def _is_srgb(source: ImageCms.ImageCmsProfile, mode: str) -> bool:
    """Whether the profile leaves patches of grey and of colours as they are, or is damaged: all
    patches alike."""
    if mode not in ("L", "RGB"):
        return False
    patches = _patches(mode)
    # Relative: the perceptual tables of sRGB v4 move colours, although its pixels are sRGB's.
    # (1, N, 3)
    after = np.asarray(_converted(patches, source, ImageCms.Intent.RELATIVE_COLORIMETRIC), np.int16)
    before = np.asarray(patches.convert("RGB"), np.int16)
    return bool(np.abs(after - before).max() <= SAME or np.ptp(after, axis=1).max() <= SAME)


@cache
def _patches(mode: str) -> Image.Image:
    """256 greys; in RGB 6 x 6 x 6 colours more."""
    greys = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(greys[None])
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)  # (216, 3)
    return Image.fromarray(np.concatenate([np.stack([greys] * 3, -1), cube])[None])


def _gamma_table(gamma: float) -> list[int]:
    """Sample -> sRGB: light is sample ** (1 / gamma) (PNG specification, gAMA)."""
    return [int(code) for code in _srgb_code((np.arange(256) / 255) ** (1 / gamma))]
