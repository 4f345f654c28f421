"""Pictures in: find them, read them.

Pictures are Pillow images of 8 bits per channel, sizes are (width, height). Only Pillow and numpy
are imported here.
"""

import glob
import os
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from std_cli.errors import InputError
from std_cli.media.color_profile import to_srgb
from std_cli.media.open_picture import (
    CODE_POINTS,
    LARGE,
    check_pixels,
    decode,
    open_picture,
    readable,
)
from std_cli.media.picture_kinds import PICTURE_SUFFIXES, left_out
from std_cli.media.transparency import find_alpha, over_white
from std_cli.paths import check_path, user_path

_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}
"""Modes of premultiplied alpha, and what they are converted to."""
_REDUCIBLE = ("L", "LA", "RGB", "RGBA", "CMYK")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how to turn what is stored."""
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


# --- find --------------------------------------------------------------------------------------


def expand_inputs(
    inputs: Sequence[str | Path],
    suffixes: frozenset[str] = PICTURE_SUFFIXES,
    what: str = "picture",
    notices: list[str] | None = None,
) -> list[Path]:
    """The pictures (or other files, by suffix) that files, folders and glob patterns name: in the
    order given, once.

    A folder stands for the pictures directly inside it, a pattern (`*`, `?`, `[...]`, `**`) for the
    pictures that it matches, both in natural order and without hidden files. A name that exists is
    never read as a pattern. Pictures of kinds that cannot be read are left out; `notices` receives
    one line that counts them for each input. Raises InputError for a path that does not exist, and
    for a folder or pattern without pictures.
    """
    notices = [] if notices is None else notices
    found: dict[tuple[Path, str], Path] = {}
    for item in inputs:
        for path in _expand(item, suffixes, what, notices):
            found.setdefault((path.parent.resolve(), path.name), path)
    return list(found.values())


def _expand(
    item: str | Path, suffixes: frozenset[str], what: str, notices: list[str]
) -> list[Path]:
    path = user_path(item, "input")
    text = str(path)
    kinds = what.replace(" or ", "s or ") + "s"
    if os.path.isdir(path):
        try:
            inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        except OSError as err:
            raise InputError(
                f"cannot list folder {text!r}: {err.strerror}; check its permissions"
            ) from err
        missing = (
            f"no {kinds} in folder {text!r}; its subfolders are not searched, a pattern "
            f"such as '**/*.png' is"
        )
    elif os.path.exists(path):
        return [path]
    elif glob.has_magic(text):
        inside = [Path(match) for match in glob.glob(text, recursive=True)]
        missing = f"no {kinds} match {text!r}; check the pattern and the folder that it starts from"
    else:
        raise InputError(f"no such file or folder: {text!r}; check the path")
    pictures = [
        entry for entry in inside if entry.suffix.lower() in suffixes and os.path.isfile(entry)
    ]
    unread = left_out(entry for entry in inside if os.path.isfile(entry))
    if not pictures:
        raise InputError(f"{missing}; left out: {unread}" if unread else missing)
    if unread:
        notices.append(f"{text}: left out: {unread}")
    return sorted((check_path(picture, "input") for picture in pictures), key=_natural)


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """Sort key that puts `frame2` before `frame10`, folder by folder."""
    return [
        (
            [
                int(run) if i % 2 else run.casefold()
                for i, run in enumerate(re.split(r"(\d+)", part))
            ],
            part,
        )
        for part in path.parts
    ]


# --- read --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture as it is meant to be seen: upright and in sRGB."""

    rgb: Image.Image
    """Mode RGB."""
    alpha: Image.Image | None
    """Mode L, the size of `rgb`; None where every pixel is opaque."""
    path: Path
    size: tuple[int, int]
    """(width, height) of the whole picture; `rgb` may be smaller, see `read_picture`."""

    def on_white(self) -> Image.Image:
        """Mode RGB, over white where it is transparent."""
        return over_white(self.rgb, self.alpha)


def read_picture(path: str | Path, data: bytes | None = None, side: int | None = None) -> Picture:
    """Read the first frame of a picture, turned as its EXIF says and converted to sRGB from its ICC
    profile.

    data: the file's bytes where they are at hand; `path` is then only its name. side: the long
    side, in pixels, that the picture is needed at; one of more than LARGE pixels is then made
    smaller while it is read, to no less than twice that. 16-bit samples are scaled to 8 bits. Can
    be called in several threads. Raises InputError for whatever cannot be read whole, hostile bytes
    included, and for more than MAX_PIXELS pixels.
    """
    path = Path(path)
    with open_picture(path, data) as image:
        return _as_seen(*decode(image, side, own=True), path, side)


