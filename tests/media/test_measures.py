"""Colours, texture, edges and sharpness against numbers worked out by hand."""

import numpy as np
import pytest
from skimage import data
from skimage.color import rgb2lab

from std_cli.media.measures import (
    FAINT,
    SCALES,
    colour_distance,
    colour_quantiles,
    edge_correlation,
    lab,
    sharpness,
    texture_distance,
    texture_quantiles,
    with_shorter_side,
)


def flat(*colour):
    return np.full((40, 60, 3), colour, np.uint8)


def grating(period, amplitude=10.0, size=128):
    """Vertical stripes: L* is a sine of the column around 50."""
    light = 50 + amplitude * np.sin(2 * np.pi * (np.arange(size) + 0.5) / period)
    y = ((light + 16) / 116) ** 3
    grey = np.where(y <= 0.0031308, 12.92 * y, 1.055 * y ** (1 / 2.4) - 0.055)
    return np.broadcast_to((255 * grey).round().astype(np.uint8)[None, :, None], (size, size, 3))


def test_lab_is_the_standards():
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20), (0, 0, 0): (0, 0, 0)}
    for colour, wanted in known.items():
        assert lab(flat(*colour))[0, 0] == pytest.approx(wanted, abs=0.02)
    photo = data.astronaut()[:64, :64]
    assert np.abs(lab(photo) - rgb2lab(photo)).max() < 1e-3


def test_colour_distance_by_hand():
    """Of two plain colours it is the mean length of their difference along the directions, which
    are fixed: half of the difference for many directions."""
    one, other = flat(200, 30, 30), flat(20, 80, 160)
    difference = (lab(one) - lab(other))[0, 0]
    directions = np.random.default_rng(0).normal(size=(3, 64))
    directions /= np.linalg.norm(directions, axis=0)
    wanted = np.abs(difference @ directions).mean()
    assert colour_distance(one, other) == pytest.approx(wanted)
    assert wanted == pytest.approx(np.linalg.norm(difference) / 2, rel=0.15)
    half = np.concatenate([one, other])  # half of the pixels are alike
    assert colour_distance(half, other) == pytest.approx(wanted / 2, rel=0.02)


def test_colours_of_many_pixels_are_those_of_all():
    """The distance of pictures that are larger than what is taken of them differs by less than 0.1
    from numpy's quantiles of all their pixels, and a pattern of any period is seen."""
    directions = np.random.default_rng(0).normal(size=(3, 64))
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(256) + 0.5) / 256
    striped = np.zeros((400, 400, 3), np.uint8)
    striped[:, ::4] = 255, 180, 20
    pictures = [data.astronaut()[:400, :450], data.coffee()[:, :400], striped]
    every = [np.quantile(lab(p).reshape(-1, 3) @ directions, levels, 0).T for p in pictures]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        wanted = np.abs(every[one] - every[other]).mean()
        assert colour_distance(pictures[one], pictures[other]) == pytest.approx(wanted, abs=0.1)
    small = pictures[0][:100, :100]
    assert colour_quantiles(small) == pytest.approx(
        np.quantile(lab(small).reshape(-1, 3) @ directions, levels, 0).T, abs=1e-4
    )


def test_texture_by_hand():
    """The second derivative of a Gaussian turns a sine of wave number k into one whose amplitude is
    (sigma k)^2 exp(-(sigma k)^2 / 2) times its own; along its stripes nothing is left, and at 45
    degrees half."""
    period, amplitude = 12.7, 40.0  # its columns meet every phase
    levels = (np.arange(64) + 0.5) / 64
    found = texture_quantiles(grating(period, amplitude))
    for number, sigma in enumerate(SCALES):
        square = (sigma * 2 * np.pi / period) ** 2
        strength = amplitude * square * np.exp(-square / 2)
        for angle, share in enumerate((1, 0.5, 0, 0.5)):
            wanted = np.log(share * strength * np.sin(np.pi / 2 * levels) + FAINT)
            assert np.abs(found[4 * number + angle] - wanted).mean() < 0.08
    assert texture_quantiles(flat(90, 90, 90)) == pytest.approx(np.log(FAINT))


def test_texture_has_a_scale_and_a_direction_and_no_colour():
    stripes = grating(8)
    turned = stripes.transpose(1, 0, 2).copy()
    assert texture_distance(stripes, stripes) == 0
    assert texture_distance(stripes, turned) > 0.5 and texture_distance(stripes, grating(16)) > 0.5
    # the reference is brought to the same scale, whatever its shape is
    wide = np.concatenate([grating(16, size=256)] * 2, 1)
    assert with_shorter_side(wide, 128).shape == (128, 256, 3)
    assert texture_distance(stripes, wide) < 0.1


def test_edge_correlation_by_hand():
    photo = data.astronaut()[100:228, 100:228]
    assert edge_correlation(photo, photo) == pytest.approx(1)
    assert edge_correlation(photo, 255 - photo) > 0.85  # edges have no sign
    assert edge_correlation(photo, flat(3, 4, 5)[:1].repeat(128, 0).repeat(3, 1)[:, :128]) == 0
    # two steps of one height at different places have nothing in common
    one, other = (np.zeros((40, 200, 3), np.uint8) for _ in range(2))
    one[:, 50:] = other[:, 150:] = 200
    assert edge_correlation(one, other) == pytest.approx(-5 / 195, abs=0.02)


def test_sharpness_by_hand():
    """A sine's Laplacian has the RMS amplitude k^2 exp(-k^2 / 2) / sqrt(2)."""
    k = 2 * np.pi / 8
    wanted = 10 * k**2 * np.exp(-(k**2) / 2) / 2**0.5
    assert sharpness(grating(8)) == pytest.approx(wanted, rel=0.02)
