"""Finished segments to one output: joined without encoding them again, with sound, subtitles, chapters and tags."""

import heapq
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.subtitles.subtitle import SubtitleSet

from std_cli.errors import InputError
from std_cli.video.clip import Clip, Color, Pixels
from std_cli.video.color import LIMITED, from_rgb
from std_cli.video.decode import video_stream
from std_cli.video.timestamps import all_continued
from std_cli.video.write import Target, create_container, decoding_delay, early_times, exact_clock, sync_file, told


def join(
    segments: Sequence[Path],
    target: Target,
    source: Clip,
    *,
    out: Path,
    begin: Fraction | None = None,
    until: Fraction | None = None,
    shift: Fraction = Fraction(0),
    end: Fraction | None = None,
    audio: bool = True,
    comment: str = "",
) -> list[str]:
    """Put the segments into one file `out` and copy the source's other streams, chapters and tags; what could not be
    kept is told in the returned notices.

    Packets of the other streams from `begin` up to `until` (seconds on the source's clock; None: no limit) are kept;
    `shift` is taken off all times. The last frame ends at `end` (on that clock, too; None: after the nominal time of
    one frame). Raises StdError if writing fails; then `out` may be there in part.
    """
    with told(target.path):
        if target.container == "folder":
            _folder(segments, out, comment, shift)
            return []
        if target.container in ("gif", "webp"):
            _animate(segments, target, out, end)
            return [f"{target.container} has no sound: it is left out"] if source.audio and audio else []
        notices: list[str] = []
        with ExitStack() as stack:
            before: Any = None
            if source.kind == "video":
                before = stack.enter_context(av.open(f"file:{source.path}", metadata_errors="replace"))
            options = {}
            if target.container in ("mp4", "mov"):
                rates = [s.sample_rate for s in before.streams.audio if s.codec_context] if before else []
                options = {"movflags": "+faststart"} | exact_clock(target, *filter(None, rates))
            file = stack.enter_context(create_container(out, target.container, options))
            first: Any = stack.enter_context(av.open(f"file:{segments[0]}"))
            template: Any = first.streams.video[0]
            video = file.add_stream_from_template(template, opaque=target.codec == "av1")
            video.time_base = target.time_base
            video.codec_context.framerate = target.frame_rate
            if target.codec != "av1":
                video.sample_aspect_ratio = target.sample_aspect_ratio
                if target.codec == "hevc" and target.container != "matroska":
                    video.codec_context.codec_tag = "hvc1"
            flows = [_video_packets(segments, video, target, shift, end)]
            if before:
                others = _other_streams(before, file, video, audio, notices)
                if others:
                    flows.append(_other_packets(before, others, source, notices, begin, until, shift))
                _copy_tags(before, file, bool(comment), begin, until, shift)
            if comment:
                file.metadata["comment"] = comment
            for _, _, packet in heapq.merge(*flows, key=lambda item: item[:2]):
                file.mux(packet)
        sync_file(out)
        return notices


_Flow = Iterator[tuple[float, int, Any]]  # (seconds, of equal ones the first, packet)


def _video_packets(
    segments: Sequence[Path], stream: Any, target: Target, shift: Fraction, end: Fraction | None
) -> _Flow:
    base = target.time_base
    delay = decoding_delay(target)
    nominal = round(1 / target.frame_rate / base)
    shown = _shown(segments[0], base, shift)
    first = early_times(target, shown[0], shown[1] - shown[0] if len(shown) > 1 else 1)
    times = [*first, *shown]  # of all frames of a part, in order; ahead of them of the last ones before it
    for path, after in zip(segments, [*segments[1:], None], strict=True):
        following = _shown(after, base, shift) if after is not None else []
        last = max(round((end - shift) / base), shown[-1] + 1) if end is not None else shown[-1] + nominal
        until = following[0] if following else last
        ends = dict(zip(shown, [*shown[1:], until], strict=True))
        for number, packet in enumerate(_packets(path)):
            packet.pts = round((packet.pts * packet.time_base - shift) / base)
            packet.dts = times[number] if delay else packet.pts
            packet.duration = ends[packet.pts] - packet.pts
            if after is None and number == len(shown) - 1 and target.container in ("mp4", "mov"):
                # the track is as long as what is decoded last says, the movie ends with what is shown last
                packet.dts, packet.duration = packet.pts, until - packet.pts
            packet.time_base, packet.stream = base, stream
            yield float(packet.dts * base), 0, packet
        times, shown = [*times[len(times) - delay :], *following], following


