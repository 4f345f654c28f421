"""The linear map of colours, against moments by numpy and cases worked out by hand."""

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.exposure import match_histograms

from std_cli.media.fit import fit_to
from std_cli.media.measures import colour_distance
from std_cli.media.palette import (
    LEAST_CONTRAST,
    MOST_GAIN,
    ColorMix,
    color_map,
    mix_of,
    moments,
    rounded,
    weighted_mix,
    with_palette,
)

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((120, 120)))
OTHER = np.asarray(Image.fromarray(data.coffee()).resize((150, 100)))


def mix(pixels, cover=None):
    return mix_of(moments(np.asarray(pixels, np.uint8), cover))


def clouds(mean, spread, seed=0, side=200):
    """Normal colours, all within the levels."""
    normal = np.random.default_rng(seed).normal(size=(side, side, 3)).clip(-3, 3)
    return (normal @ np.asarray(spread).T + mean).astype(np.float32)


def flat(*color):
    return np.full((32, 48, 3), color, np.float32)


def test_moments_are_numpys():
    colors = PHOTO.reshape(-1, 3).astype(float)
    found = mix(PHOTO)
    assert np.allclose(found.mean, colors.mean(0))
    assert np.allclose(found.covariance, np.cov(colors.T, bias=True))
    shown = np.random.default_rng(1).integers(0, 256, PHOTO.shape[:2]).astype(np.uint8)
    found = mix(PHOTO, shown)
    weights = shown.ravel().astype(float)
    assert np.allclose(found.mean, np.average(colors, 0, weights))
    assert np.allclose(found.covariance, np.cov(colors.T, bias=True, aweights=weights))
    assert mix(PHOTO, np.zeros_like(shown)) is None


def test_hidden_pixels_count_for_nothing():
    cover = np.full(PHOTO.shape[:2], 255, np.uint8)
    cover[:40] = 0
    other = PHOTO.copy()
    other[:40] = (255, 0, 255)
    assert np.array_equal(moments(PHOTO, cover), moments(other, cover))
    reference = mix(OTHER)
    a, b = (with_palette(x.astype(np.float32), reference, 1, cover) for x in (PHOTO, other))
    assert np.array_equal(a[40:], b[40:])


def test_padding_and_what_is_transparent_is_not_covered():
    fit = fit_to(100, 50, (64, 64))
    box = np.zeros((64, 64), bool)
    box[16:48] = True
    assert np.array_equal(fit.cover(None), np.where(box, 255, 0))
    alpha = Image.new("L", (100, 50), 255)
    alpha.paste(0, (0, 0, 50, 50))
    assert fit.cover(alpha)[16:48, 33:].min() == 255 and not fit.cover(alpha)[:, :31].any()


def test_several_references_are_one_mix():
    together = np.concatenate([PHOTO.reshape(-1, 3), OTHER.reshape(-1, 3)])[None]
    count = len(PHOTO.reshape(-1, 3)), len(OTHER.reshape(-1, 3))
    weights = [n / sum(count) for n in count]
    found, expected = weighted_mix([mix(PHOTO), mix(OTHER)], weights), mix(together)
    assert np.allclose(found.mean, expected.mean)
    assert np.allclose(found.covariance, expected.covariance)


def test_the_result_has_the_references_mean_and_covariance():
    mixed = np.array([[20, 5, 0], [4, 15, 3], [0, 2, 18]])
    picture = clouds((120, 130, 110), mixed)
    reference = mix(clouds((140, 100, 120), [[12, 0, 4], [0, 25, 0], [6, 0, 20]], seed=1))
    out = mix(rounded(with_palette(picture, reference, 1)))
    assert np.abs(out.mean - reference.mean).max() < 0.5
    assert np.abs(out.covariance - reference.covariance).max() < 0.03 * reference.covariance.max()
    half = mix(rounded(with_palette(picture, reference, 0.5)))
    middle = (mix(picture).mean + reference.mean) / 2
    assert np.abs(half.mean - middle).max() < 0.5
    assert np.array_equal(with_palette(picture, reference, 0), picture)


