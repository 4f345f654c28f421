"""std_cli.media.pictures against real files: what is read, fitted and saved, and what every kind of
failure says."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from std_cli.errors import InputError, StdError
from std_cli.media.fit import fit_to, working_size
from std_cli.media.open_picture import MAX_PIXELS
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import Picture, expand_inputs, read_picture, take_picture
from std_cli.media.transparency import attach_alpha
from std_cli.media.write_picture import OUTPUT_SUFFIXES, check_writable, read_metadata, save_picture

METADATA = {
    "prompt": "Ölbild, 日本 🎨",
    "seed": 7,
    "strength": 0.5,
    "path": "caf\udce9.png",
    "none": None,
}


def noise(width: int = 48, height: int = 40, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


def scene(width: int = 48, height: int = 40) -> Image.Image:
    """Smooth, so that lossy formats keep it to within a few levels."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).astype(np.uint8))


def one_line(error: pytest.ExceptionInfo[StdError]) -> str:
    message = str(error.value)
    assert message and message.isprintable()
    return message


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permission bits do not bind root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- find --------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_folder_gives_its_pictures_in_natural_order(tmp_path: Path) -> None:
    wanted = touch(tmp_path, "é1.PNG", "frame2.png", "frame10.jpg", "frame11.webp")
    touch(tmp_path, ".hidden.png", "notes.txt", "sub/inner.png")
    (tmp_path / "folder.png").mkdir()
    assert expand_inputs([tmp_path]) == [*wanted[1:], wanted[0]]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "a2.png", "a10.png", "b.jpg", "a.txt", ".a.png", "ß/日本.png", "ß/deep/c.gif")
    names = [
        [path.relative_to(tmp_path).as_posix() for path in expand_inputs([f"{tmp_path}/{pattern}"])]
        for pattern in ("a*", "?.jpg", "[ab][0-9]*.png", "**/*.png", "**")
    ]
    assert names[:3] == [["a2.png", "a10.png"], ["b.jpg"], ["a2.png", "a10.png"]]
    assert names[3] == ["a2.png", "a10.png", "ß/日本.png"]
    assert set(names[4]) == {"a2.png", "a10.png", "b.jpg", "ß/日本.png", "ß/deep/c.gif"}


def test_existing_name_is_not_a_pattern(tmp_path: Path) -> None:
    literal, _, inside = touch(tmp_path, "a[1].png", "a1.png", "set*/x.png")
    touch(tmp_path, "set2/y.png")
    assert expand_inputs([str(literal)]) == [literal]
    assert expand_inputs([f"{tmp_path}/set*"]) == [inside]


def test_each_once_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "link.png").symlink_to("a.png")  # another name is another picture
    monkeypatch.chdir(tmp_path)
    found = expand_inputs(["c.png", "./a.png", tmp_path, "*.png", f"../{tmp_path.name}/b.png"])
    assert [path.name for path in found] == ["c.png", "a.png", "b.png", "link.png"]


def test_named_file_needs_no_known_suffix(tmp_path: Path) -> None:
    assert expand_inputs(touch(tmp_path, "picture")) == [tmp_path / "picture"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("missing.png", "no such file or folder"),
        ("missing*.png", "no pictures match"),
        ("*.txt", "no pictures match"),
        ("empty", "no pictures in folder"),
        ("a.txt/b.png", "no such file or folder"),
        ("x" * 300, "name too long"),
    ],
)
def test_nothing_found(tmp_path: Path, item: str, message: str) -> None:
    touch(tmp_path, "a.txt", "empty/.hidden.png", "empty/sub/a.png")
    with pytest.raises(InputError, match=message) as error:
        expand_inputs([f"{tmp_path}/{item}"])
    assert item[-20:] in one_line(error)  # a long name is cut


def test_empty_input_is_not_the_current_folder() -> None:
    with pytest.raises(InputError, match="is empty"):
        expand_inputs([""])


# --- read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES - {".pgm", ".pbm"}))
def test_reads_every_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ü{suffix}"
    scene().save(path)
    picture = read_picture(path)
    assert (picture.rgb.mode, picture.rgb.size, picture.alpha, picture.path) == (
        "RGB",
        (48, 40),
        None,
        path,
    )
    assert np.abs(np.asarray(picture.rgb, int) - np.asarray(scene(), int)).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.asarray(scene(32, 16))
    # How the camera stored it: the inverse of what Exif 2.32, 4.6.4 says about row 0 and column 0.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        tmp_path / f"a{suffix}", exif=exif, quality=95
    )
    rgb = read_picture(tmp_path / f"a{suffix}").rgb
    assert rgb.size == (32, 16)
    assert np.abs(np.asarray(rgb, int) - upright).max() < 24


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(tmp_path / "a.png").rgb.tobytes() == noise().tobytes()


