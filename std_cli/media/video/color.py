"""Between the colours of a video and 8-bit full-range RGB, by swscale; HDR to SDR by tables of our
own.

Numbers of matrices, primaries and transfers are those of ITU-T H.273, which are FFmpeg's.
"""

from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from std_cli.media.video.clip import Alpha, Color, Pixels

BT709, BT601, BT2020 = 1, 6, 9
LIMITED, FULL = 1, 2
HDR = {16: "PQ", 18: "HLG"}  # by transfer
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
        return np.asarray(_expanded()[rgb])  # swscale takes grey as full range, whatever it is told
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

REFERENCE_WHITE = 203.0
"""cd/m2 of diffuse white in HDR (ITU-R BT.2408): SDR's white."""
PEAK = 1000.0
"""cd/m2 that the tone curve maps to SDR's maximum."""
_TO_709 = np.array(  # linear BT.2020 -> linear BT.709 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


@cache
def _to_linear(transfer: int) -> NDArray[np.float32]:
    """16-bit code -> light: of PQ 1 at the reference white, of HLG the scene's, 1 at its
    maximum."""
    v = np.arange(65536) / 65535
    if HDR[transfer] == "PQ":  # SMPTE ST 2084
        p = v ** (1 / 78.84375)
        nits = 10000 * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (
            1 / 0.1593017578125
        )
        return (nits / REFERENCE_WHITE).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ARIB STD-B67
    return np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12).astype(np.float32)


@cache
def _to_code() -> NDArray[np.uint8]:
    """Light in [0, 1] in 4096 steps of its square root -> 8-bit BT.709 code for a display of gamma
    2.4 (BT.1886)."""
    light = (np.arange(4096) / 4095) ** 2
    return np.asarray((255 * light ** (1 / 2.4)).round(), np.uint8)


def _tone_map(frame: av.VideoFrame, color: Color) -> Pixels:
    """PQ or HLG as gbrp16le -> 8-bit SDR BT.709: linear below half of white, then a shoulder that
    reaches it at PEAK.

    Works plane by plane, which numpy does several times faster than on the last axis of (H, W, 3).
    """
    table = _to_linear(color.transfer)
    all_planes: Any = frame.planes
    planes = [np.frombuffer(p, "<u2").reshape(p.height, -1)[:, : p.width] for p in all_planes]
    g, b, r = (table[plane] for plane in planes)
    # its picture on a display of 1000 cd/m2: system gamma 1.2 on luminance
    if HDR[color.transfer] == "HLG":
        shown = np.float32(1000 / REFERENCE_WHITE) * (
            0.2627 * r + 0.6780 * g + 0.0593 * b
        ) ** np.float32(0.2)
        r, g, b = r * shown, g * shown, b * shown
    if color.primaries in (2, 9):
        r, g, b = (m[0] * r + m[1] * g + m[2] * b for m in _TO_709)
    brightest = np.maximum(np.maximum(np.maximum(r, g), b), 1e-6)
    knee, top = np.float32(0.5), np.float32(PEAK / REFERENCE_WHITE)
    # a curve of slope 1 at the knee that is 1 at the top, on the brightest channel, so that hues
    # stay
    s = (1 - knee) * (top - knee) / (top - 1)
    over = np.maximum(np.minimum(brightest, top) - knee, 0)
    gain = (np.minimum(brightest, knee) + over * s / (over + s)) / brightest
    out = np.empty((frame.height, frame.width, 3), np.uint8)
    for i, plane in enumerate((r, g, b)):
        out[..., i] = _to_code()[
            (np.sqrt((plane * gain).clip(0, 1)) * 4095 + 0.5).astype(np.uint16)
        ]
    return out
