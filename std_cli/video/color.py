"""Between the colours of a video and 8-bit full-range RGB, by swscale; HDR to SDR by tables of our own.

Numbers of matrices, primaries and transfers are those of ITU-T H.273, which are FFmpeg's.
"""

from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from std_cli.video.clip import Color, Pixels

BT709, BT601, BT2020 = 1, 6, 9
LIMITED, FULL = 1, 2
HDR = {16: "PQ", 18: "HLG"}  # by transfer
_SWS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # matrix -> swscale's coefficients
# bicubic, chroma at full resolution, exact rounding, the same on every machine
_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


def matrix_of(color: Color, width: int, height: int) -> int:
    """The YCbCr matrix; where none is tagged what players take: BT.709 from 720p on, else BT.601."""
    if color.matrix in _SWS:
        return color.matrix
    return BT709 if width >= 1280 or height >= 720 else BT601


def to_rgb(frame: av.VideoFrame, color: Color) -> Pixels:
    """A decoded frame -> RGB (H, W, 3), as it is stored; HDR is tone-mapped."""
    deep = color.transfer in HDR
    rgb: Any = _scaled(frame, "rgb48le" if deep else "rgb24", color, into=False).to_ndarray()
    return _tone_map(rgb, color) if deep else rgb


def from_rgb(rgb: Pixels, pix_fmt: str, color: Color) -> av.VideoFrame:
    """RGB (H, W, 3) -> a frame of `pix_fmt` with the tags of `color`. Its size decides where no matrix is tagged."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    out = _scaled(frame, pix_fmt, color, into=True)
    out.colorspace, out.color_range = color.matrix, color.range
    out.color_primaries, out.color_trc = color.primaries, color.transfer
    return out


def _scaled(frame: av.VideoFrame, pix_fmt: str, color: Color, into: bool) -> av.VideoFrame:
    """Convert between RGB and YCbCr by the right matrix and range, whatever the frame itself is tagged with."""
    side = "dst" if into else "src"
    name = pix_fmt if into else frame.format.name
    other = "src" if into else "dst"
    if name.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "pal", "gray", "mono", "ya")):
        grey = name.startswith(("gray", "ya")) and color.range == LIMITED
        how: dict[str, Any] = {f"{side}_color_range": LIMITED if grey else FULL}
    else:
        full = color.range == FULL or name.startswith("yuvj")
        matrix = _SWS[matrix_of(color, frame.width, frame.height)]
        how = {f"{side}_color_range": FULL if full else LIMITED, f"{side}_colorspace": matrix}
    return frame.reformat(format=pix_fmt, interpolation=_FLAGS, **how, **{f"{other}_color_range": FULL})


# --- HDR -------------------------------------------------------------------------------------------------------------

REFERENCE_WHITE = 203.0
"""cd/m2 of diffuse white in HDR (ITU-R BT.2408): SDR's white."""
PEAK = 1000.0
"""cd/m2 that the tone curve maps to SDR's maximum."""
_TO_709 = np.array(  # linear BT.2020 -> linear BT.709 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


@cache
def _to_linear(transfer: int) -> NDArray[np.float32]:
    """16-bit code -> light, 1 at the reference white."""
    v = np.arange(65536) / 65535
    if HDR[transfer] == "PQ":  # SMPTE ST 2084
        p = v ** (1 / 78.84375)
        nits = 10000 * (np.maximum(p - 0.8359375, 0) / (18.8515625 - 18.6875 * p)) ** (1 / 0.1593017578125)
    else:  # HLG's inverse OETF (ARIB STD-B67), shown on 1000 cd/m2 (system gamma 1.2, here per channel)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12)
        nits = 1000 * scene**1.2
    return (nits / REFERENCE_WHITE).astype(np.float32)


@cache
def _to_code() -> NDArray[np.uint8]:
    """Light in [0, 1] in 4096 steps of its square root -> 8-bit BT.709 code for a display of gamma 2.4 (BT.1886)."""
    light = (np.arange(4096) / 4095) ** 2
    return np.asarray((255 * light ** (1 / 2.4)).round(), np.uint8)


def _tone_map(rgb: NDArray[np.uint16], color: Color) -> Pixels:
    """16-bit PQ or HLG -> 8-bit SDR BT.709: linear below half of white, then a shoulder that reaches it at PEAK."""
    light = _to_linear(color.transfer)[rgb]  # (H, W, 3)
    if color.primaries in (2, 9):
        light = light @ _TO_709.T
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    knee, top = np.float32(0.5), np.float32(PEAK / REFERENCE_WHITE)
    x = np.minimum(brightest, top)
    # a curve of slope 1 at the knee that is 1 at the top: knee + s x / (x + r), per pixel, so that hues stay
    over = x - knee
    r = (1 - knee) * (top - knee) / (top - 1)
    curve = np.where(over > 0, knee + over * r / (over + r), brightest)
    light = (light * (curve / brightest)).clip(0, 1)
    return np.asarray(_to_code()[(np.sqrt(light) * 4095).round().astype(np.int32)])