def test_sixteen_bit_grey_is_scaled(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.tif")
    Image.fromarray(grey.astype(">u2")).save(tmp_path / "big-endian.tif")
    Image.fromarray(grey).save(tmp_path / "a.pgm")
    Image.fromarray((grey / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for path in tmp_path.iterdir():
        assert np.asarray(read_picture(path).rgb)[0, :, 1].tolist() == [0, 1, 128, 255], path


def test_transparency_of_every_kind(tmp_path: Path) -> None:
    ramp = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    red = Image.new("RGB", (3, 1), "red")
    rgba = red.copy()
    rgba.putalpha(ramp)
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.tif")
    rgba.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.merge("LA", (ramp, ramp)).save(tmp_path / "la.png")
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0] * 3)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 100, 255]))
    for name in ("rgba.png", "rgba.tif", "rgba.webp", "la.png", "palette.png"):
        picture = read_picture(tmp_path / name)
        assert picture.alpha is not None and picture.alpha.mode == "L", name
        assert list(picture.alpha.tobytes()) == [0, 100, 255], name
        assert picture.rgb.getpixel((2, 0)) == (
            (255, 255, 255) if name == "la.png" else (255, 0, 0)
        ), name

    palette.save(tmp_path / "index.gif", transparency=0)
    ramp.save(tmp_path / "colour.png", transparency=0)
    Image.fromarray(np.array([[1000, 1001, 65535]], np.uint16)).save(
        tmp_path / "grey16.png", transparency=1000
    )
    for name in ("index.gif", "colour.png", "grey16.png"):
        alpha = read_picture(tmp_path / name).alpha
        assert alpha is not None and list(alpha.tobytes()) == [0, 255, 255], name

    red.convert("RGBA").save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png").alpha is None


