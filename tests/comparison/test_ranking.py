"""Every measure without weights ranks what is known; those with weights: python -m
tests.bench.measures."""

import numpy as np
import pytest

from std_cli.comparison.measures import MEASURES
from std_cli.comparison.measures.clip import load_clip
from tests.comparison import weights
from tests.comparison.known_pairs import CLIP_ORDERS, ORDERS, clip_samples, known_pairs


@pytest.fixture(scope="module")
def pairs():
    return list(known_pairs(96))


@pytest.fixture(scope="module")
def clips():
    return clip_samples()


def right(measure, known, order):
    """Of each pair after the first, whether the first is better."""
    best, *others = (measure.compute(known.sample(name)) for name in order)
    sign = 1 if measure.direction == "higher" else -1
    return [sign * best > sign * value for value in others]


@pytest.mark.parametrize("name", ["colour", "edges"])
def test_pictures_are_ranked(pairs, name):
    measure = MEASURES[name]()
    for known in pairs[:4]:
        assert all(right(measure, known, ORDERS[name])), known.kind


def test_the_texture_of_a_style_is_nearest_to_its_reference(pairs):
    """At 96 pixels, too, where the energies that were measured before rated the untouched content
    better than what had been stylized. Poster and watercolour draw hardly any strokes: there the
    content is about as near."""
    measure, order = MEASURES["texture"](), ORDERS["texture"]
    values = np.array([[measure.compute(known.sample(made)) for made in order] for known in pairs])
    nearer = dict(zip(order, (values[:, :1] < values).mean(0), strict=True))
    assert nearer["other"] == nearer["blurred"] == 1, nearer
    assert min(nearer["itself"], nearer["transfer"]) >= 10 / 12, nearer
    assert (values[:, 0] / values[:, 1]).mean() < 0.6


@pytest.mark.parametrize("name", ["flicker", "warp", "seams"])
def test_clips_are_ranked(clips, name):
    measure, order = MEASURES[name](), CLIP_ORDERS[name]
    values = [measure.compute(clips[made]) for made in order]
    assert values == sorted(values) and values[0] < 0.7 * values[1], values


def test_frames_that_are_mixed_up_are_less_consistent_by_clip(clips, tmp_path, monkeypatch):
    """Holds of random weights, too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    load_clip.cache_clear()
    weights.install("clip-l")
    measure = MEASURES["temporal-clip"]()
    steady, mixed = (measure.compute(clips[name]) for name in CLIP_ORDERS["temporal-clip"])
    assert 0 < mixed < steady < 1


def test_a_clip_is_measured_per_shot(clips):
    from dataclasses import replace

    cut = replace(clips["jump"], shots=[0] * 5 + [1] * 5)
    whole = clips["jump"]
    for name in ("flicker", "warp"):
        measure = MEASURES[name]()
        assert measure.compute(cut) < measure.compute(whole)
    assert MEASURES["seams"]().compute(cut) is None  # the only joint is a cut
    assert MEASURES["seams"]().lacks(replace(cut, joints=())) == "it has no windows that join"


def test_warp_error_by_hand():
    """Still content, results of one grey each, 100, 110, 110: (10 / 255)^2 / 2."""
    from std_cli.comparison.measures import Sample

    content = [np.zeros((64, 64, 3), np.uint8)] * 3
    results = [np.full((64, 64, 3), level, np.uint8) for level in (100, 110, 110)]
    measure = MEASURES["warp"]()
    assert measure.compute(Sample(content, content[0], results)) == pytest.approx(
        (10 / 255) ** 2 / 2
    )
    assert measure.flow == "DIS"
    picture = Sample(content[:1], content[0], results[:1])
    assert measure.lacks(picture) == "it is a measure of clips"
    # a measure of pictures is taken of 8 frames of a clip, the first and the last among them
    many = Sample(content * 10, content[0], results * 10)
    assert list(MEASURES["colour"]().frames(many)) == [0, 4, 8, 12, 17, 21, 25, 29]
