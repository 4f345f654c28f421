"""Seams and flicker on sequences whose answers are known."""

import numpy as np
from PIL import Image
from skimage import data

from std_cli.media.video.quality import Quality

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((400, 300)))


def measure(sources, results, joints=(), cuts=()):
    quality = Quality()
    for i, (s, r) in enumerate(zip(sources, results, strict=True)):
        quality.add(s, r, joint=i in joints, cut=i == 0 or i in cuts)
    return quality.figures


def flat(*levels):
    return [np.full((90, 160, 3), level, np.uint8) for level in levels]


def test_seam_ratio_by_hand():
    """Changes of 2 3 2 9 1 between frames of one grey; joints at frames 2 and 4: (3 + 9) / 2 over
    (2 + 2 + 1) / 3."""
    results = flat(100, 102, 105, 107, 116, 117)
    assert measure(flat(*[50] * 6), results, joints={2, 4})["seam_ratio"] == 3.6
    assert measure(flat(*[50] * 6), results)["seam_ratio"] is None


def test_a_cut_is_no_seam_and_no_flicker():
    # nothing changes where there is no joint, so that there is no ratio
    figures = measure(flat(50, 50, 200, 200), flat(10, 10, 250, 250), joints={3}, cuts={2})
    assert figures == {"seam_ratio": None, "flicker": 0.0}


def panned(step, count=6):
    return [np.ascontiguousarray(PHOTO[60:150, i * step : i * step + 160]) for i in range(count)]


def test_what_moves_with_the_source_does_not_flicker():
    for step in (0, 2, 5):
        source = panned(step)
        assert measure(source, [255 - f for f in source])["flicker"] < 0.4


def test_flicker_grows_with_the_jitter():
    source, r = panned(3), np.random.default_rng(0)
    found = [measure(source, [(f * 0.8 + 20 + r.normal(0, s)).clip(0,
    255).astype(np.uint8) for f in source])["flicker"]
             for s in (0, 4, 12)]  # fmt: skip
    assert found[0] < found[1] < found[2]


def test_the_state_goes_on_exactly():
    source, r = panned(3, 9), np.random.default_rng(0)
    result = [(f + r.normal(0, 8, f.shape)).clip(0, 255).astype(np.uint8) for f in source]
    whole = measure(source, result, joints={2, 6})
    quality = Quality()
    for i in range(9):
        quality.add(source[i], result[i], joint=i in (2, 6), cut=i == 0)
        quality = Quality.from_state(quality.state())
    assert quality.figures == whole
    assert Quality.from_state(Quality().state()).figures == {"seam_ratio": None, "flicker": None}
