"""The filter that makes stylized frames steady along the motion of the source."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.palette import Levels
from std_cli.media.video.clip import Seen
from std_cli.media.video.flow import Floats, Flow, Grey, grey

ERROR = 0.5
"""Pixels. The mixture falls to 1/e where the flow, followed back and forward, misses by so much."""
CHANGE = 16
"""Levels of 255. It falls to 1/e where the source itself became so much lighter or darker."""


class Steady:
    """A filter of stylized frames, called with one after the other, that takes out flicker. It
    holds one frame.

    Each result is mixed with the one before, as the source moved, by `strength` (0 to less than 1)
    where that motion is certain and the source only moved: what comes into view, or changes, stays
    new. So it is a mean of about 1 / (1 - strength) frames at most. Shots do not mix, so any range
    of frames can be filtered alone that begins with a shot, or with the `state` of the frame before
    it.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._before: tuple[Grey, Floats] | None = None
        self._shot = 0
        self._flow = Flow()

    def __call__(self, seen: Seen, result: Levels) -> Levels:
        """The steadier result (H, W, 3) of the next frame, of which the source is seen."""
        mixed = result.round()
        source = grey(Image.fromarray(seen.rgb))
        if self._before is not None and seen.shot == self._shot:
            old_source, old = self._before
            coords, error = self._flow.flow_back(old_source, source)
            change = self._flow.blur(self._flow.warp(old_source, coords) - source, 1.5)
            share = self.strength * np.exp(-np.square(error / ERROR) - np.square(change / CHANGE))
            mixed += share[..., None] * (self._flow.warp(old, coords, cubic=True) - mixed)
            mixed = mixed.clip(0, 255)
        self._before = source, mixed
        self._shot = seen.shot
        return mixed

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that `from_state` continues from; none before the first frame."""
        if self._before is None:
            return {}
        source, result = self._before
        return {"source": source, "result": result, "shot": np.array(self._shot)}

    @classmethod
    def from_state(cls, strength: float, state: Mapping[str, NDArray[np.generic]]) -> "Steady":
        """A filter that continues after the frame at which `state` was taken."""
        new = cls(strength)
        if state:
            new._before = state["source"].astype(np.uint8), state["result"].astype(np.float32)
            new._shot = int(state["shot"])
        return new
