"""Procedural scenes: the plain pictures that the embedded pack is trained on, drawn with numpy
alone.

A scene is a background, a composition (dead leaves, landscape, objects, wall) of shaded, textured
shapes with soft shadows, then a tone curve. Arrays are float32 (S, S, 3) in [0, 1], S = 256.
Everything follows from the generator `r`.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

# float32 numpy arrays nearly everywhere; numpy's own types lose track of that in arithmetic
Array = Any
Rng = np.random.Generator

S = 256
YY, XX = (a.astype(np.float32) for a in np.mgrid[0:S, 0:S])
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601

# (hue, saturation) that photographs are full of: skin, wood, grass, leaves, sky, water, brick, sand
NATURAL = [
    (0.07, 0.45),
    (0.05, 0.35),
    (0.09, 0.6),
    (0.27, 0.4),
    (0.3, 0.5),
    (0.58, 0.4),
    (0.6, 0.3),
    (0.0, 0.6),
    (0.12, 0.7),
    (0.08, 0.25),
    (0.66, 0.15),
    (0.04, 0.3),
]


def luma(rgb: Array) -> Array:
    """(..., 3) -> (...), Rec. 601."""
    return np.asarray(rgb @ LUMA, np.float32)


def blur(x: Array, sigma: float) -> Array:
    """Gaussian blur of (H, W) or (H, W, 3); sigma in pixels."""
    return np.asarray(
        ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], truncate=2.5, mode="nearest")
    )


def hsv(h: float, s: float, v: float) -> Array:
    """One colour, (3,); hue wraps."""
    i, f = divmod((h % 1) * 6, 1)
    p, q, t = v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))
    return np.array(
        [(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)][int(i) % 6], np.float32
    )


@cache
def _noise_bank() -> list[Array]:
    """24 fields of 1/f^e noise, 512 x 512, unit variance, six of each exponent from rough to
    smooth."""
    r = np.random.default_rng(0)
    n = 512
    radius = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    radius[0, 0] = 1
    fields = []
    for exponent in (0.6, 1.0, 1.4, 1.9):
        for _ in range(6):
            spectrum = (
                r.normal(size=radius.shape) + 1j * r.normal(size=radius.shape)
            ) / radius**exponent
            spectrum[radius < 1 / 256] = 0
            field = np.fft.irfft2(spectrum, s=(n, n))
            fields.append((field / field.std()).astype(np.float32))
    return fields


def fractal(r: Rng, h: int = S, w: int = S, rough: int = 0, smooth: int = 4) -> Array:
    """A random window (h, w) of 1/f noise; `rough`..`smooth` picks the exponents (0 roughest, 4
    past the smoothest)."""
    x = _noise_bank()[r.integers(rough * 6, smooth * 6)]
    x = x.T if r.random() < 0.5 else x
    y0, x0 = r.integers(0, 513 - h), r.integers(0, 513 - w)
    x = x[y0 : y0 + h, x0 : x0 + w]
    return x[:: r.choice([-1, 1]), :: r.choice([-1, 1])]


def natural_colour(r: Rng, hue: float, saturation: float) -> Array:
    """A colour as photographs have them, or near the scene's own hue, or any."""
    u = r.random()
    if u < 0.55:
        h, s = NATURAL[r.integers(len(NATURAL))]
        h, s = h + r.normal() * 0.02, s * r.uniform(0.4, 1.4)
    elif u < 0.78:
        h, s = hue + r.normal() * 0.06, r.beta(1.6, 2.5)
    else:
        h, s = r.random(), r.beta(1.5, 2)
    return hsv(h, float(np.clip(s * saturation, 0, 1)), r.uniform(0.06, 0.97))


