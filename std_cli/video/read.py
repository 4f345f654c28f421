"""Videos in: one decoder, frame by frame, each upright, in RGB, with its exact time. Nothing holds the clip."""

import heapq
import re
import stat
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from std_cli.errors import InputError, StdError
from std_cli.image import expand_inputs, read_picture
from std_cli.video.clip import Clip, Color, Frame, Part, Pixels
from std_cli.video.color import HDR, LIMITED, to_rgb

ANIMATIONS = (".gif", ".webp", ".apng", ".png")
FOLDER_RATE = Fraction(25)
MAX_DAMAGED = 25
"""Frames in a row that may be undecodable."""
_MS = Fraction(1, 1000)
# What is opened: containers of media, not playlists, which name other files.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,h264,hevc,obu,ivf,dv,m4v,rm"
)


# --- open ------------------------------------------------------------------------------------------------------------


def open_clip(path: str | Path, *, fps: Fraction = FOLDER_RATE, part: Part | None = None) -> Clip:
    """What a video file, an animated gif, webp or png, or a folder of pictures holds, the first frame decoded.

    `fps` is the frame rate of a folder, which has none of its own. What is transparent shows white.
    part: where the bytes of a video are, if `path` is only its name; not for animations.
    Raises InputError for what is not there, is no video, or has no frame that can be decoded.
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
    if path.suffix.lower() in ANIMATIONS:
        return _open_animation(path)
    with _opened(path, part) as container:
        stream = _video_stream(container, name)
        codec = stream.codec_context
        try:
            frame, ticks = next(_decoded(container, stream, _Damage(name)), (None, None))
        except StdError:
            frame = None
        if frame is None:
            raise InputError(f"{name} has no frame that can be decoded; get the video again")
        color = Color(int(frame.colorspace), int(frame.color_range), int(codec.color_primaries), int(codec.color_trc))
        hdr: Any = HDR.get(color.transfer)
        width, height, sar = frame.width, frame.height, stream.sample_aspect_ratio or Fraction(1)
        if _turn(frame)[0]:
            width, height, sar = height, width, 1 / sar
        base = stream.time_base
        start = (ticks or 0) * base
        duration = _duration_of(container, stream, start)
        frames = stream.frames or (round(duration * stream.average_rate) if duration and stream.average_rate else None)
        cut = _cut_at(stream, size)
        if cut is not None:
            entries = stream.index_entries
            frames, duration = cut, (entries[cut].timestamp - entries[0].timestamp) * base
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
        )


def _duration_of(container: Any, stream: Any, start: Fraction) -> Fraction | None:
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    if not container.duration:
        return None
    whole = Fraction(container.duration, av.time_base) - start
    tagged = _tagged_duration(stream)
    return min(whole, tagged) if tagged is not None else whole  # the sound may be longer


def _tagged_duration(stream: Any) -> Fraction | None:
    """What Matroska files say of each stream, in seconds."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3]) if match else None


def _cut_at(stream: Any, size: int) -> int | None:
    """How many frames of an mp4 are whole where the file is shorter than its index says; else None."""
    entries = stream.index_entries
    if "mp4" not in stream.container.format.name or not len(entries) or entries[-1].pos + entries[-1].size <= size:
        return None
    return int(sum(entry.pos + entry.size <= size for entry in entries))


def _open_folder(path: Path, rate: Fraction) -> Clip:
    pictures = expand_inputs([path])
    width, height = read_picture(pictures[0]).rgb.size
    count = len(pictures)
    return _still(path, "folder", (width, height), rate, count, count / rate)


def _open_animation(path: Path) -> Clip:
    with _animation(path) as image:
        try:
            size, frames = image.size, getattr(image, "n_frames", 1)
            total = Fraction(0)
            for i in range(frames):
                image.seek(i)
                image.load()  # webp tells the duration only then
                total += _duration(image)
        except (OSError, SyntaxError, ValueError) as e:
            raise InputError(f"{str(path)!r} is damaged or cut short ({e}); export it again") from None
    return _still(path, "animation", size, frames / total, frames, total)


def _still(path: Path, kind: Any, size: tuple[int, int], rate: Fraction, frames: int, duration: Fraction) -> Clip:
    # sRGB pixels have the primaries of BT.709; the matrix is ours to choose, the same for all sizes
    color, one = Color(1, LIMITED, 1, 1), Fraction(1)
    base = _MS if kind == "animation" else 1 / rate
    return Clip(path, kind, *size, one, base, rate, frames, Fraction(0), duration, color, None, 0)


def _opened(path: Path, part: Part | None) -> Any:
    """PyAV's container of a local file: a name with a colon is no protocol, and nothing else is opened through it."""
    url, protocols = f"file:{path}", "file"
    if part:
        url, protocols = f"subfile,,start,{part.offset},end,{part.offset + part.size},,:{part.file}", "file,subfile"
    options = {"protocol_whitelist": protocols, "format_whitelist": _DEMUXERS}
    try:
        return av.open(url, options=options, metadata_errors="replace")
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
    # Threads within a frame only: with one frame per thread, an error takes along the good frames that PyAV has got in
    # the same call, how many depends on the count of cores, and what is left of a damaged frame is a matter of timing.
    stream.thread_type = "SLICE"
    # `max_frame_delay` is the same for dav1d. Chroma is sited at the left unless the stream says otherwise.
    stream.codec_context.options = {"max_frame_delay": "1", "chroma_sample_location": "left"}
    return stream


