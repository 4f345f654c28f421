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
    rng = np.random.default_rng(0)
    n = 512
    radius = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None])
    radius[0, 0] = 1
    fields = []
    for exponent in (0.6, 1.0, 1.4, 1.9):
        for _ in range(6):
            spectrum = (
                rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)
            ) / radius**exponent
            spectrum[radius < 1 / 256] = 0
            field = np.fft.irfft2(spectrum, s=(n, n))
            fields.append((field / field.std()).astype(np.float32))
    return fields


def fractal(rng: Rng, h: int = S, w: int = S, rough: int = 0, smooth: int = 4) -> Array:
    """Return a random window (h, w) of 1/f noise, with exponents from `rough` up to, and without,
    `smooth` (0 to 4)."""
    x = _noise_bank()[rng.integers(rough * 6, smooth * 6)]
    x = x.T if rng.random() < 0.5 else x
    y0, x0 = rng.integers(0, 513 - h), rng.integers(0, 513 - w)
    x = x[y0 : y0 + h, x0 : x0 + w]
    return x[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]


def natural_colour(rng: Rng, hue: float, saturation: float) -> Array:
    """Draw a colour that is common in photographs, or near the scene's hue, or any."""
    u = rng.random()
    if u < 0.55:
        h, s = NATURAL[rng.integers(len(NATURAL))]
        h, s = h + rng.normal() * 0.02, s * rng.uniform(0.4, 1.4)
    elif u < 0.78:
        h, s = hue + rng.normal() * 0.06, rng.beta(1.6, 2.5)
    else:
        h, s = rng.random(), rng.beta(1.5, 2)
    return hsv(h, float(np.clip(s * saturation, 0, 1)), rng.uniform(0.06, 0.97))


class Shape:
    """A filled shape given by its signed distance (pixels, negative inside): ellipse, polygon,
    blob, box or line."""

    def __init__(
        self, rng: Rng, kind: str, cx: float, cy: float, radius: float, rot: float, aspect: float
    ) -> None:
        self.kind = kind
        self.cx = cx
        self.cy = cy
        self.radius = radius
        self.rot = rot
        self.a = radius
        self.b = radius * aspect
        if kind == "line":
            self.a = radius * rng.uniform(1.5, 4)
            self.b = rng.uniform(0.8, 3.5)
        elif kind in ("polygon", "triangle"):
            k = 3 if kind == "triangle" else int(rng.integers(3, 8))
            angle = np.sort(rng.uniform(0, 0.6, k) + np.arange(k)) * 2 * np.pi / k
            self.normals = np.stack([np.cos(angle), np.sin(angle)], 1)
            self.offsets = radius * rng.uniform(0.55, 1, k)
        elif kind == "blob":
            self.amplitude = rng.normal(size=5) * 0.35 / np.arange(2, 7)
            self.phase = rng.uniform(0, 6.28, 5)
        self.reach = max(self.a, self.b) * 1.7 + 6

    def distance(self, yy: Array, xx: Array) -> tuple[Array, Array, Array]:
        """Signed distance and the shape's own coordinates (u, v) at the given pixels."""
        dx = xx - self.cx
        dy = yy - self.cy
        c = math.cos(self.rot)
        s = math.sin(self.rot)
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


def random_shape(rng: Rng, cx: float, cy: float, radius: float) -> Shape:
    kind = str(
        rng.choice(["ellipse", "polygon", "blob", "box", "line"], p=[0.28, 0.22, 0.27, 0.16, 0.07])
    )
    return Shape(rng, kind, cx, cy, radius, rng.uniform(0, 6.28), rng.uniform(0.4, 1))


