"""Procedural moving scenes, on which the pack's temporal layers are trained.

A canvas is drawn once and stylized once; then one camera moves over its plain and its styled form
alike, and cut-outs of a second canvas in the same style move across. So a styled clip is consistent
along time, and its motion is known.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from std_cli.tinypack import styles
from std_cli.tinypack.scenes import XX, YY, Array, Rng, S, Shape, blur, scene, vary


class MovingScene(NamedTuple):
    """A moving scene of N frames; pictures are float32 in [0, 1]."""

    plain: Array  # (N, H, W, 3), with a film's stir, noise and flicker
    styled: Array  # (N, H, W, 3), without them
    reference: Array  # (128, 128, 3)
    caption: str
    kind: str  # of the style
    # (N - 1, H, W, 2) float32: where a pixel's point is in the next frame, (x, y) from where it is
    # now, px
    flow: Array
    seen: Array  # (N - 1, H, W) bool: that point is in the next frame, and nothing hides it there
    clean: Array  # as plain, without them


def similarity(zoom: Array, turn: Array, at: Array, centre: Array) -> Array:
    """Return maps (N, 2, 3) from a frame's (x, y) to a canvas's. `at` (N, 2) goes to `centre`; a
    frame pixel is `zoom` canvas pixels.

    `zoom` and `turn` (radians) are (N,), `centre` is (N, 2) or (2,).
    """
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    linear = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
    shift = centre - np.einsum("nij,nj->ni", linear, at)
    return np.concatenate([linear, shift[..., None]], -1)


def apply(m: Array, points: Array) -> Array:
    """Apply a map (2, 3) to points (..., 2)."""
    return np.asarray(points @ m[:, :2].T + m[:, 2])


def inverse(m: Array) -> Array:
    """Return the inverse of a map (2, 3)."""
    linear = np.linalg.inv(m[:, :2])
    return np.concatenate([linear, -linear @ m[:, 2:]], 1)


def resample(canvas: Array, maps: Array, height: int, width: int) -> Array:
    """Return the canvas (S, S, C) as N frames see it through `maps` (N, 2, 3): (N, height, width,
    C), bicubic.

    The kernel keeps what is sharp, and a whole-pixel pan copies pixels, as long as the zoom is not
    far from 1.
    """
    points = np.stack([apply(m, _grid(height, width)) for m in maps])
    places = torch.from_numpy(((2 * points + 1) / S - 1).astype(np.float32))
    source = (
        torch.from_numpy(np.ascontiguousarray(canvas))
        .permute(2, 0, 1)
        .expand(len(maps), -1, -1, -1)
    )
    out = F.grid_sample(
        source, places, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return out.permute(0, 2, 3, 1).numpy()


def moving_scene(rng: Rng, frames: int = 8, size: int = 128) -> MovingScene:
    """Draw a moving scene in a random style, `size` px square (at most 160), with zero to three
    objects in front."""
    drawn = scene(rng)
    other = scene(rng)
    style = styles.random_style(rng)
    reference = styles.stylize(vary(scene(rng), rng), style, rng)
    if rng.random() < 0.4:  # other colours than the palette's, as in style_pairs.make_shard
        reference = styles.transport(reference, vary(other, rng), rng.uniform(0.4, 1))
    still = rng.random() < 0.12
    count = int(rng.integers(0, 4))
    layers = []
    tags = ""
    for number, picture in enumerate((drawn, other)[: 1 + min(count, 1)]):
        x = vary(picture, rng)
        y = styles.match(styles.stylize(x, style, rng), reference)
        tags = tags or styles.caption(style, y, rng)
        both = np.concatenate([x, y], -1)
        if number == 0:
            layers.append((both, _camera(rng, frames, size, still), np.ones((S, S), np.float32)))
        else:
            layers += [(both, *_cut_out(rng, frames, size, still)) for _ in range(count)]

    out = np.zeros((frames, size, size, 6), np.float32)
    top = np.zeros((frames, size, size), np.int64)  # the layer that a pixel shows
    for number, (both, maps, mask) in enumerate(layers):
        seen = resample(np.concatenate([both, mask[..., None]], -1), maps, size, size)
        alpha = np.clip(seen[..., 6:], 0, 1)
        out = out * (1 - alpha) + seen[..., :6] * alpha
        top[alpha[..., 0] > 0.5] = number
    flow, visible = _motion([m for _, m, _ in layers], top)
    clean = np.clip(out[..., :3], 0, 1)
    small = reference.reshape(128, 2, 128, 2, 3).mean((1, 3))
    return MovingScene(
        _film(clean, rng),
        np.clip(out[..., 3:], 0, 1),
        small,
        tags,
        style.kind,
        flow,
        visible,
        clean,
    )


def _grid(height: int, width: int) -> Array:
    """(height, width, 2): every pixel's (x, y)."""
    return np.moveaxis(np.mgrid[0:height, 0:width][::-1], 0, -1).astype(np.float64)


def _path(rng: Rng, frames: int, speed: float, shake: float) -> Array:
    """A smooth path from (0, 0), (N, 2), px: a velocity that turns, and a hand's tremor."""
    heading = rng.uniform(0, 2 * math.pi)
    turning = rng.normal() * 0.08
    angle = heading + turning * np.arange(frames)
    rate = speed * np.clip(1 + rng.normal() * 0.15 * np.arange(frames), 0, 2)
    steps = rate[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1) + shake * rng.normal(
        size=(frames, 2)
    )
    path = np.cumsum(steps, 0)
    return np.asarray(path - path[0])


