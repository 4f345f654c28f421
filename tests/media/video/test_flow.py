"""Optical flow of motion that is known."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from std_cli.media.video.flow import Flow

PHOTO = np.asarray(Image.fromarray(data.astronaut()).resize((400, 300)))


# the second is larger than what the flow is computed on
@pytest.mark.parametrize("size", [(160, 96), (1024, 576)])
def test_flow_is_found(size):
    big = np.asarray(Image.fromarray(PHOTO).convert("L").resize((size[0] + 20, size[1] + 20)))
    before, now = (
        np.ascontiguousarray(big[y : y + size[1], x : x + size[0]]) for x, y in ((4, 8), (6, 5))
    )
    coords, error = Flow().flow_back(before, now)
    places = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), -1)
    moved = (coords - places)[20:-20, 20:-20]
    assert np.abs(np.median(moved, (0, 1)) - (2, -3)).max() < 0.1
    assert np.median(error) < 0.3
    # they were outside before
    assert np.isinf(error[:2]).mean() > 0.9 and np.isinf(error[:, -1]).mean() > 0.9


def test_frames_too_small_for_the_method_have_flow_too():
    still = np.random.default_rng(0).integers(0, 256, (8, 160), np.uint8)
    coords, error = Flow().flow_back(still, still)
    assert np.abs(coords[..., 0] - np.arange(160)).max() < 0.1 and error.max() < 0.1
