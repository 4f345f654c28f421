"""What is stylized, in which styles, and what other tools made of it: files, checked at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from std_cli.errors import InputError, counted
from std_cli.media.picture_kinds import PICTURE_SUFFIXES, why_unreadable
from std_cli.media.pictures import expand_inputs, read_picture
from std_cli.media.video.animations import ANIMATIONS, is_still
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.paths import user_path
from std_cli.stylize.outputs import identity

Kind = Literal["picture", "clip"]


@dataclass(frozen=True)
class Subject:
    """A content or a style."""

    name: str
    """Its file's name without the suffix."""
    path: Path
    kind: Kind


def find_contents(
    items: Sequence[str], styles: Sequence[Subject], notices: list[str]
) -> list[Subject]:
    """The pictures and videos that are named; of folders and patterns without the styles. Raises
    InputError for one that cannot be read, and for two of one name."""
    suffixes = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    references = {identity(style.path) for style in styles}
    paths: dict[tuple[Path, str], Path] = {}
    for item in items:
        inside = expand_inputs([item], suffixes, "picture or video", notices)
        named = inside == [user_path(item, "content")]
        kept = [path for path in inside if named or identity(path) not in references]
        if not kept:
            raise InputError(f"{item}: all of its pictures are styles: name other contents")
        if left_out := counted(len(inside) - len(kept), "picture") if kept != inside else "":
            notices.append(f"{item}: left out: {left_out} that --style names")
        for path in kept:
            paths.setdefault((path.parent.resolve(), path.name), path)
    found = [Subject(path.stem, path, kind_of(path)) for path in paths.values()]
    _check_distinct(found, "contents")
    for subject in found:
        check_readable(subject.path, subject.kind)
    return found


def find_styles(items: Sequence[str], notices: list[str]) -> list[Subject]:
    """The reference pictures that are named. Raises InputError as `find_contents`."""
    paths = expand_inputs([user_path(item, "--style") for item in items], notices=notices)
    found = [Subject(path.stem, path, "picture") for path in paths]
    _check_distinct(found, "styles")
    for subject in found:
        check_readable(subject.path, "picture", "--style: ")
    return found


def find_results(
    folder: Path, name: str, contents: Sequence[Subject], styles: Sequence[Subject]
) -> dict[tuple[str, str], Path]:
    """The results of another tool by (content, style): files named CONTENT--STYLE, or CONTENT where
    there is one style.

    Raises InputError for a folder without files, and where results are missing or cannot be read.
    """
    where = f"--against {folder}={name}"
    if not folder.is_dir():
        raise InputError(f"{where}: no such folder; check the path")
    suffixes = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    files = {
        file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes
    }
    if not files:
        raise InputError(f"{where}: no pictures or videos are in the folder; check the path")
    found, missing = {}, []
    for content in contents:
        for style in styles:
            file = files.get(f"{content.name}--{style.name}")
            if file is None and len(styles) == 1:
                file = files.get(content.name)
            if file is None:
                missing.append(f"{content.name}--{style.name}")
                continue
            if kind_of(file) != content.kind:
                raise InputError(f"{where}: {file.name} is a {kind_of(file)}, and the content is a "
                                 f"{content.kind}: give results of the same kind")  # fmt: skip
            check_readable(file, content.kind, f"{where}: ")
            found[content.name, style.name] = file
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        names = ", ".join(missing[:3])
        raise InputError(
            f"{where}: {counted(len(missing), 'result')} missing: {names}{more}: add them, named "
            f"as the contents{'' if len(styles) == 1 else ' and styles'}"
        )
    return found


def kind_of(path: Path) -> Kind:
    """Whether a file is a picture or a clip, by its suffix and, of animations, by its frames."""
    suffix = path.suffix.lower()
    if suffix in ANIMATIONS:
        return "picture" if is_still(path) else "clip"
    return "picture" if suffix in PICTURE_SUFFIXES else "clip"


def check_readable(path: Path, kind: Kind, flag: str = "") -> None:
    """Decode a picture, or the first frame of a clip. Raises InputError if that fails."""
    try:
        if kind == "picture":
            read_picture(path, side=1)
        elif next(read_frames(open_clip(path), max_frames=1), None) is None:
            raise InputError(f"{str(path)!r} has no frames: give another video")
    except InputError as e:
        if kind == "clip" and path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES:
            how = why_unreadable(path.suffix) or "give another, or convert it to png or mp4"
            raise InputError(
                f"{flag}{str(path)!r} is no picture or video that std reads: {how}"
            ) from None
        raise InputError(f"{flag}{e}") from None


def _check_distinct(found: Sequence[Subject], what: str) -> None:
    by_name: dict[str, Path] = {}
    for subject in found:
        if other := by_name.get(subject.name):
            raise InputError(
                f"two {what} are named {subject.name!r}: {str(other)!r} and "
                f"{str(subject.path)!r}: rename one"
            )
        by_name[subject.name] = subject.path
