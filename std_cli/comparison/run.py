"""A comparison from its request to its report: `std compare`, `std_cli.compare`."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from std_cli import __version__
from std_cli.comparison.cells import LIBRARIES, Cell, Skipped, library_version, make_cells, text_of
from std_cli.comparison.config import (
    NOT_SETTINGS,
    CompareConfig,
    check_names,
    check_varied,
    contenders_of,
    make_config,
)
from std_cli.comparison.make import MakeMissing, make, make_here
from std_cli.comparison.measure import choose_measures, fingerprint_of, measure
from std_cli.comparison.measures import Measure
from std_cli.comparison.report import write_report
from std_cli.comparison.subjects import Subject, find_contents, find_styles
from std_cli.comparison.table import Table, make_table
from std_cli.config import VideoSettings, settings_of
from std_cli.environment import silent_libraries
from std_cli.errors import InputError, StdError, in_callers_words
from std_cli.events import OnEvent
from std_cli.interruption import resumable
from std_cli.paths import replace_file, user_path
from std_cli.spread.devices import parse_devices
from std_cli.spread.ray_start import check_installed
from std_cli.stylize.frames import input_fingerprint
from std_cli.stylize.options import VideoOptions, with_options
from std_cli.stylize.request import new_folder

CONFIG_FILE = "comparison.toml"
_PARAMETERS = {*VideoOptions.__annotations__, *CompareConfig.model_fields, "devices", "cluster"}


@dataclass(frozen=True)
class Comparison:
    """A request, checked before anything is computed."""

    config: CompareConfig
    folder: Path
    contents: Sequence[Subject]
    styles: Sequence[Subject]
    cells: Sequence[Cell]
    measures: Mapping[str, Measure]
    skipped: Sequence[Skipped]
    baseline: str
    notices: Sequence[str]


@with_options(VideoOptions)
def compare(
    content: str | Path | Sequence[str | Path],
    style: str | Path | Sequence[str | Path],
    output: str | Path = "comparison",
    *,
    methods: Sequence[str] = (),
    loras: Sequence[str] = (),
    contenders: Mapping[str, Mapping[str, Any]] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | None = None,
    against: Mapping[str, str | Path] | None = None,
    measures: Sequence[str] = (),
    baseline: str = "",
    devices: str | None = None,
    cluster: str | None = None,
    verbose: bool = False,
    on_event: OnEvent = lambda event: None,
    **options: Unpack[VideoOptions],
) -> Table:
    """Stylize every combination, measure it, write a report, and return its table.

    content, style: files, folders, patterns. output: the folder of the report, which keeps the
    results too: what is there is not made again. methods, loras: what is compared; contenders: more
    of it by name, with any settings; against: {name: folder} of results of other tools. vary:
    {setting: values}. seeds: how many, from `seed`. measures: names, everything that can be
    measured if not given. baseline: what differences are taken to, the first if not given.
    devices: on which devices cells are made, as --devices has it; cluster: the address of the Ray
    cluster that they are of; this process alone if neither is given.
    on_event: receives `std_cli.events`. options: settings that all have in common.

    Raises InputError, before anything is computed, for every problem of the request; StdError after
    the report is written if a cell failed.
    """
    settings = {name: value for name, value in options.items() if value is not None}
    given: dict[str, Any] = {
        "content": _texts(content),
        "style": _texts(style),
        "output": str(output),
        "method": list(methods),
        "lora": [str(lora) for lora in loras],
        "contenders": {name: dict(own) for name, own in (contenders or {}).items()},
        "vary": {name: list(values) for name, values in (vary or {}).items()},
        "against": {name: str(folder) for name, folder in (against or {}).items()},
        "measures": list(measures),
        "baseline": baseline,
        "settings": settings,
    }
    given |= {"seeds": seeds} if seeds is not None else {}
    given |= {"seed": settings.pop("seed")} if "seed" in settings else {}
    try:
        return run_comparison(
            make_config(given), devices, cluster, verbose=verbose, on_event=on_event
        )
    except StdError as e:
        raise type(e)(in_callers_words(str(e), _PARAMETERS)) from None


def run_comparison(
    config: CompareConfig,
    devices: str | None = None,
    cluster: str | None = None,
    *,
    verbose: bool = False,
    on_event: OnEvent = lambda event: None,
) -> Table:
    """What `compare` does, by its keys."""
    begin = time.monotonic()
    with silent_libraries:
        config, make_missing = _maker(config, devices, cluster, verbose)
    with silent_libraries, prepared(config) as request:
        for message in [*request.notices, *_what_is_skipped(request.skipped)]:
            on_event({"event": "notice", "message": message})
        replace_file(request.folder / CONFIG_FILE, to_toml(config).encode())
        with resumable("what is made is kept: give the command again to resume"):
            here = make(request.cells, make_missing, on_event)
            measure(request.cells, request.measures, on_event)
        table = make_table(
            request.cells, request.measures, request.baseline, request.skipped, about(request)
        )
        path = write_report(table, request.folder)
    on_event(
        {
            "event": "result",
            "output": str(path),
            "cells": len(table.cells),
            "cached": here,
            "failed": len(table.failed),
            "skipped": [each.name for each in table.skipped],
            "seconds": round(time.monotonic() - begin, 3),
        }
    )
    if failed := table.failed:
        raise StdError(
            f"{len(failed)} of {len(table.cells)} cells failed, such as {failed[0].path.name}: "
            f"{failed[0].failure}: see {path}"
        )
    return table


def _maker(
    config: CompareConfig, devices: str | None, cluster: str | None, verbose: bool
) -> tuple[CompareConfig, MakeMissing]:
    """(the comparison with the device that its workers have, what makes its cells)."""
    if devices is None and cluster is None:
        return config, partial(make_here, verbose=verbose)
    from std_cli.comparison.workers import make_on_devices, on_devices

    check_installed()
    wanted = parse_devices(devices or "all")
    config = on_devices(config, wanted, cluster)
    return config, partial(
        make_on_devices, wanted=wanted, address=cluster, settings=config.settings, verbose=verbose
    )


@contextmanager
def prepared(config: CompareConfig) -> Iterator[Comparison]:
    """Check everything before a weight is loaded. The report's folder is there inside; nothing is
    left of it if nothing is written."""
    from std_cli.diffusion.devices import choose_device

    notices: list[str] = []
    check_names(config.settings, "settings", NOT_SETTINGS)
    contenders = contenders_of(config)
    check_varied(config, contenders)
    settings_of(VideoSettings, dict(config.settings), None)
    folder = user_path(config.output, "-o")
    styles = find_styles(config.style, notices)
    contents = find_contents(config.content, styles, notices)
    with_clips = any(content.kind == "clip" for content in contents)
    device = choose_device(str(config.settings.get("device", "auto")))
    measures, skipped = choose_measures(config.measures, with_clips, str(device))
    _check_folder(folder, [each.path for each in [*contents, *styles]])
    with new_folder(folder), new_folder(folder / "cells"):
        cells, missing = make_cells(config, contenders, contents, styles, folder / "cells")
        if not cells:
            raise InputError(f"nothing can be compared here: {missing[0].name}: "
                             f"{missing[0].reason}")  # fmt: skip
        baseline = config.baseline or contenders[0].name
        yield Comparison(
            config,
            folder,
            contents,
            styles,
            cells,
            measures,
            [*missing, *skipped],
            baseline,
            notices,
        )


def _what_is_skipped(skipped: Sequence[Skipped]) -> list[str]:
    """A line for each that is skipped; one for all measures whose weights are not here."""
    lacking = [each for each in skipped if each.pull]
    if len(lacking) < 2:
        return [f"{each.name} is skipped: {each.reason}" for each in skipped]
    models = dict.fromkeys(name for each in lacking for name in each.pull)
    return [
        *(f"{each.name} is skipped: {each.reason}" for each in skipped if not each.pull),
        f"{', '.join(each.name for each in lacking)} are skipped: their weights are not "
        f"downloaded: run std models pull {' '.join(models)}",
    ]


def _check_folder(folder: Path, read: Sequence[Path]) -> None:
    """Raises InputError for a folder that holds other files, or what is read."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"-o {folder} is a file: name a folder")
    if not folder.exists():
        return
    for path in read:
        if folder.resolve() in path.resolve().parents:
            raise InputError(
                f"-o {folder} holds {path.name}, which is compared: name another folder"
            )
    others = [p for p in folder.iterdir() if p.name != "cells" and not p.name.startswith(".std-")]
    if others and not (folder / CONFIG_FILE).exists():
        raise InputError(f"-o {folder} holds other files, and no comparison: name another folder")


