"""Videos in: one decoder, frame by frame, each upright, in RGB, with its exact time. Nothing holds
the clip."""

from collections.abc import Callable, Generator
from contextlib import closing
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from std_cli.config import Deinterlace
from std_cli.errors import InputError, StdError, counted
from std_cli.media.video import animations, sequences
from std_cli.media.video.clip import Alpha, Clip, Frame, Pixels
from std_cli.media.video.color import alpha_of, over_white, to_rgb
from std_cli.media.video.decode import (
    Damage,
    decoded,
    open_container,
    video_stream,
)
from std_cli.media.video.deinterlace import Deinterlacer
from std_cli.media.video.opening import FOLDER_RATE, MS, NO_TURN, hdr_color, tagged_end, turn_of
from std_cli.media.video.truncation import is_truncated, whole_frames


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
            f"{clip.path.name} is interlaced: {counted(filtered.interlaced, 'frame')} "
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

    def convert(frame: VideoFrame, pts: Fraction) -> _Shown:
        color = clip.color if not clip.hdr else hdr_color(frame)
        alpha = alpha_of(frame)
        if alpha is not None:
            alpha = None if alpha.min() == 255 else _upright(alpha, turn or NO_TURN)
        return _upright(to_rgb(frame, color), turn or NO_TURN), alpha, pts

    for frame, ticks in frames:
        pts = ticks * base if ticks is not None else end
        if last is not None and pts <= last:
            damage.backward += 1
            continue
        if last is not None:
            damage.step(round((pts - last) / base), last - clip.start)
        turn = turn or turn_of(frame)
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
    cut = (
        damage.ended_early
        or whole_frames(stream, size) is not None
        or is_truncated(clip, kind, size)
    )
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
    elif not cut and (tagged := tagged_end(stream)) is not None:
        end = tagged if tagged > last else end
    shorter = clip.duration is not None and clip.duration > end - clip.start + MS
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


def _has_captions(frame: av.VideoFrame) -> bool:
    """Whether closed captions (ATSC A/53 Part 4) came with a frame."""
    all_data: Any = frame.side_data  # PyAV types it as a mapping
    return any("A53_CC" in str(data.type) for data in all_data)


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
