"""How steady a result is, measured while it is written: seams where windows join, and flicker."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels
from std_cli.media.video.steady import Grey, Motion, grey

LONG_SIDE = 160
SEEN = 1.0
"""Pixels: what motion does not lead there and back to a place so near is uncovered, or hidden by
something."""


class Quality:
    """`add` the frames in order, then read `figures`. Holds one frame.

    seam_ratio: mean change from one frame to the next where stitching windows start or end, divided
    by the mean change elsewhere; 1 is no seam. flicker: mean difference between a frame and the one
    before moved as the source moved, in levels of 255. Both on luma of 160 pixels, never across a
    cut.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # change and count at joints, elsewhere; flicker and count
        self._before: tuple[Grey, Grey] | None = None
        self._motion = Motion()

    def add(self, source: Pixels, result: Pixels, *, joint: bool, cut: bool) -> None:
        """`joint`: a window of this shot starts here or has ended; `cut`: the frame begins a
        shot."""
        now = _small(source), _small(result)
        if self._before is not None and not cut:
            old_source, old_result = self._before
            at = 0 if joint else 2
            self._sums[at : at + 2] += float(np.abs(now[1].astype(float) - old_result).mean()), 1
            there, off = self._motion.back(old_source, now[0])
            seen = off < SEEN
            difference = np.abs(self._motion.moved(old_result, there) - now[1])
            self._sums[4:] += float(difference[seen].sum(dtype=float)), seen.sum()
        self._before = now

    @property
    def figures(self) -> dict[str, float | None]:
        """None where there is nothing to measure."""
        joint, joints, other, others, flicker, pixels = self._sums
        ratio = (joint / joints) / (other / others) if joints and others and other else None
        return {
            "seam_ratio": round(float(ratio), 4) if ratio is not None else None,
            "flicker": round(float(flicker / pixels), 4) if pixels else None,
        }

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays that `from_state` goes on from."""
        held = (
            {}
            if self._before is None
            else dict(zip(("source", "result"), self._before, strict=True))
        )
        return {"sums": self._sums.copy(), **held}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[np.generic]]) -> "Quality":
        new = cls()
        new._sums = state["sums"].astype(np.float64)
        if "source" in state:
            new._before = state["source"].astype(np.uint8), state["result"].astype(np.uint8)
        return new


def _small(rgb: Pixels) -> Grey:
    image = Image.fromarray(rgb)
    scale = LONG_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return grey(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))
