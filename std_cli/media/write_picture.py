"""Pictures written with what they were made with inside, and read back."""

import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image, PngImagePlugin

from std_cli.errors import InputError
from std_cli.media.open_picture import (
    open_picture,
)
from std_cli.paths import replace_file, try_file

_WRITE_FORMATS: dict[str, Literal["PNG", "JPEG", "WEBP"]] = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}
OUTPUT_SUFFIXES = tuple(_WRITE_FORMATS)
MOST_SIDE = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}
"""Pixels of a side that a format holds; png holds more than a picture may have."""
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


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Try, before any work, whether `save_picture` could write to `path`; raises its errors. Leaves
    nothing behind."""
    path = Path(path)
    _write_format(path)
    try_file(path, overwrite)


def save_picture(
    image: Image.Image,
    path: str | Path,
    metadata: Mapping[str, object],
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
    metadata: Mapping[str, object],
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


def xmp_packet(metadata: Mapping[str, object]) -> bytes:
    """XMP data that holds what JSON can hold of `metadata`, for `read_metadata`."""
    return _XMP.format(html.escape(json.dumps(metadata))).encode("ascii")


def _comment(text: str) -> bytes:
    """A text as an EXIF UserComment."""
    if text.isascii():
        return _ASCII_COMMENT + text.encode("ascii")
    return _UNICODE_COMMENT + text.encode("utf-16-be", "replace")
