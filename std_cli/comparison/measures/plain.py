"""Measures of pictures that need no weights: colour, texture, edges."""

from abc import abstractmethod

import numpy as np

from std_cli.comparison.measures.base import Moment, PictureMeasure, Sample
from std_cli.media.measures import (
    Floats,
    colour_quantiles,
    edge_correlation,
    texture_quantiles,
    with_shorter_side,
)
from std_cli.media.video.clip import Pixels


class _OfReference(PictureMeasure):
    """How far a distribution of the result's is from the reference's, which is taken once for the
    samples in succession that share a reference."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self._taken: tuple[Pixels, int, Floats] | None = None

    def of(self, moment: Moment, sample: Sample) -> float:
        side = min(moment.result.shape[:2])
        if self._taken is None or self._taken[0] is not sample.style or self._taken[1] != side:
            self._taken = sample.style, side, self.of_reference(sample.style, side)
        return float(np.abs(self.quantiles(moment.result) - self._taken[2]).mean())

    @abstractmethod
    def quantiles(self, picture: Pixels) -> Floats:
        """Those of a picture."""

    def of_reference(self, reference: Pixels, side: int) -> Floats:
        """Those of a reference. side: the result's shorter one, in pixels."""
        return self.quantiles(reference)


class Colour(_OfReference):
    """How far the result's mix of colours is from the reference's."""

    name = "colour"
    direction = "lower"
    range = (0.0, 100.0)
    source = (
        "sliced Wasserstein distance (Bonneel et al. 2015) of 65,536 CIE L*a*b* pixels, in Delta E"
    )

    def quantiles(self, picture: Pixels) -> Floats:
        return colour_quantiles(picture)


class Texture(_OfReference):
    """How far the result's strokes and grain are from the reference's."""

    name = "texture"
    direction = "lower"
    range = (0.0, 6.0)
    source = "distance of log responses of steerable filters (Freeman and Adelson 1991)"

    def quantiles(self, picture: Pixels) -> Floats:
        return texture_quantiles(picture)

    def of_reference(self, reference: Pixels, side: int) -> Floats:
        return self.quantiles(with_shorter_side(reference, side))


class Edges(PictureMeasure):
    """How much of the content's structure is left: correlation of the edges."""

    name = "edges"
    direction = "higher"
    range = (-1.0, 1.0)
    source = "Pearson correlation of gradient magnitudes of the luminance, at 1.5 pixels"

    def of(self, moment: Moment, sample: Sample) -> float:
        return edge_correlation(moment.content, moment.result)
