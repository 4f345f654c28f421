"""Videos in: one decoder, frame by frame, each upright, in RGB, with its exact time. Nothing holds
the clip."""

import re
import stat
from collections.abc import Callable, Generator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from std_cli.config import Deinterlace
from std_cli.errors import InputError, StdError
from std_cli.media.tone_map import HDR
from std_cli.media.video import animations, sequences
from std_cli.media.video.clip import MAX_FRAME_PIXELS, Alpha, Clip, Color, Frame, Part, Pixels
from std_cli.media.video.color import LIMITED, alpha_of, has_alpha, over_white, to_rgb
from std_cli.media.video.decode import (
    Damage,
    count_of_frames,
    decoded,
    open_container,
    video_stream,
)
from std_cli.media.video.deinterlace import Deinterlacer
from std_cli.media.video.timestamps import may_be_set_again, scan

FOLDER_RATE = Fraction(25)
_MS = Fraction(1, 1000)


# --- open --------------------------------------------------------------------------------------


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
        if _turn(frame)[0]:
            width, height, sar = height, width, 1 / sar
        base = stream.time_base
        start = (ticks or 0) * base
        duration = _duration_of(container, stream, start)
        frames = stream.frames or (
            round(duration * stream.average_rate) if duration and stream.average_rate else None
        )
        cut = _cut_at(stream, size)
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
    tagged = _tagged_end(stream)
    return min(whole, tagged - start) if tagged is not None else whole  # the sound may be longer


