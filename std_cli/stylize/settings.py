"""The settings that a result keeps: read back from a picture, a video, or a folder of frames."""

import json
from pathlib import Path
from typing import Any

from std_cli.errors import InputError
from std_cli.media.video.join import read_comment
from std_cli.media.write_picture import OUTPUT_SUFFIXES, read_metadata
from std_cli.paths import user_path

_DEPTH = 10
"""Tables and lists inside each other that a record has at most; what reads it is recursive."""


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """What `std` stored in one of its results; None in a file of other origin.

    A dictionary with "version", "model", "lora", "device", "dtype", "input", "settings" (all of
    them, resolved, by name) and "origin" (paths as they were given, the input's hash, options that
    became something else); of a video also "frames", "seam_ratio" and "flicker". A video has it
    in the comment of its container, a folder of frames in std.json.
    Raises InputError for what is neither a picture nor a video.
    """
    file = user_path(path, "path")
    if file.is_dir():
        return _of_folder(file)
    if file.suffix.lower() in OUTPUT_SUFFIXES and (found := _of_picture(file)) is not None:
        return found
    if not file.is_file():
        raise InputError(f"no such file: {str(path)!r}; check the path")
    try:
        return read_comment(file)
    except InputError:
        return read_metadata(file)  # says what is wrong with a picture


def read_record(path: str | Path) -> dict[str, Any]:
    """As `read_settings`, but raises InputError for a file of other origin, too."""
    found = read_settings(path)
    if found is None:
        raise InputError(
            f"{str(path)!r} carries no record of std: another program made it, or removed the "
            "record; give a file as std wrote it"
        )
    if _is_deep(found, _DEPTH):
        raise InputError(f"{str(path)!r}: its record is damaged: give a file as std wrote it")
    return found


def _is_deep(value: object, most: int) -> bool:
    """Whether lists and tables are inside each other more than `most` times."""
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_is_deep(each, most - 1) for each in inside)


def _of_picture(file: Path) -> dict[str, Any] | None:
    try:
        return read_metadata(file)
    except InputError:  # an animation that only the video reader knows
        return None


def _of_folder(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / "std.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise InputError(f"{str(folder / 'std.json')!r} cannot be read ({e}); check it") from None
    record = found.get("std") if isinstance(found, dict) else None
    return record if isinstance(record, dict) else None
