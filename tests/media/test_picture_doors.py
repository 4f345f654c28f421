"""Pictures by path, as PIL images and as arrays: the same treatment by each door, and what no door
takes."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from std_cli import stylize_image
from std_cli.errors import InputError
from std_cli.media.color_profile import to_srgb
from std_cli.media.fit import fit_to, seen
from std_cli.media.pictures import expand_inputs, image_of, read_picture, take_picture
from std_cli.media.write_picture import save_picture
from tests.media.test_pictures import linear_profile, noise, one_line, scene
from tests.micro import micro

FAST = {"model": micro(), "steps": 1, "size": 64}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = noise(channels=4)
    grey16 = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    return {
        "exif.jpg": encoded(scene(), "JPEG", exif=exif),
        "exif.png": encoded(scene(), "PNG", exif=exif),
        "exif.tif": encoded(scene(), "TIFF", exif=exif),
        "profile.png": encoded(scene(), "PNG", icc_profile=linear_profile(b"RGB ")),
        "profile_alpha.png": encoded(alpha, "PNG", icc_profile=linear_profile(b"RGB ")),
        "grey16.png": encoded(grey16, "PNG", icc_profile=linear_profile(b"GRAY")),
        "palette.gif": encoded(scene().quantize(16), "GIF", transparency=3),
        "animated.webp": encoded(
            alpha, "WEBP", save_all=True, append_images=[scene().convert("RGBA")], lossless=True
        ),
        "cmyk.jpg": encoded(scene().convert("CMYK"), "JPEG", exif=exif),
        "one.png": encoded(scene().convert("1"), "PNG"),
    }


@pytest.mark.parametrize("name", files())
def test_a_pil_image_is_read_as_its_file_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(files()[name])
    want = read_picture(path)
    with Image.open(path) as opened, Image.open(path) as loaded:
        loaded.load()
        before = loaded.mode, loaded.size, loaded.tobytes(), dict(loaded.info)
        for given in (opened, loaded, loaded.copy()):
            got = take_picture(given)
            assert got.size == want.size and got.rgb.tobytes() == want.rgb.tobytes()
            assert (got.alpha and got.alpha.tobytes()) == (want.alpha and want.alpha.tobytes())
        assert before == (loaded.mode, loaded.size, loaded.tobytes(), dict(loaded.info))


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "La",
    "LA",
    "PA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
]


@pytest.mark.parametrize("mode", [*MODES, "I;16", "I;16B", "I;16L", "I;16N"])
def test_every_mode(mode: str) -> None:
    """Mid-grey in each mode: 128, or 255 in two levels; L* of sRGB 128 is 53.6, of 255 levels 137
    (CIE 15)."""
    grey = Image.new("L", (8, 6), 128)
    if mode.startswith("I;16"):
        image = Image.frombytes(
            mode, (8, 6), (128 * 257).to_bytes(2, "big" if mode == "I;16B" else "little") * 48
        )
    elif mode == "LAB":
        image = Image.new("LAB", (8, 6), (137, 128, 128))
    elif mode == "I":
        image = Image.new("I", (8, 6), 128 * 257)
    elif mode == "F":
        image = Image.new("F", (8, 6), 128 / 255)
    elif mode in ("RGBa", "La", "PA"):
        image = grey.convert({"RGBa": "RGBA", "La": "LA", "PA": "P"}[mode]).convert(mode)
    else:
        image = (grey if mode == "P" else grey.convert("RGB")).convert(mode)
    picture = take_picture(image)
    level = picture.rgb.getpixel((1, 1))[1]
    assert picture.rgb.mode == "RGB" and picture.alpha is None and picture.size == (8, 6)
    assert level in (0, 255) if mode == "1" else abs(level - 128) <= 2


def test_arrays() -> None:
    for channels in (1, 3, 4):
        image = noise(channels=channels)
        assert image_of(np.asarray(image)).tobytes() == image.tobytes()
    assert image_of(np.asarray(noise())[:, ::-1]).getpixel((0, 0)) == noise().getpixel((47, 0))
    for wrong in (
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3)),
    ):
        with pytest.raises(InputError, match="give uint8") as error:
            image_of(wrong)
        one_line(error)


def test_what_is_no_picture(photo: Image.Image, tmp_path: Path) -> None:
    closed = Image.open(io.BytesIO(encoded(scene(), "PNG")))
    closed.close()
    cases = {
        "empty": (Image.new("RGB", (0, 5)), np.zeros((0, 4, 3), np.uint8)),
        "damaged": (closed,),
        "of type NoneType": (None, [None]),
        "of type bytearray": ([bytearray(b"x")],),
    }
    for message, inputs in cases.items():
        for given in inputs:
            with pytest.raises(InputError, match=message) as error:
                stylize_image(given, photo, **FAST)
            one_line(error)
            with pytest.raises(InputError, match=f"--style.*{message}|{message}"):
                stylize_image(photo, given, **FAST)


def test_one_result_by_every_door(tmp_path: Path, reference: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(files()["exif.jpg"])
    upright = read_picture(tmp_path / "a.jpg").rgb
    with Image.open(tmp_path / "a.jpg") as opened, Image.open(reference) as style:
        inputs = [tmp_path / "a.jpg", opened, np.asarray(upright)]
        results = [r.tobytes() for r in stylize_image(inputs, np.asarray(style), **FAST)]
    assert results[0] == results[1] == results[2]


# --- profiles ----------------------------------------------------------------------------------


def test_profiles_are_judged_by_what_they_do() -> None:
    """Linear 55 is 128 in sRGB, whatever the profile is called; and sRGB stays, whatever it is
    called."""
    linear = linear_profile(b"RGB ").replace(b"straight", b"sRGBtrue")
    assert b"sRGB" in linear
    grey = Image.new("RGB", (4, 4), (55, 55, 55))
    assert abs(to_srgb(grey, linear).getpixel((0, 0))[0] - 128) <= 1
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = own.replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be"))
    assert other != own
    assert to_srgb(noise(), other).tobytes() == to_srgb(noise(), own).tobytes() == noise().tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for useless in (lab, b"", linear[:300], bytes(500)):
        assert to_srgb(noise(), useless).tobytes() == noise().tobytes()


def test_gamma_of_a_png() -> None:
    """gAMA 1.0 is linear light: 55 -> 128, as above. 0.45455 means sRGB, and a profile counts
    more."""
    grey = Image.new("RGB", (4, 4), (55, 55, 55))
    assert to_srgb(grey, None, 1.0).getpixel((0, 0)) == (128, 128, 128)
    for profile, gamma in ((None, 0.45455), (None, 1 / 2.2), (None, 0.0)):
        assert to_srgb(grey, profile, gamma).tobytes() == grey.tobytes()


# --- large pictures ----------------------------------------------------------------------------


def test_a_photograph_of_108_megapixels(tmp_path: Path) -> None:
    """12000 x 9000: decoded at 1/8, in memory for 1.7 million pixels; Pillow's own limit stays what
    it was."""
    before = Image.MAX_IMAGE_PIXELS
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (12000, 9000), 99).save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(tmp_path / "a.jpg", side=512)
    assert picture.size == (9000, 12000) and picture.rgb.size == (1125, 1500)
    assert seen(picture, fit_to(9000, 12000, (384, 512))).size == (384, 512)
    assert before == Image.MAX_IMAGE_PIXELS


def test_large_pictures_of_other_kinds_are_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("std_cli.media.pictures.LARGE", 1000)
    scene(101, 50).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", side=12)
    assert picture.size == (101, 50) and picture.rgb.size == (26, 13)
    assert take_picture(scene(101, 50), side=12).rgb.size == (26, 13)
    assert seen(picture, fit_to(101, 50, (64, 32))).size == (64, 32)


# --- kinds that cannot be read -----------------------------------------------------------------


def test_what_a_folder_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.psd", "b.PSD", "c.nef", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"1 \.nef picture \(develop .*\) and 2 \.psd pictures \(convert"
    ):
        expand_inputs([tmp_path])
    scene().save(tmp_path / "a.png")
    notices: list[str] = []
    assert expand_inputs([f"{tmp_path}/*"], notices=notices) == [tmp_path / "a.png"]
    assert len(notices) == 1 and "2 .psd pictures" in notices[0]
    for name, message in {"a.psd": "convert to png", "c.nef": "develop"}.items():
        with pytest.raises(InputError, match=message):
            read_picture(tmp_path / name)


def test_a_raw_file_does_not_open_as_its_thumbnail(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.tif", tiffinfo={50706: b"\1\4\0\0"})
    with pytest.raises(InputError, match="develop"):
        read_picture(tmp_path / "a.tif")


def test_own_results_in_the_input_folder_are_left_out(tmp_path: Path, reference: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    scene().save(folder / "a.png")
    save_picture(scene(), folder / "a_stylized.png", {"input": "a.png"}, overwrite=False)
    events: list[dict[str, object]] = []
    assert len(stylize_image(folder, reference, on_event=events.append, **FAST)) == 1
    [notice] = [e["message"] for e in events if e["event"] == "notice"]
    assert "a_stylized.png, which std wrote" in str(notice)


def test_heic(tmp_path: Path) -> None:
    """Orientation, profile and alpha, where pillow-heif is installed."""
    heif = pytest.importorskip("pillow_heif", reason="an extra that an installation may lack")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    flat = Image.new("RGBA", (64, 32), (55, 55, 55, 255))
    flat.putalpha(Image.linear_gradient("L").resize((64, 32)))
    # pillow-heif writes it as a property of the picture, as phones do
    flat.info["exif"] = exif.tobytes()
    flat.save(tmp_path / "a.heic", icc_profile=linear_profile(b"RGB "), quality=-1)
    [path] = expand_inputs([tmp_path])
    with Image.open(path) as opened:
        pictures = [read_picture(path), take_picture(opened)]
    for picture in pictures:
        assert picture.size == picture.rgb.size == (32, 64)
        assert abs(picture.rgb.getpixel((5, 5))[1] - 128) <= 4
        assert picture.alpha is not None and picture.alpha.getpixel(
            (0, 5)
        ) > picture.alpha.getpixel((31, 5))


def test_heic_without_pillow_heif(tmp_path: Path) -> None:
    for name in ("a.heic", "b.heic"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    scene().save(tmp_path / "c.png")
    code = """
import sys
sys.modules["pillow_heif"] = None
from std_cli.errors import InputError
from std_cli.media.pictures import expand_inputs, read_picture
notices = []
print(len(expand_inputs([sys.argv[1]], notices=notices)), *notices)
try:
    read_picture(sys.argv[1] + "/a.heic")
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    counted, named = done.stdout.splitlines()
    assert counted.startswith("1 ") and "2 .heic pictures (pip install 'std-cli[heif]')" in counted
    assert "pip install 'std-cli[heif]'" in named
