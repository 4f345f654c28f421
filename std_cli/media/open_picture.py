"""The pixels of picture files as they are stored, within limits, and with one line for whatever
cannot be read."""

import io
import logging
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from std_cli.errors import InputError
from std_cli.media.picture_kinds import read_formats, why_unreadable

MAX_PIXELS = 2**28
"""268 million, for cameras of up to 200 megapixels. Pillow holds 4 bytes of each pixel: 1 GiB, 3
while it is read."""
LARGE = 1 << 26
"""Pixels, 67 million, above which a picture is made smaller while it is read, if it is worked on
much smaller."""

_DNG_VERSION = 50706  # the TIFF tag of Adobe's raw files
# Raw modes of PNGs whose samples Pillow scales to 8 bits, but not the transparent colour -> what
# they are scaled by.
_SCALED = {"L;2": 85, "L;4": 17}
# Raw modes of PNGs that Pillow cuts to 8 bits -> the raw mode that gives the other half of each
# sample.
_LOW_HALF = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}

CODE_POINTS = "cicp"
"""Key of a decoded picture's `info`: (primaries, transfer) by ITU-T H.273, of a PNG with cICP."""

# Pillow logs some damage as well as raising it; without a handler Python would print that as a
# second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def open_picture(path: Path, data: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """Pillow's picture of a file (or of its bytes, `data`), not decoded yet, at its first frame.

    Any error here or in the body of the `with` becomes an InputError.
    """
    if data is None and "develop" in (remedy := why_unreadable(path.suffix) or ""):
        raise _unreadable(path, remedy)
    with (
        readable(repr(str(path)), path),
        raised_limit(),
        _bytes_of(path, data) as file,
        _identified(file, path) as image,
    ):
        check_pixels(image, repr(str(path)))
        if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", ()):
            # what would be read is its thumbnail
            raise _unreadable(path, "develop to tiff or jpeg first")
        yield image


def _identified(file: BinaryIO, path: Path) -> ImageFile.ImageFile:
    """Pillow's picture. Where Pillow says only that no format fits, but the first bytes are those
    of one, its header is at fault; of a width of 0, too, Pillow says no more than that."""
    try:
        return Image.open(file, formats=read_formats())
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(16)
        accepts = {name: Image.OPEN[name][1] for name in read_formats()}
        kind = next((name for name, test in accepts.items() if test and test(start) is True), None)
        if kind is None or why_unreadable(path.suffix):
            raise
        raise InputError(
            f"{str(path)!r} begins as a {kind} picture, but its header is damaged or says that it "
            f"has no pixels; export it again"
        ) from None


@contextmanager
def readable(name: str, path: Path | None = None) -> Iterator[None]:
    """Any error in the body of the `with` becomes an InputError, and nothing is warned of."""
    try:
        with _no_warnings():
            yield
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as err:
        raise InputError(f"no such picture: {name}; check the path") from err
    except PermissionError as err:
        raise InputError(f"no permission to read {name}; change its permissions") from err
    except UnidentifiedImageError as err:
        if path is not None and (remedy := why_unreadable(path.suffix)):
            raise _unreadable(path, remedy) from err
        known = ", ".join(read_formats()).lower()
        raise InputError(
            f"{name} is not a picture that can be read; convert it to one of {known}"
        ) from err
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as err:
        pixels = re.findall(r"\d+", str(err))[0]
        raise InputError(
            f"{name} has {pixels} pixels, more than the limit of {MAX_PIXELS}; scale it down"
        ) from err
    except Exception as err:  # on hostile bytes decoders raise nearly every built-in exception
        reason = (
            " ".join("".join(c if c.isprintable() else " " for c in str(err)).split())
            or type(err).__name__
        )
        raise InputError(
            f"{name} is damaged or of an unsupported kind ({reason}); export it again"
        ) from err


def check_pixels(image: Image.Image, name: str) -> None:
    """Raises InputError for a picture with no pixels, or with too many."""
    width, height = image.size
    if min(width, height) < 1:
        raise InputError(f"{name} is empty ({width}x{height} pixels); give a picture with pixels")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width * height} pixels ({width}x{height}), more than the limit of "
            f"{MAX_PIXELS}; scale it down"
        )


def decode(
    image: Image.Image, side: int | None = None, *, own: bool = False
) -> tuple[Image.Image, tuple[int, int]]:
    """The pixels of an opened file, or of any image, and (width, height) of the whole.

    own: the result may be `image` itself, without a copy of the pixels; else the pixels of `image`
    are not changed. PNGs of 16-bit samples are rounded to 8 bits instead of cut, and a transparent
    colour that Pillow's pixels cannot tell apart from others becomes an alpha channel. side: see
    `std_cli.media.pictures.read_picture`.
    """
    whole = image.size
    drafted = False
    if (
        side is not None
        and isinstance(image, ImageFile.ImageFile)
        and image.format in ("JPEG", "MPO")
    ):
        drafted = _draft(image, side)
    raw_mode = ""
    low = code_points = None
    # it has none once it is decoded
    if isinstance(image, PngImagePlugin.PngImageFile) and len(image.tile) == 1:
        raw_mode = str(image.tile[0].args)
        code_points = _code_points(image)
        low = _low_half(image, _LOW_HALF[raw_mode]) if raw_mode in _LOW_HALF else None
    if own:
        image.load()
    pixels = image if own else image.copy()
    key = pixels.info.get("transparency")
    if low is not None:
        pixels = _rounded(pixels, low, raw_mode, key)
    elif (
        pixels.mode == "L"
        and isinstance(key, int)
        and isinstance(image, PngImagePlugin.PngImageFile)
    ):
        scale = _SCALED.get(raw_mode, 1) if raw_mode else _scale(pixels, key)
        pixels.info["transparency"] = key % (255 // scale + 1) * scale
    # of 8 bits: the others are to be ignored, the standard says
    elif raw_mode == "RGB" and isinstance(key, tuple):
        pixels.info["transparency"] = tuple(sample & 255 for sample in key)
    if code_points is not None:
        pixels.info[CODE_POINTS] = code_points
    return pixels, whole if drafted else pixels.size  # a TIFF turns itself when it is decoded


def _scale(pixels: Image.Image, key: int) -> int:
    """What the samples of a grey PNG were scaled by, where it was decoded before and no longer says
    so.

    Taken for one of 2 or 4 bits if no pixel has the transparent value, and all have values that
    such a PNG can have.
    """
    levels = [level for level, count in enumerate(pixels.histogram()) if count]
    if key in levels:
        return 1
    fits = [
        scale
        for scale in _SCALED.values()
        if key * scale <= 255 and not any(v % scale for v in levels)
    ]
    return fits[0] if fits else 1


def _draft(image: ImageFile.ImageFile, side: int) -> bool:
    """Have a large JPEG decoded at 1/2, 1/4 or 1/8 of its size; whether it is."""
    width, height = image.size
    if width * height <= LARGE:
        return False
    scale = min(1.0, 2 * side / max(width, height))
    return image.draft(None, (max(1, int(width * scale)), max(1, int(height * scale)))) is not None


def _code_points(image: PngImagePlugin.PngImageFile) -> tuple[int, int] | None:
    """(primaries, transfer) of the chunk cICP, which Pillow passes over (PNG specification, third
    edition, 11.3.2.6); None without it. The file is left at the place where it was."""
    assert image.fp is not None
    place = image.fp.tell()
    try:
        image.fp.seek(8)
        while len(head := image.fp.read(8)) == 8 and head[4:] != b"IDAT":
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"cICP" and size == 4:
                primaries, transfer, matrix, full_range = image.fp.read(4)
                return (primaries, transfer) if (matrix, full_range) == (0, 1) else None
            image.fp.seek(size + 4, io.SEEK_CUR)  # and its checksum
    finally:
        image.fp.seek(place)
    return None


def _low_half(image: PngImagePlugin.PngImageFile, raw_mode: str) -> Image.Image:
    """What `raw_mode` makes of the same PNG; the file of `image` is left at the place where it
    was."""
    assert image.fp is not None
    place = image.fp.tell()
    try:
        with Image.open(image.fp, formats=("PNG",)) as again:
            again.tile = [again.tile[0]._replace(args=raw_mode)]
            return again.copy()
    finally:
        image.fp.seek(place)


def _rounded(high: Image.Image, low: Image.Image, raw_mode: str, key: object) -> Image.Image:
    """Both halves of samples of 16 bits -> 8 bits, RGB or RGBA; transparent where all samples are
    those of `key`.

    65535 / 255 = 257, and 256 h + l = 257 h + (l - h): a sample is rounded up or down where h and l
    are far apart.
    """
    bands = (
        ((0, 1), (1, 1), (2, 1), (3, 3))
        if raw_mode == "LA;16B"
        else [(i, i) for i in range(len(high.getbands()))]
    )
    channels, opaque = [], np.zeros((high.height, high.width), bool)
    for i, (upper, lower) in enumerate(bands):
        h = np.asarray(high.getchannel(upper), np.int16)  # (H, W)
        l = np.asarray(low.getchannel(lower), np.int16)  # noqa: E741
        if isinstance(key, tuple):
            opaque |= (h != key[i] >> 8) | (l != key[i] & 255)
        h += (l - h >= 129).astype(np.int16) - (h - l >= 129)
        channels.append(Image.fromarray(h.astype(np.uint8)))
    if isinstance(key, tuple):
        channels.append(Image.fromarray(opaque.astype(np.uint8) * 255))
    rounded = Image.merge("RGB" if len(channels) == 3 else "RGBA", channels)
    rounded.info = {k: v for k, v in high.info.items() if k != "transparency"}
    return rounded


def _unreadable(path: Path, remedy: str) -> InputError:
    return InputError(
        f"{str(path)!r} is a picture of a kind that cannot be read ({path.suffix}); {remedy}"
    )


def _bytes_of(path: Path, data: bytes | None) -> BinaryIO:
    name = repr(str(path))
    if data is None:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder; give a picture")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait forever
            raise InputError(f"{name} is not a regular file; give a picture")
    if (status.st_size if data is None else len(data)) == 0:
        raise InputError(f"{name} is empty (0 bytes); get the picture again")
    return path.open("rb") if data is None else io.BytesIO(data)


_limit_lock = threading.Lock()
_limit_users = 0
_limit_before: int | None = None


@contextmanager
def raised_limit() -> Iterator[None]:
    """Pillow's limit of pixels, which belongs to the process, at MAX_PIXELS while any thread reads
    a picture."""
    global _limit_users, _limit_before
    with _limit_lock:
        if _limit_users == 0:
            _limit_before = Image.MAX_IMAGE_PIXELS
            # Pillow raises above twice that, and warns above that
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What Pillow warns of is of no use to the user."""
    if threading.current_thread() is not threading.main_thread():
        # The filters belong to the process: of two threads that put them back, one would bring back
        # the other's.
        warnings.filterwarnings("ignore", module="PIL")
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