def _speed(rng: Rng, fastest: float) -> float:
    """Px per frame: slow is common, as in films."""
    return float(fastest * rng.random() ** 2)


def _camera(rng: Rng, frames: int, size: int, still: bool) -> Array:
    """Maps (N, 2, 3) of a camera that stays over the canvas."""
    time = np.arange(frames) - (frames - 1) / 2
    zoom: Array = np.ones(frames)
    turn: Array = np.zeros(frames)
    path: Array = np.zeros((frames, 2))
    if not still:
        path = _path(rng, frames, _speed(rng, 6.0), rng.choice([0, 0, 0.3, 0.8]))
        if rng.random() < 0.3:
            path = np.round(path)  # a pan by whole pixels
        else:
            zoom = np.clip(rng.uniform(1, 1.25) * np.exp(rng.normal() * 0.006 * time), 0.95, 1.35)
            turn = rng.normal() * 0.03 + rng.normal() * 0.004 * time
    at = np.full((frames, 2), (size - 1) / 2)
    low, high = size * 0.5 * zoom.max() - path.min(0), S - 1 - size * 0.5 * zoom.max() - path.max(0)
    centre = np.floor(rng.uniform(np.minimum(low, high), np.maximum(low, high))) + 0.5 * (
        1 - size % 2
    )
    return similarity(zoom, turn, at, centre + path)


def _cut_out(rng: Rng, frames: int, size: int, still: bool) -> tuple[Array, Array]:
    """An object: maps from frame to canvas (N, 2, 3), and its soft mask on the canvas (S, S)."""
    kind = str(rng.choice(["ellipse", "polygon", "blob", "box"]))
    radius = size * rng.uniform(0.1, 0.3)
    cx, cy = rng.uniform(radius, S - radius, 2)
    shape = Shape(rng, kind, cx, cy, radius, rng.uniform(0, 6.28), rng.uniform(0.5, 1))
    mask = np.clip(0.5 - shape.distance(YY, XX)[0] / rng.choice([1.2, 1.2, 2.5]), 0, 1)
    time = np.arange(frames) - (frames - 1) / 2
    path = _path(rng, frames, _speed(rng, 7.0), 0.0)
    moves = 0.0 if still else 1.0
    zoom = rng.uniform(1, 1.2) * np.exp(moves * rng.normal() * 0.008 * time)
    turn = rng.normal() * 0.2 + moves * rng.normal() * 0.015 * time
    at = rng.uniform(0.1, 0.9, 2) * size + moves * (path - path.mean(0))
    return similarity(zoom, turn, at, np.array([cx, cy])), mask.astype(np.float32)


def _motion(maps: list[Array], top: Array) -> tuple[Array, Array]:
    """Return MovingScene's flow and seen, from each layer's maps and the layer that each pixel
    shows."""
    frames, height, width = top.shape
    here = _grid(height, width)
    flow = np.zeros((frames - 1, height, width, 2), np.float32)
    seen = np.zeros((frames - 1, height, width), bool)
    for i in range(frames - 1):
        for number, m in enumerate(maps):
            mine = top[i] == number
            there = apply(inverse(m[i + 1]), apply(m[i], here[mine]))
            nearest: Array = np.round(there).astype(np.int64)
            x, y = nearest[:, 0], nearest[:, 1]
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            flow[i][mine] = there - here[mine]
            seen[i][mine] = inside & (
                top[i + 1][y.clip(0, height - 1), x.clip(0, width - 1)] == number
            )
    return flow, seen


def _wander(rng: Rng, frames: int, size: int, sigma: float) -> Array:
    """Fields of unit variance, smooth over `sigma` pixels, that change from frame to frame: (N,
    size, size)."""
    out: list[Array] = []
    keep = rng.uniform(0, 0.9)
    for _ in range(frames):
        new = blur(rng.standard_normal((size, size), np.float32), sigma)
        new /= new.std()
        out.append(keep * out[-1] + math.sqrt(1 - keep**2) * new if out else new)
    return np.stack(out)


def _film(x: Array, rng: Rng) -> Array:
    """Add what a film has and a style should not follow, each in about half of the clips: surfaces
    that stir (grass, leaves, water), stains of light, noise, changes of brightness."""
    frames, size = x.shape[:2]
    if rng.random() < 0.5:
        amount = rng.uniform(0.2, 1.2)
        sigma = rng.uniform(2, 8)
        stir = np.stack([_wander(rng, frames, size, sigma) for _ in "xy"], -1) * amount
        places = (2 * (_grid(size, size) + stir) + 1) / size - 1
        pictures = torch.from_numpy(x).permute(0, 3, 1, 2)
        grid = torch.from_numpy(places.astype(np.float32))
        x = F.grid_sample(pictures, grid, "bicubic", "border", False).permute(0, 2, 3, 1).numpy()
    if rng.random() < 0.5:
        x = (
            x
            + rng.uniform(0.005, 0.03) * _wander(rng, frames, size, rng.uniform(0.7, 4))[..., None]
        )
    if rng.random() < 0.5:
        x = x + rng.uniform(0.002, 0.02) * rng.standard_normal(x.shape, dtype=np.float32)
    if rng.random() < 0.4:
        x = x * (1 + rng.uniform(0.002, 0.02) * rng.normal(size=(frames, 1, 1, 1)))
    return np.clip(x, 0, 1).astype(np.float32)
