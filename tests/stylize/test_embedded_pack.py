"""The embedded pack stylizes real photographs. All its figures: `python -m tests.bench.pack`."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from std_cli import stylize_image, stylize_video
from std_cli.comparison.measures import Sample
from std_cli.comparison.measures.clips import Flicker
from std_cli.media.measures import colour_distance, edge_correlation
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.weights.resolve import TINY
from tests.bench.pack import square

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"
KINDS = ("oil", "stained", "watercolour", "woodcut")


@pytest.fixture(scope="module")
def styled(photo):
    """A photograph at 192 px in four styles, at the pack's own settings."""
    source = square(photo, 192)
    references = {k: Image.open(EXAMPLES / f"style-{k}.png").convert("RGB") for k in KINDS}
    return np.asarray(source), {
        k: (np.asarray(ref), np.asarray(stylize_image(source, ref, model="tiny", size=192)[0]))
        for k, ref in references.items()
    }


def test_colours_move_to_the_reference_and_the_subject_stays(styled):
    source, outputs = styled
    moved = [
        colour_distance(out, ref) / colour_distance(source, ref) for ref, out in outputs.values()
    ]
    kept = [edge_correlation(out, source) for _, out in outputs.values()]
    assert np.mean(moved) < 0.45, moved  # 0.27 at 256 px over all pairs
    assert np.mean(kept) > 0.5, kept


def test_another_reference_gives_another_picture(styled):
    _, outputs = styled
    distances = np.array(
        [[colour_distance(out, ref) for ref, _ in outputs.values()] for _, out in outputs.values()]
    )
    assert (distances.argmin(1) == np.arange(len(KINDS))).sum() >= 3, distances.round(1)


def test_the_filter_steadies_a_clip(tmp_path):
    """Against the same frames one by one; figures on a real clip are in packs/tiny/README.md."""
    style, found = EXAMPLES / "style-watercolour.png", []
    for steady in (0.0, None):
        out = tmp_path / f"{steady}.mkv"
        settings = {
            "model": "tiny",
            "size": 128,
            "output_size": "model",
            "codec": "ffv1",
            "max_frames": 8,
        }
        stylize_video(EXAMPLES / "clip.mp4", style, out, steady=steady, start="2", **settings)
        found.append([f.rgb for f in read_frames(open_clip(out))])
    frames = read_frames(open_clip(EXAMPLES / "clip.mp4"), start=Fraction(2), max_frames=8)
    sources = [np.asarray(Image.fromarray(f.rgb).resize(found[0][0].shape[1::-1])) for f in frames]
    alone, filtered = (Flicker().compute(Sample(sources, sources[0], x)) for x in found)
    assert filtered < 0.75 * alone


def test_there_is_no_motion_adapter(tmp_path):
    events = []
    stylize_video(
        EXAMPLES / "clip.mp4", EXAMPLES / "style-oil.png", tmp_path / "out.mp4", model="tiny",
        motion="auto", size=64, steps=1, max_frames=1, on_event=events.append,
    )  # fmt: skip
    notices = [e["message"] for e in events if e["event"] == "notice"]
    assert "--motion auto: tiny has no motion adapter: frames are denoised one by one" in notices


def test_the_pack_is_small():
    assert sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file()) < 30e6
