"""Pictures in and out: find them, read them, fit them to the network's size and back, save them
safely.

Pictures are Pillow images of 8 bits per channel, sizes are (width, height). Only Pillow and numpy
are imported here.
"""

import glob
import html
import io
import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

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
from std_cli.media.transparency import fill_hidden, find_alpha
from std_cli.paths import check_path, replace_file, try_file, user_path

_WRITE_FORMATS: dict[str, Literal["PNG", "JPEG", "WEBP"]] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}
OUTPUT_SUFFIXES = tuple(_WRITE_FORMATS)
MOST_SIDE = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
"""Pixels of a side that a format holds; png holds more than a picture may have."""

MULTIPLE = 8  # the VAE's downsampling factor
MIN_SIDE, MAX_SIDE = 64, 8192

_METADATA_KEY = "std"
_PARAMETERS_KEY = "parameters"
"""The text chunk in which other tools look for what a picture was made with."""
# the character code that starts every UserComment (Exif 2.32, tag 0x9286); readers take UNICODE as
# UTF-16 with the high byte first
_ASCII_COMMENT = b"ASCII\0\0\0"
_UNICODE_COMMENT = b"UNICODE\0"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:std="urn:std-cli" std:record="{}"/>'
    "</rdf:RDF></x:xmpmeta>"
)
"""The XMP packet of a jpg or webp (ISO 16684-1)."""
_XMP_RECORD = re.compile(rb'std:record="([^"<]*)"')


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
    if os.path.isdir(path):
        try:
            inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        except OSError as err:
            raise InputError(
                f"cannot list folder {text!r}: {err.strerror}; check its permissions"
            ) from err
        missing = (
            f"no {what}s in folder {text!r}; its subfolders are not searched, a pattern "
            f"such as '**/*.png' is"
        )
    elif os.path.exists(path):
        return [path]
    elif glob.has_magic(text):
        inside = [Path(match) for match in glob.glob(text, recursive=True)]
        missing = f"no {what}s match {text!r}; check the pattern and the folder that it starts from"
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
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    elif image.mode in ("1", "LA"):
        image = image.convert("L")
    # those keep their mode for the sake of their profile
    elif image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    rgb = to_srgb(image, profile, gamma, code_points)
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


def working_size(
    width: int, height: int, size: tuple[int, int] | int | None, base: int, area: bool
) -> tuple[int, int]:
    """The size that the network sees for a picture of `width` x `height`.

    `size` (W, H) is taken as it is; N makes the long side N; None keeps `base * base` pixels if
    `area`, else makes the long side `base`. All but (W, H) keep the aspect. Each side is then
    rounded on its own to the nearest multiple of 8, halves up, and raised to 64 if it is less.
    Raises InputError for a side above 8192 and for sizes below 1.
    """
    if isinstance(size, tuple):
        wanted: tuple[float, float] = size
    else:
        target = base if size is None else size
        reference = math.sqrt(width * height) if size is None and area else max(width, height)
        # in this order halves stay exact
        wanted = (width * target / reference, height * target / reference)
    if min(wanted) <= 0:
        raise InputError(f"--size {size} is not above 0; give a number of pixels, or WxH")
    w, h = (max(MIN_SIDE, math.floor(side / MULTIPLE + 0.5) * MULTIPLE) for side in wanted)
    if max(w, h) > MAX_SIDE:
        raise InputError(
            f"a picture of {width}x{height} would be worked on at {w}x{h}, where a side may have "
            f"{MAX_SIDE} pixels; "
            "choose a smaller --size or crop the picture"
        )
    return w, h


@dataclass(frozen=True)
class Fit:
    """Where a picture lies in the working size: scaled to fit inside with its aspect kept, centred,
    padded around."""

    size: tuple[int, int]
    """The working size."""
    box: tuple[int, int, int, int]
    """The picture inside it: left, top, right, bottom."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale (Lanczos) and pad by reflection to the working size; a picture of that size is
        returned as it is."""
        box = fit_to(*image.size, self.size).box
        # One pixel of difference: a picture made smaller while it was read has its sides rounded.
        if max(abs(a - b) for a, b in zip(box, self.box, strict=True)) > 1:
            raise ValueError(f"a picture of {image.size} would be stretched to {self}")
        left, top, right, bottom = self.box
        inner = (right - left, bottom - top)
        if image.size != inner:
            image = image.resize(inner, Image.Resampling.LANCZOS)
        if inner == self.size:
            return image
        pixels = np.asarray(image)  # (h, w[, C]) -> (H, W[, C])
        around = [(top, self.size[1] - bottom), (left, self.size[0] - right), (0, 0)]
        return Image.fromarray(np.pad(pixels, around[: pixels.ndim], mode="symmetric"))

    def undo(self, image: Image.Image) -> Image.Image:
        """Crop a picture of the working size back to the input's aspect."""
        if image.size != self.size:
            raise ValueError(f"a picture of {image.size} is not of the working size {self.size}")
        return image if self.box == (0, 0, *self.size) else image.crop(self.box)


