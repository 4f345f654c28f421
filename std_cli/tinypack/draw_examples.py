"""Draw the pictures and the clip of examples/: `python -m std_cli.tinypack.draw_examples FOLDER`.

One scene, six style references, and a clip of two shots with a moving camera, a moving object and a
melody. The clip's layers are drawn at twice its size, moved there, and halved.
"""

import math
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from scipy import ndimage

from std_cli.tinypack import styles
from std_cli.tinypack.scenes import Array, Canvas, Rng, Shape, blur, cup, fractal, hsv, scene, tree

SCENE = 16
# kind -> seed
STYLES = {"halftone": 1, "woodcut": 5, "hatching": 4, "watercolour": 6, "stained": 7, "oil": 3}

# px, px, frames per second, frames of each of the two shots
WIDTH, HEIGHT, RATE, SHOT = 384, 216, 24, 42
SOUND_RATE = 48_000


def _save(x: Array, path: Path) -> None:
    Image.fromarray((x * 255).round().astype(np.uint8)).save(path, optimize=True)


# --- the clip's layers -------------------------------------------------------------------------


class Layer(Canvas):
    """A transparent canvas of any size up to 512 px; `rgba` is (2 h, 2 w, 4), premultiplied."""

    def __init__(self, rng: Rng, width: int, height: int) -> None:
        self.rng = rng
        self.hue = 0.1
        self.saturation = 0.9
        self.light = (-0.6, 0.8)
        self.rgba = np.zeros((2 * height, 2 * width, 4), np.float32)
        self.yy, self.xx = (
            (a + 0.5) / 2 for a in np.mgrid[0 : 2 * height, 0 : 2 * width].astype(np.float32)
        )

    def cover(self, alpha: Array, fill: Array) -> None:
        """Lay a colour (..., 3) over the canvas, by `alpha` (2 h, 2 w)."""
        self.rgba *= 1 - alpha[..., None]
        self.rgba[..., :3] += alpha[..., None] * np.clip(fill, 0, 1)
        self.rgba[..., 3] += alpha

    def grain(self, rough: int = 1) -> Array:
        """Noise over the layer, (2 h, 2 w)."""
        h, w = self.yy.shape[0] // 2, self.yy.shape[1] // 2
        return fractal(self.rng, h, w, rough, 4).repeat(2, 0).repeat(2, 1)

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
        """Draw as Canvas.paint does, but with nothing random except the texture, and no stripes."""
        if shadow:
            d, _, _ = shape.distance(self.yy - 4 * self.light[1], self.xx - 4 * self.light[0])
            self.rgba[..., :3] *= 1 - (shadow * np.clip(0.5 - d / 6, 0, 1))[..., None]
        d, _, _ = shape.distance(self.yy, self.xx)
        along = ((self.xx - shape.cx) * self.light[0] + (self.yy - shape.cy) * self.light[1]) / max(
            shape.a, 4
        )
        shade = 1 - 0.25 * np.clip(along, -1.5, 1.5)
        if sphere:
            shade = shade * (
                0.6 + 0.55 * np.sqrt(np.clip(-d / min(shape.a, shape.b) * 1.6, 0.02, 1))
            )
        shade = shade + (0.05 if texture is None else texture) * self.grain()
        self.cover(np.clip(0.5 - d / soft, 0, 1), colour * np.clip(shade, 0.1, 1.6)[..., None])


