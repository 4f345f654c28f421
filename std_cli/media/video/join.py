"""Finished segments to one output: joined without encoding them again, with what the source has in
addition."""

import heapq
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from std_cli.errors import InputError, StdError
from std_cli.media.video.clip import Clip, Color, Pixels, Span
from std_cli.media.video.color import LIMITED, from_rgb
from std_cli.media.video.extras import (
    NOTHING,
    Extras,
    container_options,
    describe,
    open_source,
)
from std_cli.media.video.projection import remove_empty_layout, with_projection
from std_cli.media.video.streams import Added, Carried, Flow, add_stream, other_packets
from std_cli.media.video.tags import file_tags, request_in
from std_cli.media.video.target import Target, decoding_delay, early_times, exact_clock
from std_cli.media.video.write import (
    REFUSALS,
    Refused,
    create_container,
    refusing,
    sync_file,
    write_errors,
)
from std_cli.media.write_picture import xmp_packet
from std_cli.paths import hidden_next_to


def join(
    segments: Sequence[Path],
    target: Target,
    source: Clip,
    *,
    out: Path,
    extras: Extras,
    begin: Fraction | None = None,
    until: Fraction | None = None,
    shift: Fraction = Fraction(0),
    end: Fraction | None = None,
    comment: str = "",
) -> list[str]:
    """Put the segments into one file `out`, with what `choose_extras` chose of the source.

    Packets of the other streams from `begin` up to `until` (seconds on the source's clock; None: no
    limit) are kept; `shift` is taken off all times. The last frame ends at `end` (on that clock,
    too; None: after the nominal time of one frame). What the container refuses only now is left
    out. Returns notices of what could not be kept. Raises StdError if writing fails; then `out` may
    be there in part.
    """
    with write_errors(target.path):
        if target.container == "folder":
            _folder(segments, out, comment, shift)
            return []
        if target.container in ("gif", "webp"):
            _animate(segments, target, out, end, comment)
            return []
        notices: list[str] = []
        span = Span(begin, until, shift)
        while True:
            try:
                return notices + _written(segments, target, source, out, extras, span, end, comment)
            except Refused as e:
                if extras == NOTHING:  # it is the pictures that are refused
                    raise
                extras, lost = _without_what_fails(target, source, extras, span, end)
                notices.append(f"{target.path.name} cannot hold {lost} ({e}): left out")


def _without_what_fails(
    target: Target, source: Clip, extras: Extras, span: Span, end: Fraction | None
) -> tuple[Extras, str]:
    """(the extras without the streams that fail when each is written alone, else without all of
    them; their names)"""
    failing = [c for c in extras.streams if not _goes_in(target, source, c, span, end)]
    if not failing and (extras.timecode or extras.projection):
        return replace(extras, timecode=None, projection=b""), "the timecode or projection"
    failing = failing or list(extras.streams)
    if not failing:
        return NOTHING, "the source's tags and chapters"
    kept = tuple(c for c in extras.streams if c not in failing)
    return replace(extras, streams=kept), ", ".join(c.what for c in failing)


def _goes_in(
    target: Target, source: Clip, carried: Carried, span: Span, end: Fraction | None
) -> bool:
    """Whether all packets of one stream, without the pictures, go into the container, which is
    written to nowhere."""
    try:
        with (
            open_source(source) as before,
            av.open(Nowhere(), "w", format=target.container) as file,
        ):
            added = [add_stream(file, before.streams[carried.index], carried)]
            for _, _, packet in other_packets(
                before, source, added, span, end, {}, lambda reason: None
            ):
                file.mux(packet)
    except (Refused, *REFUSALS):
        return False
    return True


