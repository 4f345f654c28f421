"""Videos out: finished parts as media files of their own, then all of them and the source's sound in one container.

A part (segment) is mp4 or mov, whose clock is as fine as asked for; ffv1, which those do not hold, is in nut. The last
step copies packets, so that nothing is encoded twice; gif and webp alone are made from lossless parts.
"""

import heapq
import json
import math
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np

from std_cli.errors import InputError, StdError
from std_cli.video.clip import Clip, Color, Pixels
from std_cli.video.color import LIMITED, from_rgb, matrix_of


@dataclass(frozen=True)
class Encoder:
    codec: str
    """As the user names it."""
    pix_fmt: str
    odd: str | None
    """Pixel format for sizes that are odd; None if it has none."""
    options: dict[str, str]
    quality: str = ""
    """Its option for --crf, "" if it has none."""
    crf: tuple[int, int] = (0, 0)
    """Range of that."""
    preset: str = ""
    presets: tuple[str, ...] = ()


_X26 = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_NVENC = dict(quality="cq", crf=(0, 51), preset="preset", presets=tuple(f"p{i}" for i in range(1, 8)))
_P420, _P444 = "yuv420p", "yuv444p"
ENCODERS = {
    # x264's macroblock tree now and then differs from run to run (measured at 320 x 180), and a run that goes on must
    # give the same bits as one that was not interrupted
    "libx264": Encoder("h264", _P420, _P444, {"crf": "18", "x264-params": "mbtree=0"}, "crf", (0, 51), "preset", _X26),
    "libx265": Encoder(
        "hevc", _P420, _P444, {"crf": "20", "x265-params": "log-level=error"}, "crf", (0, 51), "preset", _X26
    ),
    "libsvtav1": Encoder(
        "av1", _P420, None, {"crf": "28", "preset": "8"}, "crf", (0, 63), "preset", tuple(map(str, range(14)))
    ),
    "libvpx-vp9": Encoder(
        "vp9", _P420, _P444, {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}, "crf", (0, 63), "cpu-used",
        tuple(map(str, range(9))),
    ),
    "prores_ks": Encoder("prores", "yuv422p10le", "yuv444p10le", {"profile": "hq"}),
    "ffv1": Encoder("ffv1", "bgr0", "bgr0", {"level": "3"}),
    "png": Encoder("png", "rgb24", "rgb24", {}),
    "h264_nvenc": Encoder("h264", _P420, _P444, {"rc": "vbr", "cq": "19"}, **_NVENC),  # type: ignore[arg-type]
    "hevc_nvenc": Encoder("hevc", _P420, _P444, {"rc": "vbr", "cq": "21"}, **_NVENC),  # type: ignore[arg-type]
    "av1_nvenc": Encoder("av1", _P420, None, {"rc": "vbr", "cq": "28"}, **_NVENC),  # type: ignore[arg-type]
    "h264_videotoolbox": Encoder("h264", _P420, None, {"q": "65"}),
    "hevc_videotoolbox": Encoder("hevc", _P420, None, {"q": "65"}),
    "prores_videotoolbox": Encoder("prores", "yuv422p10le", None, {"profile": "hq"}),
}  # fmt: skip
SOFTWARE = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "prores": "prores_ks"}
SOFTWARE |= {"ffv1": "ffv1", "png": "png", "gif": "ffv1", "webp": "ffv1"}
CONTAINERS = {  # suffix -> FFmpeg's name, codecs that it holds, the default first
    ".mp4": ("mp4", ("h264", "hevc", "av1", "vp9")),
    ".m4v": ("mp4", ("h264", "hevc")),
    ".mov": ("mov", ("h264", "hevc", "prores")),
    ".mkv": ("matroska", ("h264", "hevc", "av1", "vp9", "prores", "ffv1")),
    ".webm": ("webm", ("vp9", "av1")),
    ".gif": ("gif", ("gif",)),
    ".webp": ("webp", ("webp",)),
    "": ("folder", ("png",)),
}
MAX_TICKS = 2**31 - 1  # a second's, in mp4


@dataclass(frozen=True)
class Target:
    """How a result is written."""

    path: Path
    """A file, or for png a folder."""
    codec: str
    encoder: str
    """FFmpeg's name."""
    container: str
    """FFmpeg's name, or "folder"."""
    pix_fmt: str
    width: int
    height: int
    sample_aspect_ratio: Fraction
    time_base: Fraction
    frame_rate: Fraction
    """Nominal: what encoders reckon with."""
    color: Color
    options: dict[str, str]


