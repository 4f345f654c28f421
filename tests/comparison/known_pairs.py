"""Stylizations of which it is known which is better, drawn for the tests: a measure must rank
them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from std_cli.comparison.measures import Sample
from std_cli.media.video.clip import Pixels
from std_cli.tinypack import styles
from std_cli.tinypack.scenes import scene, vary

KINDS = ("halftone", "comic", "painted", "hatching", "watercolour", "oil", "mosaic", "woodcut",
         "pastel", "pointillism", "stained", "poster")  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What can be made of one content and one reference."""

    kind: str
    content: Pixels
    reference: Pixels
    results: dict[str, Pixels]
    """styled: in the reference's style, without its content. itself: the content. transfer: the
    content in the reference's colours. other: in another style. blurred: the content, blurred.
    shuffled: the content's tiles in another order."""

    def sample(self, result: str) -> Sample:
        return Sample([self.content], self.reference, [self.results[result]])


def _pixels(x: np.ndarray, side: int) -> Pixels:
    image = Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def known_pairs(side: int) -> Iterator[Known]:
    """One of each kind of style, in pictures of side x side."""
    for number, kind in enumerate(KINDS):
        r = np.random.default_rng((11, number))
        style = styles.random_style(r, kind)
        other = styles.random_style(r, KINDS[(number + 5) % len(KINDS)])
        plain, elsewhere = (vary(scene(r), r) for _ in range(2))
        reference = styles.stylize(elsewhere, style, r)
        tiles = plain.reshape(8, 32, 8, 32, 3).transpose(0, 2, 1, 3, 4).reshape(64, 32, 32, 3)
        tiles = tiles[r.permutation(64)].reshape(8, 8, 32, 32, 3).transpose(0, 2, 1, 3, 4)
        results = {
            "styled": styles.stylize(plain, style, r),
            "itself": plain,
            "transfer": styles.transport(plain, reference),
            "other": styles.stylize(plain, other, r),
            "blurred": ndimage.gaussian_filter(plain, (6, 6, 0)),
            "shuffled": tiles.reshape(plain.shape),
        }
        yield Known(
            kind,
            _pixels(plain, side),
            _pixels(reference, side),
            {name: _pixels(x, side) for name, x in results.items()},
        )


ORDERS = {
    "csd": ("styled", "itself", "other", "blurred"),
    "texture": ("styled", "itself", "transfer", "other", "blurred"),
    "colour": ("transfer", "itself", "blurred"),
    "edges": ("itself", "blurred", "shuffled"),
    "lpips": ("itself", "blurred", "shuffled"),
}
"""Of each measure of pictures, a result that is better than all that come after it."""


def clip_samples() -> dict[str, Sample]:
    """A pan over a drawn scene, stylized: steady; its frames mixed up; with noise of its own in
    every frame; and with a jump at frame 5, where a window begins."""
    r = np.random.default_rng(3)
    whole = _pixels(vary(scene(r), r), 256)
    frames = [np.ascontiguousarray(whole[40:136, 4 * i : 4 * i + 128]) for i in range(10)]
    steady = [(255 - 0.8 * f).astype(np.uint8) for f in frames]
    noisy = [(f + r.normal(0, 12, f.shape)).clip(0, 255).astype(np.uint8) for f in steady]
    jump = [f if i < 5 else (0.8 * f + 40).astype(np.uint8) for i, f in enumerate(steady)]
    results = {
        "steady": steady,
        "mixed up": [steady[i] for i in r.permutation(10)],
        "noisy": noisy,
        "jump": jump,
    }
    times = [i / 24 for i in range(10)]
    return {
        name: Sample(frames, whole, made, times=times, joints={5}) for name, made in results.items()
    }


CLIP_ORDERS = {
    "flicker": ("steady", "noisy", "mixed up"),
    "warp": ("steady", "noisy", "mixed up"),
    "temporal-clip": ("steady", "mixed up"),
    "seams": ("steady", "jump"),
}