class Nowhere:
    """A file that keeps nothing."""

    def __init__(self) -> None:
        self.at = self.size = 0

    def write(self, data: bytes) -> int:
        """Count the bytes."""
        self.at += len(data)
        self.size = max(self.size, self.at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        """As a file's."""
        return self.at


def _written(
    segments: Sequence[Path],
    target: Target,
    source: Clip,
    out: Path,
    extras: Extras,
    span: Span,
    end: Fraction | None,
    comment: str,
) -> list[str]:
    """Write the result once; what was found missing on the way."""
    notices: list[str] = []
    count: dict[int, int] = {}
    added: list[Added] = []
    with ExitStack() as stack:
        before = stack.enter_context(_opened_again(source)) if source.kind == "video" else None
        options = container_options(target, extras, file_tags(before, False) if before else {})
        if target.container in ("mp4", "mov"):
            rates = (
                [s.sample_rate for s in before.streams.audio if s.codec_context] if before else []
            )
            options["movflags"] = options.get("movflags", "") + "+faststart"
            options |= exact_clock(target, *filter(None, rates))
        file = stack.enter_context(create_container(out, target.container, options))
        with refusing():
            video = _video_stream(stack, file, segments[0], target, extras)
        flows = [_video_packets(segments, video, target, span.shift, end)]
        if before:
            with refusing():
                added = [add_stream(file, before.streams[c.index], c) for c in extras.streams]
            with suppress(av.FFmpegError):
                before.seek(0)  # a cover was read

            def broken(reason: str) -> None:
                notices.append(
                    f"{source.path.name} breaks off ({reason}): what goes with its video ends there"
                )

            flows.append(other_packets(before, source, added, span, end, count, broken))
            with refusing():
                describe(before, file, video, target, extras, span, source, bool(comment))
        if comment:
            file.metadata["comment"] = comment
        for _, _, packet in heapq.merge(*flows, key=lambda item: item[:2]):
            with refusing():
                file.mux(packet)
        # while the source is open: PyAV's streams point into it
        silent = [
            a.carried.what for a in added if a.old.type == "audio" and not count.get(a.old.index)
        ]
        with refusing():
            file.close()  # writes the index
    if extras.projection and target.container == "mp4":
        remove_empty_layout(out)
    sync_file(out)
    if silent:
        notices.append(f"no sound was found in {', '.join(silent)}")
    return notices


def _opened_again(source: Clip) -> Any:
    """PyAV's container of the source, which was readable when the work began."""
    try:
        return open_source(source)
    except (av.FFmpegError, OSError) as e:
        raise StdError(
            f"{source.path} can no longer be read ({e.strerror or type(e).__name__}); put it back "
            f"and run the same command again"
        ) from e


def _video_stream(
    stack: ExitStack, file: Any, segment: Path, target: Target, extras: Extras
) -> Any:
    template: Any = stack.enter_context(_open_part(segment)).streams.video[0]
    if extras.projection:
        template = stack.enter_context(with_projection(template, extras.projection)).streams.video[
            0
        ]
    video = file.add_stream_from_template(template, opaque=target.codec == "av1")
    if target.codec == "vp9" and target.alpha:
        video.metadata["alpha_mode"] = "1"
    video.time_base = target.time_base
    video.codec_context.framerate = target.frame_rate
    if target.codec != "av1":
        video.sample_aspect_ratio = target.sample_aspect_ratio
        if target.codec == "hevc" and target.container != "matroska":
            video.codec_context.codec_tag = "hvc1"
    return video


def _video_packets(
    segments: Sequence[Path], stream: Any, target: Target, shift: Fraction, end: Fraction | None
) -> Flow:
    base = target.time_base
    delay = decoding_delay(target)
    nominal = round(1 / target.frame_rate / base)
    shown = _shown(segments[0], base, shift)
    first = early_times(target, shown[0], shown[1] - shown[0] if len(shown) > 1 else 1)
    # of all frames of a part, in order; ahead of them of the last ones before it
    times = [*first, *shown]
    for path, after in zip(segments, [*segments[1:], None], strict=True):
        following = _shown(after, base, shift) if after is not None else []
        last = (
            max(round((end - shift) / base), shown[-1] + 1)
            if end is not None
            else shown[-1] + nominal
        )
        until = following[0] if following else last
        ends = dict(zip(shown, [*shown[1:], until], strict=True))
        for number, packet in enumerate(_packets(path)):
            packet.pts = round((packet.pts * packet.time_base - shift) / base)
            packet.dts = times[number] if delay else packet.pts
            packet.duration = ends[packet.pts] - packet.pts
            if after is None and number == len(shown) - 1 and target.container in ("mp4", "mov"):
                # the track is as long as what is decoded last says, the movie ends with what is
                # shown last
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
    """The packets of a segment, in the order in which they are decoded."""
    with _finished_part(path), _open_part(path) as part:
        for packet in part.demux(part.streams.video[0]):
            if packet.size and packet.pts is not None:
                yield packet


def _frames(segments: Sequence[Path]) -> Generator[tuple[Fraction, Any], None, None]:
    """(seconds, frame) of all segments, in order."""
    for path in segments:
        with _finished_part(path), _open_part(path) as part:
            stream: Any = part.streams.video[0]
            for frame in part.decode(stream):
                yield (frame.pts or 0) * stream.time_base, frame


def _open_part(path: Path) -> Any:
    with _finished_part(path):
        return av.open(f"file:{path}")


@contextmanager
def _finished_part(path: Path) -> Generator[None, None, None]:
    """The errors of reading a segment, as one line: they are not those of the result."""
    try:
        yield
    except av.FFmpegError as e:
        raise StdError(
            f"the finished part {path} cannot be read ({e.strerror or type(e).__name__}); run the "
            f"same command with --no-resume"
        ) from e


def _animate(
    segments: Sequence[Path], target: Target, out: Path, end: Fraction | None, comment: str
) -> None:
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
            new = (
                from_rgb(rgb, "yuva420p", Color(6, LIMITED, 2, 2), centred=True)
                if webp
                else _with_palette(rgb)
            )
            new.pts, new.time_base = last, base
            with refusing():
                file.mux(stream.encode(new))
        with refusing():
            file.mux(stream.encode())
    if webp:
        _complete_webp(out, last + hold, target.alpha)
        if comment:
            _add_packet(out, xmp_packet(json.loads(comment)["std"]))
    elif comment:
        _add_comment(out, comment.encode())
    sync_file(out)


def _add_packet(webp: Path, packet: bytes) -> None:
    """Append XMP data to an animated webp, and say in its header that it is there.

    RFC 9649, section 2.7: bit 2 of the flags, which follow the header of the chunk VP8X; the size
    of the file less 8 in bytes 4 to 7.
    """
    with webp.open("rb+") as file:
        file.seek(20)
        flags = file.read(1)[0]
        file.seek(20)
        file.write(bytes([flags | 4]))
        file.seek(0, os.SEEK_END)
        file.write(b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(size.to_bytes(4, "little"))


def _add_comment(gif: Path, comment: bytes) -> None:
    """Insert a comment before the first frame of a gif: blocks of up to 255 bytes after the header
    and the palette of all frames (GIF89a, sections 18, 19 and 24).

    What an error leaves is in the work folder, which removes it."""
    blocks = [comment[at : at + 255] for at in range(0, len(comment), 255)]
    rewritten = hidden_next_to(gif)
    with rewritten.open("xb") as new, gif.open("rb") as old:
        header = old.read(13)
        palette = 3 * 2 ** ((header[10] & 7) + 1) if header[10] & 0x80 else 0
        new.write(header + old.read(palette) + b"\x21\xfe")
        new.writelines(bytes([len(block)]) + block for block in blocks)
        new.write(b"\0")
        shutil.copyfileobj(old, new)
    os.replace(rewritten, gif)


def _complete_webp(webp: Path, total: int, alpha: bool) -> None:
    """Write into an animated webp what the encoder does not: how long the last picture lasts, and
    that there is alpha.

    The last picture gets what the others leave of `total` ms; frames that are alike have become
    one. The encoder cuts transparent edges off and then says that all is opaque, on white. A file
    of RIFF chunks (RFC 9649, section 2.7): the duration is in bytes 12 to 14 of an ANMF chunk, the
    background in the first 4 of ANIM, alpha bit 4 of VP8X.
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
    """The frame, (H, W, 3) or with alpha (H, W, 4), in 256 colours of its own; what is less than
    half opaque is transparent."""
    from PIL import Image

    hidden = rgb[..., 3] < 128 if rgb.shape[2] == 4 else np.zeros(rgb.shape[:2], bool)
    image = Image.fromarray(np.ascontiguousarray(rgb[..., :3])).quantize(
        255 if rgb.shape[2] == 4 else 256
    )
    palette = np.zeros((256, 4), np.uint8)
    colours = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
    palette[:, 0], palette[: len(colours), 1:] = 255, colours  # ARGB
    indices = np.asarray(image).copy()
    if hidden.any():
        indices[hidden], palette[255] = 255, 0
    return av.VideoFrame.from_ndarray((indices, palette), "pal8")  # type: ignore[arg-type]


def _folder(segments: Sequence[Path], out: Path, comment: str, shift: Fraction) -> None:
    """000001.png and on, with frames.csv (file, seconds, the same as an exact fraction) and the
    request as std.json."""
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
    """The request that `join` stored in a video; None in one of other origin. InputError for what
    is no video."""
    try:
        with av.open(f"file:{path}", metadata_errors="replace") as file:
            tags = {key.lower(): value for key, value in file.metadata.items()}
    except (av.FFmpegError, OSError) as e:
        raise InputError(
            f"{str(path)!r} cannot be read as a video ({e.strerror}); check the path"
        ) from None
    return request_in(tags.get("comment", ""))
