"""How far a stylized picture went: colours and texture against the reference, edges against the
photograph.

Pictures are PIL images, RGB. Distances are 0 for equal pictures; they are read relative to the
photograph's own.
"""

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab

SCALES = (1.0, 2.0, 4.0, 8.0)  # pixels
ANGLES = np.arange(4) * np.pi / 4


def _lab(picture):
    return rgb2lab(np.asarray(picture.convert("RGB")) / 255.0)


def colour_quantiles(picture):
    """256 quantiles of the Lab pixels along 64 fixed directions, (256, 64)."""
    directions = np.random.default_rng(0).normal(size=(3, 64))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(256) + 0.5) / 256
    return np.quantile(_lab(picture).reshape(-1, 3) @ directions, levels, axis=0)


def colour_distance(a, b):
    """Sliced Wasserstein-1 distance of the Lab pixels, in Delta E."""
    return float(np.abs(colour_quantiles(a) - colour_quantiles(b)).mean())


def texture_energies(picture):
    """log RMS of second Gaussian derivatives at 4 scales x 4 directions, of the contrast-normalised
    luminance, (16,).

    Second derivatives steer: three of them give every direction (Freeman and Adelson 1991).
    """
    light = _lab(picture)[..., 0]
    light = (light - light.mean()) / max(light.std(), 1e-3)
    out = []
    for sigma in SCALES:
        yy, xx, xy = (
            ndimage.gaussian_filter(light, sigma, order, mode="mirror") * sigma**2
            for order in ((2, 0), (0, 2), (1, 1))
        )
        for c, s in zip(np.cos(ANGLES), np.sin(ANGLES), strict=True):
            out.append(
                np.log(np.sqrt(np.mean((c * c * xx + 2 * c * s * xy + s * s * yy) ** 2)) + 1e-3)
            )
    return np.array(out)


def texture_distance(a, b):
    """Mean absolute difference of the log energies; `b` is brought to `a`'s size first."""
    return float(np.abs(texture_energies(a) - texture_energies(b.resize(a.size))).mean())


def edge_correlation(a, b):
    """Pearson correlation of the gradient magnitudes (sigma 1.5 px) of the luminance of two
    pictures of one size."""
    ga, gb = (ndimage.gaussian_gradient_magnitude(_lab(p)[..., 0], 1.5).ravel() for p in (a, b))
    return float(np.corrcoef(ga, gb)[0, 1])


def sharpness(picture):
    """RMS of the Laplacian (sigma 1 px) of the luminance."""
    return float(np.sqrt(np.mean(ndimage.gaussian_laplace(_lab(picture)[..., 0], 1.0) ** 2)))


def flicker(sources, results):
    """Mean difference, in levels of 255, between successive results moved as the sources move: DIS
    optical flow.

    Both are RGB arrays (H, W, 3) of one size. Only where the flow there and back agree to a pixel.
    """
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    h, w = sources[0].shape[:2]
    here = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float32)
    grey = [cv2.cvtColor(np.ascontiguousarray(s), cv2.COLOR_RGB2GRAY) for s in sources]
    found = []
    for i in range(len(sources) - 1):
        ahead, back = dis.calc(grey[i], grey[i + 1], None), dis.calc(grey[i + 1], grey[i], None)
        there = here + ahead
        again = ahead + cv2.remap(
            back, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        seen = (
            (np.linalg.norm(again, axis=-1) < 1)
            & (there >= 0).all(-1)
            & (there <= (w - 1, h - 1)).all(-1)
        )
        moved = cv2.remap(
            results[i + 1].astype(np.float32),
            there,
            None,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        found.append(np.abs(moved - results[i])[seen].mean())
    return float(np.mean(found))
