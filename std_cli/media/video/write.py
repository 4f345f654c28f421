"""Videos out: finished parts as media files of their own, then all of them and the source's sound
in one container.

A part (segment) is mp4 or mov, whose clock is as fine as asked for; ffv1, which those do not hold,
is in nut. The last step copies packets, so that nothing is encoded twice; gif and webp alone are
made from lossless parts.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from std_cli.errors import StdError
from std_cli.media.video.clip import Alpha, Pixels
from std_cli.media.video.color import from_rgb
from std_cli.media.video.target import ENCODERS, Target, early_times, exact_clock, set_up


class SegmentWriter:
    """One media file of consecutive frames. It has its name when `close` returns; left by an error
    it is not there."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path, self.target = path, target
        self.part = path.with_name(f"{path.name}.part")
        format = _segment_format(target)
        # When each packet is decoded: what encoders say of it is not used, for x265 makes it up
        # where it gets fewer frames than it looks ahead.
        self.times: list[int] = []
        self.muxed = 0
        with write_errors(path), refusing():
            self.container = create_container(
                self.part, format, exact_clock(target) if format in ("mp4", "mov") else {}
            )
            self.stream = self.container.add_stream(target.encoder, rate=target.frame_rate)
            set_up(self.stream.codec_context, target)
            self.stream.time_base = target.time_base
            self.stream.sample_aspect_ratio = target.sample_aspect_ratio
            if target.codec == "hevc":
                self.stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for

    def write(self, rgb: Pixels, pts: Fraction, alpha: Alpha | None = None) -> None:
        """A frame (H, W, 3) at `pts` seconds, opaque without `alpha` (H, W), which is for a target
        that has it."""
        if self.target.alpha:
            rgb = np.dstack(
                [rgb, np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else alpha]
            )
        ticks = round(pts / self.target.time_base)
        self.times += [ticks] if self.times else [*early_times(self.target, ticks, 1), ticks]
        frame = from_rgb(rgb, self.target.pix_fmt, self.target.color)
        frame.pts, frame.time_base = ticks, self.target.time_base
        with write_errors(self.path), refusing():
            self._mux(self.stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.dts = self.times[self.muxed]
            self.muxed += 1
            self.container.mux(packet)

    def close(self) -> None:
        try:
            with write_errors(self.path):
                with refusing():
                    self._mux(self.stream.encode())
                    self.container.close()
                sync_file(self.part)
                os.replace(self.part, self.path)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Leave nothing of it."""
        with suppress(av.FFmpegError, OSError):
            self.container.close()
        self.part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.give_up()


def _segment_format(target: Target) -> str:
    """FFmpeg's name of the container of a segment: the one with the finest clock that holds it."""
    codec = ENCODERS[target.encoder].codec
    if codec == "vp9" and target.alpha:
        return "matroska"  # its milliseconds are those of the result, too
    return {"ffv1": "nut", "prores": "mov", "png": "mov"}.get(codec, "mp4")


def create_container(path: Path, format: str, options: dict[str, str]) -> Any:
    """PyAV's container of a file that is written; its types do not know which stream is which."""
    return av.open(f"file:{path}", "w", format=format, options=options)


def sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# What the system says of a disk; an error of a container is none of these.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ENODEV, errno.ENXIO}
_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
}


REFUSALS = (av.FFmpegError, ValueError, OverflowError)
"""How PyAV says that a container, a decoder or an encoder does not take something."""


class Refused(Exception):
    """A container, or an encoder that feeds it, does not take what it is given; the text is its
    reason."""


@contextmanager
def refusing() -> Iterator[None]:
    """Around calls of PyAV that write: their errors become Refused, except those of the disk.

    Nothing else belongs inside, so that no other fault is taken for a refusal.
    """
    try:
        yield
    except REFUSALS as e:
        if of_the_disk(e):
            raise
        raise Refused(getattr(e, "strerror", None) or str(e)) from e


def of_the_disk(error: BaseException) -> bool:
    """Whether an error comes from the file system and not from what is written."""
    return getattr(error, "errno", None) in _DISK | _PLACE


class write_errors:
    """The errors while `path` is written, as one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, av.FFmpegError, Refused)):
            reason = getattr(error, "strerror", None) or str(error)
            remedy = "try another --codec, or another container such as .mkv,"
            if getattr(error, "errno", None) in _DISK:
                remedy = "check the disk"
            elif getattr(error, "errno", None) in _PLACE:
                remedy = "check that its folder is there and can be written to"
            raise StdError(
                f"cannot write {self.path} ({reason}); {remedy} and run the same command again"
            ) from error
