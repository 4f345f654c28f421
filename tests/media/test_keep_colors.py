"""The source's colours in the light of the result, against published values of Oklab."""

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from std_cli.media.keep_colors import _to_oklab, keep_colors

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((90, 90)))
STYLED = np.asarray(Image.fromarray(data.coffee()).resize((90, 90))).astype(np.float32)


@pytest.mark.parametrize(
    ("rgb", "oklab"),
    [
        ((255, 255, 255), (1, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (0.6280, 0.2249, 0.1258)),
        ((0, 255, 0), (0.8664, -0.2339, 0.1795)),
        ((0, 0, 255), (0.4520, -0.0325, -0.3115)),
    ],
)
def test_oklab_is_the_published_one(rgb, oklab):
    """The primaries of sRGB in CSS Color 4's sample code."""
    assert np.abs(_to_oklab(np.array([[rgb]], np.float32))[0, 0] - oklab).max() < 2e-4


def test_lightness_is_the_results_and_hue_the_sources():
    out = keep_colors(PHOTO, STYLED)
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 255
    source, styled, made = (_to_oklab(x.astype(np.float32)) for x in (PHOTO, STYLED, out))
    assert np.abs(made[..., 0] - styled[..., 0]).mean() < 0.004
    chroma = np.hypot(source[..., 1], source[..., 2])
    kept = np.hypot(made[..., 1], made[..., 2])
    assert (kept < chroma + 1e-3).all()  # less where sRGB has no more
    seen = (kept > 0.03) & (chroma > 0.03)
    turned = np.angle(
        np.exp(
            1j
            * (np.arctan2(made[..., 2], made[..., 1]) - np.arctan2(source[..., 2], source[..., 1]))
        )
    )
    assert np.degrees(np.abs(turned[seen])).mean() < 3
    assert np.median(kept[seen] / chroma[seen]) > 0.98


def test_what_has_no_color_gets_none():
    grey = np.repeat(PHOTO[..., :1], 3, -1)
    assert np.ptp(keep_colors(grey, STYLED), axis=-1).max() < 0.5
    for level in (0, 255):
        same = np.full_like(STYLED, level)
        assert np.abs(keep_colors(PHOTO, same) - level).max() < 1


def test_a_picture_in_its_own_light_is_itself():
    assert np.abs(keep_colors(PHOTO, PHOTO.astype(np.float32)) - PHOTO).max() < 0.6


def test_flat_pictures_are_numbers():
    for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)):
        source = np.full((8, 8, 3), color, np.uint8)
        out = keep_colors(
            source, np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
        )
        assert np.isfinite(out).all()
        assert np.isfinite(rgb2lab(out / 255)).all()
