"""The part at hand of a video's result: what of it is finished survives an interruption.

An encoder cannot be stopped in the middle of a part and continued later with the same bits. So the
finished frames of the part are kept as they are given to it, and a run that resumes gives them
again: they are encoded again, which is quick, but not stylized again.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction

import numpy as np

from std_cli.errors import InputError
from std_cli.media.video.clip import Alpha, Pixels
from std_cli.media.video.target import Target
from std_cli.media.video.write import SegmentWriter, write_errors
from std_cli.stylize.work_folder import WorkFolder


class Part:
    """Consecutive frames of the result on their way into one media file."""

    def __init__(
        self, work_folder: WorkFolder, target: Target, number: int, times: Sequence[Fraction]
    ) -> None:
        """`times` (seconds) are those of the frames that an interrupted run has kept of it.

        Raises InputError if they are not there, StdError if the disk cannot be written.
        """
        self.path, self.target = work_folder.segment(number), target
        self.times: list[Fraction] = []
        """Of the frames that it has."""
        self._frames = work_folder.frames
        self._shape = (target.height, target.width, 4 if target.alpha else 3)
        self._writer: SegmentWriter | None = None
        with write_errors(self._frames):
            self._kept = self._frames.open("r+b" if times else "w+b")
            try:
                self._give_again(times)
            except BaseException:
                self.leave()
                raise

    def _give_again(self, times: Sequence[Fraction]) -> None:
        size = int(np.prod(self._shape))
        for time in times:
            data = self._kept.read(size)
            if len(data) < size:
                raise InputError(f"{self._frames} is damaged: give --no-resume to start over")
            self._encode(np.frombuffer(data, np.uint8).reshape(self._shape), time)
        self._kept.seek(size * len(times))
        self._kept.truncate()

    def write(self, rgb: Pixels, pts: Fraction, alpha: Alpha | None = None) -> None:
        """The next frame, as `SegmentWriter.write` takes it."""
        pixels = rgb
        if self.target.alpha:
            opaque = np.full(rgb.shape[:2], 255, np.uint8)
            pixels = np.dstack([rgb, opaque if alpha is None else alpha])
        with write_errors(self._frames):
            self._kept.write(np.ascontiguousarray(pixels).data)
        self._encode(pixels, pts)

    def _encode(self, pixels: Pixels, pts: Fraction) -> None:
        if self._writer is None:
            self._writer = SegmentWriter(self.path, self.target)
        self._writer.write(pixels[..., :3], pts, pixels[..., 3] if self.target.alpha else None)
        self.times.append(pts)

    def sync(self) -> None:
        """Have all frames on the disk."""
        with write_errors(self._frames):
            self._kept.flush()
            os.fsync(self._kept.fileno())

    def close(self) -> None:
        """Finish the media file."""
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self.leave()

    def leave(self) -> None:
        """Leave the part as it is: what was kept at the last `sync` stays."""
        if self._writer is not None:
            self._writer.give_up()
            self._writer = None
        with suppress(OSError):  # of frames that no state counts
            self._kept.close()
