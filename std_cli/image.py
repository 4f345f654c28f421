"""Pictures in and out: find them, read them, fit them to the network's size and back, save them safely.

Pictures are Pillow images of 8 bits per channel, sizes are (width, height). Only Pillow and numpy are imported here.
"""

import errno
import glob
import io
import json
import logging
import math
import os
import re
import shutil
import stat
import struct
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from std_cli.errors import InputError, StdError
from std_cli.paths import check_path, user_path

# Formats that are told by their first bytes and decoded in-process; EPS, for one, would start Ghostscript.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
PICTURE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff",
    ".jp2", ".ppm", ".pgm", ".pbm",
})  # fmt: skip
_WRITE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
OUTPUT_SUFFIXES = tuple(_WRITE_FORMATS)

MULTIPLE = 8  # the VAE's downsampling factor
MIN_SIDE, MAX_SIDE = 64, 8192

_METADATA_KEY = "std"
_ASCII_COMMENT = b"ASCII\0\0\0"  # the character code that starts every UserComment (Exif 2.32, tag 0x9286)

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP
}  # fmt: skip

# Pillow logs some damage as well as raising it; without a handler Python would print that as a second line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


# --- find ------------------------------------------------------------------------------------------------------------


def expand_inputs(
    inputs: Sequence[str | Path], suffixes: frozenset[str] = PICTURE_SUFFIXES, what: str = "picture"
) -> list[Path]:
    """The pictures (or other files, by suffix) that files, folders and glob patterns name: in the order given, once.

    A folder stands for the pictures directly inside it, a pattern (`*`, `?`, `[...]`, `**`) for the pictures that it
    matches, both in natural order and without hidden files. A name that exists is never read as a pattern.
    Raises InputError for a path that does not exist, and for a folder or pattern without pictures.
    """
    found: dict[tuple[Path, str], Path] = {}
    for item in inputs:
        for path in _expand(item, suffixes, what):
            found.setdefault((path.parent.resolve(), path.name), path)
    return list(found.values())


def _expand(item: str | Path, suffixes: frozenset[str], what: str) -> list[Path]:
    path = user_path(item, "input")
    text = str(path)
    if os.path.isdir(path):
        try:
            inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        except OSError as err:
            raise InputError(f"cannot list folder {text!r}: {err.strerror}; check its permissions") from err
        missing = f"no {what}s in folder {text!r}; its subfolders are not searched, a pattern such as '**/*.png' is"
    elif os.path.exists(path):
        return [path]
    elif glob.has_magic(text):
        inside = [Path(match) for match in glob.glob(text, recursive=True)]
        missing = f"no {what}s match {text!r}; check the pattern and the folder that it starts from"
    else:
        raise InputError(f"no such file or folder: {text!r}; check the path")
    pictures = [entry for entry in inside if entry.suffix.lower() in suffixes and os.path.isfile(entry)]
    if not pictures:
        raise InputError(missing)
    return sorted((check_path(picture, "input") for picture in pictures), key=_natural)


def _natural(path: Path) -> list[tuple[list[str | int], str]]:
    """Sort key that puts `frame2` before `frame10`, folder by folder."""
    return [
        ([int(run) if i % 2 else run.casefold() for i, run in enumerate(re.split(r"(\d+)", part))], part)
        for part in path.parts
    ]


# --- read ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture as it is meant to be seen: upright and in sRGB."""

    rgb: Image.Image
    """Mode RGB."""
    alpha: Image.Image | None
    """Mode L, the size of `rgb`; None where every pixel is opaque."""
    path: Path


def read_picture(path: str | Path, data: bytes | None = None) -> Picture:
    """Read the first frame of a picture, turned as its EXIF says and converted to sRGB from its ICC profile.

    data: the file's bytes where they are at hand; `path` is then only its name. 16-bit grey is scaled to 8 bits. Can
    be called in several threads. Raises InputError for whatever cannot be read whole, hostile bytes included.
    """
    path = Path(path)
    with _opened(path, data) as opened:
        image = _upright(opened)
        alpha = _alpha(image)
        profile = image.info.get("icc_profile")
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        elif image.mode in ("1", "LA"):
            image = image.convert("L")
        elif image.mode not in ("L", "CMYK"):  # those two keep their mode for the sake of their profile
            image = image.convert("RGB")
        rgb = _to_srgb(image, profile)
    for part in (rgb, alpha):
        if part is not None:
            part.info.clear()  # Pillow would write the old profile and transparency with the result
    return Picture(rgb, alpha, path)