class Canvas:
    """A picture being drawn: the array, the generator, the light's direction, the scene's hue and
    saturation."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.hue = rng.random()
        self.saturation = float(rng.choice([0.5, 0.8, 1, 1.2]))
        angle = rng.uniform(0, 6.28) if rng.random() < 0.4 else rng.uniform(0.3, 2.6)
        self.light = (math.cos(angle), math.sin(angle))
        tilt = rng.uniform(0, 6.28) if rng.random() < 0.4 else math.pi / 2
        t = ((XX - S / 2) * math.cos(tilt) + (YY - S / 2) * math.sin(tilt)) / S + 0.5
        stops = np.stack([self.colour() for _ in range(rng.integers(2, 4))])
        at = np.linspace(0, 1, len(stops))
        self.img = np.stack([np.interp(t, at, stops[:, c]) for c in range(3)], -1).astype(
            np.float32
        )

    def colour(self, saturation: float = 1.0) -> Array:
        return natural_colour(self.rng, self.hue, self.saturation * saturation)

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
        """Draw a shape with a shadow beneath it, shading along the light, 1/f texture, and perhaps
        stripes or checks."""
        rng = self.rng
        reach = shape.reach + (14 if shadow else 0)
        y0, y1 = int(max(0, shape.cy - reach)), int(min(S, shape.cy + reach + 1))
        x0, x1 = int(max(0, shape.cx - reach)), int(min(S, shape.cx + reach + 1))
        if y1 - y0 < 2 or x1 - x0 < 2:
            return
        yy = YY[y0:y1, x0:x1]
        xx = XX[y0:y1, x0:x1]
        region = self.img[y0:y1, x0:x1]
        if shadow:
            o = min(12.0, 0.25 * shape.radius + 2)
            d, _, _ = shape.distance(yy - o * self.light[1], xx - o * self.light[0])
            region *= 1 - (shadow * np.clip(0.5 - d / max(2.0, o), 0, 1))[..., None]
        d, u, v = shape.distance(yy, xx)
        along = ((xx - shape.cx) * self.light[0] + (yy - shape.cy) * self.light[1]) / max(
            shape.a, 4
        )
        shade = 1 - rng.uniform(0, 0.45) * along
        if rng.random() < 0.3 if sphere is None else sphere:
            shade = shade * (
                0.55 + 0.6 * np.sqrt(np.clip(-d / max(min(shape.a, shape.b), 3) * 1.6, 0.02, 1))
            )
        amount = rng.choice([0, 0, 0.04, 0.08, 0.2]) if texture is None else texture
        if amount:
            shade = shade + amount * fractal(rng, y1 - y0, x1 - x0)
        fill = colour * np.clip(shade, 0.05, 1.7)[..., None]
        if rng.random() < 0.13 if pattern is None else pattern:
            wave = np.sin(u * 6.28 / (period := rng.uniform(3, 12)))
            if rng.random() < 0.4:
                wave = wave * np.sin(v * 6.28 / period)
            other = np.clip(
                colour * rng.uniform(0.3, 0.8) + rng.uniform(0, 0.5) * rng.random(3), 0, 1
            )
            mix = np.clip(wave * 2 + 0.5, 0, 1)[..., None]
            fill = fill * (1 - mix) + other * mix * np.clip(shade, 0.05, 1.5)[..., None]
        alpha = np.clip(0.5 - d / soft, 0, 1)[..., None]
        region[:] = region * (1 - alpha) + alpha * np.clip(fill, 0, 1.1)

    def plain(self, shape: Shape, colour: Array, soft: float = 1.0, sphere: bool = False) -> None:
        self.paint(shape, colour, soft, texture=0, pattern=False, sphere=sphere)


def bust(canvas: Canvas) -> None:
    """Draw a head with hair, eyes, nose and mouth on shoulders; sometimes with ears, like a
    cat's."""
    rng = canvas.rng
    s = canvas.rng.uniform(22, 62)
    cx, cy = rng.uniform(50, 206), rng.uniform(70, 150)
    skin = hsv(rng.uniform(0.02, 0.1), rng.uniform(0.15, 0.6), rng.uniform(0.3, 0.98))
    hair = hsv(rng.uniform(0, 0.14), rng.uniform(0, 0.7), rng.uniform(0.03, 0.8))

    def ellipse(x: float, y: float, radius: float, rot: float, aspect: float) -> Shape:
        return Shape(rng, "ellipse", x, y, radius, rot, aspect)

    canvas.paint(
        ellipse(cx, cy + s * 2.3, s * 1.7, 0, 0.85 + 0.3 * rng.random()),
        canvas.colour(1.2),
        shadow=0.3,
    )
    canvas.paint(
        Shape(rng, "blob", cx, cy - s * 0.2, s * rng.uniform(1.05, 1.4), rng.uniform(0, 6.28), 1),
        hair,
        1.5,
        texture=0.2,
        pattern=False,
    )
    canvas.paint(Shape(rng, "box", cx, cy + s * 1.05, s * 0.35, 0, 1), skin * 0.85, pattern=False)
    canvas.paint(
        ellipse(cx, cy, s, math.pi / 2, rng.uniform(0.7, 0.92)),
        skin,
        texture=0.04,
        shadow=0.25,
        pattern=False,
        sphere=True,
    )
    ey = cy - s * rng.uniform(0, 0.2)
    ex = s * rng.uniform(0.28, 0.42)
    er = s * rng.uniform(0.09, 0.2)
    iris = rng.random(3).astype(np.float32) * 0.6
    ears = rng.random() < 0.35
    for side in (-1, 1):
        if rng.random() < 0.7:
            canvas.plain(
                ellipse(cx + side * ex, ey, er * 1.5, 0, 0.6), np.full(3, 0.92, np.float32)
            )
        canvas.plain(ellipse(cx + side * ex, ey, er * 0.8, 0, 1), iris * 0.5)
        canvas.plain(ellipse(cx + side * ex, ey - er * 1.6, er * 1.8, side * 0.15, 0.2), hair * 0.8)
        if ears:
            canvas.paint(
                Shape(
                    rng,
                    "triangle",
                    cx + side * s * 0.7,
                    cy - s * 0.95,
                    s * 0.5,
                    rng.uniform(0, 6.28),
                    1,
                ),
                hair,
                pattern=False,
            )
    canvas.plain(ellipse(cx + s * 0.03, cy + s * 0.25, s * 0.13, math.pi / 2, 0.5), skin * 0.75, 3)
    lips = np.array([0.65, 0.25, 0.25], np.float32) * rng.uniform(0.6, 1.3)
    canvas.plain(
        ellipse(cx, cy + s * 0.55, s * rng.uniform(0.2, 0.36), 0, rng.uniform(0.2, 0.5)), lips
    )


