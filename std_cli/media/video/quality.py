"""How steady a result is, measured while it is written: seams where windows join, and flicker."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels
from std_cli.media.video.flow import Flow, Grey, grey

LONG_SIDE = 160
VISIBLE = 1.0
"""Pixels. Where the flow, followed back and forward, misses by more, a pixel was uncovered or is
hidden by something."""


@dataclass(frozen=True)
class _Measured:
    """What is kept of a frame."""

    source: Grey
    result: Grey
    joint: bool
    shot: int


class Quality:
    """`add` the frames of a range in order, then read `figures`. It holds the first and the last.

    seam_ratio: mean change from one frame to the next where stitching windows start or end, divided
    by the mean change elsewhere; 1 is no seam. flicker: mean difference between a frame and the one
    before moved as the source moved, in levels of 255. Both on luma of 160 pixels, never across a
    cut. The figures of ranges that were measured apart are those of `merge`.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # change and count at joints, elsewhere; flicker and count
        self._first: _Measured | None = None
        self._last: _Measured | None = None
        self._flow = Flow()

    def add(self, source: Pixels, result: Pixels, *, joint: bool, shot: int) -> float | None:
        """Take the next frame, source and result (H, W, 3). `joint`: a window of this shot starts
        here or has ended; `shot`: the number of the shot that the frame is in.

        Returns the flicker of this frame, None of the first of a shot, or where nothing stays in
        view.
        """
        return self._take(_Measured(_small(source), _small(result), joint, shot))

    def _take(self, now: "_Measured") -> float | None:
        before, flicker = self._last, None
        if before is not None and now.shot == before.shot:
            at = 0 if now.joint else 2
            change = np.abs(now.result.astype(float) - before.result).mean()
            self._sums[at : at + 2] += float(change), 1
            coords, error = self._flow.flow_back(before.source, now.source)
            visible = error < VISIBLE
            difference = np.abs(self._flow.warp(before.result, coords) - now.result)
            total, pixels = float(difference[visible].sum(dtype=float)), int(visible.sum())
            self._sums[4:] += total, pixels
            flicker = total / pixels if pixels else None
        self._first = self._first or now
        self._last = now
        return flicker

    def merge(self, following: "Quality") -> None:
        """Take in what was measured of the range of frames that follows, the change from one range
        to the next included."""
        if following._first is None:
            return
        self._take(following._first)
        self._sums += following._sums
        self._last = following._last

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
        for name, frame in (("first", self._first), ("last", self._last)):
            if frame is not None:
                state |= {f"{name}_{key}": np.array(value) for key, value in vars(frame).items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> "Quality":
        """A measure that continues after the frame at which `state` was taken; {} is none yet."""
        new = cls()
        if state:
            new._sums = state["sums"].astype(np.float64)
        if "last_source" in state:
            new._first, new._last = _kept(state, "first"), _kept(state, "last")
        return new


def _kept(state: Mapping[str, NDArray[np.generic]], name: str) -> _Measured:
    return _Measured(
        state[f"{name}_source"].astype(np.uint8),
        state[f"{name}_result"].astype(np.uint8),
        bool(state[f"{name}_joint"]),
        int(state[f"{name}_shot"]),
    )


def _small(rgb: Pixels) -> Grey:
    image = Image.fromarray(rgb)
    scale = LONG_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return grey(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))
