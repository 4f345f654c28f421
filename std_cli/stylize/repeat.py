"""A result made again from the record that it keeps: `std repeat`."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from std_cli import __version__
from std_cli.config import ImageSettings, VideoSettings
from std_cli.errors import InputError, quote
from std_cli.events import Event, OnEvent
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.paths import is_url, user_path
from std_cli.stylize.frames import input_fingerprint
from std_cli.stylize.request import RESOLVED, Style
from std_cli.stylize.settings import read_record
from std_cli.stylize.stylizer import stylize_images, stylize_video

_TIMES = ("start", "end", "fps", "preview")
"""Settings that JSON has as texts of fractions."""
_SIZES = ("size", "output_size")
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of a cell of a sheet whose input is a video."""


def repeat(
    file: str | Path,
    input: str | Path | None = None,
    style: Style | Sequence[Style] | None = None,
    output: str | Path | None = None,
    *,
    overwrite: bool = False,
    verbose: bool = False,
    on_event: OnEvent = lambda event: None,
    **changes: Any,
) -> None:
    """Make a result of std again, from what is recorded in it, with `changes` of its settings.

    input, style: others than those of the record, which are looked for where they were, next to
    `file`, and here. A video as input of a picture's record is stylized as a video, and the
    reverse. output: FILE_again in the current folder if not given; with another input as of the
    stylize commands. What differs from the record, and was not changed by the caller, is a notice:
    the version, weights, references, the input, the device.

    Raises InputError for a file without a record, for what cannot be found, and as
    `Stylizer.images` and `Stylizer.video` do.
    """
    path = user_path(file, "FILE")
    record = read_record(file)
    kept, made = record.get("settings"), record.get("origin", {})
    if "sheet" in record:
        cells = quote(record.get("cells"))
        raise InputError(f"{str(file)!r} is a contact sheet: give one of its cells, from {cells}")
    if not (isinstance(kept, Mapping) and isinstance(made, Mapping)):
        raise InputError(f"{str(file)!r} holds no settings of one result: give a result of std")
    was_video = "motion" in kept
    places = [made.get("input"), record.get("input")]
    source = input if input is not None else _find(places, path, "INPUT")
    named = Path(source)
    video = _is_video(named, was_video)
    given = {name: value for name, value in changes.items() if value is not None}
    options = _options(kept, made, VideoSettings if video else ImageSettings) | given
    for name in given.keys() - ImageSettings.model_fields.keys() if not video else ():
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"{flag} is for videos, and {named.name} is a picture: leave it out")
    changed = {*given, *(["style"] if style else [])}
    differences = _Differences(path.name, record, changed, on_event)
    if was_video and not video:
        differences.notice(f"{named.name} is a picture: the settings of videos are left out")
    differences.compare_origin(named if input is None and not is_url(source) else None)
    if output is None:
        as_file = input is None and not (video and path.suffix.lower() in STILL_SUFFIXES)
        output = f"{path.stem}_again{path.suffix}" if as_file else "."
    request = (source, style or _styles(kept, made, path), output)
    if video:
        stylize_video(
            *request, overwrite=overwrite, verbose=verbose, on_event=differences, **options
        )
        return
    for _ in stylize_images(
        *request, overwrite=overwrite, verbose=verbose, on_event=differences, **options
    ):
        pass


def _options(
    kept: Mapping[str, Any], made: Mapping[str, Any], settings: type[ImageSettings]
) -> dict[str, Any]:
    """The options that lead to the settings of a record; those of RESOLVED as they were given."""
    known = {
        name: value
        for name, value in kept.items()
        if name in settings.model_fields and name not in RESOLVED and value is not None
    }
    try:
        known |= {name: Fraction(known[name]) for name in _TIMES if name in known}
        known |= {name: tuple(known[name]) for name in _SIZES if isinstance(known.get(name), list)}
        options = dict(made.get("options", {}))
        known["model"] = kept["model"]["name"]
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise InputError(
            "the record of the result is damaged: its settings have other types"
        ) from None
    known |= {name: options[name] for name in RESOLVED if name in options}
    return {name: value for name, value in known.items() if name in settings.model_fields}


def _styles(kept: Mapping[str, Any], made: Mapping[str, Any], file: Path) -> list[Style]:
    """The references of a record with their weights, where they are now."""
    styles = kept.get("style")
    paths = made.get("style")
    if not isinstance(styles, list) or not all(isinstance(style, Mapping) for style in styles):
        raise InputError("the record of the result names no style: give --style")
    at = paths if isinstance(paths, list) and len(paths) == len(styles) else [None] * len(styles)
    found: list[Style] = []
    for style, place in zip(styles, at, strict=True):
        weight = style.get("weight")
        path = _find([place, style.get("name")], file, "--style")
        found.append((path, weight if isinstance(weight, float) else 1.0))
    return found


def _find(places: Sequence[object], file: Path, what: str) -> str | Path:
    """Where a file of a record is: as it was given, next to the result, or here; a URL is taken as
    it is. Raises InputError."""
    names = [name for name in places if isinstance(name, str) and name not in ("", "-")]
    for name in names:
        if is_url(name):
            return name
        path = user_path(name, what)
        for candidate in (path, file.parent / path.name, Path(path.name)):
            if candidate.exists():
                return candidate
    shown = quote(names[0]) if names else "of the record, which was not a file,"
    raise InputError(
        f"{what} {shown} is neither where it was, nor next to {file.name}, nor here: say where "
        "it is"
    )


def _is_video(source: Path, was_video: bool) -> bool:
    """Whether an input is stylized as a video; where its name leaves it open, as the record was."""
    suffix = source.suffix.lower()
    if suffix in VIDEO_SUFFIXES - PICTURE_SUFFIXES:
        return True
    return was_video and suffix not in PICTURE_SUFFIXES - VIDEO_SUFFIXES


class _Differences:
    """Passes events on, and reports what is not as it was recorded: the settings and hashes after
    the first start."""

    def __init__(
        self, name: str, record: Mapping[str, Any], changed: set[str], on_event: OnEvent
    ) -> None:
        """name: of the result. changed: names of the settings that the caller changed."""
        self.name, self.record, self.on_event = name, record, on_event
        self.kept: Mapping[str, Any] = record["settings"]
        self.changed = changed
        self.compared = False

    def compare_origin(self, source: Path | None) -> None:
        """Report another version of std, and an input that is not what it was; None is another
        input by intent."""
        version = self.record.get("version")
        if version != __version__:
            self.notice(
                f"{self.name} was made by std {quote(version)}, this is {__version__}: "
                "results may differ"
            )
        sha256 = self.record.get("origin", {}).get("sha256")
        if source is not None and sha256 not in (None, input_fingerprint(source)):
            self.notice(f"{source} is not the same as when {self.name} was made of it")

    def __call__(self, event: Event) -> None:
        self.on_event(event)
        if event["event"] == "start" and not self.compared:
            self.compared = True
            for name, now in event["settings"].items():
                before = self.kept.get(name)
                if name in self.kept and name not in self.changed and before != now:
                    self.notice(_difference(name, before, now))

    def notice(self, message: str) -> None:
        self.on_event({"event": "notice", "message": message})


def _difference(name: str, before: object, now: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} was {_plain(before)} then, and is {_plain(now)} now"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in value.values())
    return "none" if value is None else quote(value)