class Shape:
    """A filled shape given by its signed distance (pixels, negative inside): ellipse, polygon,
    blob, box or line."""

    def __init__(
        self, r: Rng, kind: str, cx: float, cy: float, radius: float, rot: float, aspect: float
    ) -> None:
        self.kind, self.cx, self.cy, self.radius, self.rot = kind, cx, cy, radius, rot
        self.a, self.b = radius, radius * aspect
        if kind == "line":
            self.a, self.b = radius * r.uniform(1.5, 4), r.uniform(0.8, 3.5)
        elif kind in ("polygon", "triangle"):
            k = 3 if kind == "triangle" else int(r.integers(3, 8))
            angle = np.sort(r.uniform(0, 0.6, k) + np.arange(k)) * 2 * np.pi / k
            self.normals, self.offsets = (
                np.stack([np.cos(angle), np.sin(angle)], 1),
                radius * r.uniform(0.55, 1, k),
            )
        elif kind == "blob":
            self.amplitude, self.phase = (
                r.normal(size=5) * 0.35 / np.arange(2, 7),
                r.uniform(0, 6.28, 5),
            )
        self.reach = max(self.a, self.b) * 1.7 + 6

    def distance(self, yy: Array, xx: Array) -> tuple[Array, Array, Array]:
        """Signed distance and the shape's own coordinates (u, v) at the given pixels."""
        dx, dy, c, s = xx - self.cx, yy - self.cy, math.cos(self.rot), math.sin(self.rot)
        u, v = dx * c + dy * s, -dx * s + dy * c
        if self.kind == "ellipse":
            d = (np.sqrt((u / self.a) ** 2 + (v / self.b) ** 2) - 1) * min(self.a, self.b)
        elif self.kind in ("box", "line"):
            d = np.maximum(np.abs(u) - self.a, np.abs(v) - self.b)
        elif self.kind == "blob":
            theta = np.arctan2(v, u)
            edge = 1 + sum(
                a * np.cos((i + 2) * theta + p)
                for i, (a, p) in enumerate(zip(self.amplitude, self.phase, strict=True))
            )
            d = np.hypot(u, v) - self.radius * np.maximum(edge, 0.3)
        else:
            d = np.max(
                [u * n[0] + v * n[1] - o for n, o in zip(self.normals, self.offsets, strict=True)],
                axis=0,
            )
        return np.asarray(d, np.float32), u, v


def random_shape(r: Rng, cx: float, cy: float, radius: float) -> Shape:
    kind = str(
        r.choice(["ellipse", "polygon", "blob", "box", "line"], p=[0.28, 0.22, 0.27, 0.16, 0.07])
    )
    return Shape(r, kind, cx, cy, radius, r.uniform(0, 6.28), r.uniform(0.4, 1))


class Canvas:
    """A picture being drawn: the array, the generator, the light's direction, the scene's hue and
    saturation."""

    def __init__(self, r: Rng) -> None:
        self.r, self.hue, self.saturation = r, r.random(), float(r.choice([0.5, 0.8, 1, 1.2]))
        angle = r.uniform(0, 6.28) if r.random() < 0.4 else r.uniform(0.3, 2.6)
        self.light = (math.cos(angle), math.sin(angle))
        tilt = r.uniform(0, 6.28) if r.random() < 0.4 else math.pi / 2
        t = ((XX - S / 2) * math.cos(tilt) + (YY - S / 2) * math.sin(tilt)) / S + 0.5
        stops = np.stack([self.colour() for _ in range(r.integers(2, 4))])
        at = np.linspace(0, 1, len(stops))
        self.img = np.stack([np.interp(t, at, stops[:, c]) for c in range(3)], -1).astype(
            np.float32
        )

    def colour(self, saturation: float = 1.0) -> Array:
        return natural_colour(self.r, self.hue, self.saturation * saturation)

    def paint(
        self,
        shape: Shape,
        colour: Array,
        soft: float = 1.2,
        texture: float | None = None,
        shadow: float = 0.0,
        pattern: bool | None = None,
        sphere: bool | None = None,
    ) -> None:
        """Draw a shape: a shadow beneath it, shading along the light, 1/f texture, perhaps stripes
        or checks."""
        r, reach = self.r, shape.reach + (14 if shadow else 0)
        y0, y1 = int(max(0, shape.cy - reach)), int(min(S, shape.cy + reach + 1))
        x0, x1 = int(max(0, shape.cx - reach)), int(min(S, shape.cx + reach + 1))
        if y1 - y0 < 2 or x1 - x0 < 2:
            return
        yy, xx, region = YY[y0:y1, x0:x1], XX[y0:y1, x0:x1], self.img[y0:y1, x0:x1]
        if shadow:
            o = min(12.0, 0.25 * shape.radius + 2)
            d, _, _ = shape.distance(yy - o * self.light[1], xx - o * self.light[0])
            region *= 1 - (shadow * np.clip(0.5 - d / max(2.0, o), 0, 1))[..., None]
        d, u, v = shape.distance(yy, xx)
        along = ((xx - shape.cx) * self.light[0] + (yy - shape.cy) * self.light[1]) / max(
            shape.a, 4
        )
        shade = 1 - r.uniform(0, 0.45) * along
        if r.random() < 0.3 if sphere is None else sphere:
            shade = shade * (
                0.55 + 0.6 * np.sqrt(np.clip(-d / max(min(shape.a, shape.b), 3) * 1.6, 0.02, 1))
            )
        amount = r.choice([0, 0, 0.04, 0.08, 0.2]) if texture is None else texture
        if amount:
            shade = shade + amount * fractal(r, y1 - y0, x1 - x0)
        fill = colour * np.clip(shade, 0.05, 1.7)[..., None]
        if r.random() < 0.13 if pattern is None else pattern:
            wave = np.sin(u * 6.28 / (period := r.uniform(3, 12)))
            if r.random() < 0.4:
                wave = wave * np.sin(v * 6.28 / period)
            other = np.clip(colour * r.uniform(0.3, 0.8) + r.uniform(0, 0.5) * r.random(3), 0, 1)
            mix = np.clip(wave * 2 + 0.5, 0, 1)[..., None]
            fill = fill * (1 - mix) + other * mix * np.clip(shade, 0.05, 1.5)[..., None]
        alpha = np.clip(0.5 - d / soft, 0, 1)[..., None]
        region[:] = region * (1 - alpha) + alpha * np.clip(fill, 0, 1.1)

    def plain(self, shape: Shape, colour: Array, soft: float = 1.0, sphere: bool = False) -> None:
        self.paint(shape, colour, soft, texture=0, pattern=False, sphere=sphere)


