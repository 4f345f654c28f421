"""Whether a file breaks off: the length that its header says against the bytes that are there."""

from av.stream import Stream

from std_cli.media.video.clip import Clip


def whole_frames(stream: Stream, size: int) -> int | None:
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


def is_truncated(clip: Clip, kind: str, size: int) -> bool:
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
