"""What is known of a video: shared by what reads it and what writes its stylized twin."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB, full range
MAX_FRAME_PIXELS = 2**26
"""67 million: twice those of 8K. Of an animation's frame, and of a video's when it is opened."""
Alpha = NDArray[np.uint8]  # (H, W), 255 is opaque

VIDEO_SUFFIXES = frozenset({
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts",
    ".wmv", ".flv", ".ogv",
    ".3gp", ".mxf", ".nut", ".gif", ".webp", ".apng",
})  # fmt: skip


@dataclass(frozen=True)
class Color:
    """Colour tags, by FFmpeg's numbers (ITU-T H.273); 2 is unspecified."""

    matrix: int = 2
    range: int = 0
    """0 unspecified (read as limited), 1 limited, 2 full."""
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True)
class Seen:
    """What the filters of stylized frames see of a frame's source."""

    rgb: Pixels
    """In the working size."""
    cover: Alpha
    """How much each of its pixels counts."""
    shot: int
    """The number of its shot, from 1."""
    seconds: float
    """How long it is shown."""


@dataclass(frozen=True)
class Part:
    """Bytes within a file that are a file themselves: a member of a tar."""

    file: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Clip:
    """One video stream and the file around it."""

    path: Path
    """A video file, an animated gif or webp, or a folder of pictures."""
    kind: Literal["video", "animation", "folder"]
    width: int
    """Of the upright picture as stored, in pixels that need not be square."""
    height: int
    sample_aspect_ratio: Fraction
    """Width of a pixel by its height, upright."""
    time_base: Fraction
    """Of the video stream, seconds per tick."""
    frame_rate: Fraction | None
    """The average; None if the container does not tell."""
    frames: int | None
    """How many, where the container tells; else an estimate from duration and rate, or None."""
    start: Fraction
    """Seconds from the container's zero to the first video frame."""
    duration: Fraction | None
    """Seconds of video."""
    color: Color
    """What the result is tagged with: the source's tags, or those of SDR BT.709 where HDR is
    tone-mapped."""
    hdr: Literal["PQ", "HLG"] | None
    audio: int
    """Count of audio streams."""
    part: Part | None = None
    """Where the bytes of a video are; `path` is then only its name."""
    origin: Fraction | None = None
    """Seconds from the container's zero to the first of picture and sound; None where that is
    `start`."""
    offsets: tuple[Fraction, ...] = ()
    """Of a file of several recordings, whose clock is set again in the middle: see
    `timestamps.scan`."""
    alpha: bool = False
    """Some of it may be transparent."""
    notices: tuple[str, ...] = ()
    """What was noticed when it was opened."""

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) with square pixels: the height is kept."""
        return max(1, round(self.width * self.sample_aspect_ratio)), self.height


@dataclass(frozen=True)
class Frame:
    """A decoded frame, upright, as stored (pixels need not be square)."""

    rgb: Pixels
    pts: Fraction
    """Seconds on the container's clock, exact."""
    duration: Fraction
    """Seconds until the next frame, or of the last one until the end."""
    alpha: Alpha | None = None
    """None if all is opaque, or white was put behind what is transparent."""


@dataclass(frozen=True)
class Span:
    """The part of a source's clock that a result has, in seconds."""

    begin: Fraction | None = None
    """The first moment that is kept; None: all from the start."""
    until: Fraction | None = None
    """The first moment that is not kept any more; None: all to the end."""
    shift: Fraction = Fraction(0)
    """What is taken off all times."""