def choose_target(
    path: Path,
    clip: Clip,
    *,
    codec: str | None,
    crf: int | None,
    preset: str | None,
    size: tuple[int, int],
    sar: Fraction,
    rate: Fraction | None,
) -> Target:
    """Decide how to write, trying the encoder. `rate`: of the result, if not the clip's own times.

    Raises InputError for what cannot be written so.
    """
    suffix = path.suffix.lower()
    if codec == "png":
        suffix = ""
    if suffix not in CONTAINERS:
        known = ", ".join(filter(None, CONTAINERS))
        raise InputError(f"-o {path}: {suffix} cannot be written; use one of {known}, or --codec png for a folder")
    container, codecs = CONTAINERS[suffix]
    name = codec or codecs[0]
    encoder = name if name in ENCODERS else SOFTWARE.get(name)
    if encoder is None:
        raise InputError(f"--codec {name}: not known; use one of {', '.join({**SOFTWARE, **ENCODERS})}")
    e = ENCODERS[encoder]
    kind = name if name in ("gif", "webp") else e.codec
    if kind not in codecs:
        fits = [s or "a folder" for s, (_, held) in CONTAINERS.items() if kind in held]
        raise InputError(f"{suffix or 'a folder'} cannot hold {kind}; write it to {' or '.join(fits)}")
    options = dict(e.options)
    if crf is not None:
        if not e.quality:
            raise InputError(f"--crf {crf}: {encoder} has no such setting; leave it out")
        if not e.crf[0] <= crf <= e.crf[1]:
            raise InputError(f"--crf {crf}: {encoder} takes {e.crf[0]} (best) to {e.crf[1]}")
        options[e.quality] = str(crf)
    if preset is not None:
        if preset not in e.presets:
            takes = f"takes {', '.join(e.presets)}" if e.presets else "has none: leave it out"
            raise InputError(f"--preset {preset}: {encoder} {takes}")
        options[e.preset] = preset
    width, height = size
    pix_fmt = e.odd if (width % 2 or height % 2) and kind != "prores" else e.pix_fmt
    if pix_fmt is None:
        raise InputError(f"{kind} cannot have odd sides, {width}x{height}; use --output-size with even ones, or h264")
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: its folder does not exist; make it, or choose another")
    color = clip.color
    if color.matrix == 2 and matrix_of(color, clip.width, clip.height) != matrix_of(color, width, height):
        color = Color(matrix_of(color, clip.width, clip.height), color.range, color.primaries, color.transfer)
    if pix_fmt in ("bgr0", "rgb24"):
        color = Color(0, 2, color.primaries, color.transfer)
    elif color.matrix in (0, 8, 14):  # RGB and what is not written here
        color = Color(matrix_of(Color(), width, height), color.range or LIMITED, color.primaries, color.transfer)
    base = clip.time_base if rate is None else common_time_base(1 / rate, clip.start)
    nominal = rate or clip.frame_rate or Fraction(25)
    target = Target(path, kind, encoder, container, pix_fmt, width, height, sar, base, nominal, color, options)
    _try(target)
    return target


def common_time_base(*times: Fraction) -> Fraction:
    """The coarsest 1 / n in which all times are whole; a millionth where that is too fine for a container."""
    n = math.lcm(*(t.denominator for t in times))
    return Fraction(1, n if n <= MAX_TICKS else 1_000_000)