def _tagged_end(stream: Any) -> Fraction | None:
    """What Matroska files say of each stream: when it ends, in seconds."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3]) if match else None


def _cut_at(stream: Any, size: int) -> int | None:
    """How many frames of an mp4 are whole where the file is shorter than its index says; else
    None."""
    entries = stream.index_entries
    if (
        "mp4" not in stream.container.format.name
        or not len(entries)
        or entries[-1].pos + entries[-1].size <= size
    ):
        return None
    return int(sum(entry.pos + entry.size <= size for entry in entries))


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
    base = _MS if kind == "animation" else 1 / rate
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


# --- frames ------------------------------------------------------------------------------------


def read_frames(
    clip: Clip,
    *,
    start: Fraction | None = None,
    end: Fraction | None = None,
    max_frames: int | None = None,
    fps: Fraction | None = None,
    step: int = 1,
    keep_alpha: bool = False,
    deinterlace: Deinterlace = "auto",
    on_notice: Callable[[str], None] = lambda message: None,
) -> Generator[Frame, None, None]:
    """The frames from `start` up to, not including, `end` (seconds from the first frame), at most
    `max_frames`.

    Each keeps its own time; with `fps` they are resampled: at every n / fps the frame that is shown
    then. `step` (of a video, without `fps`): only every step-th of them. What is transparent shows
    white, or with `keep_alpha` has its alpha. Frames that are marked as interlaced are
    deinterlaced, or all, or none (`deinterlace` "on", "off"). Frames that cannot be decoded are
    replaced by the one before, and counted in a notice after the last frame; more than MAX_DAMAGED
    in a row raise StdError. What breaks off ends there, with a notice.
    """
    begin = clip.start + (start or 0)
    stop = clip.start + end if end is not None else None
    for message in clip.notices:
        on_notice(message)
    damage = Damage(repr(str(clip.path)))
    filtered = Deinterlacer(deinterlace, clip.time_base)
    source = (
        _video_frames(clip, begin, step, damage, filtered) if clip.kind == "video"
        else _animation_frames(clip) if clip.kind == "animation"
        else _folder_frames(clip)
    )  # fmt: skip
    # closing: a reader that stops early closes the file, whatever still refers to the frames
    shown = _resampled(source, begin, fps) if fps else source
    with (
        closing(source),
        closing(shown),
        closing(_with_durations(shown, begin, stop, max_frames)) as frames,
    ):
        flattened = False
        for rgb, alpha, pts, duration in frames:
            if alpha is not None and not keep_alpha:
                rgb, alpha, flattened = over_white(rgb, alpha), None, True
            yield Frame(rgb, pts, duration, alpha)
    if flattened:
        on_notice(
            f"{clip.path.name} is transparent in parts: they show white (prores, ffv1, png, gif, "
            f"webp, and vp9 in webm or mkv keep them)"
        )
    if filtered.interlaced:
        on_notice(
            f"{clip.path.name} is interlaced: {count_of_frames(filtered.interlaced)} "
            f"deinterlaced (bwdif); "
            "--deinterlace off leaves them as they are"
        )
    for notice in damage.notices(clip.path.name, clip.time_base):
        on_notice(notice)


# picture, alpha unless all is opaque, when it is shown
_Shown = tuple[Pixels, Alpha | None, Fraction]
# Frames, and when all are out the time at which the last one ends.
_Source = Generator[_Shown, None, Fraction]


def _with_durations(
    source: _Source, begin: Fraction, stop: Fraction | None, count: int | None
) -> Generator[tuple[Pixels, Alpha | None, Fraction, Fraction], None, None]:
    """The first `count` frames from `begin` up to `stop`, each with its duration, which the next
    one tells."""
    held: _Shown | None = None
    while True:
        try:
            following = next(source)
            until = following[2]
        except StopIteration as stopped:
            following, until = None, Fraction(stopped.value)
        except StdError:
            if held is None or count != 1:
                raise
            following, until = None, held[2]  # only its time was of interest
        if held is not None:
            yield *held, (until if stop is None else min(until, stop)) - held[2]
            count = count - 1 if count is not None else None
        if following is None or count == 0 or (stop is not None and until >= stop):
            return
        held = following if until >= begin else None


def _resampled(source: _Source, begin: Fraction, fps: Fraction) -> _Source:
    n, shown, end = 0, None, None
    while end is None:
        try:
            frame = next(source)
            until = frame[2]
        except StopIteration as stopped:
            until = end = Fraction(stopped.value)
        while shown is not None and begin + n / fps < until:
            yield *shown[:2], begin + n / fps
            n += 1
        shown = frame
    return begin + n / fps


def _video_frames(
    clip: Clip, begin: Fraction, step: int, damage: Damage, filtered: Deinterlacer
) -> _Source:
    """From the frame that is shown at `begin` on; of those from `begin` on only each `step`-th."""
    target = _seek_target(clip, begin)
    with open_container(clip.path, clip.part) as container:
        stream = video_stream(container, damage.name)
        if target is not None:
            container.seek(target, stream=stream)
        frames = filtered(decoded(container, stream, damage, clip.offsets))
        end = yield from _timed(frames, clip, begin, step, stream, damage)
        return _end_of(container, stream, clip, damage, end, whole=target is None)


def _seek_target(clip: Clip, begin: Fraction) -> int | None:
    """Ticks to seek to, so that the first frame that is decoded then is not later than `begin`;
    None for the start.

    Without an index (mpegts) a seek may land behind the key frame that the frame at `begin` needs.
    """
    if clip.offsets:
        return None
    for back in (0, 10):
        if begin - back > clip.start:
            target = int((begin - back) / clip.time_base)
            with open_container(clip.path, clip.part) as container:
                stream = video_stream(container, "")
                try:
                    container.seek(target, stream=stream)
                    _, ticks = next(decoded(container, stream, Damage("")), (None, None))
                except (av.FFmpegError, StdError):
                    continue
            if ticks is not None and ticks * clip.time_base <= begin:
                return target
    return None


def _timed(
    frames: Any, clip: Clip, begin: Fraction, step: int, stream: Any, damage: Damage
) -> Generator[_Shown, None, tuple[Fraction, Fraction]]:
    """The frames, and after them (the time of the last one, when it ends as far as it says so
    itself)."""
    base, gap = stream.time_base, 1 / (clip.frame_rate or FOLDER_RATE)
    turn, end, last, held, count = None, clip.start, None, None, 0

    def convert(frame: Any, pts: Fraction) -> _Shown:
        color = clip.color if not clip.hdr else _hdr_color(frame)
        alpha = alpha_of(frame)
        if alpha is not None:
            alpha = None if alpha.min() == 255 else _upright(alpha, turn or _NO_TURN)
        return _upright(to_rgb(frame, color), turn or _NO_TURN), alpha, pts

    for frame, ticks in frames:
        pts = ticks * base if ticks is not None else end
        if last is not None and pts <= last:
            damage.backward += 1
            continue
        if last is not None:
            damage.step(round((pts - last) / base), last - clip.start)
        turn = turn or _turn(frame)
        damage.captions = damage.captions or _has_captions(frame)
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
    return last if last is not None else end, end


def _end_of(
    container: Any,
    stream: Any,
    clip: Clip,
    damage: Damage,
    times: tuple[Fraction, Fraction],
    whole: bool,
) -> Fraction:
    """When the last frame ends, in seconds; notes in `damage` whether the file breaks off.

    times: those that `_timed` returns. whole: the video was read from its beginning.
    """
    last, end = times
    kind = container.format.name
    size = clip.part.size if clip.part else clip.path.stat().st_size
    cut = damage.ended_early or _cut_at(stream, size) is not None or _is_cut(clip, kind, size)
    declared: Fraction | None = None
    if kind == "avi" and whole:
        damage.steps.clear()  # an AVI has no times: only an empty chunk, no loss, makes a gap
        expected = stream.frames - _held_frames(stream)
        if expected > damage.packets:
            damage.expected = expected
        cut = cut and damage.expected is not None
    elif kind in ("flv", "asf") or ("mp4" in kind and not stream.frames):
        # in pieces, or with a header that was written at the end: each frame's own duration is
        # right
        declared = clip.start + clip.duration if clip.duration else None
        cut = cut or (declared is not None and max(end, damage.reached or end) + 1 < declared)
    elif not cut and "mp4" in kind and stream.duration:
        # with frames out of order what FFmpeg takes for a frame's duration is that of another one
        declared = ((stream.start_time or 0) + stream.duration) * stream.time_base
        end = declared if declared > last else end
    elif not cut and (tagged := _tagged_end(stream)) is not None:
        end = tagged if tagged > last else end
    shorter = clip.duration is not None and clip.duration > end - clip.start + _MS
    if "matroska" in kind and clip.duration is not None:
        cut = cut and shorter  # else the bytes that the file lacks held no frame at its end
    if cut:
        damage.broken_off = end - clip.start
        damage.declared = clip.duration if shorter else None
    return end


def _held_frames(stream: VideoStream) -> int:
    """How many empty chunks an AVI has, each of which shows the frame before once more.

    The demuxer passes them over. Its index, where that reaches the end of the file, counts them in
    its times but has no entries for them.
    """
    entries = stream.index_entries
    if not len(entries) or entries[-1].timestamp < stream.frames - 1:
        return 0
    return stream.frames - len(entries)


def _is_cut(clip: Clip, kind: str, size: int) -> bool:
    """Whether a file is shorter than it says itself, or ends within a piece of it.

    clip, kind, size: the video, FFmpeg's name of its container, its bytes.
    """
    with (clip.part.file if clip.part else clip.path).open("rb") as file:
        begin = clip.part.offset if clip.part else 0
        file.seek(begin)
        head = file.read(4096)
        if kind == "avi":  # a RIFF chunk (Multimedia Programming Interface 1.0, 1991)
            return 8 + int.from_bytes(head[4:8], "little") > size
        if kind == "asf":  # the size in the File Properties Object (ASF specification, 3.2)
            at = head.find(_ASF_PROPERTIES)
            return at >= 0 and int.from_bytes(head[at + 40 : at + 48], "little") > size
        if kind == "flv":  # the last 4 bytes are the size of the tag before them (E.4.1)
            file.seek(begin + max(0, size - 4))
            tag = int.from_bytes(file.read(4), "big")
            if not 11 <= tag <= size - 4:
                return True
            file.seek(begin + size - 4 - tag)
            header = file.read(4)
            return header[0] & 31 not in (8, 9, 18) or int.from_bytes(header[1:], "big") != tag - 11
    return "matroska" in kind and _segment_end(head) > size


_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _segment_end(head: bytes) -> int:
    """Where Matroska's outermost element ends, in bytes; 0 if it does not say so (RFC 8794,
    sections 4 to 6)."""
    at = head.find(b"\x18\x53\x80\x67") + 4  # the Segment's id
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()
    length = int.from_bytes(head[at : at + width], "big") - (1 << 7 * width)
    unknown = (1 << 7 * width) - 1
    return 0 if length == unknown else at + width + length


def _hdr_color(frame: Any) -> Color:
    return Color(
        int(frame.colorspace),
        int(frame.color_range),
        int(frame.color_primaries),
        int(frame.color_trc),
    )


def _has_captions(frame: av.VideoFrame) -> bool:
    """Whether closed captions (ATSC A/53 Part 4) came with a frame."""
    all_data: Any = frame.side_data  # PyAV types it as a mapping
    return any("A53_CC" in str(data.type) for data in all_data)


_NO_TURN = (False, False, False)


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """What makes a frame upright, by its display matrix: (swap rows and columns, then mirror
    left-right, up-down)."""
    for data in frame.side_data:
        if "DISPLAYMATRIX" in str(data.type):
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
            if abs(int(b)) > abs(int(a)):
                return True, bool(c < 0), bool(b < 0)
            return False, bool(a < 0), bool(d < 0)
    return _NO_TURN


def _upright(pixels: Pixels, turn: tuple[bool, bool, bool]) -> Pixels:
    """(H, W[, C]) -> the same, upright."""
    swap, left_right, top_bottom = turn
    if swap:
        pixels = pixels.swapaxes(0, 1)
    if left_right:
        pixels = pixels[:, ::-1]
    if top_bottom:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _folder_frames(clip: Clip) -> _Source:
    assert clip.frame_rate is not None and clip.duration is not None
    for i, picture in enumerate(sequences.pictures_of(clip.path, (clip.width, clip.height))):
        alpha = np.asarray(picture.alpha) if picture.alpha is not None else None
        yield np.asarray(picture.rgb), alpha, i / clip.frame_rate
    return clip.duration


def _animation_frames(clip: Clip) -> _Source:
    time = Fraction(0)
    try:
        for frame, duration in animations.frames(clip.path):
            rgba = np.asarray(frame)
            alpha = rgba[..., 3]
            yield (
                np.ascontiguousarray(rgba[..., :3]),
                None if alpha.min() == 255 else alpha.copy(),
                time,
            )
            time += duration
    except InputError as e:  # it could be read when the work began
        raise StdError(str(e)) from None
    return time
