"""The source's colours in the light of the result: `--keep-colors`.

Lightness, chroma and hue are those of Oklab (Ottosson, A perceptual color space
for image processing, 2020), in which a colour keeps its hue when its lightness changes.
"""

import numpy as np
from numpy.typing import NDArray

from std_cli.media.palette import Levels

_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_HALVINGS = 8
"""Chroma is found to 1/256 of itself."""
_ROUNDING = 1e-5
_FROM_CONES, _FROM_LAB = np.linalg.inv(_TO_CONES), np.linalg.inv(_TO_LAB)


def keep_colors(source: NDArray[np.uint8], result: Levels) -> Levels:
    """The lightness of `result` with hue and chroma of `source`, both RGB (H, W, 3).

    A colour that sRGB lacks at a lightness loses as much chroma as it takes, and keeps its hue.
    """
    lab = _oklab_of(_LIGHT[source])
    lab[..., 0] = _to_oklab(result)[..., 0]
    light = _to_light(lab)
    outside = ~_shown(light)
    light[outside] = _within(lab[outside])
    return _from_light(light)


def _within(lab: Levels) -> Levels:
    """Colours (N, 3) that sRGB lacks -> linear light of those that it has, with all the chroma that
    goes."""
    least, most = np.zeros(len(lab), np.float32), np.ones(len(lab), np.float32)
    for _ in range(_HALVINGS):
        middle = np.asarray((least + most) / 2, np.float32)
        good = _shown(_to_light(_paler(lab, middle)))
        least[good], most[~good] = middle[good], middle[~good]
    return _to_light(_paler(lab, least))


def _paler(lab: Levels, share: Levels) -> Levels:
    """Colours (N, 3) with this share (N,) of their chroma."""
    return np.concatenate([lab[:, :1], lab[:, 1:] * share[:, None]], 1)


def _shown(light: Levels) -> NDArray[np.bool_]:
    """Whether sRGB has a colour, by rounding of the light at most outside."""
    return np.asarray(((light > -_ROUNDING) & (light < 1 + _ROUNDING)).all(-1))


def _to_light(lab: Levels) -> Levels:
    return np.asarray((lab @ _FROM_LAB.T) ** 3 @ _FROM_CONES.T, np.float32)


def _to_oklab(picture: Levels) -> Levels:
    return _oklab_of(_linear(picture))


def _oklab_of(light: Levels) -> Levels:
    return np.asarray(np.cbrt(light @ _TO_CONES.T) @ _TO_LAB.T, np.float32)


def _linear(levels: Levels) -> Levels:
    """Levels of sRGB -> linear light (IEC 61966-2-1)."""
    share = levels / np.float32(255)
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


_LIGHT = _linear(np.arange(256, dtype=np.float32))
"""Of each whole level."""


def _from_light(light: Levels) -> Levels:
    """The inverse of `_linear`."""
    light = light.clip(0, 1)
    share = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(share.clip(0, 1) * 255, np.float32)
