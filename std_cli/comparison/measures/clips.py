"""Measures of clips that follow the content's motion: flicker, warp error, seams."""

import numpy as np

from std_cli.comparison.measures.base import Measure, Moment, Sample
from std_cli.comparison.measures.raft import load_raft, raft_available
from std_cli.media.video.clip import Pixels
from std_cli.media.video.flow import Floats, Flow, grey_of
from std_cli.media.video.quality import VISIBLE, Quality
from std_cli.weights.cache import files_of


class _OfQuality(Measure):
    """A figure that `std stylize video` reports, too."""

    domain = "clip"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._quality = Quality()

    def begin(self, sample: Sample) -> None:
        self._quality = Quality()

    def accumulate(self, moment: Moment) -> None:
        self._quality.add(moment.content, moment.result, joint=moment.joint, shot=moment.shot)


class Flicker(_OfQuality):
    """Mean difference between a frame and the one before moved as the content moved."""

    name = "flicker"
    direction = "lower"
    range = (0.0, 255.0)
    source = "levels of luma at 160 pixels, along DIS optical flow (Kroeger et al. 2016)"

    def finalize(self) -> float | None:
        return self._quality.figures["flicker"]


class Seams(_OfQuality):
    """The change from frame to frame where windows of frames join, over the change elsewhere."""

    name = "seams"
    direction = "lower"
    range = (0.0, float("inf"))
    source = "ratio of the mean changes of luma at 160 pixels; 1 is no seam"

    def lacks(self, sample: Sample) -> str | None:
        return super().lacks(sample) or (None if sample.joints else "it has no windows that join")

    def finalize(self) -> float | None:
        return self._quality.figures["seam_ratio"]


class WarpError(Measure):
    """Mean squared difference between a frame and the one before moved as the content moved, of
    RGB from 0 to 1, where the flow followed back and forward again arrives.

    It follows RAFT where torchvision is installed and RAFT's weights are here, else DIS; `source`
    says which. Figures of the two are not comparable.
    """

    name = "warp"
    direction = "lower"
    range = (0.0, 1.0)
    source = "Lai et al. 2018 (arXiv 1808.00449), eq. 8"
    domain = "clip"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.flow = "RAFT" if raft_available() else "DIS"
        """The optical flow that it follows."""
        self.source = f"{type(self).source}, along {self.flow} flow"
        self.weights = ("raft",) if self.flow == "RAFT" else ()
        self._before: Moment | None = None
        self._errors: list[float] = []

    def begin(self, sample: Sample) -> None:
        self._before = None
        self._errors = []

    def accumulate(self, moment: Moment) -> None:
        before, self._before = self._before, moment
        if before is None or before.shot != moment.shot:
            return
        coords, error = self._flow_back(before.content, moment.content)
        seen = error < VISIBLE
        if seen.any():
            moved = Flow().warp(before.result, coords)
            self._errors.append(float(np.square((moved - moment.result)[seen] / 255).mean()))

    def finalize(self) -> float | None:
        return float(np.mean(self._errors)) if self._errors else None

    def _flow_back(self, before: Pixels, now: Pixels) -> tuple[Floats, Floats]:
        if self.flow == "DIS":
            return Flow().flow_back(grey_of(before), grey_of(now))
        [path] = files_of("raft").values()
        return load_raft(path, self.device).flow_back(before, now)