def _shown(path: Path, base: Fraction, shift: Fraction) -> list[int]:
    """When the frames of a segment are shown, in order, ticks of the result."""
    return [round((time - shift) / base) for time in _times(path)]


def _times(path: Path) -> list[Fraction]:
    """When the frames of a segment are shown, in order, seconds."""
    return sorted(packet.pts * packet.time_base for packet in _packets(path))


def _packets(path: Path) -> Generator[Any, None, None]:
    """The packets of a segment, as they are decoded."""
    with av.open(f"file:{path}") as part:
        for packet in part.demux(part.streams.video[0]):
            if packet.size and packet.pts is not None:
                yield packet


_Convert = Callable[[Any], Iterator[Any]]  # packets of the source, or None at the end -> packets of the result


def _other_streams(
    before: Any, file: Any, video: Any, audio: bool, notices: list[str]
) -> list[tuple[Any, Any, _Convert | None]]:
    """(stream of the source, stream of the result, how its packets are made anew or None); the tags of video's, too."""
    found: list[tuple[Any, Any, _Convert | None]] = []
    into = file.format.name
    covers = av.stream.Disposition.attached_pic
    main: Any = next((s for s in before.streams.video if not s.disposition & covers), None)
    for stream in before.streams:
        if stream is main:
            video.metadata.update(_stream_tags(stream))
            video.disposition = stream.disposition
            continue
        if stream.type == "audio" and not audio:
            continue
        codec = stream.codec_context.codec.canonical_name if getattr(stream, "codec_context", None) else None
        if stream.type == "data" and stream.name == "bin_data" and before.chapters():
            continue  # how mp4 holds the names of its chapters, which are copied as such
        kind = {"audio": "sound", "subtitle": "subtitle", "video": "second video"}.get(stream.type, stream.type)
        what = f"{kind} stream ({codec or 'of an unknown kind'})"
        copied = _copied(file, stream) if stream.type in ("audio", "subtitle") and codec else None
        if copied is not None:
            found.append((stream, copied, None))
        elif stream.type == "audio" and codec:
            name = "libopus" if into == "webm" else "aac"
            found.append((stream, *_encoded_sound(stream, file, name)))
            notices.append(f"{what} does not go into {into}: it was encoded anew as {name}")
        elif codec in _TEXT and into in _TEXT_IN:
            found.append((stream, *_converted_text(stream, file, _TEXT_IN[into])))
            notices.append(f"{what} does not go into {into}: it was converted to {_TEXT_IN[into]}, without its styles")
        elif stream.type == "video":
            notices.append(f"{what}: left out")
        else:
            notices.append(f"{what} does not go into {into}: left out")
    return found


def _stream_tags(stream: Any) -> dict[str, str]:
    """Without those that count what the stream was before, as mkvmerge writes them, or describe its encoding."""
    stale = ("duration", "number_of_frames", "number_of_bytes", "bps", "encoder", "timecode", "rotate")
    return {
        key: value
        for key, value in stream.metadata.items()
        if key.lower().split("-")[0] not in stale and not key.lower().startswith("_statistics")
    }


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
    new.metadata.update(_stream_tags(stream))
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
    others: list[tuple[Any, Any, _Convert | None]],
    source: Clip,
    notices: list[str],
    begin: Fraction | None,
    until: Fraction | None,
    shift: Fraction,
) -> _Flow:
    if begin is not None and begin > 1 and not source.offsets:
        with suppress(av.FFmpegError):
            before.seek(int((begin - 1) * av.time_base))
    by_index = {old.index: (new, convert) for old, new, convert in others}
    ended: set[int] = set()
    streams = [old for old, _, _ in others]
    packets: Any
    if source.offsets:  # which times continue is known from the video
        main = video_stream(before, source.path.name)
        packets = all_continued(before.demux([main, *streams]), main, source.offsets)
    else:
        packets = before.demux(streams)
    while len(ended) < len(others):
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as e:
            notices.append(f"{source.path.name} breaks off ({e.strerror}): what goes with its video ends there")
            break
        if not packet.size or packet.pts is None or packet.stream.index not in by_index:
            continue
        time = packet.pts * packet.time_base
        if until is not None and time >= until:
            ended.add(packet.stream.index)
            continue
        if begin is not None and time < begin:
            continue
        ticks = round(shift / packet.time_base)
        packet.pts -= ticks
        packet.dts = packet.dts - ticks if packet.dts is not None else packet.pts
        new, convert = by_index[packet.stream.index]
        for made in convert(packet) if convert else [packet]:
            made.stream = new
            yield float(made.dts * made.time_base), 1, made
    for new, convert in by_index.values():
        for made in convert(None) if convert else []:
            made.stream = new
            yield float(made.dts * made.time_base), 1, made


