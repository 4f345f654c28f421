"""The clock of a file whose times are set again in the middle, such as two recordings joined with
`cat`.

Only formats that allow it (MPEG-TS, MPEG-PS, Ogg) are searched. What counts as set again is what
the ffmpeg command takes for it (`-dts_delta_threshold`): more than 10 seconds forward, or more than
0.1 seconds back.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

_Packet: TypeAlias = "Packet[Any]"  # of a stream of any kind
FORWARD, BACK = Fraction(10), Fraction(1, 10)


@dataclass(frozen=True)
class Scan:
    """What the packets of a file say without being decoded."""

    offsets: tuple[Fraction, ...]
    """Seconds to add to the times of each recording, so that it continues the one before; () if
    there is only one."""
    end: Fraction | None
    """Where the last frame ends, seconds on the continued clock."""
    frames: int


class _Clock:
    """The times of one stream: counts how often they were set again."""

    def __init__(self, base: Fraction) -> None:
        self.forward, self.back = int(FORWARD / base), int(BACK / base)
        self.next: int | None = None
        self.recording = 0

    def see(self, packet: _Packet) -> int:
        """The number of the recording that a packet, the next of the stream, belongs to."""
        if packet.dts is not None:
            if self.next is not None:
                jump = packet.dts - self.next
                self.recording += abs(jump) > self.forward or jump < -self.back
            self.next = packet.dts + (packet.duration or 0)
        return self.recording


def may_be_set_again(container: InputContainer) -> bool:
    """Whether the format allows for clocks that jump."""
    return bool(av.format.Flags(container.format.flags) & av.format.Flags.ts_discont)


def scan(container: InputContainer, video: VideoStream) -> Scan:
    """Read all packets of `video` and of the sound.

    Each recording begins where picture and sound of the one before have both ended, so that they
    stay together and nothing is lost.
    """
    streams = [video, *container.streams.audio]
    clocks = {s.index: _Clock(Fraction(s.time_base or 1)) for s in streams}
    # of each recording its first time, its end
    spans: dict[int, list[list[int]]] = {s.index: [] for s in streams}
    rate = video.average_rate or video.guessed_rate
    # where packets do not say how long they last
    usual = round(1 / rate / (video.time_base or 1)) if rate else 1
    frames = 0
    try:
        for packet in container.demux(streams):
            if not packet.size or packet.pts is None:
                continue
            index = packet.stream.index
            number = clocks[index].see(packet)
            end = packet.pts + (packet.duration or usual * (index == video.index))
            frames += index == video.index
            if number == len(spans[index]):
                spans[index].append([packet.pts, end])
            else:
                span = spans[index][number]
                span[0], span[1] = min(span[0], packet.pts), max(span[1], end)
    except av.FFmpegError:  # who decodes will say so
        pass
    count = len(spans[video.index])
    alike = [s for s in streams if len(spans[s.index]) == count]
    offsets = [Fraction(0)]
    for before, after in zip(range(count), range(1, count), strict=False):
        gaps = [
            (spans[s.index][before][1] - spans[s.index][after][0]) * Fraction(s.time_base or 1)
            for s in alike
        ]
        offsets.append(offsets[-1] + max(gaps))
    last = (
        spans[video.index][-1][1] * Fraction(video.time_base or 1) + offsets[-1] if count else None
    )
    return Scan(tuple(offsets) if count > 1 else (), last, frames)


def continued(
    packets: Iterable[_Packet], video: VideoStream, offsets: Sequence[Fraction]
) -> Iterator[_Packet]:
    """The packets of `video`, from its first one on, with times that continue; other streams' pass
    as they are."""
    if not offsets:
        yield from packets
        return
    clock = _Clock(Fraction(video.time_base or 1))
    for packet in packets:
        if packet.stream.index == video.index:
            number = min(clock.see(packet), len(offsets) - 1)
            _shift(packet, offsets[number])
        yield packet


def all_continued(
    packets: Iterable[_Packet], video: VideoStream, offsets: Sequence[Fraction]
) -> Iterator[_Packet]:
    """The packets of all streams, those of `video` among them, with times that continue.

    A packet of another stream belongs to the recording that puts it nearest to the video next to it
    in the file; what then does not come later than its stream's packet before is left out.
    """
    if not offsets:
        yield from packets
        return
    clock = _Clock(Fraction(video.time_base or 1))
    now: Fraction | None = None
    before: dict[int, tuple[int, int]] = {}  # of each stream: its recording, its last time
    for packet in packets:
        if packet.stream.index == video.index:
            _shift(packet, offsets[min(clock.see(packet), len(offsets) - 1)])
            if packet.dts is not None:
                now = packet.dts * packet.time_base
        elif packet.dts is not None:
            first, last = before.get(packet.stream.index, (0, None))
            time = packet.dts * packet.time_base
            near = range(first, min(clock.recording + 2, len(offsets)))
            number = (
                min(near, key=lambda i: abs(time + offsets[i] - now)) if now is not None else first
            )
            _shift(packet, offsets[number])
            if last is not None and packet.dts <= last:
                continue
            before[packet.stream.index] = number, packet.dts
        yield packet


def _shift(packet: _Packet, offset: Fraction) -> None:
    ticks = round(offset / packet.time_base)
    packet.pts = packet.pts + ticks if packet.pts is not None else None
    packet.dts = packet.dts + ticks if packet.dts is not None else None
