"""A video before its frames are read: what its container, its first frames and its bytes say."""

import re
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Stream
from av.video.frame import VideoFrame

from std_cli.errors import InputError, StdError
from std_cli.media.tone_map import HDR
from std_cli.media.video import animations, sequences
from std_cli.media.video.clip import MAX_FRAME_PIXELS, Clip, Color, Part
from std_cli.media.video.color import LIMITED, has_alpha
from std_cli.media.video.decode import (
    Damage,
    decoded,
    open_container,
    video_stream,
)
from std_cli.media.video.timestamps import may_be_set_again, scan
from std_cli.media.video.truncation import whole_frames

MS = Fraction(1, 1000)
FOLDER_RATE = Fraction(25)


def open_clip(path: str | Path, *, fps: Fraction = FOLDER_RATE, part: Part | None = None) -> Clip:
    """What a video file, an animated gif, webp or png, or a folder of pictures holds, the first
    frame decoded.

    `fps` is the frame rate of a folder, which has none of its own.
    part: where the bytes of a video are, if `path` is only its name; not for animations.
    Raises InputError for what is not there, is no video, or has no frame that can be decoded; of a
    folder for a picture that cannot be read, or has another size than the first.
    """
    path = Path(path)
    name = repr(str(path))
    try:
        status = (part.file if part else path).stat()
    except OSError as e:
        raise InputError(f"no such video: {name} ({e.strerror}); check the path") from None
    if stat.S_ISDIR(status.st_mode):
        return _open_folder(path, fps)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is not a regular file; give a video")
    size = part.size if part else status.st_size
    if size == 0:
        raise InputError(f"{name} is empty (0 bytes); get the video again")
    if path.suffix.lower() in animations.ANIMATIONS:
        return _open_animation(path)
    return _open_video(path, part, size)


def _open_video(path: Path, part: Part | None, size: int) -> Clip:
    name = repr(str(path))
    with open_container(path, part) as container:
        stream = video_stream(container, name)
        codec = stream.codec_context
        pixels = codec.width * codec.height
        if pixels > MAX_FRAME_PIXELS:
            raise InputError(
                f"{name} has {pixels} pixels, more than the limit of {MAX_FRAME_PIXELS}; scale "
                f"it down"
            )
        try:
            frame, ticks = next(decoded(container, stream, Damage(name)), (None, None))
        except StdError:
            frame = None
        if frame is None:
            raise InputError(f"{name} has no frame that can be decoded; get the video again")
        color = Color(
            int(frame.colorspace),
            int(frame.color_range),
            int(codec.color_primaries),
            int(codec.color_trc),
        )
        hdr: Any = HDR.get(color.transfer)
        width, height, sar = frame.width, frame.height, stream.sample_aspect_ratio or Fraction(1)
        if turn_of(frame)[0]:
            width, height, sar = height, width, 1 / sar
        base = stream.time_base
        start = (ticks or 0) * base
        duration = _duration_of(container, stream, start)
        frames = stream.frames or (
            round(duration * stream.average_rate) if duration and stream.average_rate else None
        )
        cut = whole_frames(stream, size)
        if cut is not None:
            entries = stream.index_entries
            frames, duration = cut, (entries[cut].timestamp - entries[0].timestamp) * base
        sound = [
            s.start_time * s.time_base for s in container.streams.audio if s.start_time is not None
        ]
        offsets: tuple[Fraction, ...] = ()
        if may_be_set_again(container):
            with open_container(path, part) as again:
                found = scan(again, video_stream(again, name))
            if found.end is not None and found.end > start:
                offsets, duration, frames = found.offsets, found.end - start, found.frames
        return Clip(
            path=path,
            kind="video",
            width=width,
            height=height,
            sample_aspect_ratio=Fraction(sar) if sar > 0 else Fraction(1),
            time_base=base,
            frame_rate=stream.average_rate or stream.guessed_rate,
            frames=frames or None,
            start=start,
            duration=duration,
            color=Color(1, LIMITED, 1, 1) if hdr else color,
            hdr=hdr,
            audio=len(container.streams.audio),
            part=part,
            origin=min([start, *sound]),
            offsets=offsets,
            alpha=has_alpha(frame.format),
            notices=(f"{path.name} is HDR ({hdr}): it is tone-mapped to SDR",) if hdr else (),
        )


def _duration_of(container: Any, stream: Any, start: Fraction) -> Fraction | None:
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return Fraction(stream.frames / stream.average_rate)  # the rest is an estimate if it is cut
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    if not container.duration:
        return None
    whole = Fraction(container.duration, av.time_base) - start
    tagged = tagged_end(stream)
    return min(whole, tagged - start) if tagged is not None else whole  # the sound may be longer


def tagged_end(stream: Stream) -> Fraction | None:
    """What Matroska files say of each stream: when it ends, in seconds."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3]) if match else None


def _open_folder(path: Path, rate: Fraction) -> Clip:
    size, count, transparent, notices = sequences.measure(path)
    return _still(path, "folder", size, rate, count, count / rate, transparent, tuple(notices))


def _open_animation(path: Path) -> Clip:
    size, durations, transparent = animations.measure(path)
    total = sum(durations, Fraction(0))
    return _still(
        path, "animation", size, len(durations) / total, len(durations), total, transparent
    )


def _still(
    path: Path,
    kind: Any,
    size: tuple[int, int],
    rate: Fraction,
    frames: int,
    duration: Fraction,
    alpha: bool,
    notices: tuple[str, ...] = (),
) -> Clip:
    # sRGB pixels have the primaries of BT.709; the matrix is ours to choose, the same for all sizes
    color, one = Color(1, LIMITED, 1, 1), Fraction(1)
    base = MS if kind == "animation" else 1 / rate
    return Clip(
        path,
        kind,
        *size,
        one,
        base,
        rate,
        frames,
        Fraction(0),
        duration,
        color,
        None,
        0,
        alpha=alpha,
        notices=notices,
    )


def hdr_color(frame: VideoFrame) -> Color:
    return Color(
        int(frame.colorspace),
        int(frame.color_range),
        int(frame.color_primaries),
        int(frame.color_trc),
    )


NO_TURN = (False, False, False)


def turn_of(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """What makes a frame upright, by its display matrix: (swap rows and columns, then mirror
    left-right, up-down)."""
    side_data: Any = frame.side_data  # typed as a mapping, and iterates over its values
    for data in side_data:
        if "DISPLAYMATRIX" in str(data.type):
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
            if abs(int(b)) > abs(int(a)):
                return True, bool(c < 0), bool(b < 0)
            return False, bool(a < 0), bool(d < 0)
    return NO_TURN