# --- frames ----------------------------------------------------------------------------------------------------------


def read_frames(
    clip: Clip,
    *,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_frames: int | None = None,
    fps: Fraction | None = None,
    step: int = 1,
    on_notice: Callable[[str], None] = lambda message: None,
) -> Generator[Frame, None, None]:
    """The frames from `start` up to, not including, `end` (seconds from the first frame), at most `max_frames`.

    Each keeps its own time; with `fps` they are resampled: at every n / fps the frame that is shown then. `step`
    (of a video, without `fps`): only every step-th of them. Frames that cannot be decoded are replaced by the one
    before, and counted in a notice after the last frame; more than MAX_DAMAGED in a row raise StdError. What breaks
    off ends there, with a notice.
    """
    begin = clip.start + (start or 0)
    stop = clip.start + end if end is not None else None
    if clip.hdr:
        on_notice(f"{clip.path.name} is HDR ({clip.hdr}): it is tone-mapped to SDR")
    damage = _Damage(repr(str(clip.path)))
    source = (
        _video_frames(clip, begin, step, damage) if clip.kind == "video"
        else _animation_frames(clip) if clip.kind == "animation"
        else _folder_frames(clip)
    )  # fmt: skip
    count = 0
    # closing: a reader that stops early closes the file, whatever still refers to the frames
    with closing(source), closing(_resampled(source, begin, fps) if fps else source) as frames:
        while max_frames is None or count < max_frames:
            frame = next(frames, None)
            if frame is None or (stop is not None and frame.pts >= stop):
                break
            if frame.pts >= begin:
                yield frame
                count += 1
    for notice in damage.notices(clip.path.name):
        on_notice(notice)


# Frames, and when all are out the time at which the last one ends.
_Source = Generator[Frame, None, Fraction]


def _resampled(source: _Source, begin: Fraction, fps: Fraction) -> _Source:
    n, shown, end = 0, None, None
    while end is None:
        try:
            frame = next(source)
            until = frame.pts
        except StopIteration as stopped:
            until = end = Fraction(stopped.value)
        while shown is not None and begin + n / fps < until:
            yield replace(shown, pts=begin + n / fps)
            n += 1
        shown = frame
    return end


def _video_frames(clip: Clip, begin: Fraction, step: int, damage: "_Damage") -> _Source:
    """From the frame that is shown at `begin` on; of those from `begin` on only each `step`-th."""
    target = _seek_target(clip, begin)
    with _opened(clip.path, clip.part) as container:
        stream = _video_stream(container, damage.name)
        if target is not None:
            container.seek(target, stream=stream)
        return (yield from _timed(_decoded(container, stream, damage), clip, begin, step, stream, damage))


def _seek_target(clip: Clip, begin: Fraction) -> int | None:
    """Ticks to seek to, so that the first frame that is decoded then is not later than `begin`; None for the start.

    Without an index (mpegts) a seek may land behind the key frame that the frame at `begin` needs.
    """
    for back in (0, 10):
        if begin - back > clip.start:
            target = int((begin - back) / clip.time_base)
            with _opened(clip.path, clip.part) as container:
                stream = _video_stream(container, "")
                try:
                    container.seek(target, stream=stream)
                    _, ticks = next(_decoded(container, stream, _Damage("")), (None, None))
                except (av.FFmpegError, StdError):
                    continue
            if ticks is not None and ticks * clip.time_base <= begin:
                return target
    return None


def _timed(frames: Any, clip: Clip, begin: Fraction, step: int, stream: Any, damage: "_Damage") -> _Source:
    base, gap = stream.time_base, 1 / (clip.frame_rate or FOLDER_RATE)
    turn, end, last, held, count = None, clip.start, None, None, 0

    def convert(frame: Any, pts: Fraction) -> Frame:
        color = clip.color if not clip.hdr else _hdr_color(frame)
        return Frame(_upright(to_rgb(frame, color), turn or _NO_TURN), pts)

    for frame, ticks in frames:
        pts = ticks * base if ticks is not None else end
        if last is not None and pts <= last:
            damage.backward += 1
            continue
        turn = turn or _turn(frame)
        size = (clip.height, clip.width) if turn[0] else (clip.width, clip.height)
        if (frame.width, frame.height) != size:
            damage.resized += 1
            frame = frame.reformat(*size, interpolation="BICUBIC")
        last, end = pts, pts + (frame.duration * base or gap)
        if pts < begin:
            held = frame, pts
            continue
        if held is not None and pts > begin:
            yield convert(*held)
        held = None
        if count % step == 0:  # the conversion takes longer than the decoding
            yield convert(frame, pts)
        count += 1
    if held is not None:
        yield convert(*held)
    tagged = _tagged_duration(stream)
    size_of_file = clip.part.size if clip.part else clip.path.stat().st_size
    short = tagged is not None and not stream.duration and end + 1 < clip.start + (clip.duration or 0)
    if damage.ended_early or short or _cut_at(stream, size_of_file) is not None:
        damage.broken_off = end - clip.start
    return end


