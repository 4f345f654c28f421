"""What a comparison is: its keys, with every default, from a TOML file, flags or Python."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from std_cli.config import Frozen, VideoSettings, settings_of
from std_cli.errors import InputError, quote, wrong_values
from std_cli.paths import user_path
from std_cli.weights.zoo import MethodName

FIXED = ("compare", "labels", "audio", "subtitles", "preview")
"""Settings that a comparison sets itself: its results are whole, with neither sources nor sound."""
MADE_WITH: Mapping[str, Any] = {
    "method": "std",
    "output_size": "model",  # what is measured is what the network made, not what was scaled
    "codec": "ffv1",  # without loss
}
"""Settings that differ from those of std stylize where nothing else is given."""
NOT_SETTINGS = (*FIXED, "method", "lora", "seed")
"""Settings that are no flags of it: these, and those that it has lists of."""
NOT_VARIED = (*FIXED, "seed", "codec", "crf", "preset", "start", "end", "max_frames", "fps")
VARIED = tuple(name for name in VideoSettings.model_fields if name not in NOT_VARIED)
Name = Annotated[str, Field(min_length=1, max_length=80)]
Scalar = str | int | float | bool


class CompareConfig(Frozen):
    """The keys of a comparison."""

    content: tuple[str, ...] = Field(min_length=1)
    """Pictures and videos, folders of them, patterns."""
    style: tuple[str, ...] = Field(min_length=1)
    """Reference pictures, folders of them, patterns."""
    output: str = "comparison"
    """The folder of the report; it keeps the results, too."""
    method: tuple[MethodName, ...] = ()
    """Methods that are compared, each with its own LoRA."""
    lora: tuple[str, ...] = ()
    """LoRA files that are compared, sampled as STD is; none alone: the methods are without a LoRA.
    """
    contenders: dict[Name, dict[str, Scalar]] = Field(default_factory=dict)
    """More of what is compared, by name: any settings of std stylize. What one sets does not vary
    for it."""
    settings: dict[str, Scalar] = Field(default_factory=dict)
    """Settings that all have in common, as std stylize has them."""
    vary: dict[str, list[Scalar]] = Field(default_factory=dict)
    """Settings that vary, with their values."""
    seed: int = Field(0, ge=0, lt=2**62)
    """The first seed."""
    seeds: int = Field(3, ge=1, le=1000)
    """Seeds of each combination, one after the other; three or more give an interval."""
    against: dict[Name, str] = Field(default_factory=dict)
    """Folders with results of other tools, by name: files named as the contents, or
    CONTENT--STYLE."""
    measures: tuple[str, ...] = ()
    """What is measured; everything that can be if not given."""
    baseline: str = ""
    """What differences are taken to; the first that is compared if not given."""


@dataclass(frozen=True)
class Contender:
    """One of what is compared."""

    name: str
    options: Mapping[str, Any]
    """Settings of its own."""
    folder: Path | None = None
    """Of results that another tool made."""


def read_config(path: str | Path, changes: Mapping[str, Any]) -> CompareConfig:
    """The comparison that a TOML file describes; `changes` replace its keys. Raises InputError that
    names the key."""
    file = user_path(path, "--config")
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise InputError(f"--config {file}: it cannot be read ({reason}): check it") from None
    settings = given.get("settings", {})
    own = changes.get("settings", {})
    if isinstance(settings, dict) and own:
        changes = {**changes, "settings": settings | own}
    return make_config({**given, **changes}, str(file))


def make_config(given: Mapping[str, Any], where: str = "") -> CompareConfig:
    """The checked keys. where: the file that they are from, as errors name it. Raises InputError
    with every problem in one line."""
    try:
        return CompareConfig(**given)
    except ValidationError as e:
        found = []
        for name, value, message in wrong_values(e, depth=2):
            shown = "" if message in ("is missing", "no such key") else f" {quote(value)}"
            found.append(f"{name if where else _flag(name)}{shown}: {message}")
        raise InputError(
            "; ".join([f"{where}: {found[0]}" if where else found[0], *found[1:]])
        ) from None


def _flag(name: str) -> str:
    """ "--method" of "method.0", the first of its values."""
    name = name.partition(".")[0].replace("_", "-")
    return "content" if name == "content" else f"--{name}"


def contenders_of(config: CompareConfig) -> list[Contender]:
    """What is compared, in order: methods, LoRAs, those with settings of their own, other tools.

    Raises InputError for two of one name, and for settings that cannot be given.
    """
    bare = config.lora == ("none",)
    found = [
        Contender(method, {"method": method} | ({"lora": "none"} if bare else {}))
        for method in config.method
    ]
    loras = () if bare else config.lora
    found += [
        Contender(name, {"lora": lora})
        for name, lora in zip(_lora_names(loras), loras, strict=True)
    ]
    for name, options in config.contenders.items():
        check_names(options, f"contenders.{name}", (*FIXED, "seed"))
        found.append(Contender(name, options))
    if not found:
        found = [Contender("std", {"method": "std"} | ({"lora": "none"} if bare else {}))]
    for name, folder in config.against.items():
        found.append(Contender(name, {}, user_path(folder, "--against")))
    names = [contender.name for contender in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two that are compared are named {name!r}: give each a name of its own, such as "
                f"[contenders.NAME] in a --config file"
            )
    if config.baseline and config.baseline not in names:
        raise InputError(
            f"--baseline {config.baseline}: it is not compared; these are: {', '.join(names)}"
        )
    return found


def check_names(options: Mapping[str, Any], where: str, not_given: Sequence[str]) -> None:
    """Raises InputError for a setting that does not exist, or that a comparison sets itself."""
    for name in options:
        if name not in VideoSettings.model_fields:
            raise InputError(f"{where}.{name}: no such setting: see std stylize video --help")
        if name in not_given:
            raise InputError(f"{where}.{name}: a comparison sets this itself: leave it out")


def check_varied(config: CompareConfig, contenders: Sequence[Contender]) -> None:
    """Raises InputError for a setting that cannot be varied, or that each contender sets itself,
    and for values that it cannot have."""
    own = [contender.options for contender in contenders if contender.folder is None]
    for name, values in config.vary.items():
        flag = name.replace("_", "-")
        if name == "seed":
            raise InputError("--vary seed: give --seeds N, of which --seed is the first")
        if name not in VARIED:
            known = ", ".join(each.replace("_", "-") for each in VARIED)
            raise InputError(f"--vary {quote(flag)}: cannot be varied; these can: {known}")
        if name in config.settings:
            raise InputError(f"--{flag} is varied, too: give it once")
        if all(name in options for options in own):
            where = f"--{flag}" if name in ("method", "lora") else "[contenders.NAME]"
            raise InputError(
                f"--vary {flag}: everything that is compared has its own: give the values with "
                f"{where}"
            )
        if not values:
            raise InputError(f"--vary {flag}: no values: give some, such as --vary cfg=2,4,6,8")
        for value in values:
            if name not in ("method", "lora"):
                settings_of(VideoSettings, {name: value}, None)


def _lora_names(loras: Sequence[str]) -> list[str]:
    """What LoRAs are called: "mine" of "loras/mine.safetensors", "mine 0.8" of it with the scale
    :0.8. Of files of one name, as std distill writes them, the folders in which they differ:
    "lcm/0" of "students/lcm/0/pytorch_lora_weights.safetensors"."""
    files = [_file_and_scale(lora) for lora in loras]
    stems = [file.name.removesuffix(".safetensors") for file, _ in files]
    names = []
    for (file, scale), stem in zip(files, stems, strict=True):
        folders = file.parent.parts
        others = [
            each.parent.parts
            for (each, _), name in zip(files, stems, strict=True)
            if name == stem and each != file
        ]
        shown = stem
        if others:
            depth = next(
                (d for d in range(1, len(folders)) if all(folders[-d:] != o[-d:] for o in others)),
                len(folders),
            )
            shown = "/".join(folders[-depth:]) if depth else stem
        names.append(f"{shown} {scale}".strip())
    return names


def _file_and_scale(lora: str) -> tuple[Path, str]:
    """ "mine.safetensors:0.8" -> mine.safetensors, "0.8"."""
    file, _, scale = lora.rpartition(":")
    if not file or not scale.replace(".", "", 1).isdigit():
        return Path(lora), ""
    return Path(file), scale
