"""What goes into a result in addition to its pictures, decided and tried before the first frame is
made.

The container is written to memory with one small picture, every stream that would go into it, its
first packets, tags and chapters. What it refuses there, or drops, is left out of the result, and
named in a notice.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from std_cli.errors import InputError, counted
from std_cli.media.video.clip import Clip, Span
from std_cli.media.video.projection import projection_of
from std_cli.media.video.streams import (
    COVERS,
    KINDS,
    Added,
    Carried,
    add_stream,
    codec_of,
    ways,
    what_is,
)
from std_cli.media.video.subtitles import OnScreen
from std_cli.media.video.tags import (
    chapters_in,
    file_tags,
    moved_timecode,
    reverse_domain,
    stream_tags,
    timecode_of,
)
from std_cli.media.video.target import Target
from std_cli.media.video.write import REFUSALS, Refused

_TRIED = 3
"""Packets of each stream that are tried."""
_READ = 1000
"""Packets that are read for these."""


class _Kept(NamedTuple):
    """A packet, to be made again for each trial."""

    data: bytes
    pts: int
    duration: int | None
    time_base: Fraction


_Packets = dict[int, list[_Kept]]


@dataclass(frozen=True)
class Extras:
    """What a result has in addition to its pictures."""

    streams: tuple[Carried, ...] = ()
    tags: bool = True
    chapters: bool = True
    timecode: str | None = None
    """Of the source's first frame."""
    projection: bytes = b""
    """The boxes that say how a 360-degree or 3D picture is laid out."""
    notices: tuple[str, ...] = ()
    """What is not kept as it is, and why."""


NOTHING = Extras(tags=False, chapters=False)


def choose_extras(
    source: Clip,
    target: Target,
    *,
    audio: bool = True,
    subtitles: bool = True,
    preview: bool = False,
    twice_as_wide: bool = False,
) -> Extras:
    """What of a source's other streams, tags, chapters, timecode and projection its result will
    have.

    audio, subtitles: whether they are wanted. preview: the result's times are not the source's.
    twice_as_wide: the source's picture is next to that of the result. Raises InputError if the
    source cannot be read.
    """
    if source.kind != "video":
        return NOTHING
    try:
        before = open_source(source)
    except (av.FFmpegError, OSError) as e:
        raise InputError(
            f"{str(source.path)!r} cannot be read as a video ({e.strerror}); check the path"
        ) from None
    with before:
        main = main_stream(before)
        wanted = [
            s for s in before.streams if s is not main and _wanted(before, s, audio, subtitles)
        ]
        if preview or target.container in ("gif", "webp", "folder"):
            return _only_pictures(before, target, wanted, preview)
        packets = _first_packets(
            before, [s for s in wanted if s.type in ("audio", "subtitle", "data")]
        )
        chosen = _choose_streams(before, target, wanted, packets, source)
        chosen = _check_kept(before, target, chosen, packets, source)
        with suppress(Refused, *REFUSALS):
            return _projected(source, main, target, chosen, twice_as_wide)
        return chosen


def open_source(source: Clip) -> InputContainer:
    """PyAV's container of a source."""
    return av.open(f"file:{source.path}", metadata_errors="replace")


def main_stream(before: InputContainer) -> Any:
    """The stream that is stylized."""
    return next((s for s in before.streams.video if not s.disposition & COVERS), None)


def _wanted(before: Any, stream: Any, audio: bool, subtitles: bool) -> bool:
    # mp4 holds its chapters' names and its timecode in streams: they are kept as such
    if stream.type == "data":
        helper = before.chapters() and (
            stream.name == "bin_data" or stream.discard == av.stream.Discard.all
        )
        return not helper and "timecode" not in stream.metadata
    if stream.discard == av.stream.Discard.all and before.chapters():
        return False
    return audio if stream.type == "audio" else subtitles if stream.type == "subtitle" else True


def _only_pictures(before: Any, target: Target, wanted: Sequence[Any], preview: bool) -> Extras:
    left = list(dict.fromkeys(KINDS.get(s.type, s.type) for s in wanted))
    left += ["chapters"] * bool(before.chapters())
    names = {
        "sound": "sound",
        "subtitle": "subtitles",
        "video": "second video or cover",
        "attachment": "attachments",
    }
    what = (
        "a preview"
        if preview
        else "a folder of pictures"
        if target.container == "folder"
        else target.container
    )
    said = f"{what} has no {', no '.join(names.get(k, k) for k in left)}: left out"
    return replace(NOTHING, notices=(said,) if left else ())


# --- streams -----------------------------------------------------------------------------------