def house(canvas: Canvas) -> None:
    """Draw walls, a roof and windows."""
    rng = canvas.rng
    w = canvas.rng.uniform(20, 60)
    h = w * rng.uniform(0.5, 1)
    cx = rng.uniform(20, 236)
    cy = rng.uniform(110, 200)
    canvas.paint(Shape(rng, "box", cx, cy, w, 0, h / w), canvas.colour(0.7), 1, shadow=0.3)
    roof = Shape(rng, "triangle", cx, cy - h, w * 1.25, 0, 1)
    angle = np.array(
        [
            math.pi / 2,
            -math.pi / 2 - 0.9 + rng.uniform(-0.2, 0.1),
            -math.pi / 2 + 0.9 + rng.uniform(-0.1, 0.2),
        ]
    )
    roof.normals = np.stack([np.cos(angle), np.sin(angle)], 1)
    roof.offsets = np.array([2, w * 0.75, w * 0.75])
    canvas.paint(roof, canvas.colour(), 1)
    _windows(canvas, cx, cy, w, h)


def _windows(canvas: Canvas, cx: float, cy: float, w: float, h: float) -> None:
    rng = canvas.rng
    window = canvas.colour()
    columns = int(rng.integers(1, 4))
    for i in range(columns):
        for j in range(rng.integers(1, 3)):
            x, y = cx + (i - (columns - 1) / 2) * w * 0.6, cy - h * 0.45 + j * h * 0.75
            canvas.paint(
                Shape(rng, "box", x, y, w * 0.16, 0, rng.uniform(0.8, 1.5)), window, 1, texture=0
            )


