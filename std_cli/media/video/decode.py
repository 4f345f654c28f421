"""One video stream of a file, from packets to decoded frames, each with its exact time, and what
was damaged in it."""

import heapq
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from std_cli.errors import InputError, StdError, counted
from std_cli.media.video.clip import Part
from std_cli.media.video.timestamps import continued

MAX_DAMAGED = 25
"""Frames in a row that may be undecodable."""
# What is opened: containers of media, not playlists, which name other files.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,"
    "h264,hevc,obu,ivf,dv,m4v,rm"
)


def open_container(path: Path, part: Part | None) -> Any:
    """PyAV's container of a local file: a name with a colon is no protocol, and nothing else is
    opened through it."""
    url, protocols = f"file:{path}", "file"
    if part:
        url, protocols = (
            f"subfile,,start,{part.offset},end,{part.offset + part.size},,:{part.file}",
            "file,subfile",
        )
    options = {"protocol_whitelist": protocols, "format_whitelist": _DEMUXERS}
    try:
        return av.open(url, options=options, metadata_errors="replace")
    except av.FFmpegError as e:
        reason = e.strerror or type(e).__name__
        raise InputError(
            f"{str(path)!r} cannot be read as a video ({reason}); it may be cut short, or of an "
            f"unknown kind"
        ) from None


def video_stream(container: InputContainer, name: str) -> Any:
    """The first stream of moving pictures: a song's cover is not one."""
    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise InputError(f"{name} has no video stream; give a file that has one")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError(
            f"{name} has video of a kind that this build cannot decode; convert it to h264"
        )
    _set_up(stream.codec_context)
    return stream


def _set_up(context: VideoCodecContext) -> None:
    # Threads within a frame only: with one frame per thread, an error takes along the good frames
    # that PyAV has got in the same call, how many depends on the count of cores, and what is left
    # of a damaged frame is a matter of timing.
    context.thread_type = av.codec.context.ThreadType.SLICE
    # `max_frame_delay` is the same for dav1d. Chroma is sited at the left unless the stream says
    # otherwise.
    context.options = {"max_frame_delay": "1", "chroma_sample_location": "left"}


