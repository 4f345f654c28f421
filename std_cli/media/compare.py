"""Source and result in one picture: next to each other, or on the two sides of a line."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from std_cli.config import Compare
from std_cli.media.sheets import label
from std_cli.media.video.clip import Pixels

PERIOD = 4
"""Seconds in which the line of a wipe moves over a video and back."""
MIDDLE = 0.5
"""Where the line of a wipe is in a picture, as a share of its width."""


@dataclass(frozen=True)
class Comparison:
    """How a result is written: alone (none), to the right of its source (side), or from a line to
    the right (wipe)."""

    mode: Compare
    labels: bool
    """Whether "source" and "result" are written into their upper corners."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what is written, for a result of `width` x `height`."""
        return (2 * width, height) if self.mode == "side" else (width, height)

    def compose(self, source: Pixels, result: Pixels, line: float = MIDDLE) -> Pixels:
        """What is written of two pictures (H, W, 3), or (H, W, 4) with alpha, of one size.

        line: where the line of a wipe is, from 0, where all is the result, to 1, where all is the
        source.
        """
        if self.mode == "none":
            return result
        width = result.shape[1]
        column = round(line * width)
        left, right = (width, width) if self.mode == "side" else (column, width - column)
        if self.labels:
            source = _labelled(source, "source", False, left)
            result = _labelled(result, "result", True, right)
        if self.mode == "side":
            return np.concatenate([source, result], 1)
        composed = np.concatenate([source[:, :column], result[:, column:]], 1)
        if 0 < column < width:
            half = max(1, width // 640)
            composed[:, max(0, column - half) : column + half] = 255
        return composed


def line_at(seconds: Fraction) -> float:
    """Where the line of a wipe is at a time from the first frame of the source: there it is at the
    right edge, then it moves to the left one and back."""
    return 0.5 + 0.5 * math.cos(2 * math.pi * float(seconds % PERIOD) / PERIOD)


def _labelled(picture: Pixels, text: str, right: bool, shown: int) -> Pixels:
    """With a label in a corner, unless it would be cut: so many columns are shown on its side."""
    height, width, channels = picture.shape
    box = label(text, width, height)
    if box.shape[1] > shown:
        return picture
    picture = picture.copy()
    columns = slice(width - box.shape[1], width) if right else slice(0, box.shape[1])
    picture[: box.shape[0], columns, :3] = box
    if channels == 4:
        picture[: box.shape[0], columns, 3] = 255
    return picture
