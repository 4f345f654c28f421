"""Measures of pictures that need no weights: colour, texture, edges."""

from std_cli.comparison.measures.base import Moment, PictureMeasure, Sample
from std_cli.media.measures import (
    colour_distance,
    edge_correlation,
    texture_distance,
)


class Colour(PictureMeasure):
    """How far the result's mix of colours is from the reference's."""

    name = "colour"
    direction = "lower"
    range = (0.0, 100.0)
    source = "sliced Wasserstein distance (Bonneel et al. 2015) of CIE L*a*b* pixels, in Delta E"

    def of(self, moment: Moment, sample: Sample) -> float:
        return colour_distance(moment.result, sample.style)


class Texture(PictureMeasure):
    """How far the result's strokes and grain are from the reference's."""

    name = "texture"
    direction = "lower"
    range = (0.0, 6.0)
    source = "distance of log responses of steerable filters (Freeman and Adelson 1991)"

    def of(self, moment: Moment, sample: Sample) -> float:
        return texture_distance(moment.result, sample.style)


class Edges(PictureMeasure):
    """How much of the content's structure is left: correlation of the edges."""

    name = "edges"
    direction = "higher"
    range = (-1.0, 1.0)
    source = "Pearson correlation of gradient magnitudes of the luminance, at 1.5 pixels"

    def of(self, moment: Moment, sample: Sample) -> float:
        return edge_correlation(moment.content, moment.result)
