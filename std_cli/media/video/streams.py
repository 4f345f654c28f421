"""The streams of a source other than its pictures: how each gets into a result, and its packets on
the way.

A stream is copied packet for packet where the container holds it. Else sound is encoded, text is
converted, and a cover becomes an attachment; which of these works is tried in `extras`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
from av.audio.frame import AudioFrame
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from std_cli.media.video.clip import Clip, Span
from std_cli.media.video.decode import video_stream
from std_cli.media.video.subtitles import TEXT_IN, OnScreen, add_text
from std_cli.media.video.tags import stream_tags
from std_cli.media.video.timestamps import all_continued
from std_cli.media.video.write import refusing

Convert = Callable[[Any], Iterator[Any]]
"""Packets of the source, or None at the end -> packets of the result."""
Flow = Iterator[tuple[float, int, Any]]
"""(seconds, of equal ones the first, packet) in order."""

KINDS = {
    "audio": "sound",
    "subtitle": "subtitle",
    "video": "video",
    "data": "data",
    "attachment": "attachment",
}
# of as many channels, what Opus has (RFC 7845, 5.1.1.2, the order of Vorbis); AAC has them, too
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_BIT_RATE = {"libopus": 64_000, "aac": 96_000}  # a channel's
_RATE = 48_000
_BACK = 1
"""Seconds before a cut at which reading begins."""
COVERS = av.stream.Disposition.attached_pic


@dataclass(frozen=True)
class Carried:
    """A stream of the source that goes into the result."""

    index: int
    """Its number in the source."""
    what: str
    """Its name in notices."""
    way: Literal["copy", "encode", "convert", "attach"]
    codec: str = ""
    """FFmpeg's name of the encoder, unless the packets are copied."""
    layout: str = ""
    """Of encoded sound: its channels, as FFmpeg names them."""


@dataclass(frozen=True)
class Added:
    """A stream of the source, the one of the result that takes it, and what is counted on the
    way."""

    carried: Carried
    old: Any
    new: Any
    convert: Convert | None = None
    cover: Any = None
    """The packet of a picture that comes once."""


def codec_of(stream: Stream) -> str | None:
    """FFmpeg's name of what a stream is coded in; None where this build has no decoder for it."""
    context = getattr(stream, "codec_context", None)
    return str(context.codec.canonical_name) if context is not None else None


def what_is(stream: Stream) -> str:
    """A stream in words: "sound stream 2 (dts, 5.1, deu)"; its number counts all streams of the
    file from 0."""
    if stream.type == "attachment":
        return f"attachment {stream.name or stream.index}"
    context: Any = stream.codec_context  # PyAV does not type it by the kind of its stream
    kind = KINDS.get(stream.type, "unknown")
    if stream.disposition & COVERS:
        kind = "cover picture in"
    named = (
        codec_of(stream) or (stream.name if stream.type == "data" else None) or "of an unknown kind"
    )
    layout = context.layout.name if stream.type == "audio" and codec_of(stream) else None
    details = ", ".join(filter(None, (named, layout, stream.metadata.get("language"))))
    return f"{kind} stream {stream.index} ({details})"


def ways(stream: Stream, container: str) -> Iterator[Carried]:
    """In which ways a stream may get into a container (FFmpeg's name), the best first."""
    index, what, codec = stream.index, what_is(stream), codec_of(stream)
    if stream.disposition & COVERS:
        yield Carried(index, what, "attach" if container == "matroska" else "copy")
        return
    if stream.type == "video":
        return
    yield Carried(index, what, "copy")
    if stream.type == "audio" and codec:
        encoder = "libopus" if container == "webm" else "aac"
        context: Any = stream.codec_context
        layout = context.layout
        same = [] if re.fullmatch(r"\d+ channels", layout.name) else [layout.name]
        for name in dict.fromkeys([*same, _LAYOUTS.get(layout.nb_channels, "stereo"), "stereo"]):
            yield Carried(index, what, "encode", encoder, name)
    elif stream.type == "subtitle" and codec:
        yield Carried(index, what, "convert", TEXT_IN[container])


def add_stream(file: OutputContainer, stream: Stream, carried: Carried) -> Added:
    """Add to `file` the stream that takes this one.

    Raises ValueError or FFmpegError where the container, the decoder or the encoder refuses it.
    """
    convert: Convert | None = None
    cover: Any = _cover(stream) if stream.disposition & COVERS else None
    if carried.way == "attach":
        kind = "png" if codec_of(stream) == "png" else "jpeg"
        name = stream.metadata.get("filename") or f"cover.{kind.replace('e', '')}"
        return Added(carried, stream, file.add_attachment(name, f"image/{kind}", bytes(cover)))
    if carried.way == "copy":
        new = file.add_stream_from_template(stream, opaque=True)
        if stream.type == "attachment":
            return Added(carried, stream, new)
        new.time_base = stream.time_base
    elif carried.way == "encode":
        new, convert = _encoded_sound(file, stream, carried)
    else:
        new, convert = add_text(file, stream, carried.codec)
    new.metadata.update(stream_tags(stream, file.format.name))
    new.disposition = stream.disposition
    return Added(carried, stream, new, convert, cover)


def _cover(stream: Any) -> Any:
    """The one packet of a cover, which comes before all others."""
    with suppress(av.FFmpegError):
        stream.container.seek(0)
    for packet in stream.container.demux(stream):
        if packet.size:
            return packet
    raise ValueError("the cover has no picture")