def test_cmyk(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.tif"):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / name)
        assert read_picture(tmp_path / name).rgb.getpixel((4, 4)) == (255, 0, 0)


def linear_profile(space: bytes) -> bytes:
    """A profile of ICC.1:2001-04 with a straight tone curve, and sRGB's primaries if `space` is
    RGB."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0\0\0\0\0"
    name = b"straight\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
    }
    if space == b"RGB ":
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {
            b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
            b"rTRC": curve,
            b"gTRC": curve,
            b"bTRC": curve,
        }
    else:
        tags |= {b"kTRC": curve}
    table, data = struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value
    header = struct.pack(">8xI4s4s4s12x4s", 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    body = header + table + data
    return struct.pack(">I", len(body)) + body[4:]


@pytest.mark.parametrize(
    ("mode", "space"), [("RGB", b"RGB "), ("RGBA", b"RGB "), ("P", b"RGB "), ("L", b"GRAY")]
)
def test_other_profiles_are_converted_to_srgb(tmp_path: Path, mode: str, space: bytes) -> None:
    """IEC 61966-2-1: linear 55/255 = 0.2157 -> 1.055 * 0.2157 ** (1 / 2.4) - 0.055 = 0.5020 =
    128/255."""
    image = Image.new("RGB", (8, 8), (55, 55, 55))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=linear_profile(space))
    rgb = read_picture(tmp_path / "a.png").rgb
    assert np.abs(np.asarray(rgb, int) - 128).max() <= 1
    save_picture(rgb, tmp_path / "b.png", {}, overwrite=False)
    with Image.open(tmp_path / "b.png") as saved:
        assert "icc_profile" not in saved.info  # converted once, not twice


@pytest.mark.parametrize(
    "profile", [b"junk", linear_profile(b"GRAY"), linear_profile(b"RGB ")[:200]]
)
def test_useless_profiles_are_ignored(tmp_path: Path, profile: bytes) -> None:
    noise().save(tmp_path / "a.png", icc_profile=profile)
    assert read_picture(tmp_path / "a.png").rgb.tobytes() == noise().tobytes()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [16_385, 65_535])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(InputError) as error:
        read_picture(tmp_path / "a.png")
    assert f"{side * side} pixels" in one_line(error) and str(MAX_PIXELS) in one_line(error)


def test_unreadable_inputs(tmp_path: Path) -> None:
    noise().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in {
        "missing\n.png": "no such picture",
        "whole.png/below.png": "no such picture",
        ".": "is a folder",
        "zero.png": r"is empty \(0 bytes\)",
        "text.png": "is not a picture that can be read",
        "pipe.png": "not a regular file",
        "cut.png": "is damaged.*truncated",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            read_picture(tmp_path / name)
        one_line(error)


def test_no_permission_to_read() -> None:
    # tmp_path lies in a folder that only root may enter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        noise().save(path)
        read_picture(path)  # Pillow's plugins are loaded while they can be
        os.chmod(folder, 0o755)
        path.chmod(0)
        with as_nobody(), pytest.raises(InputError, match="no permission") as error:
            read_picture(path)
        one_line(error)


def encoded(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hostile() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0{}"
    extras = {"exif": exif, "icc_profile": linear_profile(b"RGB ")}
    return [
        encoded("PNG", noise(), **extras),
        encoded("PNG", noise(channels=4)),
        encoded("PNG", noise().convert("P"), transparency=bytes(range(200))),
        encoded("JPEG", noise(), **extras),
        encoded("JPEG", noise(), progressive=True),
        encoded("WEBP", noise(), **extras),
        encoded("WEBP", noise(channels=4), lossless=True),
        encoded("GIF", noise(), save_all=True, append_images=[noise(channels=1)], transparency=3),
        encoded("TIFF", noise(), compression="tiff_lzw", **extras),
        encoded("TIFF", noise(channels=1).convert("I;16")),
        encoded("BMP", noise()),
        encoded("BMP", noise().convert("P")),
        encoded("PPM", noise()),
        encoded("JPEG2000", noise()),
        encoded("AVIF", noise(), speed=10, **extras),
    ]


@pytest.mark.parametrize(
    ("kind", "at", "length"), [("PNG", 16, 4), ("BMP", 18, 4), ("JPEG", 0, 2), ("PPM", 3, 1)]
)
def test_a_header_without_width_is_said_to_be_damaged(tmp_path, kind, at, length):
    """Pillow says of it that it is no picture."""
    path = tmp_path / "a.any"
    Image.new("RGB", (8, 8)).save(path, kind)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 7 if kind == "JPEG" else at
    data[at : at + length] = b"0" if kind == "PPM" else bytes(length)
    if kind == "PNG":  # the chunk's checksum
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"begins as a {kind} picture, .* no pixels"):
        read_picture(path)


def test_hostile_bytes_give_a_picture_or_an_input_error(tmp_path: Path) -> None:
    """STD_FUZZ=1500 tries that many variants of each file instead of 40."""
    rng = random.Random(0)
    path = tmp_path / "a.png"
    read = failed = 0
    for whole in hostile():
        for attempt in range(int(os.environ.get("STD_FUZZ", "40"))):
            data = bytearray(whole)
            if attempt % 3 == 0:
                del data[rng.randrange(1, len(data)) :]
            else:  # headers are short and decide the most
                end = len(data) if attempt % 3 == 1 else min(len(data), 300)
                for _ in range(rng.randint(1, 8)):
                    data[rng.randrange(end)] = rng.randrange(256)
            path.write_bytes(data)
            try:
                picture = read_picture(path)
                assert (
                    isinstance(picture, Picture)
                    and picture.rgb.mode == "RGB"
                    and min(picture.rgb.size) > 0
                )
                assert picture.alpha is None or picture.alpha.size == picture.rgb.size
                read += 1
            except InputError as error:
                assert str(error).isprintable()
                failed += 1
            try:
                assert read_metadata(path) in (None, {})
            except InputError as error:
                assert str(error).isprintable()
    assert read > 50 and failed > 50


# --- fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "size", "area", "expected"),
    [
        ((1024, 1024), None, True, (1024, 1024)),
        ((1920, 1080), None, True, (1368, 768)),  # 1365.33 x 768
        ((1920, 1080), None, False, (1024, 576)),
        ((1080, 1920), 512, True, (288, 512)),
        ((100, 100), (1020, 1011), True, (1024, 1008)),  # 127.5 eights are rounded up, 126.4 down
        ((49, 49), 516, True, (520, 520)),
        ((100, 100), (1, 1), True, (64, 64)),
        ((3000, 10), 512, True, (512, 64)),
    ],
)
def test_working_size(
    picture: tuple[int, int],
    size: tuple[int, int] | int | None,
    area: bool,
    expected: tuple[int, int],
) -> None:
    assert working_size(*picture, size, 1024, area) == expected


@pytest.mark.parametrize("size", [None, 8197, (64, 10**9)])
def test_extreme_working_size(size: tuple[int, int] | int | None) -> None:
    with pytest.raises(InputError, match="8192") as error:
        working_size(10_000, 100, size, 1024, area=True)
    assert "--size" in one_line(error)


@pytest.mark.parametrize("size", [0, -5, (512, 0)])
def test_working_size_not_above_zero(size: tuple[int, int] | int) -> None:
    with pytest.raises(InputError, match="--size"):
        working_size(100, 100, size, 1024, area=True)


sides = st.integers(1, 5000)


@given(sides, sides, st.none() | st.integers(1, 9000) | st.tuples(sides, sides), st.booleans())
def test_working_size_is_usable(
    w: int, h: int, size: tuple[int, int] | int | None, area: bool
) -> None:
    try:
        result = working_size(w, h, size, 1024, area)
    except InputError:
        return
    assert all(side % 8 == 0 and 64 <= side <= 8192 for side in result)


@given(sides, sides, st.tuples(sides, sides))
def test_fit_keeps_the_aspect(w: int, h: int, size: tuple[int, int]) -> None:
    left, top, right, bottom = fit_to(w, h, size).box
    inner_w, inner_h = right - left, bottom - top
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert inner_w == size[0] or inner_h == size[1]
    assert abs(inner_w - w * inner_h / h) <= 1 or abs(inner_h - h * inner_w / w) <= 1


small = st.integers(1, 90)


@settings(deadline=None)
@given(small, small, st.tuples(small, small), st.sampled_from([1, 3, 4]))
def test_fit_and_undo(w: int, h: int, size: tuple[int, int], channels: int) -> None:
    fit = fit_to(w, h, size)
    image = noise(w, h, channels) if min(w, h) > 1 else Image.new("RGB", (w, h), "red")
    fitted = fit.apply(image)
    assert fitted.size == size and fitted.mode == image.mode
    inner = (fit.box[2] - fit.box[0], fit.box[3] - fit.box[1])
    assert fit.undo(fitted).tobytes() == image.resize(inner, Image.Resampling.LANCZOS).tobytes()


def test_picture_of_the_working_size_is_untouched() -> None:
    image = noise(64, 72)
    fit = fit_to(64, 72, (64, 72))
    assert fit.undo(fit.apply(image)).tobytes() == image.tobytes()


def test_few_missing_pixels_are_padded_by_reflection() -> None:
    image = noise(60, 72)
    fit = fit_to(60, 72, (64, 72))
    fitted = np.asarray(fit.apply(image))
    assert fit.box == (2, 0, 62, 72)
    assert (fitted[:, 2:62] == np.asarray(image)).all()
    assert (fitted[:, :2] == fitted[:, 3:1:-1]).all()


def test_fit_refuses_pictures_it_was_not_made_for() -> None:
    fit = fit_to(60, 72, (64, 72))
    with pytest.raises(ValueError, match="stretched"):
        fit.apply(noise(72, 60))
    with pytest.raises(ValueError, match="working size"):
        fit.undo(noise(72, 60))


# --- save --------------------------------------------------------------------------------------


def test_alpha_is_resized_and_put_back() -> None:
    result = attach_alpha(noise(20, 10), Image.new("L", (200, 100), 77))
    assert (result.mode, result.size) == ("RGBA", (20, 10))
    assert result.getchannel("A").getextrema() == (77, 77)
    assert result.convert("RGB").tobytes() == noise(20, 10).tobytes()
    hard = Image.new("L", (10, 10), 255)
    hard.paste(0, (0, 0, 5, 10))
    grown = np.asarray(attach_alpha(noise(40, 40), hard).getchannel("A"))
    assert (grown[:, 24:] == 255).all() and (grown[:, :16] == 0).all()


@pytest.mark.parametrize("suffix", [*OUTPUT_SUFFIXES, ".JPG"])
def test_saved_picture_and_metadata_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"日本{suffix}"
    check_writable(path, overwrite=False)
    save_picture(scene(), path, METADATA, overwrite=False)
    assert read_metadata(path) == METADATA
    pixels = np.asarray(read_picture(path).rgb, int)
    assert np.abs(pixels - np.asarray(scene(), int)).max() <= (0 if suffix == ".png" else 24)
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # as any new file of the user's


def test_jpg_is_444_at_quality_95(tmp_path: Path) -> None:
    save_picture(noise(), tmp_path / "a.jpg", {}, overwrite=False)
    noise().save(tmp_path / "reference.jpg", quality=95, subsampling="4:4:4")
    with (
        Image.open(tmp_path / "a.jpg") as image,
        Image.open(tmp_path / "reference.jpg") as reference,
    ):
        assert image.tobytes() == reference.tobytes()


@pytest.mark.parametrize("text", ["a cat, 8 steps", "eine Katze für 漢字\nSteps: 8"])
def test_the_text_for_other_tools_is_where_they_look(tmp_path: Path, text: str) -> None:
    """A1111's reader takes the chunk `parameters`, or the UserComment with its character code."""
    for name in ("a.jpg", "a.webp", "a.png"):
        save_picture(noise(), tmp_path / name, METADATA, overwrite=False, parameters=text)
        assert read_metadata(tmp_path / name) == METADATA
        with Image.open(tmp_path / name) as image:
            if name == "a.png":
                found = image.info["parameters"]
            else:
                comment = image.getexif().get_ifd(0x8769)[0x9286]
                code = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16-be"}[comment[:8]]
                found = comment[8:].decode(code)
        assert found == text


def test_the_record_is_a_packet_that_xmp_readers_read(tmp_path: Path) -> None:
    metadata = {"prompt": "<a> & \"b\" 'c'\n{}"}
    for name in ("a.jpg", "a.webp"):
        save_picture(noise(), tmp_path / name, metadata, overwrite=False)
        with Image.open(tmp_path / name) as image:
            [[description]] = ElementTree.fromstring(image.info["xmp"])
        assert json.loads(description.attrib["{urn:std-cli}record"]) == metadata


def test_alpha_is_kept_or_laid_over_white(tmp_path: Path) -> None:
    image = attach_alpha(Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 100))
    for suffix in (".png", ".webp", ".jpg"):
        save_picture(image, tmp_path / f"a{suffix}", {}, overwrite=False)
    for suffix in (".png", ".webp"):
        alpha = read_picture(tmp_path / f"a{suffix}").alpha
        assert alpha is not None and alpha.getextrema() == (100, 100)
    blend = np.asarray(read_picture(tmp_path / "a.jpg").rgb, int)
    assert np.abs(blend - [255, 155, 155]).max() <= 2  # 255 * (1 - 100 / 255) = 155


