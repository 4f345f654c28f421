"""Videos in: one decoder, frame by frame, each upright, in RGB, with its exact time. Nothing holds the clip."""

import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from std_cli.errors import InputError, StdError
from std_cli.image import expand_inputs, read_picture
from std_cli.video.clip import Clip, Color, Frame, Pixels
from std_cli.video.color import HDR, LIMITED, to_rgb

ANIMATIONS = (".gif", ".webp", ".apng", ".png")
FOLDER_RATE = Fraction(25)
MAX_DAMAGED = 25
"""Frames in a row that may be undecodable."""
_MS = Fraction(1, 1000)
# What is opened: containers of media, not playlists, which name other files.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,h264,hevc,obu,ivf"


# --- open ------------------------------------------------------------------------------------------------------------


def open_clip(path: str | Path) -> Clip:
    """What a video file, an animated gif, webp or png, or a folder of pictures holds, the first frame decoded.

    Raises InputError for what is not there, is no video, or has no frame that can be decoded.
    """
    path = Path(path)
    name = repr(str(path))
    try:
        status = path.stat()
    except OSError as e:
        raise InputError(f"no such video: {name} ({e.strerror}); check the path") from None
    if stat.S_ISDIR(status.st_mode):
        return _open_folder(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is not a regular file; give a video")
    if status.st_size == 0:
        raise InputError(f"{name} is empty (0 bytes); get the video again")
    if path.suffix.lower() in ANIMATIONS:
        return _open_animation(path)
    with _opened(path) as container:
        stream = _video_stream(container, name)
        codec = stream.codec_context
        frame, _ = next(_decoded(container, stream, _Damage(name)), (None, None))
        if frame is None:
            raise InputError(f"{name} has no frame that can be decoded; get the video again")
        color = Color(int(frame.colorspace), int(frame.color_range), int(codec.color_primaries), int(codec.color_trc))
        hdr: Any = HDR.get(color.transfer)
        width, height, sar = frame.width, frame.height, stream.sample_aspect_ratio or Fraction(1)
        if _turn(frame)[0]:
            width, height, sar = height, width, 1 / sar
        base = stream.time_base
        start = (frame.pts or 0) * base
        duration = stream.duration * base if stream.duration else None
        if duration is None and container.duration:
            duration = Fraction(container.duration, av.time_base) - start
        frames = stream.frames or (round(duration * stream.average_rate) if duration and stream.average_rate else None)
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
        )


def _open_folder(path: Path) -> Clip:
    pictures = expand_inputs([path])
    width, height = read_picture(pictures[0]).rgb.size
    count = len(pictures)
    return _still(path, "folder", (width, height), FOLDER_RATE, count, count / FOLDER_RATE)


def _open_animation(path: Path) -> Clip:
    with _animation(path) as image:
        size, frames = image.size, getattr(image, "n_frames", 1)
        total = Fraction(0)
        for i in range(frames):
            image.seek(i)
            image.load()  # webp tells the duration only then
            total += _duration(image)
    return _still(path, "animation", size, frames / total, frames, total)


def _still(path: Path, kind: Any, size: tuple[int, int], rate: Fraction, frames: int, duration: Fraction) -> Clip:
    # sRGB pixels have the primaries of BT.709; the matrix is ours to choose, the same for all sizes
    color, one = Color(1, LIMITED, 1, 1), Fraction(1)
    base = _MS if kind == "animation" else 1 / rate
    return Clip(path, kind, *size, one, base, rate, frames, Fraction(0), duration, color, None, 0)


def _opened(path: Path) -> Any:
    """PyAV's container of a local file: a name with a colon is no protocol, and nothing else is opened through it."""
    options = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}
    try:
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.FFmpegError as e:
        reason = e.strerror or type(e).__name__
        raise InputError(
            f"{str(path)!r} cannot be read as a video ({reason}); it may be cut short, or of an unknown kind"
        ) from None