def _choose_streams(
    before: Any, target: Target, wanted: Sequence[Any], packets: _Packets, source: Clip
) -> Extras:
    chosen: list[Carried] = []
    refused: list[str] = []
    notices: list[str] = []
    for stream in wanted:
        what = what_is(stream)
        if stream.type == "video" and not stream.disposition & COVERS:
            notices.append(f"{what}: left out, only the first is stylized")
        elif stream.type == "audio" and codec_of(stream) and not stream.codec_context.sample_rate:
            notices.append(f"{what}: left out, the file announces it but has none of its sound")
        else:
            way = _first_way(before, target, stream, packets, source)
            chosen += [way] if way else []
            if way is None:
                refused.append(what)
            elif way.way != "copy":
                notices += _said(stream, way, target)
    if refused:
        notices.append(f"{_suffix(target)} cannot hold {', '.join(refused)}: left out")
    return Extras(
        tuple(chosen), timecode=timecode_of(before, main_stream(before)), notices=tuple(notices)
    )


def _suffix(target: Target) -> str:
    return target.path.suffix.lower() or target.container


def _first_way(
    before: Any, target: Target, stream: Any, packets: _Packets, source: Clip
) -> Carried | None:
    for way in ways(stream, target.container):
        with suppress(Refused, *REFUSALS):
            _trial(before, target, NOTHING, (way,), packets, source)
            return way
    return None


def _said(stream: Any, way: Carried, target: Target) -> list[str]:
    if way.way == "attach":
        return []
    if way.way == "convert":
        return [
            f"{_suffix(target)} cannot hold {way.what}: it is converted to {way.codec}; styles "
            f"may be lost"
        ]
    had = stream.codec_context.layout.name
    mixed = (
        f", its channels mixed to {way.layout}, as {way.codec} has no {had}"
        if way.layout != had
        else ""
    )
    return [f"{_suffix(target)} cannot hold {way.what}: it is encoded as {way.codec}{mixed}"]


def _first_packets(before: Any, streams: Sequence[Any]) -> _Packets:
    """{index of a stream: its first packets}, of those that have some near the start."""
    found: dict[int, list[_Kept]] = {s.index: [] for s in streams}
    if not streams:
        return found
    with suppress(av.FFmpegError):
        for number, packet in enumerate(before.demux(list(streams))):
            kept = found[packet.stream.index]
            if packet.size and packet.pts is not None and len(kept) < _TRIED:
                kept.append(_Kept(bytes(packet), packet.pts, packet.duration, packet.time_base))
            if number > _READ or all(len(k) == _TRIED for k in found.values()):
                break
    return found


# --- the trial ---------------------------------------------------------------------------------


def container_options(target: Target, extras: Extras, tags: dict[str, str]) -> dict[str, str]:
    """Options of the muxer that what a result has asks for."""
    if target.container not in ("mp4", "mov"):
        return {}
    options = {"movflags": "+use_metadata_tags"} if extras.tags and reverse_domain(tags) else {}
    # the projection's boxes count as unofficial in FFmpeg
    return options | ({"strict": "unofficial"} if extras.projection else {})


def describe(
    before: InputContainer,
    file: OutputContainer,
    video: VideoStream,
    target: Target,
    extras: Extras,
    span: Span,
    source: Clip,
    commented: bool = False,
) -> None:
    """Give a result, and its stream of pictures, the source's tags, chapters and timecode.

    `commented`: the source's comment is not kept, for there is one of our own.
    """
    main = main_stream(before)
    video.metadata.update(stream_tags(main, target.container))
    video.disposition = main.disposition
    if extras.tags:
        file.metadata.update(file_tags(before, commented))
    chapters = chapters_in(before, span) if extras.chapters else []
    if chapters:
        file.set_chapters(chapters)
    if extras.timecode:
        later = span.begin - source.start if span.begin is not None else Fraction(0)
        rate = source.frame_rate or target.frame_rate
        moved = moved_timecode(extras.timecode, later, rate, target.frame_rate)
        if moved:
            video.metadata["timecode"] = moved


