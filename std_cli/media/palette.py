"""The mix of colours of a reference brought to a result: `--palette`.

Colours are RGB as they are stored (sRGB, with its gamma), in levels from 0 to 255. There the whole
map is one matrix and one offset: nothing is rounded on the way, no step of a smooth gradient is
torn apart, and frames that are alike stay alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.float32]
"""RGB (H, W, 3), from 0 to 255, not rounded."""
Cover = NDArray[np.uint8]
"""How much each pixel counts, (H, W): 255 in full, 0 not at all."""
Floats = NDArray[np.float64]

MOST_GAIN = 3.0
"""Contrast grows by no more, in any direction: grain and compression noise would be seen."""
LEAST_CONTRAST = 1 / 3
"""Share of its own contrast of light that a result keeps, whatever the reference has: of a
reference in one colour the picture would not be left."""
UNCERTAIN = 4.0
"""Levels squared, added to every variance: what is less is rounding and noise."""
FLAT, DARK = 100.0, 4000.0
"""Levels squared. The map acts to 1 - 1/e on a result of such a variance, or of such a mean square,
and less on one that is flatter, or darker: it does not show a mix, and a black frame stays black.
"""
_CHUNK = 1 << 18
"""Pixels that are converted at once."""


@dataclass(frozen=True)
class ColorMix:
    """What is known of a mix of colours."""

    mean: Floats
    """(3,), levels."""
    covariance: Floats
    """(3, 3), levels squared."""

    @property
    def variance(self) -> float:
        """Of the three channels, the mean."""
        return float(np.trace(self.covariance)) / 3


def moments(pixels: NDArray[np.uint8], cover: Cover | None = None) -> Floats:
    """Sums of the colours (H, W, 3) and of their products, each times its cover: (4, 4), the last
    row and column of which are those of the constant 1.

    They are sums of integers, so that they do not depend on the order of the additions.
    """
    colors = np.ascontiguousarray(pixels).reshape(-1, 3)
    weights = None if cover is None else cover.reshape(-1, 1)
    total = np.zeros((4, 4))
    for begin in range(0, len(colors), _CHUNK):
        part = colors[begin : begin + _CHUNK].astype(np.float64)
        part = np.concatenate([part, np.ones((len(part), 1))], 1)
        weighted = part if weights is None else part * weights[begin : begin + _CHUNK]
        total += weighted.T @ part
    return total


def mix_of(sums: Floats) -> ColorMix | None:
    """The mix of colours of which `moments` are the sums; None where nothing counts."""
    count = sums[3, 3]
    if count <= 0:
        return None
    mean = sums[3, :3] / count
    return ColorMix(mean, sums[:3, :3] / count - np.outer(mean, mean))


def weighted_mix(mixes: Sequence[ColorMix], weights: Sequence[float]) -> ColorMix:
    """The mix of all together, each with its weight; the weights sum to 1."""
    pairs = list(zip(mixes, weights, strict=True))
    mean = np.sum([weight * mix.mean for mix, weight in pairs], 0)
    each = [
        weight * (mix.covariance + np.outer(mix.mean - mean, mix.mean - mean))
        for mix, weight in pairs
    ]
    return ColorMix(mean, np.sum(each, 0))


@dataclass(frozen=True)
class ColorMap:
    """A linear map of colours: `matrix @ color + offset`."""

    matrix: Floats
    offset: Floats

    def __call__(self, picture: Levels) -> Levels:
        """The mapped picture, within 0 and 255."""
        mapped = picture @ self.matrix.T.astype(np.float32) + self.offset.astype(np.float32)
        return np.asarray(mapped.clip(0, 255), np.float32)


def color_map(result: ColorMix, reference: ColorMix, amount: float) -> ColorMap:
    """The map that gives colours of the mix `result` the mean and the covariance of `reference`,
    by `amount`: 0 is none, 1 all of it. Its gains have bounds, and it fades out for flat and dark
    results.
    """
    noise = UNCERTAIN * np.eye(3)
    own, wanted = result.covariance + noise, reference.covariance + noise
    light = np.full(3, 3**-0.5)
    missing = LEAST_CONTRAST**2 * (light @ own @ light) - light @ wanted @ light
    wanted = wanted + max(0.0, missing) * np.outer(light, light)
    gains, axes = np.linalg.eigh(transport_matrix(own, wanted))
    matrix = (axes * gains.clip(0, MOST_GAIN)) @ axes.T
    square = result.variance + float(result.mean @ result.mean) / 3
    for seen, enough in ((result.variance, FLAT), (square, DARK)):
        amount *= 1 - float(np.exp(-((seen / enough) ** 2)))
    return ColorMap(
        (1 - amount) * np.eye(3) + amount * matrix,
        amount * (reference.mean - matrix @ result.mean),
    )


def transport_matrix(covariance: Floats, wanted: Floats) -> Floats:
    """The matrix that turns one covariance into another and, of all that do, moves colours least.

    It is the linear Monge-Kantorovich map (Pitié and Kokaram, The linear Monge-Kantorovitch linear
    colour mapping for example-based colour transfer, 2007). Both are (3, 3) and not singular.
    """
    root = _root(covariance)
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ wanted @ root) @ inverse)


def _root(matrix: Floats) -> Floats:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def rounded(picture: Levels) -> NDArray[np.uint8]:
    """The picture in whole levels."""
    return picture.round().clip(0, 255).astype(np.uint8)


def with_palette(
    picture: Levels, reference: ColorMix, amount: float, cover: Cover | None = None
) -> Levels:
    """A picture of which `cover` counts, with the reference's mix of colours by `amount`."""
    mix = mix_of(moments(rounded(picture), cover))
    return picture if mix is None else color_map(mix, reference, amount)(picture)