def sprite(draw: Callable[[Canvas], None], seed: int) -> Array:
    """Return what `draw` draws, cut out of its canvas: (2 h, 2 w, 4), premultiplied."""
    layer = Layer(np.random.default_rng(seed), 256, 256)
    draw(layer)
    ys, xs = (np.flatnonzero(layer.rgba[..., 3].max(axis) > 0) for axis in (1, 0))
    return layer.rgba[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def put(under: Array, top: Array, x: float, y: float) -> None:
    """Lay `top` over `under`, both at twice the clip's size, with its upper left corner at (x, y)
    of the clip."""
    left, above = math.floor(2 * x), math.floor(2 * y)
    moved = ndimage.shift(
        np.pad(top, ((0, 1), (0, 1), (0, 0))), (2 * y - above, 2 * x - left, 0), order=1
    )
    h, w = under.shape[:2]
    y0, x0, y1, x1 = (
        max(above, 0),
        max(left, 0),
        min(above + len(moved), h),
        min(left + moved.shape[1], w),
    )
    if y1 > y0 and x1 > x0:
        part = moved[y0 - above : y1 - above, x0 - left : x1 - left]
        here = under[y0:y1, x0:x1]
        here *= 1 - part[..., 3:]
        here += part[..., : here.shape[2]]


def halve(x: Array) -> Array:
    """Reduce (2 h, 2 w, C) to a picture (h, w, 3)."""
    h, w, c = x.shape
    return np.clip(x.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))[..., :3], 0, 1)


# --- the two shots -----------------------------------------------------------------------------


def hills(seed: int, y: float, height: float, colour: Array, rough: float) -> Layer:
    """Draw a ridge around `y`, 500 px wide."""
    canvas = Layer(np.random.default_rng(seed), 500, HEIGHT)
    edge = y - height * np.interp(
        canvas.xx[0], np.arange(500), blur(fractal(canvas.rng, 500, 500, 3, 4)[:1], 2)[0]
    )
    depth = canvas.yy - edge[None]
    shade = (
        1.1 - 0.35 * np.clip(depth / 90, 0, 1) + rough * canvas.grain(0) + 0.08 * canvas.grain(3)
    )
    canvas.cover(np.clip(depth * 2 + 0.5, 0, 1), colour * shade[..., None])
    return canvas


def balloon(canvas: Canvas) -> None:
    """A striped balloon with its basket."""
    envelope = Shape(canvas.rng, "ellipse", 128, 100, 30, math.pi / 2, 0.86)
    canvas.paint(envelope, np.array([0.86, 0.2, 0.13], np.float32), 0.8, texture=0, sphere=True)
    assert isinstance(canvas, Layer)
    _, u, v = envelope.distance(canvas.yy, canvas.xx)
    gores = np.sin(
        np.arcsin(
            np.clip(v / (envelope.b * np.sqrt(np.clip(1 - (u / envelope.a) ** 2, 0.02, 1))), -1, 1)
        )
        * 5
    )
    stripe = np.clip(gores * 6 + 0.5, 0, 1)[..., None] * (canvas.rgba[..., 3:] > 0.5)
    glow = canvas.rgba[..., :3].max(-1, keepdims=True)
    canvas.rgba[..., :3] = canvas.rgba[..., :3] * (1 - stripe) + stripe * glow * np.array(
        [1.1, 0.95, 0.72], np.float32
    )
    for side in (-1, 1):
        rope = Shape(canvas.rng, "box", 128 + 5 * side, 137, 10, math.pi / 2 + 0.25 * side, 0.05)
        canvas.paint(rope, np.full(3, 0.25, np.float32), 0.8, texture=0)
    canvas.paint(
        Shape(canvas.rng, "box", 128, 149, 6, 0, 0.8), np.array([0.45, 0.28, 0.14], np.float32), 0.8
    )