def _hdr_color(frame: Any) -> Color:
    return Color(int(frame.colorspace), int(frame.color_range), int(frame.color_primaries), int(frame.color_trc))


@dataclass
class _Damage:
    name: str
    lost: int = 0
    """Frames that are the one before instead."""
    first: int = 0
    """Lost ones that no good one came before."""
    in_a_row: int = 0
    backward: int = 0
    resized: int = 0
    ended_early: bool = False
    broken_off: Fraction | None = None

    def one(self, good: bool) -> None:
        if good:
            self.lost += 1
        else:
            self.first += 1
        self.in_a_row += 1
        if self.in_a_row > MAX_DAMAGED:
            raise StdError(f"{self.name}: more than {MAX_DAMAGED} frames in a row cannot be decoded; repair the video")

    def notices(self, name: str) -> list[str]:
        told = []
        if self.lost:
            told.append(f"{_frames(self.lost)} of {name} could not be decoded: the one before was used")
        if self.first:
            told.append(f"{_frames(self.first)} at the start of {name} could not be decoded and were left out")
        if self.backward:
            told.append(f"{_frames(self.backward)} of {name} had no later time than the one before and were left out")
        if self.resized:
            told.append(f"{_frames(self.resized)} of {name} had another size than the first and were scaled to it")
        if self.broken_off is not None:
            told.append(f"{name} breaks off after {float(self.broken_off):.3f} seconds")
        return told


def _frames(count: int) -> str:
    return f"{count} frame{'s' if count > 1 else ''}"


def _decoded(container: Any, stream: Any, damage: _Damage) -> Generator[Any, None, None]:
    """(frame, time in ticks or None) in order; for one that cannot be decoded the last good one again, at its time."""
    good: Any = None
    lost: list[int] = []
    # FFmpeg makes up wrong times for these, which have one per packet, in the order of decoding
    by_order = container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")
    order: list[int] = []
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except av.FFmpegError:  # the file is cut off within a packet
            damage.ended_early, packet = True, None
        last = packet is None or packet.size == 0
        if by_order and not last and packet.dts is not None:
            heapq.heappush(order, packet.dts)
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            damage.one(good is not None)
            frames, when = [], None if last else packet.dts if by_order else packet.pts
            if when is not None and not packet.is_discard:
                lost.append(when)
            if by_order and when in order:
                order.remove(when)
                heapq.heapify(order)
        for frame in frames:
            when = heapq.heappop(order) if order else frame.pts
            if when is not None:
                for late in sorted(t for t in lost if t < when and good is not None):
                    yield good, late
                lost = [t for t in lost if t > when]
            if frame.is_corrupt and good is not None:
                damage.one(True)
                yield good, when
                continue
            damage.in_a_row = 0
            good = frame
            yield frame, when
        if last:
            break
    for late in sorted(t for t in lost if good is not None):
        yield good, late


_NO_TURN = (False, False, False)


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """What makes a frame upright, by its display matrix: (swap rows and columns, then mirror left-right, up-down)."""
    for data in frame.side_data:
        if "DISPLAYMATRIX" in str(data.type):
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
            if abs(int(b)) > abs(int(a)):
                return True, bool(c < 0), bool(b < 0)
            return False, bool(a < 0), bool(d < 0)
    return _NO_TURN


def _upright(rgb: Pixels, turn: tuple[bool, bool, bool]) -> Pixels:
    swap, left_right, top_bottom = turn
    if swap:
        rgb = rgb.transpose(1, 0, 2)
    if left_right:
        rgb = rgb[:, ::-1]
    if top_bottom:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _folder_frames(clip: Clip) -> _Source:
    assert clip.frame_rate is not None and clip.duration is not None
    for i, path in enumerate(expand_inputs([clip.path])):
        read = read_picture(path)
        picture = read.rgb
        if picture.size != (clip.width, clip.height):
            raise InputError(
                f"{str(path)!r} is {picture.width}x{picture.height}, the first picture of its folder "
                f"{clip.width}x{clip.height}; make them one size"
            )
        if read.alpha is not None:
            picture = Image.composite(picture, Image.new("RGB", picture.size, "white"), read.alpha)
        yield Frame(np.asarray(picture), i / clip.frame_rate)
    return clip.duration


def _animation(path: Path) -> Any:
    try:
        return Image.open(path, formats=("GIF", "WEBP", "PNG"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise InputError(f"{str(path)!r} cannot be read as an animation ({e}); export it again") from None


def _duration(image: Any) -> Fraction:
    """Of the current frame, seconds; browsers show 10 ms and less for 100."""
    ms = image.info.get("duration") or 100
    return Fraction(round(ms) if ms > 10 else 100, 1000)


def _animation_frames(clip: Clip) -> _Source:
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
    return time
