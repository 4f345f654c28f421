"""Procedural styles: how a plain scene becomes a styled one, and how a target is brought to a
reference's statistics.

A `Style` is a kind (poster, halftone, ...), a palette and twelve numbers in [0, 1]; the same style
on two scenes gives two pictures that look as if one artist had made them. `match` then moves the
target's colours and oriented energies to those of the reference picture, because these are what one
reference shows of a style.

Dots, lines, cells and strokes may lie anywhere in a drawn picture, and what may lie anywhere is
learned as its mean: a grey. So targets are drawn `aligned`. Their patterns repeat every LATTICE
pixels from the upper left corner: then there is one right place for each dot, and a UNet finds it,
since its sampling by 2 tells places within LATTICE apart (`train_denoiser.learn_places`). Their
strokes and outlines follow from the picture alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from std_cli.media.palette import transport_matrix
from std_cli.tinypack.scenes import XX, YY, Array, Rng, S, blur, fractal, hsv, luma

COLOURS = {
    "red": (0.8, 0.1, 0.1),
    "orange": (0.9, 0.5, 0.1),
    "yellow": (0.95, 0.85, 0.2),
    "green": (0.2, 0.6, 0.2),
    "teal": (0.1, 0.55, 0.55),
    "blue": (0.15, 0.3, 0.8),
    "purple": (0.5, 0.2, 0.7),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.45, 0.28, 0.15),
    "black": (0.06, 0.06, 0.06),
    "gray": (0.5, 0.5, 0.5),
    "white": (0.96, 0.96, 0.96),
    "beige": (0.9, 0.83, 0.7),
    "navy": (0.1, 0.12, 0.35),
}
COLOUR_VALUES = np.array(list(COLOURS.values()), np.float32)
LATTICE = 8  # px: what aligned patterns repeat by
PATTERNED = ("halftone", "hatching", "mosaic", "woodcut", "pointillism", "stained")


@dataclass(frozen=True)
class Style:
    kind: str
    palette: Array  # (K, 3), dark to light
    mapping: str  # how colours come from the palette: by tone, by nearness, or as mean and spread
    keep: float  # share of the plain picture's own colour that stays
    knobs: tuple[float, ...]  # twelve numbers in [0, 1], read by the kind
    aligned: bool = False  # patterns repeat every LATTICE px, strokes follow from the picture


def palette(rng: Rng, count: int) -> Array:
    """A colour scheme (mono, complementary, analogous, triad, any) along a ramp of luma."""
    scheme = str(
        rng.choice(
            ["mono", "complement", "analog", "any", "triad"], p=[0.12, 0.28, 0.25, 0.22, 0.13]
        )
    )
    hue = rng.random()
    saturation = float(rng.choice([0.25, 0.5, 0.75, 0.95]))
    tones = (
        np.linspace(rng.uniform(0.02, 0.28), rng.uniform(0.68, 0.98), count)
        + rng.normal(size=count) * 0.04
    )
    out = []
    for i, tone in enumerate(np.clip(tones, 0.01, 0.99)):
        h = {
            "mono": hue + rng.normal() * 0.015,
            "complement": hue + 0.5 * (i % 2) + rng.normal() * 0.03,
            "analog": hue + rng.uniform(-0.12, 0.12),
            "any": rng.random(),
            "triad": hue + rng.integers(3) / 3 + rng.normal() * 0.03,
        }[scheme]
        c = hsv(h, float(np.clip(saturation + rng.normal() * 0.15, 0, 1)), 1.0)
        grey = float(luma(c))
        c = c * (tone / grey) if tone < grey else c + (1 - c) * (tone - grey) / (1 - grey + 1e-6)
        out.append(c / max(1.0, c.max()))
    return np.array(out, np.float32)


def random_style(rng: Rng, kind: str | None = None, patterns: float = 0.46) -> Style:
    """A style of that kind, or of any: of one of PATTERNED with probability `patterns`, which is
    their share of all kinds if not given."""
    if kind is None:
        patterned = rng.random() < patterns
        kind = str(rng.choice([k for k in KINDS if (k in PATTERNED) == patterned]))
    mapping = str(rng.choice(["tone", "near", "spread"], p=[0.35, 0.3, 0.35]))
    keep = float(rng.choice([0, 0, 0.2, 0.4]))
    return Style(kind, palette(rng, int(rng.integers(3, 7))), mapping, keep, tuple(rng.random(12)))


def tones(x: Array, low: float = 2, high: float = 98) -> Array:
    """Luma stretched to [0, 1] between two percentiles."""
    lo, hi = np.percentile(x, [low, high])
    return np.clip((x - lo) / max(hi - lo, 0.12), 0, 1).astype(np.float32)


def colour(img: Array, style: Style, hard: float = 0.0) -> Array:
    """Return the picture in the style's palette; `hard` > 0 posterizes it."""
    p = style.palette
    k = len(style.palette)
    n = tones(luma(img))
    if style.mapping == "tone":
        x = n * (k - 1)
        if hard:
            x = np.floor(x) + np.clip((x % 1 - 0.5) * (1 + hard * 12) + 0.5, 0, 1)
        out = np.stack([np.interp(x, np.arange(k), p[:, c]) for c in range(3)], -1)
    elif style.mapping == "near":
        grey = luma(p)
        d = 1.6 * (n[..., None] - grey) ** 2 + (
            (((img - n[..., None]) * 1.5)[..., None, :] - (p - grey[:, None])) ** 2
        ).sum(-1)
        w = np.exp(-(d - d.min(-1, keepdims=True)) * (25 + hard * 300))
        out = (w / w.sum(-1, keepdims=True)) @ p
    else:
        out = (img - img.mean((0, 1))) / (img.std((0, 1)) + 0.05) * (
            0.06 + 0.9 * p.std(0)
        ) + p.mean(0)
        if hard:
            x = np.clip(out, 0, 1) * k
            out = (np.floor(x) + np.clip((x % 1 - 0.5) * (1 + hard * 6) + 0.5, 0, 1)) / k
    return np.clip(out * (1 - style.keep) + img * style.keep, 0, 1).astype(np.float32)


