"""Pairs of pictures that the embedded model learns from."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from std_cli.tinypack import groups, styles
from std_cli.tinypack.scenes import blur, luma, scene


def test_contours_lie_along_the_edges_in_the_darkest_colour_of_the_painting():
    plain = np.full((40, 60, 3), 0.3, np.float32)
    plain[:, 30:] = 0.8
    ref = np.full((32, 32, 3), (0.9, 0.7, 0.8), np.float32)
    ref[:4] = (0.1, 0.3, 0.2)
    painted = np.full_like(plain, 0.6)
    out = groups._outlined(painted, plain, ref)
    assert np.array_equal(out[:, :25], painted[:, :25])
    assert np.array_equal(out[:, 35:], painted[:, 35:])
    np.testing.assert_allclose(out[:, 30], 0.9 * ref[:1, 0] / 2 + 0.1 * painted[:, 30], atol=1e-6)


@pytest.mark.parametrize("kind", styles.PATTERNED)
def test_targets_with_patterns_keep_what_is_in_the_picture(kind):
    r = np.random.default_rng(5)
    x, style = scene(r), styles.random_style(r, kind)
    ref = styles.stylize(scene(r), style, r)
    target = groups._drawn(ref, [x], style, r).styled[0]
    pattern = styles.match(styles.stylize(x, replace(style, aligned=True), r), ref)
    kept, lost = (
        np.corrcoef(*(ndimage.gaussian_gradient_magnitude(luma(z), 1.5).ravel() for z in (x, y)))
        for y in (target, pattern)
    )
    assert kept[0, 1] > lost[0, 1] + 0.05


def test_flat_paint_loses_the_grain_and_has_contours():
    """The photographs are two noisy greys that meet in the middle."""
    r = np.random.default_rng(3)
    two = np.where(np.arange(500) < 250, 90, 200)[None, :, None] + r.normal(0, 8, (500, 500, 3))
    photographs = [Image.fromarray(two.clip(0, 255).astype(np.uint8))]

    def grain(x):
        return np.median(np.abs(luma(x) - blur(luma(x), 2))) / luma(x).std()

    seen = 0
    for group in islice(groups.outlined_groups(r, photographs, photographs), 4):
        for plain, styled in zip(group.plain, group.styled, strict=True):
            if luma(plain).std() > 0.15:  # both greys are in it
                assert grain(styled) < 0.5 * grain(plain)
                column = luma(styled).mean(0)
                assert column.min() < 0.7 * min(column[0], column[-1])
                seen += 1
    assert seen >= 3
