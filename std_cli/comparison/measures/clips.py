"""Measures of clips that follow the content's motion: flicker, warp error, seams."""

import numpy as np

from std_cli.comparison.measures.base import Measure, Moment, Sample
from std_cli.media.video.flow import Flow, grey_of
from std_cli.media.video.quality import VISIBLE, Quality


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
    """Mean squared difference between a frame and the one before moved as the content moved."""

    name = "warp"
    direction = "lower"
    range = (0.0, 1.0)
    source = "Lai et al., Learning Blind Video Temporal Consistency, 2018 (arXiv 1808.00449), eq. 8"
    domain = "clip"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._flow = Flow()
        self._before: Moment | None = None
        self._errors: list[float] = []

    @property
    def flow(self) -> str:
        """The optical flow that it follows."""
        return "DIS"

    def begin(self, sample: Sample) -> None:
        self._before = None
        self._errors = []

    def accumulate(self, moment: Moment) -> None:
        before, self._before = self._before, moment
        if before is None or before.shot != moment.shot:
            return
        coords, error = self._flow.flow_back(grey_of(before.content), grey_of(moment.content))
        seen = error < VISIBLE
        if seen.any():
            moved = self._flow.warp(before.result, coords)
            self._errors.append(float(np.square((moved - moment.result)[seen] / 255).mean()))

    def finalize(self) -> float | None:
        return float(np.mean(self._errors)) if self._errors else None
