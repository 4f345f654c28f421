"""Light from the codes of HDR and wide-gamut pictures, and its tone curve to SDR; by numpy alone.

Numbers of primaries and transfers are those of ITU-T H.273.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]  # (H, W)
Codes = NDArray[np.uint16]  # (H, W)

HDR = {16: "PQ", 18: "HLG"}
"""By transfer."""
REFERENCE_WHITE = 203.0
"""cd/m2 of diffuse white in HDR (ITU-R BT.2408): SDR's white."""
PEAK = 1000.0
"""cd/m2 that the tone curve maps to SDR's maximum."""
_TO_709 = {  # linear light of other primaries -> that of BT.709 and sRGB
    # BT.2020 (ITU-R BT.2087)
    9: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    # P3 with the white of D65 (SMPTE EG 432-1)
    12: [[1.2249, -0.2249, 0.0], [-0.0420, 1.0420, 0.0], [-0.0196, -0.0786, 1.0983]],
}


@cache
def light_table(transfer: int) -> Plane:
    """16-bit code -> light (65536,): of PQ 1 at the reference white, of HLG the scene's, 1 at its
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


def to_primaries_of_709(r: Plane, g: Plane, b: Plane, primaries: int) -> list[Plane]:
    """Linear light in other primaries (BT.2020, P3) -> in those of BT.709; others stay as they
    are."""
    if primaries not in _TO_709:
        return [r, g, b]
    matrix = np.array(_TO_709[primaries], np.float32)
    return [row[0] * r + row[1] * g + row[2] * b for row in matrix]


def tone_mapped(r: Codes, g: Codes, b: Codes, transfer: int, primaries: int) -> list[Plane]:
    """Codes of PQ or HLG, 16 bits -> light of BT.709, red, green, blue, 1 is SDR's maximum.

    Linear below half of white, then a shoulder that reaches it at PEAK. Works plane by plane, which
    numpy does several times faster than on the last axis of (H, W, 3).
    """
    table = light_table(transfer)
    planes = [table[plane] for plane in (r, g, b)]
    # its picture on a display of 1000 cd/m2: system gamma 1.2 on luminance
    if HDR[transfer] == "HLG":
        luminance = 0.2627 * planes[0] + 0.6780 * planes[1] + 0.0593 * planes[2]
        shown = np.float32(1000 / REFERENCE_WHITE) * luminance ** np.float32(0.2)
        planes = [plane * shown for plane in planes]
    planes = to_primaries_of_709(planes[0], planes[1], planes[2], primaries)
    brightest = np.maximum(np.maximum(np.maximum(planes[0], planes[1]), planes[2]), 1e-6)
    knee = np.float32(0.5)
    top = np.float32(PEAK / REFERENCE_WHITE)
    # a curve of slope 1 at the knee that is 1 at the top, on the brightest channel, so that hues
    # stay
    s = (1 - knee) * (top - knee) / (top - 1)
    over = np.maximum(np.minimum(brightest, top) - knee, 0)
    gain = (np.minimum(brightest, knee) + over * s / (over + s)) / brightest
    return [(plane * gain).clip(0, 1) for plane in planes]