def tree(canvas: Canvas) -> None:
    """Draw a trunk and crowns."""
    rng = canvas.rng
    s = canvas.rng.uniform(12, 40)
    cx, cy = rng.uniform(10, 246), rng.uniform(80, 170)
    leaf = hsv(
        rng.uniform(0.15, 0.4) if rng.random() < 0.8 else rng.uniform(0.02, 0.12),
        rng.uniform(0.3, 0.8),
        rng.uniform(0.2, 0.7),
    )
    canvas.paint(
        Shape(rng, "box", cx, cy + s * 1.4, s * 1.2, math.pi / 2, 0.12),
        hsv(0.07, 0.5, rng.uniform(0.1, 0.5)),
    )
    for _ in range(rng.integers(4, 10)):
        crown = Shape(
            rng,
            "blob",
            cx + rng.normal() * s * 0.5,
            cy + rng.normal() * s * 0.5,
            s * rng.uniform(0.3, 0.7),
            rng.uniform(0, 6.28),
            1,
        )
        canvas.paint(
            crown,
            leaf * rng.uniform(0.7, 1.3),
            rng.uniform(1, 3),
            texture=0.25,
            shadow=0.25,
            pattern=False,
        )


def cup(canvas: Canvas) -> None:
    """Draw a cup on a saucer, from above."""
    rng = canvas.rng
    s = canvas.rng.uniform(18, 60)
    colour = canvas.colour(0.8)
    cx, cy = rng.uniform(50, 206), rng.uniform(90, 200)
    canvas.paint(
        Shape(rng, "ellipse", cx, cy + s * 0.75, s * 1.7, 0, 0.4), canvas.colour(0.6), shadow=0.4
    )
    canvas.paint(
        Shape(rng, "ellipse", cx, cy + s * 0.1, s * 1.02, 0, 0.85), colour * 0.9, shadow=0.3
    )
    canvas.paint(Shape(rng, "ellipse", cx, cy - s * 0.3, s, 0, 0.45), colour)
    canvas.paint(Shape(rng, "ellipse", cx, cy - s * 0.28, s * 0.86, 0, 0.4), canvas.colour())


OBJECTS: list[Callable[[Canvas], None]] = [bust, bust, cup, house, tree]


def land(canvas: Canvas) -> None:
    """Draw clouds, receding hills, houses and trees."""
    rng = canvas.rng
    if rng.random() < 0.7:
        cloud = (
            np.clip((fractal(rng, rough=2) - rng.uniform(-0.3, 1)) * rng.uniform(0.5, 3), 0, 1)
            * rng.uniform(0.3, 0.9)
        )[..., None]
        canvas.img = canvas.img * (1 - cloud) + cloud * np.array(
            [0.95, 0.94, 0.92], np.float32
        ) * rng.uniform(0.6, 1)
    y = rng.uniform(80, 150)
    for _ in range(rng.integers(1, 5)):
        profile = y + fractal(rng, rough=2)[0] * rng.uniform(2, 22)
        alpha = np.clip(YY - profile[None], 0, 1)[..., None]
        shade = np.clip(
            1 + rng.uniform(0.05, 0.3) * fractal(rng) - rng.uniform(-0.3, 0.3) * (YY - y) / 128,
            0.1,
            1.6,
        )
        canvas.img = canvas.img * (1 - alpha) + alpha * (canvas.colour() * shade[..., None])
        y += rng.uniform(15, 45)
    for _ in range(rng.integers(0, 3)):
        house(canvas)
    for _ in range(rng.integers(0, 5)):
        tree(canvas)


