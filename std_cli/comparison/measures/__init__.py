"""What is measured of a stylization. `MEASURES` has every measure by its name."""

from std_cli.comparison.measures.base import Measure, Moment, Sample
from std_cli.comparison.measures.clip import Aesthetic, ClipDirection, ClipScore, TemporalClip
from std_cli.comparison.measures.clips import Flicker, Seams, WarpError
from std_cli.comparison.measures.csd import Csd
from std_cli.comparison.measures.lpips import Lpips
from std_cli.comparison.measures.plain import Colour, Edges, Texture

__all__ = ["MEASURES", "Measure", "Moment", "Sample"]

MEASURES: dict[str, type[Measure]] = {
    measure.name: measure
    for measure in (
        Csd,
        Aesthetic,
        ClipScore,
        ClipDirection,
        Lpips,
        Colour,
        Texture,
        Edges,
        Flicker,
        WarpError,
        TemporalClip,
        Seams,
    )
}
