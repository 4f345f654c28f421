"""How steady a result is, measured while it is written: seams where windows join, and flicker."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels
from std_cli.media.video.flow import Flow, Grey, grey

LONG_SIDE = 160
VISIBLE = 1.0
"""Pixels. Where the flow, followed back and forward, misses by more, a pixel was uncovered or is
hidden by something."""


class Quality:
    """`add` the frames of a range in order, then read `figures`. It holds one frame.

    seam_ratio: mean change from one frame to the next where stitching windows start or end, divided
    by the mean change elsewhere; 1 is no seam. flicker: mean difference between a frame and the one
    before moved as the source moved, in levels of 255. Both on luma of 160 pixels, never across a
    cut. The figures of ranges that were measured apart are those of `merge`.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # change and count at joints, elsewhere; flicker and count
        self._before: tuple[Grey, Grey] | None = None
        self._shot = 0
        self._flow = Flow()

    def add(self, source: Pixels, result: Pixels, *, joint: bool, shot: int) -> float | None:
        """Take the next frame, source and result (H, W, 3). `joint`: a window of this shot starts
        here or has ended; `shot`: the number of the shot that the frame is in.

        Returns the flicker of this frame, None of the first of a shot, or where nothing stays in
        view.
        """
        flicker = None
        now = _small(source), _small(result)
        if self._before is not None and shot == self._shot:
            old_source, old_result = self._before
            at = 0 if joint else 2
            self._sums[at : at + 2] += float(np.abs(now[1].astype(float) - old_result).mean()), 1
            coords, error = self._flow.flow_back(old_source, now[0])
            visible = error < VISIBLE
            difference = np.abs(self._flow.warp(old_result, coords) - now[1])
            total, pixels = float(difference[visible].sum(dtype=float)), int(visible.sum())
            self._sums[4:] += total, pixels
            flicker = total / pixels if pixels else None
        self._before = now
        self._shot = shot
        return flicker

    def merge(self, following: "Quality") -> None:
        """Take in what was measured of the range of frames that follows."""
        self._sums += following._sums
        if following._before is not None:
            self._before = following._before
            self._shot = following._shot

    @property
    def figures(self) -> dict[str, float | None]:
        """seam_ratio and flicker; None where there is nothing to measure."""
        joint, joints, other, others, flicker, pixels = self._sums
        ratio = (joint / joints) / (other / others) if joints and others and other else None
        return {
            "seam_ratio": round(float(ratio), 4) if ratio is not None else None,
            "flicker": round(float(flicker / pixels), 4) if pixels else None,
        }

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that `from_state` continues from."""
        state: dict[str, NDArray[np.generic]] = {"sums": self._sums.copy()}
        if self._before is not None:
            state["source"], state["result"] = self._before
            state["shot"] = np.array(self._shot)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> "Quality":
        """A measure that continues after the frame at which `state` was taken; {} is none yet."""
        new = cls()
        if state:
            new._sums = state["sums"].astype(np.float64)
        if "source" in state:
            new._before = state["source"].astype(np.uint8), state["result"].astype(np.uint8)
            new._shot = int(state["shot"])
        return new


def _small(rgb: Pixels) -> Grey:
    image = Image.fromarray(rgb)
    scale = LONG_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return grey(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))