def test_metadata_of_other_origin_is_none(tmp_path: Path) -> None:
    noise().save(tmp_path / "plain.png")
    noise().save(tmp_path / "plain.gif")
    packets = [b'<std:record="">', b'std:record="{"', b'std:record="[1]"', b"<x/>", b"\xff\xfe"]
    for i, packet in enumerate(packets):
        noise().save(tmp_path / f"{i}.jpg", xmp=packet)
    for path in tmp_path.iterdir():
        assert read_metadata(path) is None, path


def test_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for existing in (path, tmp_path / "dangling.png"):
        with pytest.raises(InputError, match="--overwrite") as error:
            check_writable(existing, overwrite=False)
        one_line(error)
        with pytest.raises(InputError, match="--overwrite"):
            save_picture(noise(), existing, {}, overwrite=False)
    assert path.read_bytes() == b"precious"
    check_writable(path, overwrite=True)
    assert path.read_bytes() == b"precious"
    save_picture(noise(), path, {}, overwrite=True)
    assert read_picture(path).rgb.tobytes() == noise().tobytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("hard_links", [True, False])
def test_one_of_many_writers_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")  # what Linux answers on FAT

        monkeypatch.setattr(os, "link", refuse)
    path, start = tmp_path / "a.png", threading.Barrier(8)
    outcomes: list[int | None] = []

    def write(writer: int) -> None:
        start.wait()
        try:
            save_picture(noise(), path, {"writer": writer}, overwrite=False)
            outcomes.append(writer)
        except InputError as error:
            assert "--overwrite" in str(error)
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [writer for writer in outcomes if writer is not None]
    assert len(outcomes) == 8 and read_metadata(path) == {"writer": winner}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("overwrite", [True, False])