# --- what the report says of its making --------------------------------------------------------


def about(request: Comparison) -> dict[str, Any]:
    """The command, versions and hashes."""
    weights: dict[str, list[str]] = {}
    devices = []
    for cell in request.cells:
        if cell.of_peer:
            continue
        settings = cell.facts["settings"]
        devices.append(f"{cell.facts['device']} in {cell.facts['dtype']}")
        for kind in ("model", "lora", "motion"):
            if part := settings.get(kind):
                line = f"{kind} {part['name']} {part['sha256']}"
                lines = weights.setdefault(cell.variant.contender, [])
                if line not in lines:
                    lines.append(line)
    for name, each in request.measures.items():
        if each.weights:
            weights[name] = [f"{model} {fingerprint_of(model)}" for model in each.weights]
    return {
        "command": command_of(request.config),
        "config": to_toml(request.config),
        "versions": {"std": __version__} | {name: library_version(name) for name in LIBRARIES},
        "device": ", ".join(dict.fromkeys(devices)) or "none",
        "weights": weights,
        "contents": {each.name: input_fingerprint(each.path) for each in request.contents},
        "styles": {each.name: input_fingerprint(each.path) for each in request.styles},
    }


def command_of(config: CompareConfig) -> str:
    """The command line of a comparison; with contenders of their own, that of its file."""
    if config.contenders:
        return shlex.join(["std", "compare", "--config", f"{config.output}/{CONFIG_FILE}"])
    words = ["std", "compare", *config.content]
    for style in config.style:
        words += ["--style", style]
    words += ["--method", ",".join(config.method)] if config.method else []
    for lora in config.lora:
        words += ["--lora", lora]
    for name, values in config.vary.items():
        texts = [text_of(value) for value in values]
        separator = "|" if any("," in text for text in texts) else ","
        words += ["--vary", f"{name.replace('_', '-')}={separator.join(texts)}"]
    words += ["--seeds", str(config.seeds)]
    words += ["--seed", str(config.seed)] if config.seed else []
    for name, folder in config.against.items():
        words += ["--against", f"{folder}={name}"]
    words += ["--measures", ",".join(config.measures)] if config.measures else []
    words += ["--baseline", config.baseline] if config.baseline else []
    for name, value in config.settings.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [
            f"--{flag}", text_of(value)
        ]  # fmt: skip
    return shlex.join([*words, "-o", config.output])


def to_toml(config: CompareConfig) -> str:
    """The keys of a comparison that are not their defaults, as a file for --config."""
    given = config.model_dump(exclude_defaults=True)
    lines = [f"{key} = {_toml(given[key])}" for key in given if not isinstance(given[key], dict)]
    for key, table in given.items():
        if not isinstance(table, dict):
            continue
        if key == "contenders":
            for name, own in table.items():
                lines += ["", f"[contenders.{_toml(name)}]"]
                lines += [f"{_key(k)} = {_toml(v)}" for k, v in own.items()]
        else:
            lines += ["", f"[{key}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return (
        name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _toml(name)
    )


def _toml(value: object) -> str:
    """A value as TOML writes it; its basic strings escape as those of JSON do, and DEL, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _texts(given: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(each) for each in given]
