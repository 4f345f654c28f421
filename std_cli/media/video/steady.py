"""How the source moves from one frame to the next, and results that are made steady along that
motion."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels

Grey = NDArray[np.uint8]  # (H, W)
Floats = NDArray[np.float32]

SIDES = 16, 512
"""Pixels: motion is looked for in frames whose longer side has at most so many, the shorter side at
least."""
OFF = 0.5
"""Pixels. Motion counts fully that leads there and back to the same place, 1/e of it where it ends
so far off."""
CHANGE = 16
"""Levels of 255. It counts 1/e where the source itself became so much lighter or darker."""


def grey(image: Image.Image) -> Grey:
    """The luma of an RGB picture."""
    return np.asarray(image.convert("L"))


class Motion:
    """Dense optical flow: DIS (Kroeger et al. 2016, arXiv 1603.03590). Not to be shared by
    threads."""

    def __init__(self) -> None:
        import cv2

        self._cv = cv2
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def back(self, before: Grey, now: Grey) -> tuple[Floats, Floats]:
        """Where the pixels of `now` were in `before`: (H, W, 2), x and y; how far off the way back
        ends: (H, W).

        Both in pixels; that distance is infinite for what was outside the frame.
        """
        h, w = now.shape
        scale = max(1.0, max(h, w) / SIDES[1])
        size = (max(SIDES[0], round(w / scale)), max(SIDES[0], round(h / scale)))
        a, b = (self._cv.resize(x, size, interpolation=self._cv.INTER_AREA) for x in (before, now))
        flow, ahead = self._flow(b, a), self._flow(a, b)
        again = flow + self.moved(ahead, _places(b.shape) + flow)
        both = self._cv.resize(np.concatenate([flow, again], -1), (w, h))
        both *= np.array([w / size[0], h / size[1]] * 2, np.float32)
        there = _places(now.shape) + both[..., :2]
        off = np.linalg.norm(both[..., 2:], axis=-1)
        off[(there < 0).any(-1) | (there > (w - 1, h - 1)).any(-1)] = np.inf
        return there, off

    def _flow(self, one: NDArray[np.generic], other: NDArray[np.generic]) -> Floats:
        """(H, W, 2)"""
        return np.asarray(self._dis.calc(one, other, None), np.float32)  # type: ignore[call-overload]

    def moved(self, image: NDArray[np.generic], there: Floats, *, fine: bool = False) -> Floats:
        """The values of `image` at the places `there`, between pixels linear, or cubic if
        `fine`."""
        how = self._cv.INTER_CUBIC if fine else self._cv.INTER_LINEAR
        at = there[..., 0], there[..., 1]
        values = self._cv.remap(
            image.astype(np.float32), *at, how, borderMode=self._cv.BORDER_REPLICATE
        )
        return np.asarray(values, np.float32)

    def blurred(self, image: Floats, sigma: float) -> Floats:
        return np.asarray(self._cv.GaussianBlur(image, (0, 0), sigma), np.float32)


def _places(shape: tuple[int, ...]) -> Floats:
    """The place of each pixel itself, (H, W, 2)."""
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1).astype(np.float32)


class Steady:
    """A filter of stylized frames, one after the other, that takes out what flickers. Holds one
    frame.

    Each result is mixed with the one before, as the source moved, by `strength` (0 to less than 1)
    where that motion is certain and the source only moved: what comes into view, or changes, stays
    new. So it is a mean of about 1 / (1 - strength) frames at most.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        # source (H, W) and result (H, W, 3): all there is of state
        self.before: tuple[Grey, Floats] | None = None
        self._motion = Motion()

    def __call__(self, source: Grey, result: Pixels, cut: bool) -> Pixels:
        """The steadier result, of one size with the source. `cut`: the frame begins a shot."""
        mixed = result.astype(np.float32)
        if self.before is not None and not cut:
            old_source, old = self.before
            there, off = self._motion.back(old_source, source)
            change = self._motion.blurred(self._motion.moved(old_source, there) - source, 1.5)
            share = self.strength * np.exp(-np.square(off / OFF) - np.square(change / CHANGE))
            mixed += share[..., None] * (self._motion.moved(old, there, fine=True) - mixed)
            mixed = mixed.clip(0, 255)
        self.before = source, mixed
        return mixed.round().astype(np.uint8)
