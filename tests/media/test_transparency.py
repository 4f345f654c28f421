"""Transparency of every kind of PNG, by the specification's numbers; and what cannot be seen has no
effect."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from std_cli import stylize_image
from std_cli.errors import InputError
from std_cli.media.fit import fit_to, seen
from std_cli.media.pictures import read_picture, take_picture
from std_cli.media.transparency import fill_hidden
from tests.micro import micro

ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""x and y of the first pixel of each pass, and the steps (PNG specification, section 8.2)."""


def png(
    rows: list[list[tuple[int, ...]]],
    kind: int,
    depth: int,
    interlaced: bool = False,
    **chunks: bytes,
) -> bytes:
    """A PNG of samples: kind is the colour type (0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6
    RGBA)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    def scanlines(part: list[list[tuple[int, ...]]]) -> bytes:
        out = b""
        for row in part:
            bits = "".join(f"{sample:0{depth}b}" for pixel in row for sample in pixel)
            bits += "0" * (-len(bits) % 8)
            out += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")  # filter 0: none
        return out

    data = scanlines(rows)
    if interlaced:
        passes = [[row[x::dx] for row in rows[y::dy]] for x, y, dx, dy in ADAM7]
        data = b"".join(scanlines([row for row in part if row]) for part in passes)
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, kind, 0, 0, int(interlaced))
    middle = b"".join(chunk(name.encode(), value) for name, value in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IDAT",
    zlib.compress(data)) + chunk(
        b"IEND", b""
    )  # fmt: skip


def grey(depth: int, *samples: int) -> list[list[tuple[int, ...]]]:
    return [[(s,) for s in samples], [(s,) for s in reversed(samples)]]


PALETTE = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
RGB16 = [
    [
        (0x1234, 0x5678, 0x9ABC),
        (0x1234, 0x5678, 0x9ABD),
        (0x1235, 0x5678, 0x9ABC),
        (0xFFFF, 0, 0x80FF),
    ]
]

# name: (samples, colour type, depth, chunks, first row in RGB, first row of alpha). A sample of d
# bits is worth 255 / (2**d - 1) levels each; of 16 bits round(v / 257): 0x1234 = 4660 -> 18.1,
# 0x9ABC = 39612 -> 154.1, 0x80FF = 33023 -> 128.5 (128.494), 0x80 * 257 = 0x8080, 0x00FF = 255 -> 1
# (cut it would be 0), 0xFF00 -> 254.
KINDS = {
    "grey1": (grey(1, 0, 1), 0, 1, {"tRNS": b"\0\1"}, [0, 255], [255, 0]),
    "grey2": (grey(2, 0, 1, 2, 3), 0, 2, {"tRNS": b"\0\2"}, [0, 85, 170, 255], [255, 255, 0, 255]),
    "grey4": (grey(4, 0, 5, 15), 0, 4, {"tRNS": b"\0\5"}, [0, 85, 255], [255, 0, 255]),
    "grey8": (grey(8, 0, 5, 255), 0, 8, {"tRNS": b"\0\5"}, [0, 5, 255], [255, 0, 255]),
    "grey16": (grey(16, 0x1234, 0x1235, 0xFFFF), 0, 16, {"tRNS": b"\x12\x34"}, [18, 18, 255], [0,
    255, 255]),
    "rgb8": ([[(1, 2, 3), (1, 2, 4)]], 2, 8, {"tRNS": b"\0\1\0\2\0\3"}, [(1, 2, 3), (1, 2, 4)], [0,
    255]),
    "rgb8_high": ([[(1, 2, 3), (1, 2, 4)]], 2, 8, {"tRNS": b"\1\1\0\2\0\3"}, [(1, 2, 3), (1, 2,
    4)], [0, 255]),
    "rgb16": (
        RGB16, 2, 16, {"tRNS": b"\x12\x34\x56\x78\x9a\xbc"},
        [(18, 86, 154), (18, 86, 154), (18, 86, 154), (255, 0, 128)], [0, 255, 255, 255],
    ),
    "palette1": ([[(0,), (1,)]], 3, 1, {"PLTE": PALETTE[:6], "tRNS": b"\x07"}, [(10, 20, 30), (40,
    50, 60)], [7, 255]),
    "palette2": ([[(3,), (1,)]], 3, 2, {"PLTE": PALETTE, "tRNS": b"\xff\0"}, [(100, 110, 120), (40,
    50, 60)], [255, 0]),
    "palette4": ([[(3,), (0,)]], 3, 4, {"PLTE": PALETTE, "tRNS": b"\x80"}, [(100, 110, 120), (10,
    20, 30)], [255, 128]),
    "palette8": ([[(2,), (0,)]], 3, 8, {"PLTE": PALETTE, "tRNS": b"\1\2\3"}, [(70, 80, 90), (10,
    20, 30)], [3, 1]),
    "grey_alpha8": ([[(9, 7), (200, 255)]], 4, 8, {}, [9, 200], [7, 255]),
    "grey_alpha16": ([[(0xFF00, 0x00FF), (0x8080, 0xFF00)]], 4, 16, {}, [254, 128], [1, 254]),
    "rgba8": ([[(1, 2, 3, 4), (5, 6, 7, 0)]], 6, 8, {}, [(1, 2, 3), (5, 6, 7)], [4, 0]),
    "rgba16": ([[(0x00FF, 0xFF00, 0x1234, 0x8080)]], 6, 16, {}, [(1, 254, 18)], [128]),
}  # fmt: skip


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_transparency_of_every_kind_of_png(name: str, interlaced: bool) -> None:
    rows, kind, depth, chunks, colours, alphas = KINDS[name]
    data = png(rows * 9, kind, depth, interlaced, **chunks)  # nine rows reach into every pass
    want = [(c, c, c) if isinstance(c, int) else c for c in colours]
    opened, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    # Pillow has cut 16 bits to 8 by now: the colours that differ in the other half are one
    loaded.load()
    cut = name in ("rgb8_high", "rgb16", "grey_alpha16", "rgba16")
    for picture in (
        read_picture(name, data),
        take_picture(opened),
        *([] if cut else [take_picture(loaded)]),
    ):
        assert [picture.rgb.getpixel((x, 0)) for x in range(len(want))] == want
        assert picture.alpha is not None
        assert [picture.alpha.getpixel((x, 0)) for x in range(len(want))] == alphas


def test_transparent_colour_of_16_bits_in_a_decoded_picture() -> None:
    image = Image.open(io.BytesIO(png(RGB16, 2, 16, tRNS=b"\x12\x34\x56\x78\x9a\xbc")))
    image.load()
    alpha = take_picture(image).alpha
    # 0x12, 0x56, 0x9A three times
    assert alpha is not None and list(alpha.tobytes()) == [0, 0, 0, 255]


def cut_out(hidden: tuple[int, int, int], size: int = 48) -> Image.Image:
    """A disc with a soft edge on nothing, under which `hidden` and stripes of it are stored."""
    y, x = np.mgrid[:size, :size]
    far = np.hypot(x - size / 2, y - size / 2)
    alpha = ((size / 3 - far).clip(0, 4) / 4 * 255).astype(np.uint8)
    colour = np.stack([x * 5, y * 5, 255 - x * 2], -1).astype(np.uint8)
    colour[alpha == 0] = hidden
    colour[(alpha == 0) & (x % 3 == 0)] = 255 - np.array(hidden)
    return Image.fromarray(np.dstack([colour, alpha]))


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (24, 40), (96, 64)])
def test_hidden_colours_have_no_effect(size: tuple[int, int]) -> None:
    fit = fit_to(48, 48, size)
    black, green, white = (
        seen(take_picture(cut_out(c)), fit).tobytes()
        for c in ((0, 0, 0), (0, 255, 0), (255, 255, 255))
    )
    assert black == green == white


def test_what_is_seen_stays_and_what_is_hidden_takes_its_colour() -> None:
    image = Image.new("RGBA", (32, 32), (0, 255, 0, 0))
    image.paste((200, 30, 10, 255), (0, 0, 12, 32))
    image.paste((10, 30, 200, 255), (20, 0, 32, 32))
    filled = np.asarray(fill_hidden(image), int)
    assert (filled[:, :12] == [200, 30, 10]).all() and (filled[:, 20:] == [10, 30, 200]).all()
    between = filled[:, 12:20]
    assert (between[..., 0] > between[..., 2]).mean() == 0.5, (
        "each half from the side that is nearer"
    )
    assert between[..., 1].min() >= 29 and between[..., 1].max() <= 31, "no green"


def test_half_transparent_colours_count_in_full() -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    ).convert("RGBA")
    image.putalpha(128)
    assert fill_hidden(image).tobytes() == image.convert("RGB").tobytes()
    image.putalpha(0)
    assert fill_hidden(image).getextrema() == ((128, 128),) * 3


def test_cut_outs_that_look_alike_give_one_result(
    photo: Image.Image, reference: Path, tmp_path: Path
) -> None:
    cut_outs = [cut_out(c) for c in ((0, 0, 0), (0, 255, 0))]
    cut_outs[1].save(tmp_path / "green.png")
    notices: list[str] = []

    def run(picture: object, style: object) -> bytes:
        [result] = stylize_image(
            picture, style, model=micro(), steps=1, size=64,
            on_event=lambda e: notices.append(e["message"]) if e["event"] == "notice" else None,
        )  # fmt: skip
        return result.tobytes()

    assert run(cut_outs[0], reference) == run(tmp_path / "green.png", reference)
    assert not notices
    assert run(photo, cut_outs[0]) == run(photo, tmp_path / "green.png")
    assert notices == [
        f"--style {name} is transparent in parts: they count as white"
        for name in ("picture", "green.png")
    ]


def test_of_a_wholly_transparent_picture_nothing_is_seen(
    photo: Image.Image, reference: Path
) -> None:
    nothing = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    notices: list[str] = []
    [result] = stylize_image(
        nothing, reference, model=micro(), steps=1, size=64,
        on_event=lambda e: notices.append(e["message"]) if e["event"] == "notice" else None,
    )  # fmt: skip
    assert result.getchannel("A").getextrema() == (0, 0) and "wholly transparent" in notices[0]
    with pytest.raises(InputError, match="--style picture is wholly transparent"):
        stylize_image(photo, nothing, model=micro())
