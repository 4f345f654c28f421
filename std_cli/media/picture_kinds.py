"""Which kinds of picture can be read, and what to say of those that cannot."""

import importlib.util
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from std_cli.errors import counted

# Formats that are known by their first bytes and decoded in-process; EPS, for one, would start
# Ghostscript.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_IS_READ = importlib.util.find_spec("pillow_heif") is not None
PICTURE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".gif",
    ".tif", ".tiff",
    ".jp2", ".ppm", ".pgm", ".pbm",
}) | (_HEIF_SUFFIXES if HEIF_IS_READ else frozenset())  # fmt: skip

# A camera's raw file is a TIFF in most cases, which would open as its thumbnail.
_RAW_SUFFIXES = frozenset({
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc",
    ".mef", ".mos",
    ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
})  # fmt: skip
_OTHER_SUFFIXES = frozenset({
    ".ai", ".bpg", ".cdr", ".clip", ".dds", ".dpx", ".emf", ".eps", ".exr", ".flif", ".hdr",
    ".heics", ".heifs", ".ico",
    ".j2c", ".j2k", ".jpf", ".jpx", ".jxl", ".jxr", ".kra", ".ora", ".pam", ".pcx", ".pfm",
    ".pict", ".psb", ".psd",
    ".qoi", ".sgi", ".svg", ".svgz", ".tga", ".wdp", ".wmf", ".xcf",
})  # fmt: skip


@cache
def read_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read, with HEIF where pillow-heif is installed."""
    if not HEIF_IS_READ:
        return _READ_FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*_READ_FORMATS, "HEIF")


def why_unreadable(suffix: str) -> str | None:
    """What to do about a picture of a kind that cannot be read; None for a suffix that is of no
    such kind."""
    suffix = suffix.lower()
    if suffix in _HEIF_SUFFIXES - PICTURE_SUFFIXES:
        return "pip install 'std-cli[heif]'"
    if suffix in _RAW_SUFFIXES:
        return "develop to tiff or jpeg first"
    return "convert to png or jpeg first" if suffix in _OTHER_SUFFIXES else None


def left_out(files: Iterable[Path]) -> str:
    """Count the files that are pictures of kinds that cannot be read: "3 .heic pictures (remedy)";
    "" if none is."""
    counts = Counter(file.suffix.lower() for file in files if why_unreadable(file.suffix))
    return " and ".join(
        f"{counted(count, f'{suffix} picture')} ({why_unreadable(suffix)})"
        for suffix, count in sorted(counts.items())
    )