def bust(c: Canvas) -> None:
    """A head with hair, eyes, nose, mouth on shoulders; sometimes ears, so that it is a cat as much
    as a person."""
    r, s = c.r, c.r.uniform(22, 62)
    cx, cy = r.uniform(50, 206), r.uniform(70, 150)
    skin, hair = (
        hsv(r.uniform(0.02, 0.1), r.uniform(0.15, 0.6), r.uniform(0.3, 0.98)),
        hsv(r.uniform(0, 0.14), r.uniform(0, 0.7), r.uniform(0.03, 0.8)),
    )

    def ellipse(x: float, y: float, radius: float, rot: float, aspect: float) -> Shape:
        return Shape(r, "ellipse", x, y, radius, rot, aspect)

    c.paint(
        ellipse(cx, cy + s * 2.3, s * 1.7, 0, 0.85 + 0.3 * r.random()), c.colour(1.2), shadow=0.3
    )
    c.paint(
        Shape(r, "blob", cx, cy - s * 0.2, s * r.uniform(1.05, 1.4), r.uniform(0, 6.28), 1),
        hair,
        1.5,
        texture=0.2,
        pattern=False,
    )
    c.paint(Shape(r, "box", cx, cy + s * 1.05, s * 0.35, 0, 1), skin * 0.85, pattern=False)
    c.paint(
        ellipse(cx, cy, s, math.pi / 2, r.uniform(0.7, 0.92)),
        skin,
        texture=0.04,
        shadow=0.25,
        pattern=False,
        sphere=True,
    )
    ey, ex, er, iris = (
        cy - s * r.uniform(0, 0.2),
        s * r.uniform(0.28, 0.42),
        s * r.uniform(0.09, 0.2),
        r.random(3).astype(np.float32) * 0.6,
    )
    ears = r.random() < 0.35
    for side in (-1, 1):
        if r.random() < 0.7:
            c.plain(ellipse(cx + side * ex, ey, er * 1.5, 0, 0.6), np.full(3, 0.92, np.float32))
        c.plain(ellipse(cx + side * ex, ey, er * 0.8, 0, 1), iris * 0.5)
        c.plain(ellipse(cx + side * ex, ey - er * 1.6, er * 1.8, side * 0.15, 0.2), hair * 0.8)
        if ears:
            c.paint(
                Shape(
                    r,
                    "triangle",
                    cx + side * s * 0.7,
                    cy - s * 0.95,
                    s * 0.5,
                    r.uniform(0, 6.28),
                    1,
                ),
                hair,
                pattern=False,
            )
    c.plain(ellipse(cx + s * 0.03, cy + s * 0.25, s * 0.13, math.pi / 2, 0.5), skin * 0.75, 3)
    lips = np.array([0.65, 0.25, 0.25], np.float32) * r.uniform(0.6, 1.3)
    c.plain(ellipse(cx, cy + s * 0.55, s * r.uniform(0.2, 0.36), 0, r.uniform(0.2, 0.5)), lips)