def _trial(
    before: Any,
    target: Target,
    extras: Extras,
    streams: Sequence[Carried],
    packets: _Packets,
    source: Clip,
) -> io.BytesIO:
    """A result in memory with one small picture, the streams, and these first packets of theirs.

    Raises what is in REFUSALS.
    """
    buffer = io.BytesIO()
    options = container_options(target, replace(extras, projection=b""), file_tags(before, False))
    with av.open(buffer, "w", format=target.container, options=options) as file:
        # mpeg4 is FFmpeg's own encoder, so every build has it
        video: Any = file.add_stream(
            "libvpx-vp9" if target.container == "webm" else "mpeg4", rate=target.frame_rate
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.time_base = target.time_base
        video.codec_context.time_base = Fraction(1, 25)  # mpeg4's clock is no finer than 1 / 65535
        added = [add_stream(file, before.streams[c.index], c) for c in streams]
        describe(before, file, video, target, extras, Span(), source)
        picture = av.VideoFrame(64, 48, "yuv420p")
        picture.pts, picture.time_base = 0, target.time_base
        for packet in [*video.encode(picture), *video.encode()]:
            file.mux(packet)
        for one in added:
            for packet in _tried(one, packets.get(one.old.index, ())):
                packet.stream = one.new
                file.mux(packet)
    buffer.seek(0)
    return buffer


def _tried(one: Added, packets: Sequence[_Kept]) -> Iterator[Any]:
    if one.cover is not None:
        one.cover.pts = one.cover.dts = 0
        yield one.cover
    first = packets[0].pts if packets else 0
    screen = OnScreen(Span(), None, text=True) if one.old.type == "subtitle" else None
    for kept in packets:
        packet = av.Packet(kept.data)
        packet.time_base, packet.duration, packet.is_keyframe = (
            kept.time_base,
            kept.duration or 0,
            True,
        )
        packet.pts = packet.dts = kept.pts - first
        for whole in screen.push(packet) if screen else (packet,):
            yield from one.convert(whole) if one.convert else (whole,)
    for whole in screen.flush() if screen else ():
        yield from one.convert(whole) if one.convert else (whole,)
    yield from one.convert(None) if one.convert else ()


def _check_kept(
    before: Any, target: Target, extras: Extras, packets: _Packets, source: Clip
) -> Extras:
    """The same without what the container, written with all of it, refuses or drops without a
    word."""
    for simpler in (
        extras,
        replace(extras, timecode=None),
        replace(extras, timecode=None, tags=False),
    ):
        with suppress(Refused, *REFUSALS):
            written = _trial(before, target, simpler, simpler.streams, packets, source)
            break
    else:
        simpler = replace(NOTHING, notices=extras.notices)
        return _with(simpler, target, [c.what for c in extras.streams] + ["tags", "chapters"])
    with av.open(written, "r", metadata_errors="replace") as file:
        dropped = list(_dropped_streams(before, file, simpler))
        lost = [c.what for c in dropped]
        if extras.timecode and not (simpler.timecode and timecode_of(file, main_stream(file))):
            lost.append(f"timecode {extras.timecode}")
        if before.chapters() and not file.chapters():
            lost.append(counted(len(before.chapters()), "chapter"))
        tags = _lost_tags(file_tags(before, False), file.metadata)
    lost += [f"the tags {', '.join(tags)}"] if tags else []
    return _with(
        replace(simpler, streams=tuple(c for c in simpler.streams if c not in dropped)),
        target,
        lost,
    )


def _with(extras: Extras, target: Target, lost: list[str]) -> Extras:
    said = (f"{_suffix(target)} cannot hold {', '.join(lost)}: left out",) if lost else ()
    return replace(extras, notices=(*extras.notices, *said))


def _dropped_streams(before: Any, file: Any, extras: Extras) -> Iterator[Carried]:
    """Covers, attachments and data that did not arrive, or not as what they are."""
    covers = sum(bool(s.disposition & COVERS) for s in file.streams)
    attached = sum(s.type == "attachment" for s in file.streams)
    data = [s.name for s in file.streams if s.type == "data"]
    for carried in extras.streams:
        stream = before.streams[carried.index]
        if stream.disposition & COVERS:
            covers -= 1
            if covers < 0:
                yield carried
        elif stream.type == "attachment":
            attached -= 1
            if attached < 0:
                yield carried
        elif stream.type == "data":
            if stream.name in data:
                data.remove(stream.name)
            else:
                yield carried


def _lost_tags(wanted: dict[str, str], kept: dict[str, str]) -> list[str]:
    there = {key.lower() for key in kept}
    return [
        key
        for key in wanted
        if key.lower() not in there
        and key.lower().split("-")[0] not in there
        and key.lower() != "creation_time"
    ]


def _projected(
    source: Clip, main: Any, target: Target, extras: Extras, twice_as_wide: bool
) -> Extras:
    """With the projection of the source's first frame."""
    main.container.seek(0)
    frame = next(iter(main.container.decode(main)), None)
    boxes, lost = projection_of(frame) if frame is not None else (b"", [])
    why = ""
    if twice_as_wide:
        why = "with --compare side"
    elif target.codec not in ("h264", "hevc", "vp9", "av1"):
        why = f"with {target.codec}"
    elif target.container == "mov":  # FFmpeg writes its boxes into mp4 alone
        why = "in .mov"
    if boxes and why:
        what = "360-degree projection" if b"sv3d" in boxes else "layout of 3D views"
        return replace(
            extras, notices=(*extras.notices, f"the {what} of {source.path.name} is not kept {why}")
        )
    said = tuple(f"{source.path.name}: {what} cannot be written: left out" for what in lost)
    return replace(extras, projection=boxes, notices=(*extras.notices, *said))
