"""Which videos a request names, and where their results go."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from std_cli.config import VideoSettings
from std_cli.errors import InputError
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import expand_inputs
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.paths import check_path, names_folder, user_path
from std_cli.storage.scratch import Scratch
from std_cli.stylize.inputs import files_of
from std_cli.stylize.outputs import (
    Existing,
    check_outputs,
    distinct_targets,
    existing_notice,
    exists_already,
    identity,
)
from std_cli.stylize.video_run import thumbnail_path
from std_cli.stylize.work_folder import finished, folder_of


@dataclass(frozen=True)
class VideoOutput:
    """An input, and where its result goes."""

    source: Path
    name: str
    """The input as it was given."""
    target: Path
    given: str
    """The target as it was given."""


def find_videos(
    inputs: Sequence[str | Path], references: Sequence[Path], notices: list[str], scratch: Scratch
) -> dict[Path, str]:
    """The videos that the inputs name, each with its name as it was given."""
    found: dict[Path, str] = {}
    for item in inputs:
        path = user_path(item, "input")
        if path.is_dir() and _is_sequence(path):
            _check_frames(path, references, notices)
            found.setdefault(path, str(item))
            continue
        files = files_of(item, VIDEO_SUFFIXES, "video", references, notices, scratch)
        for file in files:
            found.setdefault(file, str(item if files == [path] else file))
    if not found:
        raise InputError(
            "no input: give videos, folders of videos, or patterns such as 'clips/*.mp4'"
        )
    return found


def _is_sequence(folder: Path) -> bool:
    """Whether a folder is a video itself: it holds pictures, and no videos."""
    try:
        inside = {file.suffix.lower() for file in folder.iterdir()}
    except OSError as e:
        raise InputError(
            f"cannot list folder {str(folder)!r}: {e.strerror}; check its permissions"
        ) from None
    pictures, videos = PICTURE_SUFFIXES - VIDEO_SUFFIXES, VIDEO_SUFFIXES - PICTURE_SUFFIXES
    return bool(inside & pictures) and not inside & videos


def _check_frames(folder: Path, references: Sequence[Path], notices: list[str]) -> None:
    """Say what is left out of a folder of frames. Raises InputError for a style reference among
    them."""
    styles = {identity(path) for path in references}
    for frame in expand_inputs([folder], notices=notices):
        if identity(frame) in styles:
            raise InputError(
                f"--style {frame}: it would be a frame of the video {str(folder)!r}: move it to "
                f"another folder"
            )


def name_outputs(
    sources: dict[Path, str],
    output: str | Path,
    codec: str | None,
    preview: bool,
    notices: list[str],
) -> tuple[list[VideoOutput], Path | None]:
    """Where each result goes, the named file or NAME_stylized in the named folder; and that folder.

    preview: a name of its own, NAME_preview, also in place of a named file, so that it is not in
    the way of the whole result.
    """
    path, a_folder = user_path(output, "-o"), names_folder(output)
    one_file = bool(path.suffix) and not path.is_dir() and not a_folder
    its_own = (
        len(sources) == 1 and codec == "png" and (not path.is_dir() or finished(path) is not None)
    )
    if one_file or its_own:
        if len(sources) > 1:
            raise InputError(f"-o {output}: one file for {len(sources)} videos: give a folder")
        [(source, name)] = sources.items()
        if preview:
            path = check_path(path.with_name(f"{path.stem}_preview{path.suffix}"), "-o")
            output = path
        return [VideoOutput(source, name, path, str(output))], None
    end = "preview" if preview else "stylized"
    targets = distinct_targets(
        list(sources), lambda s, name: path / f"{name}_{end}{_suffix(s, codec)}", notices
    )
    outputs = [
        VideoOutput(source, name, target, str(target))
        for (source, name), target in zip(sources.items(), targets, strict=True)
    ]
    return outputs, path


def check_video_outputs(
    outputs: list[VideoOutput], folder: Path | None, read: list[Path], asked: VideoSettings
) -> None:
    """Refuse outputs that must not be replaced; `read`: what the request reads in addition to the
    videos."""
    read = [*read]
    for output in outputs:
        source = output.source
        read += [source, *(source.iterdir() if source.is_dir() else ())]
    targets = [output.target for output in outputs]
    if asked.preview is not None:
        targets += [thumbnail_path(target) for target in targets]
    check_outputs(targets, folder, read)


def left_to_do(
    outputs: list[VideoOutput], existing: Existing, notices: list[str]
) -> list[VideoOutput]:
    """Without those that are skipped because their outputs exist."""
    there = [output.target for output in outputs if is_there(output.target)]
    if there and existing in ("skip", "note"):
        notices.append(existing_notice(there, existing))
    return [o for o in outputs if o.target not in there] if existing == "skip" else outputs


def is_there(target: Path) -> bool:
    """Whether there is an output; not where a killed run finished it, which is then reported."""
    return os.path.lexists(target) and finished(target) is None


def refuse_existing(output: VideoOutput, preview: bool) -> None:
    """Raises OutputExists for a result, or a thumbnail of --preview, that would be replaced."""
    if is_there(output.target):
        raise exists_already(output.target)
    thumbnail = thumbnail_path(output.target)
    interrupted = folder_of(output.target).exists()  # such a run may have written it
    if preview and os.path.lexists(thumbnail) and not interrupted:
        raise exists_already(thumbnail)


def _suffix(source: Path, codec: str | None) -> str:
    """Of a result that was given no name: a folder's is a folder, what a container of the source's
    kind can hold."""
    if codec is None:
        if source.is_dir():
            return ""
        return (
            source.suffix.lower()
            if source.suffix.lower() in (".mov", ".mkv", ".webm", ".gif", ".webp")
            else ".mp4"
        )
    by_codec = {
        "png": "",
        "prores": ".mov",
        "ffv1": ".mkv",
        "vp9": ".webm",
        "gif": ".gif",
        "webp": ".webp",
    }
    return by_codec.get(codec, ".mp4")