def _decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The decoder of a stream: FFmpeg's choice, but libvpx for VP8 and VP9 with alpha.

    Their alpha is a second picture next to the first in each block of Matroska and WebM, which
    FFmpeg's own decoders of these formats ignore:
    https://wiki.webmproject.org/alpha-channel
    """
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is None or tags.get("alpha_mode") != "1":
        return stream.codec_context
    try:
        context: Any = av.CodecContext.create(name, "r")
    except av.codec.codec.UnknownCodecError:  # a build without libvpx reads the opaque picture
        return stream.codec_context
    context.extradata = stream.codec_context.extradata
    _set_up(context)
    return context  # type: ignore[no-any-return]


@dataclass
class Damage:
    """What was damaged or missing in a video, counted while it is read."""

    name: str
    lost: int = 0
    """Frames that are the one before instead."""
    first: int = 0
    """Lost ones that no good one came before."""
    in_a_row: int = 0
    backward: int = 0
    resized: int = 0
    captions: bool = False
    """Frames hold closed captions, which no result keeps."""
    packets: int = 0
    """That came, the empty ones among them."""
    expected: int | None = None
    """Frames that the header says there are, where fewer came."""
    reached: Fraction | None = None
    """Seconds up to which the sound comes, of a file that only says how long all of it is."""
    ended_early: bool = False
    broken_off: Fraction | None = None
    declared: Fraction | None = None
    """Seconds that the header says there are, where that is more than came."""
    steps: Counter[int] = field(default_factory=Counter)
    """From each frame to the next, in ticks."""
    longest: tuple[int, Fraction] = (0, Fraction(0))
    """Of the steps, and the time at which it begins, seconds from the first frame."""

    def one(self, good: bool) -> None:
        """A frame that cannot be decoded; `good`: there is one before it."""
        if good:
            self.lost += 1
        else:
            self.first += 1
        self.in_a_row += 1
        if self.in_a_row > MAX_DAMAGED:
            raise StdError(
                f"{self.name}: more than {MAX_DAMAGED} frames in a row cannot be decoded; repair "
                f"the video"
            )

    def step(self, ticks: int, at: Fraction) -> None:
        """From one frame, shown at `at`, to the next."""
        if len(self.steps) < 1000 or ticks in self.steps:  # what is as uneven as that has no gaps
            self.steps[ticks] += 1
        if ticks > self.longest[0]:
            self.longest = ticks, at

    def missing(self) -> int:
        """Frames for which there is room in the gaps of a video that is otherwise even; its usual
        step is found here.

        0 for a video of variable rate: less than nine steps of ten are alike in it.
        """
        total = sum(self.steps.values())
        if total < 10:
            return 0
        usual = self.steps.most_common(1)[0][0]
        even = sum(n for step, n in self.steps.items() if abs(step - usual) <= max(1, usual // 10))
        gaps = [(step, n) for step, n in self.steps.items() if step > 1.75 * usual]
        return sum(n * (round(step / usual) - 1) for step, n in gaps) if even >= 0.9 * total else 0

    def notices(self, name: str, base: Fraction) -> list[str]:
        """One line for each kind of damage; `base`: seconds of a tick."""
        found = []
        if self.lost:
            found.append(
                f"{counted(self.lost, 'frame')} of {name} could not be decoded: the one before "
                f"was used"
            )
        if self.first:
            found.append(
                f"{counted(self.first, 'frame')} at the start of {name} could not be decoded: "
                f"left out"
            )
        if self.backward:
            found.append(
                f"{counted(self.backward, 'frame')} of {name} had no later time than the one "
                f"before: left out"
            )
        if self.resized:
            found.append(
                f"{counted(self.resized, 'frame')} of {name} had another size than the first: "
                f"scaled to it"
            )
        if self.captions:
            found.append(
                f"{name} has closed captions inside its pictures (CEA-608 or 708): left out"
            )
        missing = self.missing()
        if missing:
            step, at = self.longest
            where = "most of them at " if missing > 1 else "at "
            found.append(
                f"{name} has gaps: about {counted(missing, 'frame')} "
                f"{'are' if missing > 1 else 'is'} missing, "
                f"{where}{float(at):.3f} seconds "
                f"({float(step * base):.3f} seconds without a new frame); the one before stays"
            )
        if self.broken_off is None and self.expected is not None:
            found.append(
                f"{name} is not whole: {self.packets} of the {counted(self.expected, 'frame')} "
                f"that its header "
                f"counts came, without a gap between them"
            )
        if self.broken_off is not None:
            of = f" of {float(self.declared):.3f}" if self.declared is not None else ""
            count = (
                f": {self.packets} of {self.expected} frames came"
                if self.expected is not None
                else ""
            )
            found.append(f"{name} breaks off after {float(self.broken_off):.3f}{of} seconds{count}")
        return found


def decoded(
    container: InputContainer,
    stream: VideoStream,
    damage: Damage,
    offsets: tuple[Fraction, ...] = (),
) -> Generator[tuple[Any, int | None], None, None]:
    """(frame, time in ticks or None) in order; for one that cannot be decoded the last good one
    again, at its time.

    offsets: of `timestamps.scan`.
    """
    decoder = _decoder_of(stream)
    good: Any = None
    lost: list[int] = []
    # FFmpeg makes up wrong times for these, which have one per packet, in the order of decoding
    by_order = container.format.name == "avi" and stream.codec_context.name in ("h264", "hevc")
    order: list[int] = []
    streams = [stream, *container.streams.audio] if container.format.name == "flv" else [stream]
    packets: Iterator[Any] = continued(container.demux(streams), stream, offsets)
    while True:
        packet: Any = None
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the file is cut off within a packet
            damage.ended_early = True
        if packet is not None and packet.stream.index != stream.index:
            if packet.pts is not None:
                damage.reached = max(damage.reached or Fraction(0), packet.pts * packet.time_base)
            continue
        last = packet is None or (packet.size == 0 and packet.pts is None and packet.dts is None)
        damage.packets += not last
        # the frame before stays; for the decoder it would be the end
        if not last and packet.size == 0:
            continue
        if by_order and not last and packet.dts is not None:
            heapq.heappush(order, packet.dts)
        try:
            frames = decoder.decode(None if last else packet)
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
