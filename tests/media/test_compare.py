"""Source and result in one picture."""

import numpy as np
import pytest

from std_cli.media.compare import Comparison
from std_cli.media.sheets import label

SOURCE, RESULT = (np.full((90, 200, 3), level, np.uint8) for level in (60, 120))
WIDTH = label("result", 200, 90).shape[1]


@pytest.mark.parametrize("line", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_label_that_the_line_would_cut_is_left_out(line):
    shown = Comparison("wipe", True).compose(SOURCE, RESULT, line)
    column = round(200 * line)
    corners = (shown[0, 0] == 0).all(), (shown[0, -1] == 0).all()
    assert corners == (column >= label("source", 200, 90).shape[1], 200 - column >= WIDTH)
    assert (shown[60:, : max(0, column - 1)] == 60).all()
    assert (shown[60:, column + 1 :] == 120).all()


def test_side_by_side_both_have_labels():
    shown = Comparison("side", True).compose(SOURCE, RESULT)
    assert shown.shape == (90, 400, 3)
    assert np.array_equal(
        shown[: label("result", 200, 90).shape[0], -WIDTH:], label("result", 200, 90)
    )
    assert (shown[0, 0] == 0).all() and (shown[60:, :200] == 60).all()