def house(c: Canvas) -> None:
    r, w = c.r, c.r.uniform(20, 60)
    h, cx, cy = w * r.uniform(0.5, 1), r.uniform(20, 236), r.uniform(110, 200)
    c.paint(Shape(r, "box", cx, cy, w, 0, h / w), c.colour(0.7), 1, shadow=0.3)
    roof = Shape(r, "triangle", cx, cy - h, w * 1.25, 0, 1)
    angle = np.array(
        [
            math.pi / 2,
            -math.pi / 2 - 0.9 + r.uniform(-0.2, 0.1),
            -math.pi / 2 + 0.9 + r.uniform(-0.1, 0.2),
        ]
    )
    roof.normals, roof.offsets = (
        np.stack([np.cos(angle), np.sin(angle)], 1),
        np.array([2, w * 0.75, w * 0.75]),
    )
    c.paint(roof, c.colour(), 1)
    window, columns = c.colour(), int(r.integers(1, 4))
    for i in range(columns):
        for j in range(r.integers(1, 3)):
            x, y = cx + (i - (columns - 1) / 2) * w * 0.6, cy - h * 0.45 + j * h * 0.75
            c.paint(Shape(r, "box", x, y, w * 0.16, 0, r.uniform(0.8, 1.5)), window, 1, texture=0)


def tree(c: Canvas) -> None:
    r, s = c.r, c.r.uniform(12, 40)
    cx, cy = r.uniform(10, 246), r.uniform(80, 170)
    leaf = hsv(
        r.uniform(0.15, 0.4) if r.random() < 0.8 else r.uniform(0.02, 0.12),
        r.uniform(0.3, 0.8),
        r.uniform(0.2, 0.7),
    )
    c.paint(
        Shape(r, "box", cx, cy + s * 1.4, s * 1.2, math.pi / 2, 0.12),
        hsv(0.07, 0.5, r.uniform(0.1, 0.5)),
    )
    for _ in range(r.integers(4, 10)):
        crown = Shape(
            r,
            "blob",
            cx + r.normal() * s * 0.5,
            cy + r.normal() * s * 0.5,
            s * r.uniform(0.3, 0.7),
            r.uniform(0, 6.28),
            1,
        )
        c.paint(
            crown,
            leaf * r.uniform(0.7, 1.3),
            r.uniform(1, 3),
            texture=0.25,
            shadow=0.25,
            pattern=False,
        )


def cup(c: Canvas) -> None:
    r, s, colour = c.r, c.r.uniform(18, 60), c.colour(0.8)
    cx, cy = r.uniform(50, 206), r.uniform(90, 200)
    c.paint(Shape(r, "ellipse", cx, cy + s * 0.75, s * 1.7, 0, 0.4), c.colour(0.6), shadow=0.4)
    c.paint(Shape(r, "ellipse", cx, cy + s * 0.1, s * 1.02, 0, 0.85), colour * 0.9, shadow=0.3)
    c.paint(Shape(r, "ellipse", cx, cy - s * 0.3, s, 0, 0.45), colour)
    c.paint(Shape(r, "ellipse", cx, cy - s * 0.28, s * 0.86, 0, 0.4), c.colour())


OBJECTS: list[Callable[[Canvas], None]] = [bust, bust, cup, house, tree]


