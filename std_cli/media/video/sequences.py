"""A folder of pictures as a video."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from std_cli.errors import InputError, StdError
from std_cli.media.pictures import Picture, expand_inputs, read_header, read_picture


def measure(folder: Path) -> tuple[tuple[int, int], int, bool, list[str]]:
    """((width, height), count of pictures, whether any may be transparent, notices), from the
    pictures' headers.

    Raises InputError if a picture cannot be read, or has another size than the first.
    """
    pictures = expand_inputs([folder])
    first, transparent = read_header(pictures[0])
    for path in pictures[1:]:
        size, alpha = read_header(path)
        transparent = transparent or alpha
        if size != first:
            raise _another_size(path, size, first)
    return first, len(pictures), transparent, _missing_numbers(folder, pictures)


def pictures_of(folder: Path, size: tuple[int, int]) -> Iterator[Picture]:
    """The pictures in natural order. Raises StdError for one that cannot be read, or has not the
    size."""
    for path in expand_inputs([folder]):
        try:
            picture = read_picture(path)
        except InputError as e:  # it could be read when the work began
            raise StdError(str(e)) from None
        if picture.rgb.size != size:
            raise StdError(str(_another_size(path, picture.rgb.size, size)))
        yield picture


def _another_size(path: Path, size: tuple[int, int], first: tuple[int, int]) -> InputError:
    return InputError(
        f"{str(path)!r} is {size[0]}x{size[1]}, the first picture of its folder "
        f"{first[0]}x{first[1]}; "
        "make them one size"
    )


def _missing_numbers(folder: Path, pictures: list[Path]) -> list[str]:
    """A notice where the last numbers of the names, which are otherwise alike, leave some out."""
    parts = [re.fullmatch(r"(.*?)(\d+)(\D*)", path.name) for path in pictures]
    if len({(m[1], m[3].lower()) if m else None for m in parts}) != 1 or parts[0] is None:
        return []
    numbers = [int(m[2]) for m in parts if m]
    gaps = [(a + 1, b - 1) for a, b in pairwise(numbers) if b - a > 1]
    steps = {b - a for a, b in pairwise(numbers)}
    if not gaps or len(steps) == 1:  # such as 0, 10, 20
        return []
    missing = sum(b - a + 1 for a, b in gaps)
    ranges = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in gaps[:3]) + (
        ", ..." if len(gaps) > 3 else ""
    )
    return [
        f"{folder.name} lacks {missing} number{'s' if missing > 1 else ''} of its sequence "
        f"({ranges}): "
        "its pictures follow each other without a gap"
    ]