def _encoded_sound(file: Any, stream: Any, carried: Carried) -> tuple[Any, Convert]:
    decoder = stream.codec_context
    new = file.add_stream(carried.codec, rate=_RATE, layout=carried.layout)
    new.codec_context.bit_rate = _BIT_RATE[carried.codec] * new.codec_context.layout.nb_channels
    new.codec_context.open()  # what it refuses is found before the header is written
    shape: tuple[str, str, int] | None = None
    resampler: Any = None

    def encoded(frame: AudioFrame | None) -> Iterator[Any]:
        nonlocal shape, resampler
        found = (
            (frame.format.name, frame.layout.name, frame.sample_rate) if frame is not None else None
        )
        # at the first frame, at the end, and where a broadcast changes its channels
        if found != shape:
            for piece in resampler.resample(None) if resampler else ():
                yield from new.encode(piece)
            resampler = av.AudioResampler(new.codec_context.format, carried.layout, _RATE)
            shape = found
        for piece in resampler.resample(frame) if frame is not None else ():
            yield from new.encode(piece)

    def convert(packet: "Packet[Any]") -> Iterator[Any]:
        decoded: list[Any] = []
        with suppress(av.FFmpegError):  # a damaged packet: silence, as a player has it
            decoded = decoder.decode(packet)
        for frame in decoded:
            yield from encoded(frame)
        if packet is None:
            decoder.flush_buffers()
            yield from encoded(None)
            yield from new.encode(None)

    return new, convert


def other_packets(
    before: InputContainer,
    source: Clip,
    added: Sequence[Added],
    span: Span,
    end: Fraction | None,
    count: dict[int, int],
    on_break: Callable[[str], None],
) -> Flow:
    """The packets of the streams that a result has in addition to its pictures, cut to the span and
    moved by its shift.

    `end`: of the pictures, seconds on the source's clock. `count` gets the packets of each stream,
    by its index in the source. `on_break` gets the reason if the source breaks off.
    """
    shown = {
        a.old.index: OnScreen(span, end, a.carried.way == "convert" or codec_of(a.old) in _TEXT)
        for a in added
        if a.old.type == "subtitle"
    }
    # With subtitles all is read: what is on screen at the cut may have come there at any time.
    if span.begin is not None and span.begin > _BACK and not source.offsets and not shown:
        with suppress(av.FFmpegError):
            before.seek(int((span.begin - _BACK) * av.time_base))
    by_index = {a.old.index: a for a in added}

    def out(index: int, packets: Iterator[Any]) -> Flow:
        one = by_index[index]
        for packet in packets:
            move(packet, span)
            for made in _converted(one, packet):
                yield _muxed(made, one, count)

    for one in added:
        if one.cover is not None:
            one.cover.pts = one.cover.dts = 0
            yield _muxed(one.cover, one, count)
    moving = [a for a in added if a.old.type in ("audio", "subtitle", "data")]
    for index, packet in _in_span(before, source, moving, span, on_break):
        yield from out(index, shown[index].push(packet) if index in shown else iter((packet,)))
    for index, one in by_index.items():
        if index in shown:
            yield from out(index, shown[index].flush())
        for made in _converted(one, None):
            yield _muxed(made, one, count)


_TEXT = ("subrip", "ass", "ssa", "webvtt", "mov_text", "text")


def _converted(one: Added, packet: Any) -> Iterator[Any]:
    """The packets of the result that one of the source (None: its end) becomes."""
    if one.convert is None:
        yield from () if packet is None else (packet,)
        return
    made = one.convert(packet)
    while True:
        with refusing():
            new = next(made, None)
        if new is None:
            return
        yield new


def _muxed(packet: Any, one: Added, count: dict[int, int]) -> tuple[float, int, Any]:
    count[one.old.index] = count.get(one.old.index, 0) + 1
    packet.stream = one.new
    return (
        float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base),
        1,
        packet,
    )


def move(packet: "Packet[Any]", span: Span) -> None:
    """Take the span's shift off the times of a packet of the source."""
    ticks = round(span.shift / packet.time_base)
    if packet.pts is not None:
        packet.pts -= ticks
    packet.dts = packet.dts - ticks if packet.dts is not None else packet.pts


def _in_span(
    before: Any, source: Clip, added: Sequence[Added], span: Span, on_break: Callable[[str], None]
) -> Iterator[tuple[int, Any]]:
    """(index, packet) of the source up to the span's end; of what is not a subtitle only from its
    begin on."""
    if not added:
        return
    ended: set[int] = set()
    wanted = {a.old.index for a in added}
    packets: Iterator[Any]
    if source.offsets:  # a clock that is set again: where it continues is known from the video
        main = video_stream(before, source.path.name)
        packets = all_continued(before.demux([main, *(a.old for a in added)]), main, source.offsets)
    else:
        packets = before.demux([a.old for a in added])
    while len(ended) < len(added):
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as e:
            on_break(e.strerror or type(e).__name__)
            return
        index = packet.stream.index
        if not packet.size or packet.pts is None or index in ended or index not in wanted:
            continue
        time = packet.pts * packet.time_base
        if span.until is not None and time >= span.until:
            ended.add(index)
        elif span.begin is None or time >= span.begin or packet.stream.type == "subtitle":
            yield index, packet
