"""Between the colours of a video and 8-bit full-range RGB, by swscale; HDR by `tone_map`.

Numbers of matrices, primaries and transfers are those of ITU-T H.273, which are FFmpeg's.
"""

from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from std_cli.media.tone_map import HDR, tone_mapped
from std_cli.media.video.clip import Alpha, Color, Pixels

BT709, BT601, BT2020 = 1, 6, 9
LIMITED, FULL = 1, 2
UNSPECIFIED = 2
_SWS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # matrix -> swscale's coefficients
# bicubic, chroma at full resolution, exact rounding, the same on every machine
_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


def matrix_of(color: Color, width: int, height: int) -> int:
    """The YCbCr matrix; where none is tagged what players take: BT.709 from 720p on, else
    BT.601."""
    if color.matrix in _SWS:
        return color.matrix
    return BT709 if width >= 1280 or height >= 720 else BT601


def to_rgb(frame: av.VideoFrame, color: Color) -> Pixels:
    """A decoded frame -> RGB (H, W, 3), as it is stored; HDR is tone-mapped. `color` counts, not
    the frame's tags."""
    if color.transfer in HDR:
        return _tone_map(_scaled(frame, "gbrp16le", color, into=False), color)
    rgb: Any = _scaled(frame, "rgb24", color, into=False).to_ndarray()
    if color.range == LIMITED and frame.format.name.startswith(("gray", "ya")):
        return np.asarray(
            _expanded()[rgb]
        )  # swscale takes grey as full range, whatever its options say
    return np.asarray(rgb)


def has_alpha(format: av.VideoFormat) -> bool:
    """Whether pixels of a format may be transparent."""
    return format.has_palette or any(component.is_alpha for component in format.components)


def alpha_of(frame: av.VideoFrame) -> Alpha | None:
    """(H, W), 255 where a decoded frame is opaque; None for formats without alpha."""
    if not has_alpha(frame.format):
        return None
    return np.asarray(frame.reformat(format="rgba").to_ndarray()[..., 3])


def over_white(rgb: Pixels, alpha: Alpha) -> Pixels:
    """What is transparent, composited on white."""
    opaque = alpha[..., None].astype(np.uint32)
    return ((rgb * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def from_rgb(rgb: Pixels, pix_fmt: str, color: Color, centred: bool = False) -> av.VideoFrame:
    """RGB (H, W, 3), or with alpha (H, W, 4), -> a frame of `pix_fmt` with the tags of `color`.

    Its size decides where no matrix is tagged. Chroma that is subsampled is sited at the left,
    which is what video decoders take where nothing is said; in the yuvj formats (jpeg), and with
    `centred` (webp), in the centre.
    """
    frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(rgb), "rgb24" if rgb.shape[2] == 3 else "rgba"
    )
    if pix_fmt.startswith("yuv") and not pix_fmt.startswith("yuvj") and not centred:
        frame = _sited_left(frame)
    out = _scaled(frame, pix_fmt, color, into=True)
    out.colorspace, out.color_range = color.matrix, color.range
    out.color_primaries, out.color_trc = color.primaries, color.transfer
    return out


def _sited_left(frame: av.VideoFrame) -> av.VideoFrame:
    """The same pixels with a tag that swscale hands on and obeys; only a filter can set it."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )  # fmt: skip
    graph.link_nodes(
        source, graph.add("setparams", "chroma_location=left"), graph.add("buffersink")
    ).configure()
    graph.push(frame)
    return graph.vpull()


def _scaled(frame: av.VideoFrame, pix_fmt: str, color: Color, into: bool) -> av.VideoFrame:
    """Convert between RGB and YCbCr by the right matrix and range, whatever the frame itself is
    tagged with."""
    side, other = ("dst", "src") if into else ("src", "dst")
    format = av.VideoFormat(pix_fmt) if into else frame.format
    if format.is_rgb or format.has_palette or format.name.startswith(("gray", "ya", "mono")):
        how: dict[str, Any] = {f"{side}_color_range": FULL}
    else:
        full = color.range == FULL or format.name.startswith("yuvj")
        matrix = _SWS[matrix_of(color, frame.width, frame.height)]
        how = {f"{side}_color_range": FULL if full else LIMITED, f"{side}_colorspace": matrix}
    return frame.reformat(
        format=pix_fmt, interpolation=_FLAGS, **how, **{f"{other}_color_range": FULL}
    )


@cache
def _expanded() -> Pixels:
    """Limited range -> full, of 8-bit grey."""
    return np.asarray(((np.arange(256) - 16) * 255 / 219).round().clip(0, 255), np.uint8)


# --- HDR ---------------------------------------------------------------------------------------


@cache
def _to_code() -> NDArray[np.uint8]:
    """Light in [0, 1] in 4096 steps of its square root -> 8-bit BT.709 code for a display of gamma
    2.4 (BT.1886)."""
    light = (np.arange(4096) / 4095) ** 2
    return np.asarray((255 * light ** (1 / 2.4)).round(), np.uint8)


def _tone_map(frame: av.VideoFrame, color: Color) -> Pixels:
    """PQ or HLG as gbrp16le -> 8-bit SDR BT.709."""
    all_planes: Any = frame.planes
    g, b, r = (np.frombuffer(p, "<u2").reshape(p.height, -1)[:, : p.width] for p in all_planes)
    primaries = BT2020 if color.primaries == UNSPECIFIED else color.primaries
    out = np.empty((frame.height, frame.width, 3), np.uint8)
    for i, plane in enumerate(tone_mapped(r, g, b, color.transfer, primaries)):
        out[..., i] = _to_code()[(np.sqrt(plane) * 4095 + 0.5).astype(np.uint16)]
    return out