def landscape() -> Iterator[Array]:
    """A pan over hills and trees, nearer ones faster, while a balloon rises behind the trees."""
    rng = np.random.default_rng(5)
    sky = Layer(rng, 500, HEIGHT)
    t = np.clip(sky.yy / 150, 0, 1)[..., None]
    sky.cover(
        np.ones_like(sky.yy),
        np.array([0.3, 0.52, 0.82]) * (1 - t) + np.array([0.98, 0.86, 0.7]) * t,
    )
    sky.cover(
        np.clip(blur(sky.grain(2), 2) * 0.8 - 0.25, 0, 0.85) * (1 - 0.6 * t[..., 0]),
        np.array([1.0, 0.97, 0.93]),
    )
    far = hills(11, 120, 16, np.array([0.42, 0.5, 0.64]), 0.03)
    middle = hills(12, 148, 13, np.array([0.38, 0.5, 0.28]), 0.07)
    near = hills(13, 182, 7, np.array([0.42, 0.46, 0.14]), 0.14)
    trees = [sprite(tree, seed) for seed in (49, 58, 42, 47, 45, 59, 41)]
    flight = sprite(balloon, 1)
    for i in range(SHOT):
        pan = 108 * (i + 0.5) / SHOT
        out = np.zeros((2 * HEIGHT, 2 * WIDTH, 4), np.float32)
        put(out, sky.rgba, -0.1 * pan, 0)
        put(out, far.rgba, -0.25 * pan, 0)
        put(out, flight, 92 + 1.5 * i, 58 - 0.7 * i + 2 * math.sin(i / 9))
        put(out, middle.rgba, -0.5 * pan, 0)
        for k, x in ((0, 70), (1, 196), (2, 330)):
            put(out, trees[k], x - 0.5 * pan, 158 - len(trees[k]) / 2)
        put(out, near.rgba, -pan, 0)
        for k, x in ((3, 22), (4, 232), (5, 330), (6, 432)):
            put(out, trees[k], x - pan, 200 - len(trees[k]) / 2)
        yield halve(out)


def ball(turn: float) -> Array:
    """A beach ball of radius 26, turned by `turn` radians."""
    canvas = Layer(np.random.default_rng(3), 60, 60)
    d = np.hypot(canvas.xx - 30, canvas.yy - 30) - 26
    x, y = (canvas.xx - 30) / 26, (canvas.yy - 30) / 26
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    wedge = np.floor((np.arctan2(v + 0.25 * z, u + 0.1 * z) / math.pi + 1) * 3).astype(int) % 3
    paint = np.array([[0.92, 0.9, 0.84], [0.85, 0.25, 0.16], [0.13, 0.4, 0.62]])[wedge]
    light = np.clip(0.35 + 0.75 * (-0.45 * x - 0.6 * y + 0.66 * z), 0.15, 1.1)
    shine = 0.6 * np.clip(1 - np.hypot(x + 0.35, y + 0.42) * 4, 0, 1)
    canvas.cover(np.clip(0.5 - d * 2, 0, 1), paint * light[..., None] + shine[..., None])
    return canvas.rgba


def table() -> Iterator[Array]:
    """Cups on a table: the camera moves closer while a ball rolls behind one and in front of
    another."""
    rng = np.random.default_rng(8)
    wall = Layer(rng, 460, 260)
    wall.cover(
        np.ones_like(wall.yy),
        np.array([0.28, 0.44, 0.45]) * (1.15 - wall.xx / 900 + 0.04 * wall.grain())[..., None],
    )
    for x, y, a, hue in ((96, 62, 44, 0.09), (330, 56, 34, 0.55)):
        wall.paint(Shape(rng, "box", x, y, a, 0, 0.8), hsv(0.08, 0.6, 0.35), 1, shadow=0.4)
        wall.paint(Shape(rng, "box", x, y, a * 0.84, 0, 0.75), hsv(hue, 0.35, 0.9), 1, texture=0.02)
        wall.paint(Shape(rng, "blob", x, y + 6, a * 0.4, 0.4, 1), hsv(hue + 0.45, 0.55, 0.6), 1)
    streaks = blur(wall.grain(0), 1) * 0.04 + 0.09 * np.sin(
        wall.yy * 0.9 + 3 * np.sin(wall.xx / 70)
    )
    wood = np.array([0.66, 0.44, 0.24]) * (1.05 - (wall.yy - 150) / 260 + 0.7 * streaks)[..., None]
    wall.cover(np.clip((wall.yy - 148) * 2, 0, 1), wood)
    cups = [sprite(cup, seed) for seed in (41, 42)]
    for i in range(SHOT):
        out = wall.rgba.copy()
        rolled = 6.2 * i
        for which, (cx, cy) in ((0, (160, 190)), (-1, (40 + rolled, 207)), (1, (304, 226))):
            thing = ball(rolled / 26) if which < 0 else cups[which]
            shadow = np.exp(-(((wall.xx - cx - 6) / 40) ** 2) - ((wall.yy - cy) / 7) ** 2) * 0.4
            out[..., :3] *= 1 - shadow[..., None]
            put(out, thing, cx - thing.shape[1] / 4, cy - len(thing) / 2)
        zoom = 1.15 - 0.17 * (0.5 - 0.5 * math.cos(math.pi * i / (SHOT - 1)))
        size = np.array([HEIGHT, WIDTH]) * 2 * zoom
        corner = np.array([260, 460]) - size / 2
        view = [
            ndimage.affine_transform(
                out[..., k], [zoom] * 2, corner, (2 * HEIGHT, 2 * WIDTH), order=1
            )
            for k in range(3)
        ]
        yield halve(np.stack(view, -1))


