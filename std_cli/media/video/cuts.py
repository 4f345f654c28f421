"""Where shots change: found while the frames stream by, or given as a file of times."""

import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from std_cli.config import parse_time
from std_cli.errors import InputError
from std_cli.media.video.clip import Pixels

# Chosen on photographs that were panned, zoomed, faded and given noise, and on real cuts
# (tests/test_video_cuts.py).
STRUCTURE, PALETTE = 0.35, 0.18
SUM = 0.9
ADAPTIVE = 2
"""A cut changes so many times more than the frames before it did."""
SHORTEST = Fraction(1, 5)
"""Seconds that a shot lasts at least: a flash is no shot."""


class CutDetector:
    """Called with every frame in order; True where a new shot starts. Knows only the frames before.

    Two distances to the frame before must both be large: of the structure (1 - correlation of
    coarse luma, which a change of light leaves as it is) and of the palette (of colour histograms,
    which movement leaves as it is). And their sum must stand out from that of the last frames, so
    that a fast pan or a flicker is not cut to pieces.
    """

    def __init__(self) -> None:
        self.luma: NDArray[np.float32] | None = None
        self.palette: NDArray[np.float32] | None = None
        self.recent: deque[float] = deque(maxlen=8)
        self.shot: Fraction | None = None

    def __call__(self, rgb: Pixels, pts: Fraction) -> bool:
        luma, palette = _structure(rgb), _palette(rgb)
        before, self.luma = self.luma, luma
        colours, self.palette = self.palette, palette
        if before is None or colours is None or self.shot is None:
            self.shot = pts
            return False
        structure = 1 - float((luma * before).mean())
        colour = float(np.abs(palette - colours).sum()) / 2
        change = structure + colour
        usual = sum(self.recent) / len(self.recent) if self.recent else 0.0
        self.recent.append(change)
        large = structure > STRUCTURE and colour > PALETTE and change > SUM
        if large and change > ADAPTIVE * usual and pts - self.shot >= SHORTEST:
            self.recent.clear()
            self.shot = pts
            return True
        return False


def _structure(rgb: Pixels) -> NDArray[np.float32]:
    """Coarse luma, about 32 x 18, of mean 0 and variance 1, less where there is hardly any
    contrast."""
    h, w = rgb.shape[:2]
    step = max(1, min(h // 72, w // 128))
    small = rgb[::step, ::step].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    rows, columns = (
        np.linspace(0, n, k + 1).astype(int)[:-1]
        for n, k in zip(small.shape, (18, 32), strict=True)
    )
    coarse = np.add.reduceat(np.add.reduceat(small, np.unique(rows), 0), np.unique(columns), 1)
    coarse = (coarse - coarse.mean()) * (coarse.size / small.size)
    # in the dark the noise is no structure
    return np.asarray(coarse / max(float(coarse.std()), 6), np.float32)


def _palette(rgb: Pixels) -> NDArray[np.float32]:
    """Histogram of 4 x 4 x 4 colours, sum 1."""
    h, w = rgb.shape[:2]
    step = max(1, min(h // 54, w // 96))
    small = rgb[::step, ::step].reshape(-1, 3) >> 6
    index = small[:, 0].astype(np.intp) * 16 + small[:, 1] * 4 + small[:, 2]
    return np.asarray(np.bincount(index, minlength=64) / len(index), np.float32)


class GivenCuts:
    """The same, from a list: a cut belongs to the first frame at or after its time."""

    def __init__(self, cuts: Sequence[Fraction], start: Fraction) -> None:
        """`cuts` in seconds from the first frame, whose time is `start`."""
        self.left = deque(sorted(start + cut for cut in cuts))
        self.begun = False

    def __call__(self, rgb: Pixels, pts: Fraction) -> bool:
        cut = False
        while self.left and self.left[0] <= pts:
            self.left.popleft()
            cut = self.begun
        self.begun = True
        return cut


def read_cuts(path: Path) -> list[Fraction]:
    """Times of a text file, one a line, from the first frame on; what follows a # or a comma is not
    read.

    Raises InputError for a file that cannot be read, and for a line that is no time.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise InputError(
            f"--cuts {path}: {reason}; give auto, off, or a text file of times"
        ) from None
    cuts = []
    for number, line in enumerate(lines, 1):
        time = re.split("[#,]", line)[0].strip()
        if time:
            try:
                cuts.append(parse_time(time))
            except ValueError as e:
                raise InputError(f"--cuts {path}, line {number}: {time}: {e}") from None
    return cuts