def test_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def interrupt(_: int) -> None:
        assert len(list(tmp_path.glob(".*"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_picture(noise(), tmp_path / "a.png", {}, overwrite)
    assert not list(tmp_path.iterdir())


SAVE = """
import sys
from pathlib import Path
from xml.etree import ElementTree
from PIL import Image
from std_cli.errors import StdError
from std_cli.media.write_picture import save_picture
image = Image.effect_noise((512, 512), 90).convert("RGB")
try:
    save_picture(image, Path(sys.argv[1]), {}, overwrite=False)
except StdError as error:
    print(type(error).__name__, error)
print([path.name for path in Path(sys.argv[1]).parent.iterdir()])
"""


def save_elsewhere(prefix: str, path: Path) -> list[str]:
    """The output of SAVE, started by a shell after `prefix`."""
    command = f'{prefix} && exec "{sys.executable}" -c "$0" "$1"'
    done = subprocess.run(
        ["bash", "-c", command, SAVE, path], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()


def test_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    error, files = save_elsewhere("ulimit -f 64", tmp_path / "a.png")
    assert error.startswith("StdError disk full while writing") and "a.png" in error
    assert files == "[]"


def test_full_disk(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    # the mount is seen by this process alone, and goes with it
    unshare = ["unshare", "--mount", "bash", "-c"]
    if subprocess.run([*unshare, mount], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    command = f'{mount} && exec "{sys.executable}" -c "$0" "$1"'
    done = subprocess.run(
        [*unshare, command, SAVE, tmp_path / "a.png"], capture_output=True, text=True, timeout=120
    )
    error, files = done.stdout.splitlines()
    assert error.startswith("StdError disk full while writing") and "No space left" in error
    assert files == "[]"


def test_unusable_outputs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path, message in {
        tmp_path / "a.gif": r"\.png, \.jpg, \.jpeg, \.webp",
        tmp_path / "a": "unknown suffix",
        tmp_path / "missing" / "a.png": "No such file or directory",
        tmp_path / "file" / "a.png": "Not a directory",
        tmp_path / f"{'x' * 300}.png": "File name too long",
        Path("/proc/a.png"): "cannot write",
        tmp_path / "folder.png": "is a folder|is a directory",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            check_writable(path, overwrite=True)
        assert path.name in one_line(error)
        with pytest.raises(InputError, match=f"(?i){message}"):
            save_picture(noise(), path, {}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.png"}


def test_no_permission_to_write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with as_nobody(), pytest.raises(InputError, match="Permission denied") as error:
            check_writable(Path(folder, "a.png"), overwrite=False)
        one_line(error)


def test_import_needs_no_torch() -> None:
    code = "import sys, std_cli.media.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def with_code_points(path, pixels, primaries, transfer, **how):
    """A PNG with the chunk cICP behind its header."""
    Image.fromarray(pixels).save(path, **how)
    data = path.read_bytes()
    chunk = b"cICP" + bytes([primaries, transfer, 0, 1])
    chunk = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


def test_the_code_points_of_a_png_count_before_its_profile(tmp_path):
    """Display P3's red and a mix, worked out with the primaries' matrix; grey stays grey."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[:] = [[200, 100, 50], [90, 90, 90], [255, 255, 255]]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for how in ({}, {"icc_profile": profile}):
        path = with_code_points(tmp_path / "a.png", pixels, 12, 13, **how)
        found = np.asarray(read_picture(path).rgb)
        assert np.abs(found[0].astype(int) - [[215, 93, 31], [90] * 3, [255] * 3]).max() <= 1
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(take_picture(image).rgb), found)
    same = with_code_points(tmp_path / "b.png", pixels, 1, 13)
    assert np.array_equal(np.asarray(read_picture(same).rgb), pixels)
    unknown = with_code_points(tmp_path / "c.png", pixels, 22, 200)
    assert np.array_equal(np.asarray(read_picture(unknown).rgb), pixels)


@pytest.mark.parametrize("transfer", [16, 18])
def test_an_hdr_png_is_tone_mapped_as_a_video_is(tmp_path, transfer):
    """Light for light: only the last curve differs, sRGB's here, BT.1886 of gamma 2.4 there."""
    import av

    from std_cli.media.video.clip import Color
    from std_cli.media.video.color import to_rgb

    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 3), dtype=np.uint8)
    path = with_code_points(tmp_path / "a.png", pixels, 9, transfer)
    found = np.asarray(read_picture(path).rgb).astype(float) / 255
    frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint16) * 257, "rgb48le")
    video = to_rgb(frame.reformat(format="gbrp16le"), Color(9, 2, 9, transfer)) / 255
    light = np.where(found <= 0.04045, found / 12.92, ((found + 0.055) / 1.055) ** 2.4)
    assert np.abs(light ** (1 / 2.4) - video)[light > 0.01].max() < 0.01
