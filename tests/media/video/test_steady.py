"""What the filter along the motion of the source takes out, and what it leaves alone."""

import itertools

import numpy as np
import pytest
from PIL import Image
from skimage import data

from std_cli.comparison.measures import Sample
from std_cli.comparison.measures.clips import Flicker
from std_cli.media.measures import sharpness
from std_cli.media.palette import rounded
from std_cli.media.video.clip import Seen
from std_cli.media.video.steady import Steady

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((400, 300)))


def panned(count, step=3, size=(160, 90)):
    """A camera that goes to the right, whole pixels."""
    return [
        np.ascontiguousarray(PHOTO[60 : 60 + size[1], i * step : i * step + size[0]])
        for i in range(count)
    ]


def jittered(frames, sigma=8.0):
    """Of each pixel's own and, as a style has it, of larger patches."""
    r, out = np.random.default_rng(0), []
    for f in frames:
        patches = np.kron(
            r.normal(0, sigma, (f.shape[0] // 5, f.shape[1] // 5, 3)), np.ones((5, 5, 1))
        )
        out.append(
            (f * 0.8 + 20 + patches + r.normal(0, sigma, f.shape)).clip(0, 255).astype(np.uint8)
        )
    return out


def seen_of(source, shot):
    return Seen(source, np.full(source.shape[:2], 255, np.uint8), shot, 0.04)


def filtered(steady, source, result, shot):
    return rounded(steady(seen_of(source, shot), result.astype(np.float32)))


def steadied(sources, results, strength=0.75, cuts=()):
    steady = Steady(strength)
    return [
        filtered(steady, s, r, sum(cut <= i for cut in cuts))
        for i, (s, r) in enumerate(zip(sources, results, strict=True))
    ]


def flicker(sources, results):
    return Flicker().compute(Sample(sources, sources[0], results))


def test_jitter_goes_and_the_picture_stays():
    sources = panned(12)
    clean, noisy = [(f * 0.8 + 20).astype(np.uint8) for f in sources], jittered(sources)
    steady = steadied(sources, noisy)
    assert flicker(sources, steady) < 0.5 * flicker(sources, noisy)
    errors = [np.abs(x[-1].astype(float) - clean[-1]).mean() for x in (steady, noisy)]
    assert errors[0] < 0.7 * errors[1]
    kept = steadied(sources, clean)[-1]  # where nothing flickers, next to nothing happens
    assert np.abs(kept.astype(float) - clean[-1]).mean() < 1.5
    assert sharpness(kept) > 0.95 * sharpness(clean[-1])


def test_first_frames_of_shots_are_as_they_are():
    sources = panned(4)
    noisy = jittered(sources)
    out = steadied(sources, noisy, cuts=(0, 2))
    assert [np.array_equal(a, b) for a, b in zip(out, noisy, strict=True)] == [
        True,
        False,
        True,
        False,
    ]


def test_what_comes_into_view_or_lights_up_is_new_at_once():
    still = [PHOTO[60:150, :160].copy() for _ in range(4)]
    lamp, box = np.s_[20:50, 20:60], np.s_[30:70, 90:140]
    sources = [f.copy() for f in still]
    sources[3][lamp] = (sources[3][lamp].astype(int) + 90).clip(0, 255).astype(np.uint8)
    sources[3][box] = np.kron([[40, 220], [230, 10]], np.ones((20, 25)))[..., None].astype(np.uint8)
    results = [255 - f for f in sources]
    now = steadied(sources, results, 0.9)[3].astype(float)
    for at in (lamp, box):
        inner = tuple(slice(s.start + 4, s.stop - 4) for s in at)
        assert np.abs(now[inner] - results[3][inner]).mean() < 4


def test_it_continues_from_its_state():
    sources = panned(6)
    noisy = jittered(sources)
    whole, steady, parts = steadied(sources, noisy), Steady(0.75), []
    for s, r in zip(sources, noisy, strict=True):
        parts.append(filtered(steady, s, r, 1))
        steady = Steady.from_state(0.75, steady.state())
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    # the state knows its shot: the first frame of the next one is not mixed
    cut = filtered(steady, sources[0], noisy[0], 2)
    assert np.array_equal(cut, noisy[0]) and Steady(0.75).state() == {}


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_frames_that_are_announced_give_the_same_bits(ahead):
    """Across a cut, and from a state."""
    sources = panned(9)
    noisy = jittered(sources)
    shots = [sum(cut <= i for cut in (0, 5)) for i in range(9)]
    whole, steady, out = steadied(sources, noisy, cuts=(0, 5)), Steady(0.75), []
    for first in (0, 4):  # continues in the middle of the first shot
        steady = Steady.from_state(0.75, steady.state())
        rest = range(first, 9 if first else 4)
        announced = iter(rest)
        for i in rest:
            for j in itertools.islice(announced, ahead if i == first else 1):
                steady.expect(seen_of(sources[j], shots[j]))
            out.append(filtered(steady, sources[i], noisy[i], shots[i]))
    assert all(np.array_equal(a, b) for a, b in zip(whole, out, strict=True))


def test_shots_can_be_filtered_apart():
    sources = panned(6)
    noisy = jittered(sources)
    whole = steadied(sources, noisy, cuts=(0, 3))
    apart = steadied(sources[:3], noisy[:3]) + steadied(sources[3:], noisy[3:])
    assert all(np.array_equal(a, b) for a, b in zip(whole, apart, strict=True))