def land(c: Canvas) -> None:
    """Clouds, receding hills, houses and trees."""
    r = c.r
    if r.random() < 0.7:
        cloud = (
            np.clip((fractal(r, rough=2) - r.uniform(-0.3, 1)) * r.uniform(0.5, 3), 0, 1)
            * r.uniform(0.3, 0.9)
        )[..., None]
        c.img = c.img * (1 - cloud) + cloud * np.array([0.95, 0.94, 0.92], np.float32) * r.uniform(
            0.6, 1
        )
    y = r.uniform(80, 150)
    for _ in range(r.integers(1, 5)):
        profile = y + fractal(r, rough=2)[0] * r.uniform(2, 22)
        alpha = np.clip(YY - profile[None], 0, 1)[..., None]
        shade = np.clip(
            1 + r.uniform(0.05, 0.3) * fractal(r) - r.uniform(-0.3, 0.3) * (YY - y) / 128, 0.1, 1.6
        )
        c.img = c.img * (1 - alpha) + alpha * (c.colour() * shade[..., None])
        y += r.uniform(15, 45)
    for _ in range(r.integers(0, 3)):
        house(c)
    for _ in range(r.integers(0, 5)):
        tree(c)


def scene(r: Rng) -> Array:
    """One scene, (256, 256, 3)."""
    c = Canvas(r)
    mode = str(r.choice(["leaves", "land", "objects", "wall"], p=[0.33, 0.25, 0.3, 0.12]))
    if r.random() < 0.45:
        c.img *= (1 + r.uniform(0.03, 0.16) * fractal(r, rough=1))[..., None]
    if mode == "land":
        land(c)
    low, high = {"leaves": (14, 60), "land": (0, 6), "objects": (2, 14), "wall": (3, 10)}[mode]
    soft, smallest = r.choice([1, 1, 1.5, 3, 6]), r.uniform(6, 26)
    count = int(r.integers(low, high))
    # dead leaves: radii follow a power law, so that the picture has no scale of its own, as
    # photographs
    order = r.random(count) if mode == "leaves" else np.sort(r.random(count))
    for u in order:
        radius = min(smallest / math.sqrt(max(1 - u, 0.004)), 110)
        shape = random_shape(r, r.uniform(-10, 266), r.uniform(-10, 266), radius)
        c.paint(
            shape, c.colour(), soft * r.uniform(0.8, 1.5), shadow=float(r.choice([0, 0.25, 0.5]))
        )
    if mode == "objects" or r.random() < 0.15:
        for _ in range(r.integers(1, 4)):
            OBJECTS[r.integers(len(OBJECTS))](c)
    if r.random() < 0.3:
        for _ in range(r.integers(1, 5)):
            c.paint(
                Shape(
                    r,
                    "line",
                    r.uniform(0, 256),
                    r.uniform(0, 256),
                    r.uniform(15, 50),
                    r.uniform(0, 6.28),
                    1,
                ),
                c.colour(),
                1,
            )
    img = c.img
    if r.random() < 0.6:
        img = img * np.clip(1 + r.uniform(0.05, 0.22) * fractal(r, rough=3), 0.3, 1.6)[..., None]
    img = np.clip(img, 0, 1) ** r.uniform(0.7, 1.5)
    low_tone, high_tone = np.percentile(luma(img), [1, 99])
    black, white = r.uniform(0, 0.12), r.uniform(0.75, 1)
    img = (img - low_tone) / max(high_tone - low_tone, 0.1) * (white - black) + black
    img = img * np.array([r.uniform(0.9, 1.1), 1, r.uniform(0.9, 1.1)], np.float32)
    if r.random() < 0.3:
        img = blur(img, r.uniform(0.4, 1))
    img = img + r.uniform(0, 0.03) * r.normal(size=(S, S, 1))
    return np.clip(img, 0, 1).astype(np.float32)


def vary(img: Array, r: Rng) -> Array:
    """Another picture from a scene: flip, crop and enlarge, swap channels, change saturation and
    gamma."""
    x = img[:, ::-1] if r.random() < 0.5 else img
    if r.random() < 0.7:
        n = int(S * r.uniform(0.55, 1))
        y0, x0 = r.integers(0, S - n + 1), r.integers(0, S - n + 1)
        zoom = S / n
        x = ndimage.affine_transform(
            x[y0 : y0 + n, x0 : x0 + n],
            (1 / zoom, 1 / zoom, 1),
            output_shape=(S, S, 3),
            order=1,
            mode="nearest",
        )
    if r.random() < 0.3:
        x = x[..., r.permutation(3)]
    if r.random() < 0.4:
        grey = luma(x)[..., None]
        x = grey + (x - grey) * r.uniform(0.2, 1.5)
    return np.ascontiguousarray(np.clip(x, 0, 1) ** r.uniform(0.75, 1.3), np.float32)
