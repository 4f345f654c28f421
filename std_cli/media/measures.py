"""How far a stylized picture went, in figures that need no weights: colours and texture against the
reference, edges against the input.

Pictures are RGB, (H, W, 3) uint8.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels

Floats = NDArray[np.float64]

COLOURS = 2**16
"""Pixels, at most, of which the mix of a picture's colours is taken."""
SCALES = (0.7, 1.4)
"""Pixels: of the second derivatives by which texture is measured. Strokes and grain are fine; at
larger scales what is depicted counts for more than how."""
ANGLES = np.arange(4) * np.pi / 4
FAINT = 0.25
"""L*: responses below it are noise."""
EDGE = 1.5
"""Pixels: the scale of the gradients by which edges are found."""
_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
"""Linear RGB of sRGB's primaries to XYZ."""
_WHITE = np.array([0.95047, 1.0, 1.08883])
BORDER = 4
"""cv2.BORDER_REFLECT_101: the picture is mirrored at the middle of its outermost pixels."""


def lab(picture: Pixels) -> Floats:
    """CIE L*a*b* under D65 of an sRGB picture, (H, W, 3); a distance of 1 is just visible.

    Source: IEC 61966-2-1 and CIE 15:2004.
    """
    levels = np.arange(256) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    xyz = light[picture] @ (_XYZ / _WHITE[:, None]).T
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colour_quantiles(picture: Pixels) -> Floats:
    """256 quantiles of the Lab pixels along 64 fixed directions, (64, 256).

    Of a picture with more than COLOURS pixels that many are taken, spread evenly: the distance of
    two pictures then differs by less than 0.1 from that of all pixels.
    """
    directions = np.random.default_rng(0).normal(size=(3, 64))
    directions /= np.linalg.norm(directions, axis=0)
    colours = lab(_spread(picture.reshape(-1, 3)))
    along = np.ascontiguousarray((colours @ directions).T, np.float32)
    along.sort(axis=1)
    places = (np.arange(256) + 0.5) / 256 * (along.shape[1] - 1)
    below = places.astype(np.intp)
    above = np.minimum(below + 1, along.shape[1] - 1)
    share = places - below
    return np.asarray(along[:, below] * (1 - share) + along[:, above] * share)


def _spread(pixels: Pixels) -> Pixels:
    """At most COLOURS of pixels (N, 3): one from each of as many runs of equal length, at a fixed
    random place in it, so that no pattern of the picture falls in step with them."""
    count = len(pixels)
    if count <= COLOURS:
        return pixels
    places = np.arange(COLOURS) + np.random.default_rng(0).random(COLOURS)
    return pixels[(places * (count / COLOURS)).astype(np.intp)]


def colour_distance(picture: Pixels, other: Pixels) -> float:
    """Sliced Wasserstein-1 distance of the Lab pixels, in Delta E; 0 for the same mix of colours.

    Source: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015.
    """
    return float(np.abs(colour_quantiles(picture) - colour_quantiles(other)).mean())


def resized(picture: Pixels, width: int, height: int) -> Pixels:
    """The picture in another size, by Lanczos."""
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def texture_quantiles(picture: Pixels) -> Floats:
    """64 quantiles of the logarithm of how strongly each pixel responds to second Gaussian
    derivatives of the luminance (L*), at 2 scales x 4 directions, (8, 64).

    Second derivatives steer: three of them give every direction (Freeman and Adelson 1991). The
    whole distribution is taken, since a few strong strokes and even grain can have one energy.
    """
    light = lab(picture)[..., 0]
    levels = (np.arange(64) + 0.5) / 64
    found = []
    for sigma in SCALES:
        yy, xx, xy = (
            _derivative(light, sigma, order) * sigma**2 for order in ((2, 0), (0, 2), (1, 1))
        )
        for c, s in zip(np.cos(ANGLES), np.sin(ANGLES), strict=True):
            second = c * c * xx + 2 * c * s * xy + s * s * yy
            found.append(np.log(np.quantile(np.abs(second), levels) + FAINT))
    return np.array(found)


def texture_distance(picture: Pixels, other: Pixels) -> float:
    """How far two pictures are apart in strokes and grain: the mean Wasserstein-1 distance of their
    log responses, 0 for the same; 0.7 where all of one's are twice those of the other.

    `other` is first scaled so that its shorter side is the picture's.
    """
    near = with_shorter_side(other, min(picture.shape[:2]))
    return float(np.abs(texture_quantiles(picture) - texture_quantiles(near)).mean())


def with_shorter_side(picture: Pixels, side: int) -> Pixels:
    """The picture, scaled so that its shorter side has so many pixels."""
    height, width = picture.shape[:2]
    scale = side / min(height, width)
    return resized(picture, max(1, round(width * scale)), max(1, round(height * scale)))


def edge_correlation(picture: Pixels, other: Pixels) -> float:
    """Pearson correlation of the gradient magnitudes of the luminance of two pictures of one
    size; 0 where one of them is flat."""
    one, two = (
        np.hypot(_derivative(light, EDGE, (1, 0)), _derivative(light, EDGE, (0, 1)))
        for light in (lab(p)[..., 0] for p in (picture, other))
    )
    one, two = one - one.mean(), two - two.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float((one * two).sum() / size) if size > 1e-9 else 0.0


def sharpness(picture: Pixels) -> float:
    """RMS of the Laplacian (sigma 1 px) of the luminance."""
    light = lab(picture)[..., 0]
    return float(
        np.sqrt(np.mean((_derivative(light, 1, (2, 0)) + _derivative(light, 1, (0, 2))) ** 2))
    )


def _derivative(light: Floats, sigma: float, order: tuple[int, int]) -> Floats:
    """A derivative of a Gaussian blur, of the order in y and x; the borders are mirrored."""
    import cv2

    down, across = (_kernel(sigma, each) for each in order)
    return np.asarray(cv2.sepFilter2D(light, cv2.CV_64F, across, down, borderType=BORDER))


def _kernel(sigma: float, order: int) -> Floats:
    """Samples of a Gaussian within 4 sigma that sum to 1, times the factor that derives it; of the
    second derivative, less what it would find in a plain colour."""
    x = np.arange(-round(4 * sigma), round(4 * sigma) + 1, dtype=np.float64)
    bell = np.exp(-0.5 * (x / sigma) ** 2)
    bell /= bell.sum()
    kernel = bell * (1, x / sigma**2, x**2 / sigma**4 - 1 / sigma**2)[order]
    return np.asarray(kernel if order == 0 else kernel - bell * kernel.sum())