# --- sound and file ----------------------------------------------------------------------------


def melody(seconds: float) -> Array:
    """Plucked notes over two low ones, float32 (2, N) in [-1, 1]."""
    n = round(seconds * SOUND_RATE)
    out = np.zeros((2, n))
    time = np.arange(n) / SOUND_RATE
    tune = [0, 4, 7, 12, 9, 7, 4, 7, 5, 9, 12, 16, 14, 12]  # semitones above C4
    notes = [(i * 0.25, s + 60, 0.22) for i, s in enumerate(tune)] + [
        (0.0, 48, 0.3),
        (1.75, 53, 0.3),
    ]
    for begin, key, loud in notes:
        t = time - begin
        f = 440 * 2 ** ((key - 69) / 12)
        wave = sum(
            np.sin(2 * math.pi * f * k * t) * np.exp(-t * (2 + 1.5 * k)) / k for k in range(1, 6)
        )
        pan = 0.5 + 0.02 * (key - 62)
        voice = (
            loud
            * wave
            * (t >= 0)
            * np.clip(t / 0.005, 0, 1)
            * np.clip((seconds - time) / 0.15, 0, 1)
        )
        out += np.array([[1 - pan], [pan]]) * voice
    return np.asarray(out, np.float32)


def write_clip(path: Path) -> None:
    """H.264 and AAC in mp4, tagged BT.709. The frames repeat bit for bit: x264 runs on one
    thread."""
    pictures = [*landscape(), *table()]
    rng = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as file:
        video = file.add_stream(
            "libx264", RATE, options={"crf": "20", "preset": "slow", "threads": "1"}
        )
        video.width = WIDTH
        video.height = HEIGHT
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.color_range = 1
        context.colorspace = 1
        context.color_primaries = 1
        context.color_trc = 1
        audio = file.add_stream("aac", SOUND_RATE, layout="stereo")
        audio.bit_rate = 96_000
        for i, x in enumerate(pictures):
            x = x + rng.uniform(-0.5, 0.5, x.shape) / 255  # dither: no bands in the sky
            frame = av.VideoFrame.from_ndarray(
                (np.clip(x, 0, 1) * 255).round().astype(np.uint8), "rgb24"
            )
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts = i
            frame.time_base = Fraction(1, RATE)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        sound = melody(len(pictures) / RATE)
        for at in range(0, sound.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, at : at + 1024]), "fltp", "stereo"
            )
            block.sample_rate = SOUND_RATE
            block.pts = at
            block.time_base = Fraction(1, SOUND_RATE)
            file.mux(audio.encode(block))
        file.mux(audio.encode(None))


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _save(scene(np.random.default_rng(SCENE)), folder / "scene.png")
    for kind, seed in STYLES.items():
        rng = np.random.default_rng(seed)
        picture = scene(rng)
        _save(
            styles.stylize(picture, styles.random_style(rng, kind), rng),
            folder / f"style-{kind}.png",
        )
    write_clip(folder / "clip.mp4")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