_LAYOUTS = {1: "mono", 3: "3.0", 5: "5.0", 6: "5.1"}  # that both encoders know, by count of channels; else stereo
_BIT_RATE = {"libopus": 64_000, "aac": 96_000}  # a channel's


def _encoded_sound(stream: Any, file: Any, name: str) -> tuple[Any, _Convert]:
    channels = stream.codec_context.layout.nb_channels
    layout = _LAYOUTS.get(channels, "stereo")
    new = file.add_stream(name, rate=48000, layout=layout)
    new.codec_context.bit_rate = _BIT_RATE[name] * new.codec_context.layout.nb_channels
    new.metadata.update(_stream_tags(stream))
    new.disposition = stream.disposition
    resampler = av.AudioResampler(new.codec_context.format, layout, 48000)

    def convert(packet: Any) -> Iterator[Any]:
        decoded: list[Any] = [None]
        if packet is not None:
            try:
                decoded = stream.codec_context.decode(packet)
            except av.FFmpegError:  # a damaged packet: silence, as a player has it
                return
        for frame in decoded:
            for piece in resampler.resample(frame):
                yield from new.encode(piece)
        if packet is None:
            yield from new.encode(None)

    return new, convert


_TEXT = ("subrip", "ass", "webvtt", "mov_text", "text")
_TEXT_IN = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
_MS = Fraction(1, 1000)


def _converted_text(stream: Any, file: Any, name: str) -> tuple[Any, _Convert]:
    """Subtitles of text in another format."""
    new = file.add_stream(name)
    new.codec_context.subtitle_header = stream.codec_context.subtitle_header
    new.time_base = new.codec_context.time_base = _MS
    new.metadata.update(_stream_tags(stream))
    new.disposition = stream.disposition

    def convert(packet: Any) -> Iterator[Any]:
        if packet is None:
            return
        try:
            shown = stream.codec_context.decode2(packet)
        except av.FFmpegError:
            return
        lines = [rect.ass for rect in shown or () if rect.type in (b"ass", b"text") and rect.ass]
        if not lines:  # mov_text has empty ones for the time between
            return
        start, length = (
            round(packet.pts * packet.time_base / _MS),
            round((packet.duration or 0) * packet.time_base / _MS),
        )
        made = new.codec_context.encode_subtitle(SubtitleSet.create(lines[0], 0, length, start))
        made.pts = made.dts = start
        made.time_base, made.duration = _MS, length
        yield made

    return new, convert


def _copy_tags(
    before: Any, file: Any, commented: bool, begin: Fraction | None, until: Fraction | None, shift: Fraction
) -> None:
    technical = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "timecode")
    tags = {k: v for k, v in before.metadata.items() if k.lower() not in technical}
    if commented:  # ours takes its place
        old = next((v for k, v in tags.items() if k.lower() == "comment"), None)
        tags = {k: v for k, v in tags.items() if k.lower() != "comment"}
        if old and _request(old) is None and "description" not in map(str.lower, tags):
            tags["description"] = old
    file.metadata.update(tags)
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


