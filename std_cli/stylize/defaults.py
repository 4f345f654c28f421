"""Defaults of one's own: environment variables, files and named looks, joined with what is given.

The value of a setting is, in this order: what is given (a flag), the variable STD_<SETTING>,
`std.toml` in the working folder, the user's `config.toml`, and, as `config` joins them, a
baseline's, the model's own, and the one that is built in. A look is a named table of settings; its
values come directly after what is given where the look is named.

A folder, and so its std.toml, may come from anywhere. It can name settings, references and weights,
which are checked as if they were given, but nothing that is written, replaced or executed.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from std_cli.config import (
    ImageSettings,
    Task,
    VideoSettings,
    check_settings,
    layers,
    parse_style,
    settings_of,
)
from std_cli.errors import InputError, quote
from std_cli.events import Config, ResolvedSetting, SettingSource
from std_cli.paths import config_folder, is_url
from std_cli.stylize.model_choice import follow_lora
from std_cli.weights.lora.find import pack_lora
from std_cli.weights.resolve import find_pack
from std_cli.weights.zoo import method_defaults

FOLDER_FILE = "std.toml"
LARGEST_FILE = 2**20
"""Bytes."""
_NAMES = (*VideoSettings.model_fields, "style")
Table = dict[str, Any]
"""Settings by name, checked, and "style": a list of references."""


@dataclass(frozen=True)
class Origin:
    """Where the value of a setting comes from."""

    source: SettingSource
    where: str = ""
    """The flag, the variable or the file."""


@dataclass
class Given:
    """What a request is given, by flags and by defaults of one's own."""

    values: dict[str, Any] = field(default_factory=dict)
    """Of settings, by name."""
    style: list[str] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    """Of the values, and of "style"."""
    notices: list[str] = field(default_factory=list)
    """Which defaults take effect, by where they come from."""


@dataclass(frozen=True)
class _Level:
    """One place that gives values."""

    source: SettingSource
    where: str
    values: Table
    looks: dict[str, Table] = field(default_factory=dict)

    def origin(self, name: str) -> Origin:
        if self.source == "flag":
            return Origin("flag", f"--{name.replace('_', '-')}")
        return Origin(self.source, _variable(name) if self.source == "environment" else self.where)


def read_defaults(
    task: Literal["image", "video"] = "image",
    *,
    look: str | None = None,
    folder: str | Path = ".",
) -> dict[str, Any]:
    """The options that the command line would take from the environment, from `folder`/std.toml and
    from the user's config.toml, with a look of theirs: what `stylize_image` and the others take as
    `**options`, "style" included where one is named.

    Nothing else in std_cli reads them. Raises InputError for a file or value that cannot be used.
    """
    kind = VideoSettings if task == "video" else ImageSettings
    given = join(kind, {"look": look} if look else {}, folder=Path(folder))
    return given.values | ({"style": given.style} if given.style else {})


def join(
    kind: type[ImageSettings],
    flags: Mapping[str, object],
    *,
    folder: Path = Path(),
    own: bool = True,
) -> Given:
    """What a request of this kind is given: by flags, and by defaults of one's own.

    flags: by name, with "style" and "look"; None stands for "not given". folder: of std.toml. own:
    whether to read defaults of one's own. Raises InputError, which names the file and the key, the
    variable or the flag.
    """
    levels = [*_own_levels(folder), _environment()] if own else []
    looks = {
        name: _Level("look", f"{level.where} [look.{name}]", table)
        for level in levels
        for name, table in level.looks.items()
    }
    given = Given()
    for level in [*levels, _flags(kind, flags)]:
        if look := level.values.get("look"):
            _add(given, kind, _find_look(looks, level, look))
        _add(given, kind, level)
    _check_references(given)
    given.notices = _notices(given) + (_unknown_variables() if own else [])
    return given