def _try(target: Target) -> None:
    """Open the encoder once: what it lacks, a GPU for one, is found before any work."""
    try:
        context: Any = av.CodecContext.create(target.encoder, "w")
        _set_up(context, target)
        context.open()
    except (av.FFmpegError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise InputError(
            f"the encoder {target.encoder} cannot be used here ({reason}); choose another --codec, such as h264"
        ) from None


def _set_up(context: Any, target: Target) -> None:
    t = target
    context.width, context.height, context.pix_fmt = t.width, t.height, t.pix_fmt
    context.time_base, context.framerate = t.time_base, t.frame_rate
    context.sample_aspect_ratio = t.sample_aspect_ratio
    context.colorspace, context.color_range = t.color.matrix, t.color.range
    context.color_primaries, context.color_trc = t.color.primaries, t.color.transfer
    context.options = t.options


# --- segments --------------------------------------------------------------------------------------------------------


class SegmentWriter:
    """One media file of consecutive frames. It has its name when `close` returns; left by an error it is not there."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path, self.target = path, target
        self.part = path.with_name(f"{path.name}.part")
        format = {"ffv1": "nut", "prores_ks": "mov", "prores_videotoolbox": "mov", "png": "mov"}.get(
            target.encoder, "mp4"
        )
        self.last_dts: int | None = None
        base = target.time_base
        options = {} if format == "nut" else {"video_track_timescale": str(base.denominator)}
        with _told(path):
            self.container = _create(self.part, format, options)
            self.stream = self.container.add_stream(target.encoder, rate=target.frame_rate)
            _set_up(self.stream.codec_context, target)
            self.stream.time_base = base
            self.stream.sample_aspect_ratio = target.sample_aspect_ratio
            if target.codec == "hevc":
                self.stream.codec_context.codec_tag = "hvc1"  # what Apple's players ask for

    def write(self, rgb: Pixels, pts: Fraction) -> None:
        """A frame (H, W, 3) at `pts` seconds."""
        frame = from_rgb(rgb, self.target.pix_fmt, self.target.color)
        frame.pts, frame.time_base = round(pts / self.target.time_base), self.target.time_base
        with _told(self.path):
            self._mux(self.stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # of fewer frames than it looks ahead x265 gives decoding times out of the blue
            if packet.dts is not None and packet.pts - packet.dts > 60 / self.target.time_base:
                packet.dts = packet.pts - 100 if self.last_dts is None else min(packet.pts, self.last_dts + 1)
            self.last_dts = packet.dts
            self.container.mux(packet)

    def close(self) -> None:
        with _told(self.path):
            self._mux(self.stream.encode())
            self.container.close()
            _sync(self.part)
            os.replace(self.part, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(av.FFmpegError, OSError):
            self.container.close()
        self.part.unlink(missing_ok=True)


def _create(path: Path, format: str, options: dict[str, str]) -> Any:
    """PyAV's container of a file that is written; its types do not know which stream is which."""
    return av.open(f"file:{path}", "w", format=format, options=options)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class _told:
    """The system's errors while `path` is written, as one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and not isinstance(error, InputError):  # PyAV's are OSErrors, too
            reason = error.strerror or str(error)
            raise StdError(f"cannot write {self.path} ({reason}); check the disk and run the same command again")


# --- the whole -------------------------------------------------------------------------------------------------------


def join(
    segments: Sequence[Path],
    target: Target,
    source: Clip,
    *,
    out: Path,
    begin: Fraction | None = None,
    until: Fraction | None = None,
    shift: Fraction = Fraction(0),
    audio: bool = True,
    comment: str = "",
) -> list[str]:
    """Put the segments into one file `out` and copy the source's other streams, chapters and tags; what could not be
    kept is told in the returned notices.

    Packets of the other streams from `begin` up to `until` (seconds on the source's clock; None: no limit) are kept;
    `shift` is taken off all times.
    """
    with _told(target.path):
        if target.container == "folder":
            _folder(segments, out, comment)
            return []
        if target.container in ("gif", "webp"):
            _animate(segments, target, out)
            return [f"{target.container} has no sound: it is left out"] if source.audio and audio else []
        notices: list[str] = []
        with ExitStack() as stack:
            options = {"movflags": "+faststart"} if target.container in ("mp4", "mov") else {}
            if target.container in ("mp4", "mov"):
                options["video_track_timescale"] = str(target.time_base.denominator)
            file = stack.enter_context(_create(out, target.container, options))
            first: Any = stack.enter_context(av.open(f"file:{segments[0]}"))
            template: Any = first.streams.video[0]
            video = file.add_stream_from_template(template, opaque=target.codec == "av1")
            video.time_base = target.time_base
            if target.codec != "av1":
                video.sample_aspect_ratio = target.sample_aspect_ratio
                if target.codec == "hevc" and target.container != "matroska":
                    video.codec_context.codec_tag = "hvc1"
            flows = [_video_packets(segments, video, target, shift)]
            if source.kind == "video":
                before: Any = stack.enter_context(av.open(f"file:{source.path}", metadata_errors="replace"))
                others, chosen = _other_streams(before, file, audio, notices)
                if chosen:
                    flows.append(_other_packets(before, others, chosen, begin, until, shift))
                _copy_tags(before, file, begin, until, shift)
            if comment:
                file.metadata["comment"] = comment
            for _, _, packet in heapq.merge(*flows, key=lambda item: item[:2]):
                file.mux(packet)
        _sync(out)
        return notices


_Flow = Iterator[tuple[float, int, Any]]  # (seconds, of equal ones the first, packet)


def _video_packets(segments: Sequence[Path], stream: Any, target: Target, shift: Fraction) -> _Flow:
    last: int | None = None
    base = target.time_base
    for path in segments:
        with av.open(f"file:{path}") as part:
            for packet in part.demux(part.streams.video[0]):
                if not packet.size or packet.pts is None:
                    continue
                pts = round((packet.pts * packet.time_base - shift) / base)
                dts = packet.dts if packet.dts is not None else packet.pts
                dts = math.floor((dts * packet.time_base - shift) / base)
                if last is not None and dts <= last:  # a part's first packets are decoded before its first frame shows
                    dts = last + 1
                last = dts = min(dts, pts)
                packet.pts, packet.dts, packet.time_base, packet.stream = pts, dts, base, stream
                packet.duration = round(1 / target.frame_rate / base)
                yield float(dts * base), 0, packet


def _other_streams(
    before: Any, file: Any, audio: bool, notices: list[str]
) -> tuple[dict[int, tuple[Any, Any]], list[Any]]:
    """({index in the source: (stream of the result, transcoder or None)}, those streams of the source)."""
    found: dict[int, tuple[Any, Any]] = {}
    chosen = []
    for stream in before.streams:
        if stream.type == "video" or (stream.type == "audio" and not audio):
            continue
        codec = stream.codec_context.codec.canonical_name if getattr(stream, "codec_context", None) else None
        kind = {"audio": "sound", "subtitle": "subtitles"}.get(stream.type, stream.type)
        what = f"{kind} ({codec or 'of an unknown kind'})"
        copied = _copied(file, stream) if stream.type in ("audio", "subtitle") and codec else None
        if copied is not None:
            found[stream.index] = (copied, None)
        elif stream.type == "audio" and codec:
            name = "libopus" if file.format.name == "webm" else "aac"
            new = file.add_stream(name, rate=48000, layout=stream.codec_context.layout.name)
            new.metadata.update(stream.metadata)
            found[stream.index] = (new, av.AudioResampler(new.codec_context.format, new.layout, 48000))
            notices.append(f"{what} does not go into {file.format.name}: it was encoded anew as {name}")
        else:
            notices.append(f"{what} does not go into {file.format.name}: left out")
            continue
        chosen.append(stream)
    return found, chosen


def _copied(file: Any, stream: Any) -> Any:
    """A stream of the result that takes this one's packets as they are; None if the container has no place for it."""
    name = stream.codec_context.codec.canonical_name
    if name not in _held(file):
        return None
    try:
        new = file.add_stream_from_template(stream, opaque=True)
    except (ValueError, av.FFmpegError):
        return None
    new.time_base = stream.time_base
    new.metadata.update(stream.metadata)
    new.disposition = stream.disposition
    return new


def _held(file: Any) -> set[str]:
    if file.format.name == "webm":
        return {"opus", "vorbis", "webvtt"}
    if file.format.name in ("mp4", "mov"):
        return {"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus", "mov_text", "dvd_subtitle"} | (
            {"pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be", "pcm_f32le"} if file.format.name == "mov" else set()
        )
    return set(file.supported_codecs) - {"mov_text", "bin_data"}


def _other_packets(
    before: Any,
    others: dict[int, tuple[Any, Any]],
    chosen: list[Any],
    begin: Fraction | None,
    until: Fraction | None,
    shift: Fraction,
) -> _Flow:
    if begin is not None and begin > 1:
        with suppress(av.FFmpegError):
            before.seek(int((begin - 1) * av.time_base))
    ended: set[int] = set()
    for packet in before.demux(chosen):
        index = packet.stream.index  # stream_index is not set in those that flush
        new, resampler = others[index]
        if packet.pts is not None:
            time = packet.pts * packet.time_base
            if until is not None and time >= until:
                ended.add(index)
            if len(ended) == len(chosen):
                break
            if (begin is not None and time < begin) or (until is not None and time >= until):
                continue
        if resampler is not None:
            for frame in packet.decode():
                yield from _encoded(frame, new, resampler, shift)
            continue
        if not packet.size or packet.pts is None:
            continue
        ticks = round(shift / packet.time_base)
        packet.pts -= ticks
        packet.dts = packet.dts - ticks if packet.dts is not None else packet.pts
        packet.stream = new
        yield float(packet.dts * packet.time_base), 1, packet
    for new, resampler in others.values():
        if resampler is not None:
            yield from _encoded(None, new, resampler, shift)


def _encoded(frame: Any, stream: Any, resampler: Any, shift: Fraction) -> _Flow:
    if frame is not None and frame.pts is not None:
        frame.pts -= round(shift / frame.time_base)
    for piece in [*resampler.resample(frame), *([None] if frame is None else [])]:
        for packet in stream.encode(piece):
            yield float(packet.dts * packet.time_base), 1, packet


def _copy_tags(before: Any, file: Any, begin: Fraction | None, until: Fraction | None, shift: Fraction) -> None:
    technical = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")
    file.metadata.update({k: v for k, v in before.metadata.items() if k.lower() not in technical})
    chapters = []
    for chapter in before.chapters():
        base = chapter["time_base"]
        start, end = chapter["start"] * base, chapter["end"] * base
        start, end = max(start, begin or start), min(end, until or end)
        if start < end:
            ticks = {"start": round((start - shift) / base), "end": round((end - shift) / base)}
            chapters.append(chapter | ticks)
    if chapters:
        file.set_chapters(chapters)


def _frames(segments: Sequence[Path]) -> Generator[tuple[Fraction, Any], None, None]:
    for path in segments:
        with av.open(f"file:{path}") as part:
            stream: Any = part.streams.video[0]
            for frame in part.decode(stream):
                yield (frame.pts or 0) * stream.time_base, frame


def _animate(segments: Sequence[Path], target: Target, out: Path) -> None:
    """An endless gif, with a palette for each frame, or webp."""
    webp = target.container == "webp"
    base = Fraction(1, 1000 if webp else 100)
    with _create(out, target.container, {"loop": "0"}) as file:
        stream = file.add_stream("libwebp_anim" if webp else "gif", rate=target.frame_rate)
        stream.width, stream.height = target.width, target.height
        stream.pix_fmt = "yuva420p" if webp else "pal8"
        stream.codec_context.time_base = stream.time_base = base
        if webp:
            stream.codec_context.options = {"quality": "90"}
        start: Fraction | None = None
        last = -1
        for pts, frame in _frames(segments):
            start = pts if start is None else start
            last = max(last + 1, round((pts - start) / base))  # two frames may fall on one tick
            rgb = frame.to_ndarray(format="rgb24")
            new = from_rgb(rgb, "yuva420p", Color(6, LIMITED, 2, 2)) if webp else _with_palette(rgb)
            new.pts, new.time_base = last, base
            file.mux(stream.encode(new))
        file.mux(stream.encode())
    _sync(out)


def _with_palette(rgb: Pixels) -> av.VideoFrame:
    """The frame in 256 colours of its own."""
    from PIL import Image

    image = Image.fromarray(rgb).quantize(256)
    palette = np.zeros((256, 4), np.uint8)
    colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[:, 0], palette[: len(colours), 1:] = 255, colours  # ARGB
    return av.VideoFrame.from_ndarray((np.asarray(image), palette), "pal8")  # type: ignore[arg-type]


def _folder(segments: Sequence[Path], out: Path, comment: str) -> None:
    """000001.png and on, with frames.csv (file, seconds) and the request as std.json."""
    out.mkdir()
    lines, number = ["file,seconds"], 0
    for path in segments:
        with av.open(f"file:{path}") as part:
            for packet in part.demux(part.streams.video[0]):
                if packet.size and packet.pts is not None:
                    number += 1
                    name = f"{number:06d}.png"
                    (out / name).write_bytes(bytes(packet))
                    lines.append(f"{name},{float(packet.pts * packet.time_base):.6f}")
    (out / "frames.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if comment:
        (out / "std.json").write_text(comment + "\n", encoding="utf-8")
    for file in out.iterdir():
        _sync(file)


def read_comment(path: Path) -> dict[str, Any] | None:
    """The request that `join` stored in a video; None in one of other origin."""
    with av.open(f"file:{path}", metadata_errors="replace") as file:
        tags = {key.lower(): value for key, value in file.metadata.items()}
    try:
        found = json.loads(tags.get("comment", ""))["std"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None
