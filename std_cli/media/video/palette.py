"""The reference's mix of colours in the frames of a video: `--palette`."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from std_cli.media.palette import ColorMix, Levels, color_map, mix_of, moments, rounded
from std_cli.media.video.clip import Seen

SECONDS = 1.0
"""The time in which the map follows the frames, where they are as rich as those before."""
FASTEST = 8.0
"""So many times faster it follows frames that are richer than those before: a fade-in."""
RICHER, POORER = 8, 2
"""The powers of a frame's variance, over that of those before, by which it follows faster, and
slower: what is nearly black after a fade-out changes nothing."""


class Palette:
    """A filter of stylized frames, called with one after the other, that gives all of a shot the
    reference's mix of colours.

    The map is that of `color_map` for a running mean of the frames' colours. A shot's first frame
    begins it, so it is right at once, and each later frame moves it by a little. So the map is
    almost the same for all of a shot: what becomes darker or lighter there does so in the result.
    Shots are apart, so any range of frames can be filtered alone that begins with a shot, or with
    the `state` of the frame before it.
    """

    def __init__(self, reference: ColorMix, amount: float) -> None:
        self.reference, self.amount = reference, amount
        self._mean = np.zeros((4, 4))
        """`moments` of a pixel; zeros as long as nothing was seen of the shot."""
        self._variance = 0.0
        """Within a frame."""
        self._shot = 0

    def __call__(self, seen: Seen, result: Levels) -> Levels:
        """The next frame, `result` (H, W, 3), with the reference's mix of colours."""
        if seen.shot != self._shot:
            self._mean, self._variance, self._shot = np.zeros((4, 4)), 0.0, seen.shot
        sums = moments(rounded(result), seen.cover)
        own = mix_of(sums)
        if own is not None:
            self._follow(sums / sums[3, 3], own.variance, float(seen.seconds))
        mix = mix_of(self._mean)
        return result if mix is None else color_map(mix, self.reference, self.amount)(result)

    def _follow(self, mean: NDArray[np.float64], variance: float, seconds: float) -> None:
        """Move what is known of the shot towards a frame that lasts so many seconds."""
        share = 1.0
        if self._mean[3, 3] > 0:
            ratio = (variance + 1) / (self._variance + 1)
            speed = min(FASTEST, ratio**RICHER) if ratio > 1 else ratio**POORER
            share = 1 - float(np.exp(-seconds / SECONDS * speed))
        self._mean = self._mean + share * (mean - self._mean)
        self._variance += share * (variance - self._variance)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that `from_state` continues from."""
        return {
            "mean": self._mean,
            "variance": np.array(self._variance),
            "shot": np.array(self._shot),
        }

    @classmethod
    def from_state(
        cls, reference: ColorMix, amount: float, state: Mapping[str, NDArray[np.generic]]
    ) -> "Palette":
        """A filter that continues after the frame at which `state` was taken."""
        new = cls(reference, amount)
        if state:
            new._mean = state["mean"].astype(np.float64)
            new._variance, new._shot = float(state["variance"]), int(state["shot"])
        return new