def _add(given: Given, kind: type[ImageSettings], level: _Level) -> None:
    """Put the values of a level above those that are there."""
    values = level.values
    if method := values.get("method"):  # it brings defaults of its own
        for name in method_defaults(method, values.get("steps")):
            given.values.pop(name, None)
            given.origins.pop(name, None)
    for name, value in values.items():
        if name == "style":
            given.style = value
        elif name in kind.model_fields:
            given.values[name] = value
        else:
            continue
        given.origins[name] = level.origin(name)


def _notices(given: Given) -> list[str]:
    found: dict[str, list[str]] = {}
    for name, origin in given.origins.items():
        if origin.source != "flag":
            found.setdefault(origin.where, []).append(name)
    return [f"{where} sets {', '.join(names)}" for where, names in found.items()]


def _find_look(looks: dict[str, _Level], level: _Level, name: str) -> _Level:
    if name in looks:
        return looks[name]
    flag = level.origin("look").where
    known = ", ".join(looks) or f"none; define one as a table [look.{name}] in {FOLDER_FILE}"
    raise InputError(f"{flag} {name}: no such look; there are: {known}")


# --- where values are given --------------------------------------------------------------------


def user_file() -> Path:
    """The file of the user's defaults, whether it is there or not."""
    return config_folder() / "config.toml"


def _own_levels(folder: Path) -> list[_Level]:
    """The user's file, then the folder's, where they are there."""
    files: list[tuple[SettingSource, Path]] = [
        ("user file", user_file()),
        ("folder", folder / FOLDER_FILE),
    ]
    return [_read(path, source) for source, path in files if os.path.lexists(path)]


def _read(path: Path, source: SettingSource) -> _Level:
    content = _read_toml(path)
    looks = content.pop("look", {})
    if not isinstance(looks, dict) or not all(isinstance(each, dict) for each in looks.values()):
        raise InputError(f"{path}: look {quote(looks)}: write each look as a table [look.NAME]")
    tables = {name: _check_table(table, path, f" [look.{name}]") for name, table in looks.items()}
    return _Level(source, str(path), _check_table(content, path, ""), tables)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # opening a pipe or a device could wait for ever
            raise InputError(f"{path}: is not a file: rename it, or replace it with a file")
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: is larger than 1 MiB: keep only settings in it")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}): check the file") from None
    except ValueError as e:  # not UTF-8, not TOML, or a number of thousands of digits
        raise InputError(f"{path}: is not TOML that can be read ({e}): correct the file") from None


def _check_table(table: Table, path: Path, section: str) -> Table:
    """The settings of a file or of one of its looks, with paths that start from its folder."""
    where = f"{path}{section}"
    for name in table:
        if name not in _NAMES:
            close = get_close_matches(name.replace("-", "_"), _NAMES, 1)
            hint = f"did you mean {close[0]}?" if close else "std config show lists all of them"
            raise InputError(f"{where}: {quote(name)} is no setting: {hint}")
    folder = path.parent
    settings = {name: _as_given(name, table[name], folder) for name in table if name != "style"}
    checked = check_settings(VideoSettings, settings, f"{where}: ", str)
    if "style" in table:
        checked["style"] = _references(table["style"], folder, where)
    return checked


def _as_given(name: str, value: object, folder: Path) -> object:
    """A value of a file as a flag would have it: a file next to the file of defaults is named from
    the working folder."""
    if isinstance(value, bool) and VideoSettings.model_fields[name].annotation is not bool:
        return str(value).lower()  # pydantic takes true for 1
    if name not in ("model", "lora", "motion", "cuts") or not isinstance(value, str):
        return value
    file = value.rpartition(":")[0] if name == "lora" and ":" in value else value
    return str(folder / value) if os.path.exists(folder / file) else value


def _references(value: object, folder: Path, where: str) -> list[str]:
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str) and text]
    if not texts or len(texts) < len(given):
        raise InputError(f"{where}: style {quote(value)}: give a file, or a list of files")
    return [text if text.startswith("~") or is_url(text) else str(folder / text) for text in texts]


def _check_references(given: Given) -> None:
    """Raises InputError, which names the file of defaults, for a reference that is not there."""
    origin = given.origins.get("style", Origin("flag"))
    for text in given.style if origin.source in ("look", "folder", "user file") else ():
        if not is_url(text) and not parse_style(text)[0].is_file():
            raise InputError(
                f"{origin.where}: style {quote(text)}: no such file; a path starts from the folder "
                "of the file of defaults"
            )