def scene(rng: Rng) -> Array:
    """Draw a scene, (256, 256, 3)."""
    canvas = Canvas(rng)
    mode = str(rng.choice(["leaves", "land", "objects", "wall"], p=[0.33, 0.25, 0.3, 0.12]))
    if rng.random() < 0.45:
        canvas.img *= (1 + rng.uniform(0.03, 0.16) * fractal(rng, rough=1))[..., None]
    if mode == "land":
        land(canvas)
    low, high = {"leaves": (14, 60), "land": (0, 6), "objects": (2, 14), "wall": (3, 10)}[mode]
    soft = rng.choice([1, 1, 1.5, 3, 6])
    smallest = rng.uniform(6, 26)
    count = int(rng.integers(low, high))
    # dead leaves: radii follow a power law, so that the picture has no preferred scale, like
    # photographs
    order = rng.random(count) if mode == "leaves" else np.sort(rng.random(count))
    for u in order:
        radius = min(smallest / math.sqrt(max(1 - u, 0.004)), 110)
        shape = random_shape(rng, rng.uniform(-10, 266), rng.uniform(-10, 266), radius)
        canvas.paint(
            shape,
            canvas.colour(),
            soft * rng.uniform(0.8, 1.5),
            shadow=float(rng.choice([0, 0.25, 0.5])),
        )
    if mode == "objects" or rng.random() < 0.15:
        for _ in range(rng.integers(1, 4)):
            OBJECTS[rng.integers(len(OBJECTS))](canvas)
    if rng.random() < 0.3:
        for _ in range(rng.integers(1, 5)):
            canvas.paint(
                Shape(
                    rng,
                    "line",
                    rng.uniform(0, 256),
                    rng.uniform(0, 256),
                    rng.uniform(15, 50),
                    rng.uniform(0, 6.28),
                    1,
                ),
                canvas.colour(),
                1,
            )
    img = canvas.img
    if rng.random() < 0.6:
        img = (
            img * np.clip(1 + rng.uniform(0.05, 0.22) * fractal(rng, rough=3), 0.3, 1.6)[..., None]
        )
    img = np.clip(img, 0, 1) ** rng.uniform(0.7, 1.5)
    low_tone, high_tone = np.percentile(luma(img), [1, 99])
    black = rng.uniform(0, 0.12)
    white = rng.uniform(0.75, 1)
    img = (img - low_tone) / max(high_tone - low_tone, 0.1) * (white - black) + black
    img = img * np.array([rng.uniform(0.9, 1.1), 1, rng.uniform(0.9, 1.1)], np.float32)
    if rng.random() < 0.3:
        img = blur(img, rng.uniform(0.4, 1))
    img = img + rng.uniform(0, 0.03) * rng.normal(size=(S, S, 1))
    return np.clip(img, 0, 1).astype(np.float32)


def vary(img: Array, rng: Rng) -> Array:
    """Make another picture of a scene: flip, crop and enlarge, swap channels, change saturation and
    gamma."""
    x = img[:, ::-1] if rng.random() < 0.5 else img
    if rng.random() < 0.7:
        n = int(S * rng.uniform(0.55, 1))
        y0, x0 = rng.integers(0, S - n + 1), rng.integers(0, S - n + 1)
        zoom = S / n
        x = ndimage.affine_transform(
            x[y0 : y0 + n, x0 : x0 + n],
            (1 / zoom, 1 / zoom, 1),
            output_shape=(S, S, 3),
            order=1,
            mode="nearest",
        )
    if rng.random() < 0.3:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.4:
        grey = luma(x)[..., None]
        x = grey + (x - grey) * rng.uniform(0.2, 1.5)
    return np.ascontiguousarray(np.clip(x, 0, 1) ** rng.uniform(0.75, 1.3), np.float32)