def _video_stream(container: Any, name: str) -> Any:
    """The first stream of moving pictures: a song's cover is not one."""
    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise InputError(f"{name} has no video stream; give a file that has one")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError(f"{name} has video of a kind that this build cannot decode; convert it to h264")
    stream.thread_type = "AUTO"
    return stream


# --- frames ----------------------------------------------------------------------------------------------------------


def read_frames(
    clip: Clip,
    *,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_frames: int | None = None,
    fps: Fraction | None = None,
    on_notice: Callable[[str], None] = lambda message: None,
) -> Generator[Frame, None, None]:
    """The frames from `start` up to, not including, `end` (seconds from the first frame), at most `max_frames`.

    Each keeps its own time; with `fps` they are resampled: at every n / fps the frame that is shown then. Frames that
    cannot be decoded are replaced by the one before, and counted in a notice; more than MAX_DAMAGED in a row raise
    StdError.
    """
    begin = clip.start + (start or 0)
    stop = clip.start + end if end is not None else None
    source: Generator[Frame, None, None] = {
        "video": _video_frames, "animation": _animation_frames, "folder": _folder_frames
    }[clip.kind](clip, begin, on_notice)  # fmt: skip
    count = 0
    for frame in _resampled(source, clip, begin, stop, fps) if fps else source:
        if frame.pts < begin:
            continue
        if (stop is not None and frame.pts >= stop) or (max_frames is not None and count >= max_frames):
            break
        yield frame
        count += 1
    source.close()


def _resampled(
    source: Generator[Frame, None, None], clip: Clip, begin: Fraction, stop: Fraction | None, fps: Fraction
) -> Generator[Frame, None, None]:
    n, shown = 0, None
    for frame in source:
        while shown is not None and begin + n / fps < frame.pts:
            yield replace(shown, pts=begin + n / fps)
            n += 1
        shown = frame
        if stop is not None and frame.pts >= stop:
            return
    # the last frame is shown until the clip ends
    last = clip.start + clip.duration if clip.duration is not None else None
    while shown is not None and begin + n / fps < (last if last is not None else shown.pts + 1 / fps):
        yield replace(shown, pts=begin + n / fps)
        n += 1


def _video_frames(clip: Clip, begin: Fraction, on_notice: Callable[[str], None]) -> Generator[Frame, None, None]:
    name = repr(str(clip.path))
    damage, dropped, count = _Damage(name), 0, 0
    if clip.hdr:
        on_notice(f"{clip.path.name} is HDR ({clip.hdr}): it is tone-mapped to SDR")
    with _opened(clip.path) as container:
        stream = _video_stream(container, name)
        if begin > clip.start:
            container.seek(int(begin / stream.time_base), stream=stream)
        last: Fraction | None = None
        gap = 1 / (clip.frame_rate or FOLDER_RATE)
        turn = None
        for frame, ticks in _decoded(container, stream, damage):
            guess = last + gap if last is not None else clip.start
            pts = ticks * stream.time_base if ticks is not None else guess
            if last is not None and pts <= last:
                dropped += 1
                continue
            last = pts
            if pts < begin and clip.frame_rate is not None and pts < begin - 2:  # seeking lands seconds before
                continue
            turn = turn or _turn(frame)
            color = clip.color if not clip.hdr else _hdr_color(frame)
            yield Frame(_upright(to_rgb(frame, color), turn), pts)
            count += 1
    if damage.total:
        on_notice(f"{damage.total} frames of {clip.path.name} could not be decoded: the one before each was used")
    if dropped:
        on_notice(f"{dropped} frames of {clip.path.name} were not later than the one before and were left out")
    if begin == clip.start and damage.ended_early:
        on_notice(f"{clip.path.name} breaks off: {count} frames were read")


def _hdr_color(frame: Any) -> Color:
    return Color(int(frame.colorspace), int(frame.color_range), int(frame.color_primaries), int(frame.color_trc))


@dataclass
class _Damage:
    name: str
    total: int = 0
    in_a_row: int = 0
    ended_early: bool = False

    def one(self) -> None:
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row > MAX_DAMAGED:
            raise StdError(f"{self.name}: more than {MAX_DAMAGED} frames in a row cannot be decoded; repair the video")


