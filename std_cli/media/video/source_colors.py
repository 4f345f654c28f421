"""The source's colours in the frames of a video: `--keep-colors`."""

import numpy as np
from numpy.typing import NDArray

from std_cli.media.keep_colors import keep_colors
from std_cli.media.palette import Levels
from std_cli.media.video.clip import Seen


class SourceColors:
    """A filter of stylized frames, each of which gets the colours of its source; it holds
    nothing."""

    def __call__(self, seen: Seen, result: Levels) -> Levels:
        """`result` (H, W, 3) in the colours of its source."""
        return keep_colors(seen.rgb, result)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Nothing: a frame follows from itself alone."""
        return {}
