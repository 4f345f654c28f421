"""Subtitles on their way into a result: cut with the pictures, and text in the format of another
container."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.subtitle import SubtitleSet

from std_cli.media.video.clip import Span

TEXT_IN = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
"""The format of text that each container takes."""
_MS = Fraction(1, 1000)
_A_DAY = 86_400
"""Seconds: a longer duration is what some muxers write where they know none."""
Packet = Any
"""PyAV's; its stub does not know the times of packets that are made here."""


class OnScreen:
    """The packets of one subtitle stream, cut to a span: what is on screen where it begins or ends
    is shortened.

    A packet without a duration is shown until the next one. Bitmaps end themselves, so theirs is
    changed only where they are cut.
    """

    def __init__(self, span: Span, end: Fraction | None, text: bool) -> None:
        """`end`: of the pictures, seconds; `text`: not bitmaps."""
        self.begin, self.until, self.text = span.begin, span.until, text
        self.end = min((t for t in (span.until, end) if t is not None), default=None)
        self.waiting: Packet | None = None

    def push(self, packet: Packet) -> Iterator[Packet]:
        """The packets that are complete once this one is known."""
        start = packet.pts * packet.time_base
        if self.waiting is not None:
            yield from self._shown(self.waiting, start)
            self.waiting = None
        length = (packet.duration or 0) * packet.time_base
        if 0 < length < _A_DAY:
            yield from self._shown(packet, start + length)
        elif self.text or (self.begin is not None and start < self.begin):
            self.waiting = packet
        else:
            if length:
                packet.duration = self._ticks(packet, max(Fraction(0), (self.end or start) - start))
            yield from self._shown(packet, None)

    def flush(self) -> Iterator[Packet]:
        """At the end of the stream."""
        if self.waiting is not None:
            start = self.waiting.pts * self.waiting.time_base
            yield from self._shown(
                self.waiting, self.end if self.end is not None and self.end > start else start + 5
            )
            self.waiting = None

    def _shown(self, packet: Packet, stop: Fraction | None) -> Iterator[Packet]:
        start = packet.pts * packet.time_base
        first = max(start, self.begin) if self.begin is not None else start
        if (self.until is not None and first >= self.until) or (stop is not None and stop <= first):
            return
        last = min(stop, self.until) if stop is not None and self.until is not None else stop
        if last is not None and (self.text or (first, last) != (start, stop)):
            packet.duration = self._ticks(packet, last - first)
        packet.pts = packet.dts = self._ticks(packet, first)
        yield packet

    @staticmethod
    def _ticks(packet: Packet, seconds: Fraction) -> int:
        ticks: int = round(seconds / packet.time_base)
        return ticks


def add_text(file: OutputContainer, stream: Stream, codec: str) -> tuple[Any, "TextConverter"]:
    """A stream of `file` in the format `codec` (FFmpeg's name), and what makes its packets from
    those of `stream`.

    FFmpeg's decoders turn every format of text into ASS events, and its encoders these into theirs.
    Styles that a format does not have are lost.
    """
    decoder: Any = stream.codec_context
    decoder.open(strict=False)  # it writes the ASS header then
    new: Any = file.add_stream(codec)
    header = decoder.subtitle_header
    if header is None:
        raise ValueError("the subtitles have no header")
    # PyAV copies it without an end
    new.codec_context.subtitle_header = header.rstrip(b"\0") + b"\0"
    new.time_base = new.codec_context.time_base = _MS
    return new, TextConverter(decoder, new.codec_context, in_a_row=codec == "mov_text")


class TextConverter:
    """Packets of text from one format to another; `None` flushes."""

    def __init__(self, decoder: Any, encoder: Any, in_a_row: bool) -> None:
        """`in_a_row`: the format shows one event at a time, so that those that overlap are shown as
        one."""
        self.decoder, self.encoder, self.in_a_row = decoder, encoder, in_a_row
        self.active: list[tuple[int, list[bytes]]] = []  # (end in ms, fields of the event)
        self.now = 0

    def __call__(self, packet: Packet | None) -> Iterator[Packet]:
        if packet is None:
            yield from self._until(None)
            return
        start, length = (
            round((t or 0) * packet.time_base / _MS) for t in (packet.pts, packet.duration)
        )
        try:
            shown = self.decoder.decode2(packet)
        except av.FFmpegError:  # a damaged one
            return
        # "ReadOrder,Layer,Style,Name,MarginL,MarginR,MarginV,Effect,Text"
        events = [
            rect.ass.split(b",", 8)
            for rect in shown or ()
            if rect.type in (b"ass", b"text") and rect.ass
        ]
        # mov_text has empty ones
        events = [event for event in events if len(event) == 9 and event[8].strip()]
        if self.in_a_row:
            yield from self._until(start)
            self.active += [(start + length, event) for event in events]
        else:
            for event in events:
                yield from self._made(start, length, [event])

    def _until(self, stop: int | None) -> Iterator[Packet]:
        """What is shown up to `stop` ms, in pieces within which nothing changes."""
        while self.active:
            end = min(end for end, _ in self.active)
            end = end if stop is None else min(end, stop)
            if end > self.now:
                yield from self._made(self.now, end - self.now, [event for _, event in self.active])
            self.now = max(self.now, end)
            self.active = [(until, event) for until, event in self.active if until > self.now]
            if end == stop:
                break
        self.now = max(self.now, stop or 0)

    def _made(self, start: int, length: int, events: list[list[bytes]]) -> Iterator[Packet]:
        text = rb"\N".join(event[8] for event in events)
        packet = self.encoder.encode_subtitle(
            SubtitleSet.create(b",".join([*events[0][:8], text]), 0, length, start)
        )
        packet.pts = packet.dts = start
        packet.time_base, packet.duration = _MS, length
        if packet.size:
            yield packet