def _decoded(container: Any, stream: Any, damage: _Damage) -> Generator[Any, None, None]:
    """(frame, pts) in order; for one that cannot be decoded the last good one again, at its time.

    A threaded decoder tells of a damaged frame when it has taken packets that come after, so the time of a lost frame
    is that of a packet whose frame never came out.
    """
    good: Any = None
    waiting: set[int] = set()
    errors, packets, flushing = 0, container.demux(stream), False
    while not flushing:
        try:
            packet = next(packets)
            flushing = packet.size == 0
        except av.FFmpegError:  # the file is cut off within a packet
            damage.ended_early = flushing = True
        if not flushing and packet.pts is not None and not packet.is_discard:
            waiting.add(packet.pts)
        while True:
            try:
                frames = stream.codec_context.decode(None if flushing else packet)
                break
            except av.EOFError:
                frames = []
                break
            except av.FFmpegError:
                errors += 1
                damage.one()
                if not flushing:
                    frames = []
                    break
        for frame in frames:
            if frame.pts is not None:
                waiting.discard(frame.pts)
                late = sorted(pts for pts in waiting if pts < frame.pts)
                waiting.difference_update(late)
                for pts in late[: errors if good is not None else 0]:
                    yield good, pts
                errors = max(0, errors - len(late))
            if frame.is_corrupt and good is not None:
                damage.one()
                yield good, frame.pts
                continue
            damage.in_a_row = 0
            good = frame
            yield frame, frame.pts
    for pts in sorted(waiting)[:errors]:
        if good is not None:
            yield good, pts


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """What makes a frame upright, by its display matrix: (swap rows and columns, then mirror left-right, up-down)."""
    for data in frame.side_data:
        if "DISPLAYMATRIX" in str(data.type):
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
            if abs(int(b)) > abs(int(a)):
                return True, bool(c < 0), bool(b < 0)
            return False, bool(a < 0), bool(d < 0)
    return False, False, False


def _upright(rgb: Pixels, turn: tuple[bool, bool, bool]) -> Pixels:
    swap, left_right, top_bottom = turn
    if swap:
        rgb = rgb.transpose(1, 0, 2)
    if left_right:
        rgb = rgb[:, ::-1]
    if top_bottom:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _folder_frames(clip: Clip, begin: Fraction, on_notice: Callable[[str], None]) -> Generator[Frame, None, None]:
    assert clip.frame_rate is not None
    for i, path in enumerate(expand_inputs([clip.path])):
        picture = read_picture(path).rgb
        if picture.size != (clip.width, clip.height):
            raise InputError(
                f"{str(path)!r} is {picture.width}x{picture.height}, the first picture of its folder "
                f"{clip.width}x{clip.height}; make them one size"
            )
        yield Frame(np.asarray(picture), i / clip.frame_rate)


def _animation(path: Path) -> Any:
    try:
        return Image.open(path, formats=("GIF", "WEBP", "PNG"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise InputError(f"{str(path)!r} cannot be read as an animation ({e}); export it again") from None


def _duration(image: Any) -> Fraction:
    """Of the current frame, seconds; browsers show 10 ms and less for 100."""
    ms = image.info.get("duration") or 100
    return Fraction(round(ms) if ms > 10 else 100, 1000)


def _animation_frames(clip: Clip, begin: Fraction, on_notice: Callable[[str], None]) -> Generator[Frame, None, None]:
    time = Fraction(0)
    with _animation(clip.path) as image:
        try:
            for frame in ImageSequence.Iterator(image):
                white = Image.new("RGBA", frame.size, "white")  # what is transparent shows white
                white.alpha_composite(frame.convert("RGBA"))
                yield Frame(np.asarray(white.convert("RGB")), time)
                time += _duration(image)
        except (OSError, SyntaxError, ValueError) as e:
            raise InputError(f"{str(clip.path)!r} is damaged ({e}); export it again") from None
