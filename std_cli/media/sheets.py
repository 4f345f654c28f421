"""Labelled sheets of pictures, and labels on pictures.

The font is the one that Pillow brings, which has the characters of ASCII.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from std_cli.media.transparency import over_white
from std_cli.media.video.clip import Pixels

GAP = 4
"""Pixels between the pictures of a sheet, and around its labels."""
SMALLEST, LARGEST = 10, 22
"""Bounds of the font's size in pixels: smaller letters cannot be read, larger ones need not be."""
Font = ImageFont.FreeTypeFont


def draw_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    heads: Sequence[str] = (),
    names: Sequence[str] = (),
    cell: tuple[int, int] | None = None,
) -> Image.Image:
    """A white sheet, mode RGB, with a line for each of `rows`; None leaves a place empty.

    heads: what stands above each column. names: what stands at the left of each row. A label may
    have several lines; a line that is too long is shortened in its middle. cell: the (width,
    height) of each picture's place, in which it is made smaller where it is larger; the largest
    width of all pictures and the largest height of each row if not given.
    """
    pictures = [picture for row in rows for picture in row if picture is not None]
    width = cell[0] if cell else max(picture.width for picture in pictures)
    font = _font(max(SMALLEST, min(LARGEST, width // 12)))
    line = sum(font.getmetrics()) + 2
    left = _widest(names, font, width) + 2 * GAP if any(names) else 0
    top = max((1 + head.count("\n") for head in heads), default=0) * line + (GAP if heads else 0)
    columns = max(map(len, rows))
    labels = names or [""] * len(rows)
    lows = [cell[1] if cell else _row_height(row) for row in rows]
    heights = [
        max(low, (1 + text.count("\n")) * line if text else 0)
        for low, text in zip(lows, labels, strict=True)
    ]
    size = (left + columns * (width + GAP) - GAP, top + sum(heights) + (len(rows) - 1) * GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        for number, text in enumerate(head.splitlines()):
            shown = shortened(text, font, width)
            x = left + column * (width + GAP) + (width - round(font.getlength(shown))) // 2
            draw.text((x, GAP // 2 + number * line), shown, "black", font)
    for number, row in enumerate(rows):
        height = heights[number]
        y = top + sum(heights[:number]) + number * GAP
        for i, text in enumerate(labels[number].splitlines()):
            draw.text((GAP, y + i * line), shortened(text, font, width), "black", font)
        for column, picture in enumerate(row):
            if picture is not None:
                x = left + column * (width + GAP)
                inside = _fitted(picture, width, height)
                corner = (x + (width - inside.width) // 2, y)
                sheet.paste(inside, corner)
    return sheet


def _row_height(row: Sequence[Image.Image | None]) -> int:
    return max(picture.height if picture is not None else 0 for picture in row)


def label(text: str, width: int, height: int) -> Pixels:
    """A label, white on black, (h, w, 3), for a picture of `width` x `height` pixels."""
    font = _font(max(SMALLEST, min(width, height) // 18))
    shown = shortened(text, font, width - 2 * GAP)
    size = (min(width, round(font.getlength(shown)) + 2 * GAP), min(height, _height(font) + GAP))
    box = Image.new("RGB", size, "black")
    ImageDraw.Draw(box).text((GAP, GAP // 2), shown, "white", font)
    return np.asarray(box)


def shortened(text: str, font: Font, width: int) -> str:
    """A line of text that the font can draw, with its middle left out where it is wider than
    `width` pixels."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = "".join(c if " " <= c <= "~" else "?" for c in plain)
    if font.getlength(plain) <= width:
        return plain
    for kept in range(len(plain) - 1, 0, -1):
        end = kept // 2
        shown = f"{plain[: kept - end]}…{plain[len(plain) - end :]}"
        if font.getlength(shown) <= width:
            return shown
    return ""


@cache
def _font(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # a bitmap only where Pillow was built without FreeType
    return font


def _height(font: Font) -> int:
    return sum(font.getmetrics())


def _widest(labels: Sequence[str], font: Font, most: int) -> int:
    lines = [line for label in labels for line in label.splitlines()]
    return max(round(font.getlength(shortened(line, font, most))) + 1 for line in lines)


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in RGB, over white, no larger than `width` x `height`, in its shape."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = over_white(rgba.convert("RGB"), rgba.getchannel("A"))
    scale = min(1.0, width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size == picture.size:
        return picture.convert("RGB")
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