def _environment() -> _Level:
    given = {name: os.environ.get(_variable(name)) for name in (*_NAMES, "look")}
    values = {name: text for name, text in given.items() if text}
    extra: Table = {name: values.pop(name) for name in ("style", "look") if name in values}
    if "style" in extra:
        extra["style"] = [extra["style"]]
    checked = check_settings(VideoSettings, values, "", _variable)
    return _Level("environment", "", checked | extra)


def _variable(name: str) -> str:
    return f"STD_{name.upper()}"


def _unknown_variables() -> list[str]:
    """Variables that are almost named as one of std's."""
    known = [_variable(name) for name in (*_NAMES, "look")]
    found = []
    for name in os.environ:
        ours = not name.startswith("STD_") or name in (*known, "STD_DEBUG", "STD_IMPORTS")
        if not ours and (close := get_close_matches(name, known, 1, 0.85)):
            found.append(f"{name} is no setting: did you mean {close[0]}?")
    return found


def _flags(kind: type[ImageSettings], flags: Mapping[str, object]) -> _Level:
    values = {name: value for name, value in flags.items() if value is not None and value != []}
    extra = {name: values.pop(name) for name in ("style", "look") if name in values}
    checked = check_settings(kind, values, "", lambda name: f"--{name.replace('_', '-')}")
    return _Level("flag", "", checked | extra)


# --- where the value of each setting comes from ------------------------------------------------


def resolved(
    settings: ImageSettings,
    given: Mapping[str, object],
    origins: Mapping[str, Origin],
    pack: dict[str, Any],
    pack_name: str,
) -> dict[str, ResolvedSetting]:
    """Each setting of a request with its value, JSON-ready, and where that comes from."""
    kind = type(settings)
    by_source = layers(kind, dict(given), pack, pack_name)
    joined = {**by_source["model"], **by_source["method"], **by_source["given"]}
    shown = settings.model_dump(mode="json")
    found: dict[str, ResolvedSetting] = {}
    for name, field_ in kind.model_fields.items():
        origin = Origin("built in")
        if name in by_source["given"]:
            origin = origins.get(name, Origin("given"))
        elif getattr(settings, name) != joined.get(name, field_.default):
            origin = Origin("LoRA", settings.lora)  # made for another eta or number of steps
        elif name in by_source["method"]:
            origin = Origin("method", settings.method)
        elif name in by_source["model"]:
            origin = Origin("model", pack_name)
        found[name] = {"value": shown[name], "source": origin.source, "where": origin.where}
    return found


def show_defaults(
    kind: type[ImageSettings] = VideoSettings,
    flags: Mapping[str, object] | None = None,
    *,
    own: bool = True,
) -> Config:
    """What a command without other options would take: `std config show`, and the defaults in the
    help. A model that is not on this machine counts as one without defaults of its own."""
    given = join(kind, flags or {}, own=own)
    pack, pack_name = find_pack(settings_of(kind, given.values, None).model)
    settings = settings_of(kind, given.values, pack, pack_name)
    if settings.lora == "auto" and settings.method == "std":
        moving = getattr(settings, "motion", "none") != "none"
        task: Task = "v2v" if moving else "i2i"
        lora = pack_lora(pack, Path(pack_name).parent, settings.model, task, settings.eta)
        settings, _ = follow_lora(settings, lora, given.values)
    found = resolved(settings, given.values, given.origins, pack, pack_name)
    if given.style:
        origin = given.origins["style"]
        style: ResolvedSetting = {
            "value": given.style,
            "source": origin.source,
            "where": origin.where,
        }
        found = {"style": style, **found}
    levels = _own_levels(Path()) if own else []
    return {
        "event": "config",
        "files": [level.where for level in levels],
        "user_file": str(user_file()),
        "looks": {name: level.where for level in levels for name in level.looks},
        "settings": found,
    }
