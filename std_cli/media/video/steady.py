"""The filter that makes stylized frames steady along the motion of the source."""

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

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
AHEAD = 4
"""Frames whose flow is computed at the same time, at most. That of 512 x 512 pixels takes 0.15 s
of a core, more than a fast GPU needs for the frame."""
Followed = tuple[Floats, Floats]
"""What `Flow.flow_back` returns."""


class Steady:
    """A filter of stylized frames, called with one after the other, that takes out flicker. It
    holds one frame.

    Each result is mixed with the one before, as the source moved, by `strength` (0 to less than 1)
    where that motion is certain and the source only moved: what comes into view, or changes, stays
    new. So it is a mean of about 1 / (1 - strength) frames at most. Shots do not mix, so any range
    of frames can be filtered alone that begins with a shot, or with the `state` of the frame before
    it.

    The motion follows from the source alone: that of frames which `expect` has announced is
    computed in threads, while the frames before them are filtered.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._before: tuple[Grey, Floats] | None = None
        self._shot = 0
        self._flow = Flow()
        self._threads = ThreadPoolExecutor(AHEAD)
        self._of_threads = threading.local()
        self._expected: deque[tuple[Grey, int, Future[Followed] | None]] = deque()

    def expect(self, seen: Seen) -> None:
        """Begin to compute the motion towards a frame that is filtered later; once for each, in
        order."""
        source, old, shot = grey(Image.fromarray(seen.rgb)), None, self._shot
        if self._expected:
            old, shot, _ = self._expected[-1]
        elif self._before is not None:
            old = self._before[0]
        motion = None
        if old is not None and seen.shot == shot:
            motion = self._threads.submit(self._flow_back, old, source)
        self._expected.append((source, seen.shot, motion))

    def _flow_back(self, old: Grey, source: Grey) -> Followed:
        if not hasattr(self._of_threads, "flow"):
            self._of_threads.flow = Flow()
        followed: Followed = self._of_threads.flow.flow_back(old, source)
        return followed

    def __call__(self, seen: Seen, result: Levels) -> Levels:
        """The steadier result (H, W, 3) of the next frame, of which the source is seen."""
        if not self._expected:
            self.expect(seen)
        source, shot, motion = self._expected.popleft()
        mixed = result.round()
        if self._before is not None and motion is not None:
            old_source, old = self._before
            coords, error = motion.result()
            change = self._flow.blur(self._flow.warp(old_source, coords) - source, 1.5)
            share = self.strength * np.exp(-np.square(error / ERROR) - np.square(change / CHANGE))
            mixed += share[..., None] * (self._flow.warp(old, coords, cubic=True) - mixed)
            mixed = mixed.clip(0, 255)
        self._before = source, mixed
        self._shot = shot
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
