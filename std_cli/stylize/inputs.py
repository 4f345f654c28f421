"""Which files the inputs of a request stand for, and what is left out of folders and patterns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from std_cli.errors import InputError
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import expand_inputs
from std_cli.media.video.animations import ANIMATIONS, is_still
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.media.write_picture import OUTPUT_SUFFIXES
from std_cli.paths import user_path
from std_cli.storage.scratch import LOCAL_ONLY, Scratch
from std_cli.stylize.outputs import identity
from std_cli.stylize.settings import read_settings


def files_of(
    item: str | Path,
    suffixes: frozenset[str],
    what: str,
    references: Sequence[Path],
    notices: list[str],
    scratch: Scratch = LOCAL_ONLY,
) -> list[Path]:
    """The files that an input stands for: itself, or those that a folder holds or a pattern
    matches, without the style references and the results of std.

    what: "picture" or "video", for messages. `notices` receives a line for what is left out. A file
    that is named is always taken. Results whose content is in a storage are known by their names.
    Raises InputError if nothing is left.
    """
    found = expand_inputs([item], suffixes, what, notices)
    if found == [user_path(item, "input")]:
        if found[0].suffix.lower() in ANIMATIONS:
            scratch.fetch(found)
        _check_kind(found[0], what)
        return found
    stems = {path.stem for path in found}

    def is_result(path: Path) -> bool:
        if scratch.is_empty(path):
            return path.stem.endswith("_stylized") and path.stem[: -len("_stylized")] in stems
        return _is_result(path)

    styles = {identity(path) for path in references if path.exists()}
    kept = found
    for is_left_out, reason in (
        (lambda path: identity(path) in styles, "which --style names"),
        (is_result, "which std wrote"),
    ):
        kept = _without(kept, is_left_out, reason, item, notices)
    if not kept:
        raise InputError(
            f"no {what}s are left in {str(item)!r} without the style references and the results "
            f"of std: name files to take them all the same"
        )
    return kept


def kind_of(path: Path) -> Literal["image", "video"] | None:
    """Which command stylizes a file or folder, by its suffix or what it holds; None if it is
    neither a picture nor a video."""
    if path.is_dir():
        inside = {kind_of(file) for file in path.iterdir() if file.is_file()}
        return "video" if "video" in inside else "image"
    suffix = path.suffix.lower()
    return "image" if suffix in PICTURE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _check_kind(path: Path, what: str) -> None:
    """Raises InputError for a picture in place of a video, or the reverse."""
    suffix = path.suffix.lower()
    if what == "picture" and suffix in VIDEO_SUFFIXES - PICTURE_SUFFIXES:
        raise InputError(f"{str(path)!r} is a video: use std stylize video")
    still = is_still(path) if suffix in ANIMATIONS else suffix in PICTURE_SUFFIXES - VIDEO_SUFFIXES
    if what == "video" and still:
        raise InputError(f"{str(path)!r} is a picture: use std stylize image")


def _without(
    found: list[Path],
    is_left_out: Callable[[Path], bool],
    reason: str,
    item: str | Path,
    notices: list[str],
) -> list[Path]:
    gone = [path for path in found if is_left_out(path)]
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        notices.append(
            f"{item}: left out: {gone[0].name}{more}, {reason}; name a file to take it all the same"
        )
    left_out = set(gone)
    return [path for path in found if path not in left_out]


def _is_result(path: Path) -> bool:
    if path.suffix.lower() not in VIDEO_SUFFIXES.union(OUTPUT_SUFFIXES):
        return False
    try:
        return read_settings(path) is not None
    except InputError:  # it cannot be read: said where it is to be
        return False