def ink(x: Array, sigma: float, threshold: float, soft: float = 0.02) -> Array:
    """Outlines of a luma picture at scale sigma, (S, S) in [0, 1]."""
    b = blur(x, sigma)
    return np.clip(
        (np.hypot(np.gradient(b, axis=0), np.gradient(b, axis=1)) * sigma - threshold) / soft, 0, 1
    )


def flatten(img: Array, radius: int) -> Array:
    """Kuwahara filter: each pixel takes the mean of the calmest of four neighbouring squares
    (Kuwahara et al. 1976)."""
    n = 2 * radius + 1
    x = luma(img)
    mean = ndimage.uniform_filter(img, (n, n, 1))
    m1 = ndimage.uniform_filter(x, n)
    variance = ndimage.uniform_filter(x * x, n) - m1 * m1
    shifts = [(dy, dx) for dy in (-radius, radius) for dx in (-radius, radius)]
    best = np.argmin(np.stack([np.roll(variance, s, (0, 1)) for s in shifts]), 0)
    means = np.stack([np.roll(mean, s, (0, 1)) for s in shifts])
    return np.take_along_axis(means, best[None, ..., None], 0)[0]


def smear(img: Array, reach: int) -> Array:
    """Each pixel takes the mean of `reach` px to either side along the picture's own edges, as a
    brush goes: line integral convolution (Cabral and Leedom 1993), along the structure tensor's
    smaller eigenvector."""
    gy, gx = np.gradient(blur(luma(img), 1.5))
    angle = np.arctan2(2 * blur(gx * gy, 4), blur(gx * gx, 4) - blur(gy * gy, 4)) / 2 + math.pi / 2
    flow = np.stack([np.sin(angle), np.cos(angle)], -1)
    total = img.copy()
    for sign in (1, -1):
        y, x, ahead = YY, XX, sign * flow
        for _ in range(reach):
            y, x = y + ahead[..., 0], x + ahead[..., 1]
            total = total + sample(img, y + 0.5, x + 0.5)
            there = sample(flow, y + 0.5, x + 0.5)
            # an eigenvector has no sign: go on, not back
            ahead = there * np.where((there * ahead).sum(-1, keepdims=True) < 0, -1, 1)
    return np.asarray(total / (2 * reach + 1), np.float32)


