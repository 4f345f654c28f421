"""The projection of a 360-degree video and the layout of a 3D one, from a source to a result.

PyAV can neither read these of a stream nor set them. Decoded frames have them as FFmpeg's
structures (AVSphericalMapping, AVStereo3D). From them come the boxes of Google's Spherical Video V2
(https://github.com/google/spatial-media/blob/master/docs/spherical-video-v2-rfc.md). They are put
into a small mp4 whose stream is then the template of the result's, so that FFmpeg writes them in
the way of each container.
"""

import io
import struct
from pathlib import Path
from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

_EQUIRECTANGULAR, _CUBEMAP, _TILE, _HALF = range(4)  # AVSphericalProjection
# AVStereo3DType -> the box's mode: side by side is 2 there, top and bottom 1
_STEREO = {1: 2, 2: 1}


def projection_of(frame: VideoFrame) -> tuple[bytes, list[str]]:
    """(boxes of a decoded frame's projection and 3D layout, what these boxes cannot say in
    words)."""
    boxes, lost = b"", []
    side_data: Any = frame.side_data  # typed as a mapping, and iterates over its values
    for data in side_data:
        kind, raw = str(data.type).split(".")[-1], bytes(data)
        if kind == "STEREO3D":
            mode, flags = struct.unpack_from("=ii", raw)
            if mode in _STEREO and not flags & 1:  # 1: the views are swapped
                boxes += _box(b"st3d", bytes(4), bytes([_STEREO[mode]]))
            elif mode:
                lost.append("its layout of 3D views")
        elif kind == "SPHERICAL":
            written = _spherical(raw)
            boxes += written
            if not written:
                lost.append("its 360-degree projection")
    return boxes, lost


def _spherical(raw: bytes) -> bytes:
    kind, yaw, pitch, roll, left, top, right, bottom, padding = struct.unpack_from("=4i5I", raw)
    if kind == _HALF:
        left = right = 1 << 30  # a quarter of the width, as 0.32 fixed point
    if kind in (_EQUIRECTANGULAR, _TILE, _HALF):
        shape = _box(b"equi", bytes(4), struct.pack(">4I", top, bottom, left, right))
    elif kind == _CUBEMAP:
        shape = _box(b"cbmp", bytes(4), struct.pack(">2I", 0, padding))
    else:
        return b""
    angles = _box(b"prhd", bytes(4), struct.pack(">3i", yaw, pitch, roll))
    return _box(b"sv3d", _box(b"svhd", bytes(4), b"std\0"), _box(b"proj", angles, shape))


def _box(name: bytes, *inside: bytes) -> bytes:
    content = b"".join(inside)
    return struct.pack(">I", 8 + len(content)) + name + content


def with_projection(stream: VideoStream, boxes: bytes) -> Any:
    """A container in memory whose first stream is coded as `stream` is, and has the projection of
    the boxes.

    Raises ValueError or FFmpegError if mp4 and mov cannot hold the codec.
    """
    buffer = io.BytesIO()
    codec = stream.codec_context.name
    with av.open(buffer, "w", format="mov" if codec == "prores" else "mp4") as file:
        new = file.add_stream_from_template(stream, opaque=True)
        container: Any = stream.container  # PyAV does not type it as one to read
        packet = next(p for p in container.demux(stream) if p.size)
        packet.stream = new
        file.mux(packet)
    return av.open(io.BytesIO(_insert(buffer.getvalue(), boxes)))


def _insert(file: bytes, boxes: bytes) -> bytes:
    """The mp4 with `boxes` at the end of its first sample entry. Its index is the last box, so that
    no offset moves."""
    data = bytearray(file)
    sizes = _way_to_the_entry(data)
    entry = sizes[-1]
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    data[end:end] = boxes
    for at in sizes:
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + len(boxes)).to_bytes(
            4, "big"
        )
    return bytes(data)


def _way_to_the_entry(data: bytes | bytearray) -> list[int]:
    """Where the boxes begin that hold the first sample entry of an mp4, and it itself at last."""
    found, start = [], 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", None):
        while name is not None and bytes(data[start + 4 : start + 8]) != name:
            start += int.from_bytes(data[start : start + 4], "big")
        found.append(start)
        start += 16 if name == b"stsd" else 8
    return found


def remove_empty_layout(mp4: Path) -> None:
    """Take the box "vexu" out of a finished mp4 whose pictures are its first track.

    FFmpeg writes it in addition to the box of the 3D layout. It has the eyes but not their
    arrangement, and players that read it, FFmpeg among them, do not look at the other one.
    """
    with mp4.open("rb+") as file:
        start = 0
        while len(head := file.read(8)) == 8 and head[4:] != b"moov":
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(file.read(8), "big") if size == 1 else size
            start += size
            file.seek(start)
        index = head + file.read(int.from_bytes(head[:4], "big") - 8)
        entry = _way_to_the_entry(index)[-1]
        at = index.find(b"vexu", entry, entry + int.from_bytes(index[entry : entry + 4], "big"))
        if at >= 0:
            file.seek(start + at)
            file.write(b"free")