def test_it_is_the_monge_kantorovich_map():
    """Symmetric and positive, which makes it the one that moves colours least; where the axes are
    shared its gains are the ratios of the spreads."""
    a = ColorMix(np.array([120.0, 120, 120]), np.diag([900.0, 400, 1600]))
    b = ColorMix(np.array([90.0, 140, 130]), np.diag([400.0, 900, 1600]))
    found = color_map(a, b, 1).matrix
    assert np.allclose(found, np.diag([20 / 30, 30 / 20, 1]), atol=0.02)
    tilted = ColorMix(b.mean, np.array([[500.0, 300, 0], [300, 900, 200], [0, 200, 1600]]))
    matrix = color_map(a, tilted, 1).matrix
    assert np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0


def test_nearer_to_the_reference_with_less_noise_than_histograms():
    """Histogram matching per channel gets nearer, and tears smooth tones apart."""
    ramp = np.linspace(90, 140, 256, dtype=np.float32)[None, :, None]
    picture = np.broadcast_to(ramp, (64, 256, 3)) + clouds(0, np.eye(3) * 1.5)[:64, :1]
    mapped = rounded(with_palette(picture.astype(np.float32), mix(OTHER), 1))
    matched = match_histograms(rounded(picture), OTHER, channel_axis=-1)
    steps = [np.abs(np.diff(x.astype(int), axis=1)).max() for x in (mapped, matched)]
    assert steps[0] <= np.ceil(50 / 255 * MOST_GAIN) + 1 < steps[1]
    out = rounded(with_palette(PHOTO.astype(np.float32), mix(OTHER), 1))
    before, after = (colour_distance(x, OTHER) for x in (PHOTO, out))
    assert after < 0.5 * before


def test_a_gradient_is_not_torn_apart():
    """The map acts before levels are rounded: its gain leaves out no level."""
    ramp = np.linspace(80, 150, 4000, dtype=np.float32)
    picture = np.repeat(ramp[None, :, None], 3, 2)
    out = rounded(with_palette(picture, mix(OTHER), 1))[0, :, 1]
    assert np.ptp(out) > 1.5 * 70 and set(np.diff(out.astype(int))) == {0, 1}


FLAT = [flat(0, 0, 0), flat(255, 255, 255), flat(200, 30, 30), flat(127, 127, 127)]


@pytest.mark.parametrize("picture", FLAT, ids=["black", "white", "red", "grey"])
def test_a_flat_result_stays(picture):
    for reference in (mix(OTHER), mix(flat(10, 200, 90))):
        out = with_palette(picture, reference, 1)
        assert np.abs(out - picture).max() < 1e-3


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (200, 30, 30), (128, 128, 128)])
def test_a_reference_in_one_color_leaves_the_picture(color):
    picture = PHOTO.astype(np.float32)
    found = color_map(mix(PHOTO), mix(flat(*color)), 1)
    assert np.isfinite(found.matrix).all() and np.isfinite(found.offset).all()
    light = np.full(3, 3**-0.5)
    before, after = (
        m @ light for m in (picture.reshape(-1, 3), picture.reshape(-1, 3) @ found.matrix.T)
    )
    assert after.std() > 0.9 * LEAST_CONTRAST * before.std()
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_gains_are_bounded():
    nearly = rounded(clouds(120, np.eye(3) * 2))  # noise that has no colour to speak of
    wild = np.random.default_rng(2).choice([0, 255], (64, 64, 3)).astype(np.uint8)
    grey = np.repeat(PHOTO[..., :1], 3, -1)
    for picture in (nearly, grey, PHOTO, wild):
        for reference in (wild, nearly, grey, OTHER):
            gains = np.linalg.eigvalsh(color_map(mix(picture), mix(reference), 1).matrix)
            assert gains.min() + 1e-9 >= 0 and gains.max() <= MOST_GAIN + 1e-6