def strokes(rng: Rng, angle: float, length: float, width: float) -> Array:
    """Noise drawn out along an angle, (S, S), unit variance."""
    fy, fx = np.fft.fftfreq(S)[:, None], np.fft.rfftfreq(S)[None]
    u, v = fx * math.cos(angle) + fy * math.sin(angle), -fx * math.sin(angle) + fy * math.cos(angle)
    h = np.exp(-2 * (np.pi * u * length) ** 2 - 2 * (np.pi * v * width) ** 2)
    x = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(S, S))) * h, s=(S, S))
    return np.asarray(x / x.std(), np.float32)


def sample(img: Array, yy: Array, xx: Array) -> Array:
    return img[np.clip(yy, 0, S - 1).astype(np.int32), np.clip(xx, 0, S - 1).astype(np.int32)]


def cells(
    style: Style, rng: Rng, size: float, staggered: bool = False
) -> tuple[Array, Array, Array]:
    """Voronoi cells about `size` px wide: distances to the two nearest points, in shares of that,
    (S, S, 2), the cell's number (S, S), the points (N, 2). Those that are aligned are squares, or
    diamonds where they are `staggered`."""
    if style.aligned:
        n = S // LATTICE
        points = (np.moveaxis(np.mgrid[0:n, 0:n], 0, -1).reshape(-1, 2) + 0.5) * LATTICE
        if staggered:
            points = np.concatenate([points, points + LATTICE / 2])
        size = S / math.sqrt(len(points))
    else:
        n = int(S / size) + 1
        grid = np.moveaxis(np.mgrid[0:n, 0:n], 0, -1) + 0.5
        points = ((grid + rng.uniform(-0.45, 0.45, (n, n, 2))) * size).reshape(-1, 2)
    d, i = cKDTree(points).query(np.stack([YY.ravel(), XX.ravel()], 1), k=2)
    return (d / size).reshape(S, S, 2).astype(np.float32), i[:, 0].reshape(S, S), points


def wave(angle: float, period: float) -> Array:
    """Phase of a plane wave, radians."""
    return (XX * math.cos(angle) + YY * math.sin(angle)) * (2 * np.pi / period)


def screen_lines(down: int, right: int) -> Array:
    """Aligned lines, that repeat so often in LATTICE px down and to the right: cosines, -1 to 1."""
    return np.cos((YY * down + XX * right) * (2 * np.pi / LATTICE))


def over(under: Array, mask: Array, top: Array) -> Array:
    return under * (1 - mask[..., None]) + top * mask[..., None]


def photo(img: Array, style: Style, rng: Rng) -> Array:
    """No style: the reference then gives colours only."""
    return img


def poster(img: Array, style: Style, rng: Rng) -> Array:
    smooth = blur(img, 1) if style.aligned else img
    return colour(flatten(smooth, 2 + int(style.knobs[0] * 3)), style, 1)