def fit_to(width: int, height: int, size: tuple[int, int]) -> Fit:
    """How a picture of `width` x `height` fits into the working `size`; at least one side fills
    it."""
    scale = min(size[0] / width, size[1] / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return Fit(size, (left, top, left + w, top + h))


def seen(picture: Picture, fit: Fit) -> Image.Image:
    """What the network sees of a picture: RGB of the working size, on which hidden colours have no
    effect."""
    if picture.alpha is None:
        return fit.apply(picture.rgb)
    rgba = picture.rgb.copy()
    rgba.putalpha(picture.alpha)
    return fill_hidden(fit.apply(rgba))  # Pillow scales RGBA premultiplied


# --- save --------------------------------------------------------------------------------------


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Try, before any work, whether `save_picture` could write to `path`; raises its errors. Leaves
    nothing behind."""
    path = Path(path)
    _write_format(path)
    try_file(path, overwrite)


def save_picture(
    image: Image.Image,
    path: str | Path,
    metadata: dict[str, Any],
    overwrite: bool,
    parameters: str = "",
) -> None:
    """Write an RGB or RGBA picture with `metadata` (what JSON can hold) inside; `read_metadata`
    gives it back. parameters: a text for other tools, see `stylize.parameters`.

    The suffix chooses the format; jpg, which has no alpha, is composited over white. The file
    appears whole or not at all, and without `overwrite` never in place of another, even one made
    meanwhile. Raises InputError if the file exists, its folder is unusable or its suffix unknown,
    StdError if the disk is full or writing fails otherwise.
    """
    path = Path(path)
    data = encode_picture(image, _write_format(path), metadata, parameters)
    replace_file(path, data, overwrite)


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """What `save_picture` stored in a png, jpg or webp; None in pictures of other origin.
    InputError as on reading."""
    # what std writes stands before the pixels, which are not decoded
    with open_picture(Path(path)) as image:
        text = image.info.get(_METADATA_KEY)
        packet = image.info.get("xmp")
    if isinstance(packet, bytes) and (match := _XMP_RECORD.search(packet)):
        text = html.unescape(match[1].decode("utf-8", "replace"))
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # another program's text
        return None
    return found if isinstance(found, dict) else None


def _write_format(path: Path) -> Literal["PNG", "JPEG", "WEBP"]:
    try:
        return _WRITE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(OUTPUT_SUFFIXES)
        raise InputError(
            f"output {str(path)!r} has an unknown suffix {path.suffix!r}; use one of {known}"
        ) from None


def encode_picture(
    image: Image.Image,
    kind: Literal["PNG", "JPEG", "WEBP"],
    metadata: dict[str, Any],
    parameters: str = "",
) -> bytes:
    """The bytes of the file, as of `save_picture`. In memory, so that every OSError of the writing
    is the disk's."""
    # a copy, whose info can be cleared
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.info.clear()
    if kind == "JPEG" and image.mode == "RGBA":
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    buffer = io.BytesIO()
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(_METADATA_KEY, json.dumps(metadata))
        if parameters:  # Latin-1 goes into tEXt, all else into iTXt
            chunks.add_text(_PARAMETERS_KEY, parameters)
        image.save(buffer, kind, pnginfo=chunks)
    else:
        exif = Image.Exif()
        if parameters:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _comment(parameters)
        options = {"subsampling": 0} if kind == "JPEG" else {"method": 4}
        image.save(buffer, kind, quality=95, exif=exif, xmp=xmp_packet(metadata), **options)
    return buffer.getvalue()


def xmp_packet(metadata: Mapping[str, Any]) -> bytes:
    """XMP data that holds what JSON can hold of `metadata`, for `read_metadata`."""
    return _XMP.format(html.escape(json.dumps(metadata))).encode("ascii")


def _comment(text: str) -> bytes:
    """A text as an EXIF UserComment."""
    if text.isascii():
        return _ASCII_COMMENT + text.encode("ascii")
    return _UNICODE_COMMENT + text.encode("utf-16-be", "replace")
