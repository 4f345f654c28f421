"""The embedded pack stylizes real photographs. All its figures: `python -m tests.bench.pack`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from std_cli import stylize_image
from tests.bench.pack import square
from tests.measures import colour_distance, edge_correlation

EXAMPLES = Path(__file__).parents[1] / "examples"
KINDS = ("oil", "stained", "watercolour", "woodcut")


@pytest.fixture(scope="module")
def styled(photo):
    """A photograph at 192 px in four styles, at the pack's own settings."""
    source = square(photo, 192)
    references = {k: Image.open(EXAMPLES / f"style-{k}.png").convert("RGB") for k in KINDS}
    return source, {k: (ref, stylize_image(source, ref, model="tiny", size=192)[0]) for k, ref in references.items()}


def test_colours_move_to_the_reference_and_the_subject_stays(styled):
    source, outputs = styled
    moved = [colour_distance(out, ref) / colour_distance(source, ref) for ref, out in outputs.values()]
    kept = [edge_correlation(out, source) for _, out in outputs.values()]
    assert np.mean(moved) < 0.75, moved  # 0.66 at 256 px over all pairs: the aim is 0.6
    assert np.mean(kept) > 0.5, kept


def test_another_reference_gives_another_picture(styled):
    _, outputs = styled
    distances = np.array([[colour_distance(out, ref) for ref, _ in outputs.values()] for _, out in outputs.values()])
    assert (distances.argmin(1) == np.arange(len(KINDS))).sum() >= 3, distances.round(1)
