"""Seams and flicker on sequences whose answers are known."""

import numpy as np
from PIL import Image
from skimage import data

from std_cli.media.video.quality import Quality

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((400, 300)))


def measure(sources, results, joints=(), cuts=()):
    quality = Quality()
    for i, (s, r) in enumerate(zip(sources, results, strict=True)):
        quality.add(s, r, joint=i in joints, shot=sum(cut <= i for cut in cuts))
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
    found = []
    for sigma in (0, 4, 12):
        results = [
            (f * 0.8 + 20 + r.normal(0, sigma, f.shape)).clip(0, 255).astype(np.uint8)
            for f in source
        ]
        found.append(measure(source, results)["flicker"])
    assert found[0] < found[1] < found[2]


def noisy(source):
    r = np.random.default_rng(0)
    return [(f + r.normal(0, 8, f.shape)).clip(0, 255).astype(np.uint8) for f in source]


def test_the_measure_continues_from_its_state():
    source = panned(3, 9)
    result = noisy(source)
    whole = measure(source, result, joints={2, 6}, cuts={5})
    quality = Quality()
    for i in range(9):
        quality.add(source[i], result[i], joint=i in (2, 6), shot=i >= 5)
        quality = Quality.from_state(quality.state())
    assert quality.figures == whole
    for none in (Quality.from_state({}), Quality.from_state(Quality().state())):
        assert none.figures == {"seam_ratio": None, "flicker": None}


def test_ranges_that_were_measured_apart_add_up():
    """The first begins with a shot, the second too, the third in the middle of one."""
    source = panned(3, 9)
    result = noisy(source)
    whole = measure(source, result, joints={2, 6}, cuts={5})

    def of(frames, quality):
        for i in frames:
            quality.add(source[i], result[i], joint=i in (2, 6), shot=i >= 5)
        return quality

    first = of(range(5), Quality())
    second = of(range(5, 7), Quality())
    third = Quality.from_state(of(range(7, 9), Quality()).state())
    for following in (second, third):
        first.merge(following)
    assert first.figures == whole