def _animate(segments: Sequence[Path], target: Target, out: Path, end: Fraction | None) -> None:
    """An endless gif, with a palette for each frame, or webp. `end`: when the last frame ends."""
    webp = target.container == "webp"
    base = Fraction(1, 1000 if webp else 100)
    start = _times(segments[0])[0]
    length = end - _times(segments[-1])[-1] if end is not None else 1 / target.frame_rate
    hold = max(1, round(length / base))
    options = {"loop": "0"} if webp else {"loop": "0", "final_delay": str(min(hold, 65535))}
    with create_container(out, target.container, options) as file:
        stream = file.add_stream("libwebp_anim" if webp else "gif", rate=target.frame_rate)
        stream.width, stream.height = target.width, target.height
        stream.pix_fmt = "yuva420p" if webp else "pal8"
        stream.codec_context.time_base = stream.time_base = base
        if webp:
            stream.codec_context.options = {"quality": "90"}
        last = -1
        for pts, frame in _frames(segments):
            last = max(last + 1, round((pts - start) / base))  # two frames may fall on one tick
            rgb = frame.to_ndarray(format="rgba" if target.alpha else "rgb24")
            new = from_rgb(rgb, "yuva420p", Color(6, LIMITED, 2, 2)) if webp else _with_palette(rgb)
            new.pts, new.time_base = last, base
            file.mux(stream.encode(new))
        file.mux(stream.encode())
    if webp:
        _complete_webp(out, last + hold, target.alpha)
    sync_file(out)


def _complete_webp(webp: Path, total: int, alpha: bool) -> None:
    """Write into an animated webp what the encoder does not: how long the last picture lasts, and that there is alpha.

    The last picture gets what the others leave of `total` ms; frames that are alike have become one. The encoder cuts
    transparent edges off and then says that all is opaque, on white. A file of RIFF chunks (RFC 9649, section 2.7): the
    duration is in bytes 12 to 14 of an ANMF chunk, the background in the first 4 of ANIM, alpha bit 4 of VP8X.
    """
    with webp.open("rb+") as file:
        at, found = 12, []
        while file.seek(at) and len(head := file.read(23)) >= 8:
            if head[:4] == b"ANMF":
                found.append((at + 20, int.from_bytes(head[20:23], "little")))
            elif alpha and head[:4] == b"VP8X":
                file.seek(at + 8)
                file.write(bytes([head[8] | 0x10]))
            elif alpha and head[:4] == b"ANIM":
                file.seek(at + 8)
                file.write(bytes(4))
            at += 8 + int.from_bytes(head[4:8], "little") + (head[4] & 1)
        if found:
            file.seek(found[-1][0])
            left = total - sum(ms for _, ms in found[:-1])
            file.write(min(max(left, 1), 2**24 - 1).to_bytes(3, "little"))


def _with_palette(rgb: Pixels) -> av.VideoFrame:
    """The frame, (H, W, 3) or with alpha (H, W, 4), in 256 colours of its own; what is less than half opaque is
    transparent."""
    from PIL import Image

    hidden = rgb[..., 3] < 128 if rgb.shape[2] == 4 else np.zeros(rgb.shape[:2], bool)
    image = Image.fromarray(np.ascontiguousarray(rgb[..., :3])).quantize(255 if rgb.shape[2] == 4 else 256)
    palette = np.zeros((256, 4), np.uint8)
    colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
    palette[:, 0], palette[: len(colours), 1:] = 255, colours  # ARGB
    indices = np.asarray(image).copy()
    if hidden.any():
        indices[hidden], palette[255] = 255, 0
    return av.VideoFrame.from_ndarray((indices, palette), "pal8")  # type: ignore[arg-type]


def _folder(segments: Sequence[Path], out: Path, comment: str, shift: Fraction) -> None:
    """000001.png and on, with frames.csv (file, seconds, the same as an exact fraction) and the request as std.json."""
    out.mkdir()
    lines, number = ["file,seconds,exact"], 0
    for path in segments:
        for packet in _packets(path):
            number += 1
            name, time = f"{number:06d}.png", packet.pts * packet.time_base - shift
            (out / name).write_bytes(bytes(packet))
            lines.append(f"{name},{float(time):.6f},{time}")
    (out / "frames.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if comment:
        (out / "std.json").write_text(comment + "\n", encoding="utf-8")
    for file in out.iterdir():
        sync_file(file)


def read_comment(path: Path) -> dict[str, Any] | None:
    """The request that `join` stored in a video; None in one of other origin. InputError for what is no video."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as file:
            tags = {key.lower(): value for key, value in file.metadata.items()}
    except (av.FFmpegError, OSError) as e:
        raise InputError(f"{str(path)!r} cannot be read as a video ({e.strerror}); check the path") from None
    return _request(tags.get("comment", ""))


def _request(comment: str) -> dict[str, Any] | None:
    try:
        found = json.loads(comment)["std"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None
