"""Sheets: where pictures and labels are, and that labels fit and can be drawn."""

import numpy as np
import pytest
from PIL import Image

from std_cli.media.sheets import GAP, SMALLEST, _font, draw_sheet, label, shortened


def dark(sheet):
    return np.asarray(sheet.convert("L")) < 128


def test_pictures_and_labels_have_their_places():
    red, wide, clear = (
        Image.new("RGB", (96, 64), "red"),
        Image.new("RGB", (300, 20), "blue"),
        Image.new("RGBA", (96, 64), (0, 0, 0, 0)),
    )
    sheet = draw_sheet([[red, wide], [None, clear]], ["one", "two"], ["first", ""], (96, 64))
    left, top = sheet.width - 2 * 96 - GAP, sheet.height - 2 * 64 - GAP
    assert left > 0 and top > 0
    pixels = np.asarray(sheet)
    assert (pixels[top : top + 64, left : left + 96] == (255, 0, 0)).all()
    second = pixels[top : top + 64, left + 96 + GAP :]
    blue = (second == (0, 0, 255)).all(-1)  # 300 x 20 in 96 x 64, its shape kept, at the top
    assert blue.any(0).sum() == 96 and np.flatnonzero(blue.any(1)).tolist() == list(range(6))
    assert (pixels[top + 64 + GAP :, left:] == 255).all()  # empty, and transparent over white
    ink = dark(sheet)
    assert ink[:top, left : left + 96].any() and ink[:top, left + 96 + GAP :].any()
    assert ink[top : top + 64, :left].any() and not ink[top + 64 + GAP :, :left].any()
    again = draw_sheet([[red, wide], [None, clear]], ["one", "two"], ["first", ""], (96, 64))
    assert again.tobytes() == sheet.tobytes()


def test_a_long_label_is_shortened_in_its_middle():
    font = _font(12)
    text = "a-very-long-name-of-a-style-reference.png"
    short = shortened(text, font, 96)
    assert font.getlength(short) <= 96 < font.getlength(text)
    start, end = short.split("…")
    assert text.startswith(start) and text.endswith(end) and abs(len(start) - len(end)) <= 1
    assert shortened("eta 0.55", font, 96) == "eta 0.55"
    assert shortened(text, font, 1) == ""


@pytest.mark.parametrize(
    ("text", "drawn"), [("Über.png", "Uber.png"), ("漢字\x1b[31m", "???[31m"), ("a\nb", "a?b")]
)
def test_what_the_font_lacks_is_replaced(text, drawn):
    assert shortened(text, _font(12), 500) == drawn


def test_a_label_fits_its_picture():
    for width, height in ((1920, 1080), (64, 48), (8, 4)):
        box = label("source", width, height)
        assert box.shape[0] <= height and box.shape[1] <= width and box.shape[2] == 3
    assert label("source", 64, 48).max() > 200 and label("source", 64, 48).shape[0] >= SMALLEST
