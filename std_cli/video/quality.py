"""How steady a result is, measured while it is written: seams where windows join, and flicker."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.video.clip import Pixels

LONG_SIDE, BLOCK, REACH = 160, 8, 6
MATCHED = 6 / 255
"""A block whose source is found again with at most this mean difference counts; others are uncovered or blurred."""

Luma = NDArray[np.float32]  # (h, w), 0 to 1


class Quality:
    """`add` the frames in order, then read `figures`. Holds one frame.

    seam_ratio: mean change from one frame to the next where stitching windows start or end, divided by the mean change
    elsewhere; 1 is no seam. flicker: mean difference between a frame and the one before moved as the source moved, in
    levels of 255. Both on luma of 160 pixels, never across a cut; motion by block matching (8 x 8, up to 6 pixels).
    """

    def __init__(self) -> None:
        self._sums = np.zeros(6)  # change and count at joints, elsewhere; flicker and count
        self._before: tuple[Luma, Luma] | None = None

    def add(self, source: Pixels, result: Pixels, *, joint: bool, cut: bool) -> None:
        """`joint`: a window of this shot starts here or has ended; `cut`: the frame begins a shot."""
        now = _luma(source), _luma(result)
        if self._before is not None and not cut:
            old_source, old_result = self._before
            at = 0 if joint else 2
            self._sums[at : at + 2] += float(np.abs(now[1] - old_result).mean()), 1
            difference, pixels = _moved_difference(old_source, now[0], old_result, now[1])
            self._sums[4:] += difference, pixels
        self._before = now

    @property
    def figures(self) -> dict[str, float | None]:
        """None where there is nothing to measure."""
        joint, joints, other, others, flicker, pixels = self._sums
        ratio = (joint / joints) / (other / others) if joints and others and other else None
        return {
            "seam_ratio": round(float(ratio), 4) if ratio is not None else None,
            "flicker": round(255 * float(flicker / pixels), 4) if pixels else None,
        }

    def state(self) -> dict[str, NDArray[np.float32] | NDArray[np.float64]]:
        """Arrays that `from_state` goes on from."""
        held = {} if self._before is None else dict(zip(("source", "result"), self._before, strict=True))
        return {"sums": self._sums.copy(), **held}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[np.generic]]) -> "Quality":
        new = cls()
        new._sums = state["sums"].astype(np.float64)
        if "source" in state:
            new._before = state["source"].astype(np.float32), state["result"].astype(np.float32)
        return new


def _luma(rgb: Pixels) -> Luma:
    image = Image.fromarray(rgb).convert("L")
    scale = LONG_SIDE / max(image.size)
    size = (max(BLOCK, round(image.width * scale)), max(BLOCK, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0), np.float32) / np.float32(255)


def _moved_difference(a: Luma, b: Luma, old: Luma, new: Luma) -> tuple[float, int]:
    """Sum of |new - moved old| over the blocks of `b` that are found in `a`, and the count of their pixels."""
    rows, columns = b.shape[0] // BLOCK, b.shape[1] // BLOCK
    h, w = rows * BLOCK, columns * BLOCK
    wide = [np.pad(x, REACH, mode="edge") for x in (a, old)]
    best = np.full((rows, columns), np.inf, np.float32)
    difference = np.zeros_like(best)
    shifts = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    for y, x in sorted(shifts, key=lambda s: s[0] ** 2 + s[1] ** 2):  # of equal matches the nearest
        cut = np.s_[REACH + y : REACH + y + h, REACH + x : REACH + x + w]
        error = _blocks(np.abs(wide[0][cut] - b[:h, :w]), rows, columns)
        better = error < best - 1e-6
        if better.any():
            best = np.where(better, error, best)
            difference = np.where(better, _blocks(np.abs(wide[1][cut] - new[:h, :w]), rows, columns), difference)
    good = best < MATCHED
    return float(difference[good].sum()) * BLOCK * BLOCK, int(good.sum()) * BLOCK * BLOCK


def _blocks(x: Luma, rows: int, columns: int) -> Luma:
    """Mean of each block, (rows, columns)."""
    return np.asarray(x.reshape(rows, BLOCK, columns, BLOCK).mean((1, 3)), np.float32)
