"""How the source moves from one frame to the next: dense optical flow."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.video.clip import Pixels

Grey = NDArray[np.uint8]  # (H, W)
Floats = NDArray[np.float32]

SIDES = 16, 512
"""Pixels. The flow is computed on frames whose longer side has at most the second and whose sides
have at least the first: the method needs the one, and larger frames move no differently."""


def grey(image: Image.Image) -> Grey:
    """The luma (H, W) of an RGB picture."""
    return np.asarray(image.convert("L"))


def grey_of(rgb: Pixels) -> Grey:
    """The luma (H, W) of RGB pixels."""
    return grey(Image.fromarray(rgb))


class Flow:
    """DIS optical flow (Kroeger et al. 2016, arXiv 1603.03590). Threads must not share an
    instance."""

    def __init__(self) -> None:
        import cv2

        self._cv = cv2
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow_back(self, before: Grey, now: Grey) -> tuple[Floats, Floats]:
        """(coords, error): where each pixel of `now` was in `before`, (H, W, 2), x and y; and how
        far from that pixel one arrives who follows the flow back and forward again, (H, W).

        Both are in pixels. The error is infinite for what was outside the frame.
        """
        height, width = now.shape
        scale = max(1.0, max(height, width) / SIDES[1])
        size = (max(SIDES[0], round(width / scale)), max(SIDES[0], round(height / scale)))
        small_before, small_now = (
            self._cv.resize(x, size, interpolation=self._cv.INTER_AREA) for x in (before, now)
        )
        back = self._flow(small_now, small_before)
        forward = self._flow(small_before, small_now)
        return self.followed(back, forward, width, height)

    def followed(
        self, back: Floats, forward: Floats, width: int, height: int
    ) -> tuple[Floats, Floats]:
        """(coords, error) as of `flow_back` for frames of width x height, by the displacements from
        the later frame to the earlier one and forward, (h, w, 2), of any size."""
        small_height, small_width = back.shape[:2]
        round_trip = back + self.warp(forward, _pixel_coords(back.shape[:2]) + back)
        both = self._cv.resize(np.concatenate([back, round_trip], -1), (width, height))
        both *= np.array([width / small_width, height / small_height] * 2, np.float32)
        coords = _pixel_coords((height, width)) + both[..., :2]
        error = np.linalg.norm(both[..., 2:], axis=-1)
        error[(coords < 0).any(-1) | (coords > (width - 1, height - 1)).any(-1)] = np.inf
        return coords, error

    def _flow(self, one: NDArray[np.generic], other: NDArray[np.generic]) -> Floats:
        """The displacement from `one` to `other`, (H, W, 2)."""
        return np.asarray(self._dis.calc(one, other, None), np.float32)  # type: ignore[call-overload]

    def warp(self, image: NDArray[np.generic], coords: Floats, *, cubic: bool = False) -> Floats:
        """The values of `image` (H, W[, C]) at `coords` (H, W, 2): interpolation between pixels is
        linear, or cubic."""
        how = self._cv.INTER_CUBIC if cubic else self._cv.INTER_LINEAR
        values = self._cv.remap(
            image.astype(np.float32),
            coords[..., 0],
            coords[..., 1],
            how,
            borderMode=self._cv.BORDER_REPLICATE,
        )
        return np.asarray(values, np.float32)

    def blur(self, image: Floats, sigma: float) -> Floats:
        """A Gaussian blur of `sigma` pixels."""
        return np.asarray(self._cv.GaussianBlur(image, (0, 0), sigma), np.float32)


def _pixel_coords(shape: tuple[int, ...]) -> Floats:
    """The coordinates of each pixel itself, (H, W, 2), x and y."""
    return np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1).astype(np.float32)
