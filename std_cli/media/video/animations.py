"""Animated gif, webp and png (APNG), by Pillow."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from PIL import GifImagePlugin, Image, PngImagePlugin, WebPImagePlugin

from std_cli.errors import InputError
from std_cli.media.open_picture import raised_limit, readable
from std_cli.media.video.clip import MAX_FRAME_PIXELS

ANIMATIONS = (".gif", ".webp", ".apng", ".png")

_Animation = (
    GifImagePlugin.GifImageFile | PngImagePlugin.PngImageFile | WebPImagePlugin.WebPImageFile
)


def measure(path: Path) -> tuple[tuple[int, int], list[Fraction], bool]:
    """((width, height), seconds of each frame, whether anything is transparent), all frames
    decoded.

    Raises InputError for what is damaged, and for more pixels than a picture may have.
    """
    with _opened(path) as image:
        size = image.size
        durations: list[Fraction] = []
        transparent = False
        for frame, duration in _each(image, size):
            durations.append(duration)
            transparent = transparent or frame.getchannel("A").tobytes().strip(b"\xff") != b""
    return size, durations, transparent


def frames(path: Path) -> Generator[tuple[Image.Image, Fraction], None, None]:
    """(a frame in mode RGBA, its seconds) in order. Errors as of `measure`."""
    with _opened(path) as image:
        yield from _each(image, image.size)


def is_still(path: Path) -> bool:
    """Whether a gif, webp or png has one frame only, by its header; False for what cannot be
    read."""
    try:
        with _opened(path) as image, readable(str(path)):
            return int(getattr(image, "n_frames", 1)) == 1
    except InputError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[_Animation]:
    name = repr(str(path))
    with raised_limit():
        with readable(name):
            image = Image.open(path, formats=("GIF", "WEBP", "PNG"))
        with image:
            _check_pixels(image, name)
            yield image  # type: ignore[misc]


def _check_pixels(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if pixels > MAX_FRAME_PIXELS:
        raise InputError(
            f"{name} has {pixels} pixels, more than the limit of {MAX_FRAME_PIXELS} for "
            f"animations; scale it down"
        )


def _each(image: _Animation, size: tuple[int, int]) -> Iterator[tuple[Image.Image, Fraction]]:
    name = repr(str(image.filename))
    with readable(name):  # of a gif all frames are looked at
        count: int = getattr(image, "n_frames", 1)
    # an APNG's picture for programs that show no animations
    hidden = count > 1 and bool(getattr(image, "default_image", False))
    for number in range(int(hidden), count):
        with readable(name):
            image.seek(number)
            _check_pixels(image, name)  # a gif's frame may be larger than its canvas
            image.load()  # webp has the duration only then
            frame = image.convert("RGBA")
        if frame.size != size:
            frame = frame.crop((0, 0, *size))
        yield frame, _duration(image)


def _duration(image: _Animation) -> Fraction:
    """Of the current frame, seconds; browsers show 10 ms and less for 100."""
    given = image.info.get("duration")
    ms = given if isinstance(given, int | float) and given else 100.0
    return Fraction(round(ms) if ms > 10 else 100, 1000)