def halftone(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    angle = style.knobs[1] * 1.57
    period = 6 + knobs[0] * 6
    if style.aligned:
        screen = (screen_lines(1, 0) + screen_lines(0, 1)) / 2
    elif knobs[3] < 0.7:
        screen = np.cos(wave(angle, period)) * np.cos(wave(angle + math.pi / 2, period))
    else:
        screen = np.cos(wave(angle, period))
    dots = np.clip((screen * 0.98 - (tones(blur(luma(img), 1.5)) * 2 - 1)) * 2.2 + 0.5, 0, 1)
    if knobs[2] < 0.5:
        return over(np.broadcast_to(style.palette[-1], img.shape), dots, style.palette[0])
    c = colour(blur(img, 1.5), style, 0.6)
    return over(
        np.clip(c * 0.35 + style.palette[-1] * 0.65, 0, 1), dots, c * (0.45 + 0.2 * knobs[4])
    )


def comic(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    x = luma(img)
    c = colour(flatten(blur(img, 1) if style.aligned else img, 3), style, 0.8) * 0.85 + 0.15
    black = np.clip((np.percentile(x, 8 + 12 * knobs[2]) - blur(x, 0.8)) * 12, 0, 1)
    return over(
        c,
        np.maximum(ink(x, 1.2 + knobs[0] * 1.2, 0.05 + 0.05 * knobs[1]), black),
        style.palette[0] * 0.5,
    )


def painted(img: Array, style: Style, rng: Rng) -> Array:
    """Flat paint with grain, dark outlines, scratches."""
    knobs = style.knobs
    x = luma(img)
    c = colour(flatten(img, 3 + int(knobs[5] * 3)), style, 0.35 * knobs[0])
    outlines = ink(x, 1.2 + knobs[3] * 1.2, 0.05 + 0.05 * knobs[4], 0.04) * 0.9
    if style.aligned:
        return over(c, outlines, style.palette[0] * 0.35)
    angle = 1.57 if knobs[1] < 0.6 else knobs[1] * 6
    c = np.clip(
        c * (1 + (0.03 + 0.1 * knobs[2]) * strokes(rng, angle, 6, 1.3)[..., None])
        + 0.05 * fractal(rng, rough=1, smooth=3)[..., None],
        0,
        1,
    )
    scratches = np.clip((strokes(rng, angle, 7, 0.8) - 2.2) * 2, 0, 1) * (knobs[6] > 0.3)
    return over(c, np.maximum(outlines, scratches * 0.8), style.palette[0] * 0.35)


def hatching(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    n = tones(blur(luma(img), 1.5))
    wobble = fractal(rng, rough=2) * 0.6
    period = 5 + knobs[0] * 4
    angle = knobs[1] * 3.14
    lines = ink(luma(img), 1.2, 0.06 + 0.04 * knobs[3])
    for j, tone in enumerate((0.72, 0.45, 0.22)):
        if style.aligned:
            stripe = screen_lines(*((1, 1), (1, -1), (1, 0))[j])
        else:
            stripe = np.cos(wave(angle + j * (0.8 + 0.8 * knobs[2]), period) + wobble)
        lines = np.maximum(
            lines, np.clip((stripe - 0.2) * 2 + 0.5, 0, 1) * np.clip((tone - n) * 8, 0, 1)
        )
    paper = (
        colour(blur(img, 2), style) * 0.5 + 0.5
        if knobs[4] < 0.45
        else np.broadcast_to(style.palette[-1] * 0.5 + 0.5, img.shape)
    )
    return over(paper, lines, style.palette[0] * 0.6)


def watercolour(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    reach = 0 if style.aligned else 1.5 + 2 * knobs[0]
    moved = sample(
        img,
        YY + fractal(rng, rough=1, smooth=3) * reach,
        XX + fractal(rng, rough=1, smooth=3) * reach,
    )
    c = colour(blur(flatten(moved, 4), 0.7), style, 0.25 * knobs[1]) * 0.75 + 0.27
    edge = ink(luma(c), 1.2, 0.0, 1.0) * (2 + 3 * knobs[2])
    if style.aligned:
        return c - edge[..., None] * 0.8
    wash = fractal(rng, rough=2) * (0.06 + 0.08 * knobs[4])
    return (
        c
        - edge[..., None] * 0.8
        + wash[..., None] * (1.2 - c)
        + fractal(rng, smooth=2)[..., None] * 0.02
    )


def oil(img: Array, style: Style, rng: Rng) -> Array:
    """Short strokes with relief, along one direction or around the forms."""
    knobs = style.knobs
    if style.aligned:
        c = smear(img, 4 + int(knobs[2] * 6))
        fine = luma(c) - blur(luma(c), 2)
        relief = fine / (fine.std() + 0.01)
        c = colour(flatten(c, 2 + int(knobs[3] * 2)), style, 0.1 * knobs[6])
        return c * (1 + np.gradient(relief, axis=0)[..., None] * (0.08 + 0.14 * knobs[4]))
    reach = 2 + 4 * knobs[2]
    if knobs[1] < 0.5:
        relief = strokes(rng, knobs[0] * 3.14, 8, 2)
        dy, dx = (
            relief * reach * math.sin(knobs[0] * 3.14),
            relief * reach * math.cos(knobs[0] * 3.14),
        )
    else:
        smooth = blur(luma(img), 3)
        gy, gx = np.gradient(smooth, axis=0), np.gradient(smooth, axis=1)
        n = strokes(rng, knobs[0] * 3.14, 3, 2) * reach / (np.hypot(gx, gy) + 1e-4)
        dy = n * gx
        dx = -n * gy
        relief = strokes(rng, knobs[0] * 3.14, 6, 1.5)
    c = colour(flatten(sample(img, YY + dy, XX + dx), 2 + int(knobs[3] * 2)), style, 0.1 * knobs[6])
    return c * (1 + np.gradient(relief, axis=0)[..., None] * (0.08 + 0.14 * knobs[4]))


def mosaic(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    side = int(7 + knobs[0] * 7)
    if style.aligned:
        side = LATTICE
    n = S // side + 1
    tiles = (
        np.pad(img, ((0, n * side - S), (0, n * side - S), (0, 0)), "edge")
        .reshape(n, side, n, side, 3)
        .mean((1, 3))
    )
    uneven = 0 if style.aligned else rng.normal(size=(n, n, 1)) * 0.05 * knobs[2]
    tiles = np.clip(colour(tiles, style, 0.5 * knobs[1]) + uneven, 0, 1)
    out = tiles.repeat(side, 0).repeat(side, 1)[:S, :S]
    joint = ((YY % side < 1.5) | (XX % side < 1.5)) * float(knobs[3] < 0.75)
    return over(out, joint, style.palette[0] * 0.6 if knobs[4] < 0.6 else style.palette[-1])


def woodcut(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    n = tones(blur(luma(img), 1.2), 3, 97)
    if style.aligned:
        screen = screen_lines(1, 0)
    else:
        bend = fractal(rng, rough=2) * 1.2 + n * 6 * knobs[2]
        screen = np.cos(wave(knobs[1] * 3.14, 5 + knobs[0] * 5) + bend)
    cut = np.maximum(np.clip((screen * 0.42 + 0.5 - n) * 5 + 0.5, 0, 1), ink(luma(img), 1.2, 0.07))
    paper = (
        colour(flatten(img, 3), style, 1) * 0.6 + style.palette[-1] * 0.4
        if knobs[3] < 0.4
        else np.broadcast_to(style.palette[-1], img.shape)
    )
    return over(paper, cut, style.palette[0])


def pastel(img: Array, style: Style, rng: Rng) -> Array:
    """Chalk rubbed over grained paper."""
    knobs = style.knobs
    c = colour(blur(img, 1 + 1.5 * knobs[0]), style) * 0.75 + 0.22
    if style.aligned:
        c, chalk = flatten(smear(c, 3), 2), 0
    else:
        chalk = strokes(rng, knobs[1] * 3.14, 4, 1)
    grain = np.clip(chalk * 0.5 + 0.75 - 0.35 * luma(c) + 0.2 * knobs[2], 0, 1)[..., None]
    paper = style.palette[-1] * 0.4 + 0.6 if knobs[3] < 0.7 else style.palette[0] * 0.5
    amount = 0.4 + 0.25 * knobs[4]
    return c * (1 - amount) + amount * (c * grain + paper * (1 - grain))


def pointillism(img: Array, style: Style, rng: Rng) -> Array:
    knobs = style.knobs
    size = 6 + 5 * knobs[0]
    d, number, points = cells(style, rng, size)
    dots = colour(
        sample(blur(img, 1.5), points[:, 0], points[:, 1])[:, None], style, 0.5 * knobs[1]
    )[:, 0]
    if not style.aligned:
        dots = dots + rng.normal(size=dots.shape) * (0.04 + 0.08 * knobs[2])
    out = np.clip(dots, 0, 1)[number]
    ground = (
        style.palette[-1] * 0.6 + 0.4 if knobs[4] < 0.6 else style.palette[0] * 0.6
    ) * 0.5 + out * 0.5
    return over(ground, np.clip(size * (0.42 + 0.15 * knobs[3] - d[..., 0]) + 0.5, 0, 1), out)


def stained(img: Array, style: Style, rng: Rng) -> Array:
    """Stained glass: cells of one colour in dark lead."""
    knobs = style.knobs
    size = 10 + 9 * knobs[0]
    d, number, points = cells(style, rng, size, staggered=True)
    glass = colour(
        sample(blur(img, 1.5), points[:, 0], points[:, 1])[:, None], style, 0.5 * knobs[1]
    )[:, 0][number]
    if not style.aligned:
        glass = glass * (1 + 0.06 * fractal(rng, rough=1, smooth=3)[..., None])
    return over(
        glass, 1 - np.clip((d[..., 1] - d[..., 0]) * size / 1.6 - 0.5, 0, 1), style.palette[0] * 0.2
    )


KINDS: dict[str, Callable[[Array, Style, Rng], Array]] = {
    f.__name__: f
    for f in (
        photo,
        poster,
        halftone,
        comic,
        painted,
        hatching,
        watercolour,
        oil,
        mosaic,
        woodcut,
        pastel,
        pointillism,
        stained,
    )
}
PHRASES = {
    "photo": ["photo", "a photo"],
    "poster": ["flat poster", "poster art"],
    "halftone": ["halftone print", "halftone dots"],
    "comic": ["comic book drawing", "comic ink and flat color"],
    "painted": ["painted illustration with dark outlines", "naive painting"],
    "hatching": ["cross hatching drawing", "pen hatching"],
    "watercolour": ["watercolor painting", "watercolor"],
    "oil": ["oil painting", "oil brush strokes"],
    "mosaic": ["mosaic tiles", "pixel mosaic"],
    "woodcut": ["woodcut print", "linocut"],
    "pastel": ["soft pastel drawing", "pastel"],
    "pointillism": ["pointillism painting", "dots painting"],
    "stained": ["stained glass", "stained glass window"],
}


def stylize(img: Array, style: Style, rng: Rng) -> Array:
    return np.clip(KINDS[style.kind](img, style, rng), 0, 1).astype(np.float32)


def caption(style: Style, styled: Array, rng: Rng) -> str:
    """Return the style's name and, mostly, the picture's one to three most common colours."""
    phrase = PHRASES[style.kind][rng.integers(2)]
    pixels = styled[::8, ::8].reshape(-1, 1, 3)
    count = np.bincount(((pixels - COLOUR_VALUES) ** 2).sum(-1).argmin(1), minlength=len(COLOURS))
    names = [list(COLOURS)[i] for i in count.argsort()[::-1][: rng.integers(1, 4)]]
    return phrase + (", " + " and ".join(names) if rng.random() < 0.8 else "")


# --- statistics of a reference -----------------------------------------------------------------

# luma and two colour differences: moments taken here keep light and colour apart
_TO_OPPONENT = np.array([[0.30, 0.59, 0.11], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]], np.float32)


def transport(img: Array, ref: Array, amount: float = 1.0) -> Array:
    """Give `img` the mean and covariance of the reference's colours."""
    x, y = img.reshape(-1, 3) @ _TO_OPPONENT.T, ref.reshape(-1, 3) @ _TO_OPPONENT.T
    cx, cy = np.cov(x.T) + 2e-4 * np.eye(3), np.cov(y.T) + 2e-5 * np.eye(3)
    m = transport_matrix(cx, cy)
    moved = (x - x.mean(0)) @ m.T + y.mean(0)
    out = moved @ np.linalg.inv(_TO_OPPONENT).T
    return np.clip(img * (1 - amount) + out.reshape(img.shape) * amount, 0, 1).astype(np.float32)


@cache
def _bands() -> Array:
    """Smooth windows over the half-plane of frequencies, (16, S, S // 2 + 1): four octaves x four
    directions."""
    fy, fx = np.fft.fftfreq(S)[:, None], np.fft.rfftfreq(S)[None]
    octave = np.log2(np.maximum(np.hypot(fy, fx), 1e-6) / 0.25)  # 0 at period 4 px, -1 at 8 px, ...
    theta = np.arctan2(fy, fx)
    out = []
    for o in range(4):
        radial = np.clip(1 - np.abs(octave + o), 0, 1) if o else np.clip(1 + octave, 0, 1)
        out += [radial * np.cos(theta - q * math.pi / 4) ** 2 * 0.5 for q in range(4)]
    return np.array(out, np.float32)


def match(img: Array, ref: Array, amount: float = 0.7) -> Array:
    """Bring a target to its reference's statistics: colours by `transport`, then each oriented
    band's energy.

    The gains of the sixteen bands are clipped to [0.5, 2] and raised to `amount`, so that no band
    is invented.
    """
    out = transport(img, ref)
    x, y = luma(out), luma(ref)
    fx = np.fft.rfft2(x - x.mean())
    fy = np.fft.rfft2(y - y.mean())
    bands = _bands()
    ex = np.tensordot(bands, np.abs(fx) ** 2, 2) / max(float(x.var()), 1e-4)
    ey = np.tensordot(bands, np.abs(fy) ** 2, 2) / max(float(y.var()), 1e-4)
    gain = np.clip(np.sqrt((ey + 1e-3) / (ex + 1e-3)), 0.5, 2) ** amount
    change = np.fft.irfft2(fx * np.tensordot(gain - 1, bands, 1), s=(S, S))
    return np.clip(out + change[..., None], 0, 1).astype(np.float32)