@contextmanager
def _opened(path: Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """The decoded first frame of `path`; any error here or in the body of the `with` becomes an InputError."""
    name = repr(str(path))
    try:
        with _bytes_of(path, data) as file, _no_warnings(), Image.open(file, formats=_READ_FORMATS) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(f"{pixels} pixels")
            image.load()
            yield image
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError) as err:
        raise InputError(f"no such picture: {name}; check the path") from err
    except PermissionError as err:
        raise InputError(f"no permission to read {name}; change its permissions") from err
    except UnidentifiedImageError as err:
        known = ", ".join(_READ_FORMATS).lower()
        raise InputError(f"{name} is not a picture that can be read; convert it to one of {known}") from err
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as err:
        pixels, limit = re.findall(r"\d+", str(err))[0], Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name} has {pixels} pixels, more than the limit of {limit}; scale it down") from err
    except Exception as err:  # on hostile bytes Pillow's decoders raise nearly every built-in exception
        reason = " ".join("".join(c if c.isprintable() else " " for c in str(err)).split()) or type(err).__name__
        raise InputError(f"{name} is damaged or of an unsupported kind ({reason}); export it again") from err


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


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What Pillow warns of is of no use to the user."""
    if threading.current_thread() is not threading.main_thread():
        # The filters belong to the process: of two threads that put them back, one would bring back the other's.
        warnings.filterwarnings("ignore", module="PIL")
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF or XMP says; damaged EXIF data counts as none."""
    # ImageOps.exif_transpose also rewrites the EXIF block, and fails on pictures where that cannot be done.
    orientation = 1
    with suppress(SyntaxError, ValueError, TypeError, OSError, struct.error):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _alpha(image: Image.Image) -> Image.Image | None:
    """The transparency in mode L, from a channel, a palette or a transparent colour; None if all is opaque."""
    if not image.has_transparency_data:
        return None
    if image.mode.startswith("I"):  # Pillow clips 16-bit grey before it looks for the transparent value
        opaque = np.asarray(image) != image.info["transparency"]  # (H, W)
        alpha = Image.fromarray(opaque.astype(np.uint8) * 255)
    else:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats -> mode L. White is 65535 (floats: 1.0), or the largest value above that."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32))  # (H, W)
    white = max(1.0 if image.mode == "F" else 65535.0, float(grey.max()))
    return Image.fromarray((grey.clip(0, white) * (255 / white)).round().astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK -> RGB, through the embedded profile unless that is sRGB, damaged or for another mode."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            description = ImageCms.getProfileDescription(source)
            if "sRGB" not in description or "linear" in description.lower():
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
                if converted is not None:
                    return converted
    return image.convert("RGB")


# --- fit -------------------------------------------------------------------------------------------------------------


def working_size(width: int, height: int, size: tuple[int, int] | int | None, base: int, area: bool) -> tuple[int, int]:
    """The size that the network sees for a picture of `width` x `height`.

    `size` (W, H) is taken as it is; N makes the long side N; None keeps `base * base` pixels if `area`, else makes the
    long side `base`. All but (W, H) keep the aspect. Each side is then rounded on its own to the nearest multiple of 8,
    halves up, and raised to 64 if it is less. Raises InputError for a side above 8192 and for sizes below 1.
    """
    if isinstance(size, tuple):
        wanted: tuple[float, float] = size
    else:
        target = base if size is None else size
        reference = math.sqrt(width * height) if size is None and area else max(width, height)
        wanted = (width * target / reference, height * target / reference)  # in this order halves stay exact
    if min(wanted) <= 0:
        raise InputError(f"--size {size} is not above 0; give a number of pixels, or WxH")
    w, h = (max(MIN_SIDE, math.floor(side / MULTIPLE + 0.5) * MULTIPLE) for side in wanted)
    if max(w, h) > MAX_SIDE:
        raise InputError(
            f"a picture of {width}x{height} would be worked on at {w}x{h}, where a side may have {MAX_SIDE} pixels; "
            "choose a smaller --size or crop the picture"
        )
    return w, h


@dataclass(frozen=True)
class Fit:
    """Where a picture lies in the working size: scaled to fit inside with its aspect kept, centred, padded around."""

    size: tuple[int, int]
    """The working size."""
    box: tuple[int, int, int, int]
    """The picture inside it: left, top, right, bottom."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale (Lanczos) and pad by reflection to the working size; a picture of that size is returned as it is."""
        if fit_to(*image.size, self.size) != self:
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
    """How a picture of `width` x `height` fits into the working `size`; at least one side fills it."""
    scale = min(size[0] / width, size[1] / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - w) // 2, (size[1] - h) // 2
    return Fit(size, (left, top, left + w, top + h))


# --- save ------------------------------------------------------------------------------------------------------------


def attach_alpha(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB with the input's alpha (mode L, any size) put back -> RGBA of the size of `rgb`."""
    if alpha.size != rgb.size:
        alpha = alpha.resize(rgb.size, Image.Resampling.BILINEAR)  # Lanczos rings: opaque parts would become less so
    result = rgb.convert("RGBA")
    result.putalpha(alpha)
    return result


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Try, before any work, whether `save_picture` could write to `path`; raises its errors. Leaves nothing behind."""
    path = Path(path)
    _write_format(path)
    if os.path.isdir(path):
        raise InputError(f"output {str(path)!r} is a folder; name a file inside it")
    with writing(path):
        with suppress(FileNotFoundError):
            path.lstat()
            if not overwrite:
                raise FileExistsError
        probe = hidden_beside(path)
        probe.open("xb").close()
        probe.unlink()


def save_picture(image: Image.Image, path: str | Path, metadata: dict[str, Any], overwrite: bool) -> None:
    """Write an RGB or RGBA picture with `metadata` (what JSON can hold) inside; `read_metadata` gives it back.

    The suffix chooses the format; jpg, which has no alpha, is composited over white. The file appears whole or not at
    all, and without `overwrite` never in place of another, even one made meanwhile. Raises InputError if the file
    exists, its folder is unusable or its suffix unknown, StdError if the disk is full or writing fails otherwise.
    """
    path = Path(path)
    replace_file(path, _encode(image, _write_format(path), metadata), overwrite)


def replace_file(path: Path, data: bytes, overwrite: bool = True) -> None:
    """Write a file so that it appears whole, and is on the disk, or not at all. Errors as of `save_picture`."""
    temporary = hidden_beside(path)
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            move(temporary, path, overwrite)
        finally:
            with suppress(OSError):  # gone if it was moved, or never made
                temporary.unlink()


def move(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file or folder its name; without `overwrite` only if nothing has it. Raises OSError."""
    if temporary.is_dir():
        old = hidden_beside(path)
        if overwrite and path.exists():
            os.replace(path, old)
        os.rename(temporary, path)  # never onto a folder that has something in it
        if old.exists():
            shutil.rmtree(old)
    elif overwrite:
        os.replace(temporary, path)
    else:
        _move_to_new(temporary, path)


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """What `save_picture` stored in a png, jpg or webp; None in pictures of other origin. InputError as on reading."""
    with _opened(Path(path)) as image:
        text = image.info.get(_METADATA_KEY)
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    try:
        if isinstance(text, str):
            found = json.loads(text)
        elif isinstance(comment, bytes) and comment.startswith(_ASCII_COMMENT):
            found = json.loads(comment.removeprefix(_ASCII_COMMENT))[_METADATA_KEY]
        else:
            return None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):  # another program's comment
        return None
    return found if isinstance(found, dict) else None


def _write_format(path: Path) -> str:
    try:
        return _WRITE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(OUTPUT_SUFFIXES)
        raise InputError(f"output {str(path)!r} has an unknown suffix {path.suffix!r}; use one of {known}") from None


def _encode(image: Image.Image, kind: str, metadata: dict[str, Any]) -> bytes:
    """The bytes of the file. In memory, so that every OSError of the writing is the disk's."""
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")  # a copy, whose info can be cleared
    image.info.clear()
    if kind == "JPEG" and image.mode == "RGBA":
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    buffer = io.BytesIO()
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(_METADATA_KEY, json.dumps(metadata))
        image.save(buffer, kind, pnginfo=chunks)
    else:
        exif = Image.Exif()
        # JSON escapes what is not ASCII: no need for the UNICODE code, whose byte order readers disagree on.
        comment = _ASCII_COMMENT + json.dumps({_METADATA_KEY: metadata}).encode("ascii")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        options = {"subsampling": 0} if kind == "JPEG" else {"method": 4}
        image.save(buffer, kind, quality=95, exif=exif, **options)
    return buffer.getvalue()


def hidden_beside(path: Path) -> Path:
    # Not named after `path`, whose name may already be as long as the file system allows.
    return path.with_name(f".std-{uuid.uuid4().hex}.tmp")


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a finished file its name only if no file has that name. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (FAT, some network folders): claim the name with an empty file
        path.open("xb").close()
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the operating system's errors while `path` is written."""
    name = repr(str(path))
    try:
        yield
    except FileExistsError as err:
        raise InputError(f"output {name} exists; pass --overwrite to replace it, or name another file") from err
    except OSError as err:
        if err.errno in _FULL_DISK:
            raise StdError(f"disk full while writing {name} ({err.strerror}); free some space and run again") from err
        if err.errno in _UNWRITABLE:
            raise InputError(f"cannot write {name}: {err.strerror}; use a folder that exists and is writable") from err
        raise StdError(f"cannot write {name}: {err.strerror or err}; check the disk") from err