def read_header(path: str | Path) -> tuple[tuple[int, int], bool]:
    """((width, height) as it is shown, whether it may be transparent) of a picture, which is not
    decoded.

    Raises InputError as `read_picture` does, but not for damage behind the header.
    """
    with open_picture(Path(path)) as image:
        width, height = image.size
        # Pillow would decode a png in search of EXIF data behind its pixels
        turn = None if image.format == "PNG" and "exif" not in image.info else _turn(image)
        return (height, width) if turn in _SIDEWAYS else (
            width,
            height,
        ), image.has_transparency_data


def take_picture(image: Image.Image, name: str = "picture", side: int | None = None) -> Picture:
    """A picture held in memory, treated as `read_picture` treats a file; `image` is not changed.

    Of a file that Pillow opened it is the frame that was sought. `name` is for errors, which are
    those of a file.
    """
    described = f"{name} ({image.mode}, {image.width}x{image.height}, given as an image)"
    with readable(described):
        check_pixels(image, described)
        return _as_seen(*decode(image), Path(name), side)


def image_of(array: NDArray[np.generic]) -> Image.Image:
    """The picture in an array of uint8: (H, W) grey, (H, W, 3) RGB, or (H, W, 4) RGBA with straight
    alpha.

    Raises InputError for every other type or shape.
    """
    shape = " x ".join(map(str, array.shape)) or "no dimension"
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    ):
        raise InputError(
            f"an array of {array.dtype}, {shape}: give uint8 of (H, W), (H, W, 3) or (H, W, 4)"
        )
    if array.size == 0:
        raise InputError(f"an array of {shape} is an empty picture; give one with pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _convertible(image: Image.Image) -> Image.Image:
    """A picture in a mode that `to_srgb` takes."""
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image)
    if image.mode in ("1", "LA"):
        return image.convert("L")
    # those keep their mode for the sake of their profile
    return image if image.mode in ("L", "CMYK", "LAB") else image.convert("RGB")


def _as_seen(image: Image.Image, whole: tuple[int, int], path: Path, side: int | None) -> Picture:
    """What decoded pixels (which are not kept) look like. whole: (width, height) before they were
    made smaller."""
    if image.mode in _STRAIGHT:
        image = image.convert(_STRAIGHT[image.mode])
    if side is not None and image.width * image.height > LARGE and image.mode in _REDUCIBLE:
        image = _reduced(image, side)
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
        whole = whole[::-1] if turn in _SIDEWAYS else whole
    alpha = find_alpha(image)
    profile = image.info.get("icc_profile")
    gamma = None if "srgb" in image.info else image.info.get("gamma")
    code_points = image.info.get(CODE_POINTS)
    rgb = to_srgb(_convertible(image), profile, gamma, code_points)
    for part in (rgb, alpha):
        if part is not None:
            part.info.clear()  # Pillow would write the old profile and transparency with the result
    return Picture(rgb, alpha, path, whole)


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """Smaller by a whole factor, the long side no less than twice `side`; a colour that is hidden
    has no effect."""
    factor = max(image.size) // (2 * side)
    # means of a transparent colour and another would be neither
    if factor < 2 or "transparency" in image.info:
        return image
    smaller = image.reduce(factor)
    smaller.info = image.info
    return smaller


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF or XMP says that the picture is to be turned; damaged EXIF data counts as none."""
    # ImageOps.exif_transpose also rewrites the EXIF block, and fails on pictures where that cannot
    # be done.
    with suppress(SyntaxError, ValueError, TypeError, OSError, struct.error):
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats -> mode L. White is 65535 (floats: 1.0), or the largest
    value above that."""
    grey = np.asarray(image, dtype=np.float32)  # (H, W)
    white = max(
        1.0 if image.mode == "F" else 65535.0, float(grey.max(where=np.isfinite(grey), initial=0))
    )
    grey = np.nan_to_num(grey, posinf=white, neginf=0).clip(0, white)
    return Image.fromarray((grey * (255 / white)).round().astype(np.uint8))


# --- fit ---------------------------------------------------------------------------------------


# --- save --------------------------------------------------------------------------------------
