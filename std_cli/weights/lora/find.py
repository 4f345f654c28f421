"""The LoRA file that a request names: on disk, of the pack, on the Hub. It is read at once, so that
what is wrong with it is known before a model is loaded."""

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from std_cli.errors import InputError, counted
from std_cli.paths import user_path
from std_cli.schedule import MAX_CFG, MAX_STEPS
from std_cli.weights.files import file_state, read_header, read_object
from std_cli.weights.hub import HubRepo, fetch, hub_id, only_file, source
from std_cli.weights.lora.family import Family
from std_cli.weights.lora.read import read_lora
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.zoo import MethodName, ModelEntry, method_lora, std_lora


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file on disk, by its header."""

    name: str
    path: Path
    scale: float
    """Strength that the user asked for, 1 if not."""
    eta: float | None
    """The eta that it was trained for, by its metadata or name; None if neither has it."""
    metadata: dict[str, str]
    """Of the safetensors header."""
    notice: str | None
    """What the user should know about the choice."""

    @property
    def steps(self) -> int | None:
        """The number of steps that it was made for; None if its header has none."""
        text = self.metadata.get("steps", "")
        return int(text) if text.isdecimal() and 1 <= int(text) <= MAX_STEPS else None

    @property
    def cfg(self) -> float | None:
        """The CFG scale that it was made to be run at; None if its header has none."""
        with suppress(ValueError):
            if 0 <= (cfg := float(self.metadata.get("cfg", ""))) <= MAX_CFG:
                return cfg
        return None


def resolve_lora(
    spec: str,
    *,
    model: ModelFiles,
    task: Literal["i2i", "v2v"],
    eta: float,
    method: MethodName = "std",
    steps: int = 8,
) -> LoraFile | None:
    """The LoRA file that `spec` names: "none", "auto", FILE[:SCALE],
    owner/name[@revision][/file.safetensors][:SCALE].

    "auto" is, by `method`: STD's for `task` trained nearest to `eta`, of the pack's own list or the
    published one, None if the pack lists none; a baseline's made for the number nearest to `steps`,
    None if it has none. Raises InputError for a file that is no LoRA, is for another kind of model,
    or cannot be had; its weights are read and checked.
    """
    name, scale = _split_scale(spec)
    trained = made_for = None
    path = user_path(name, "--lora")
    if name == "none" or (name == "auto" and method == "none"):
        return None
    if name == "auto" and method != "std":
        entry = _baseline(method, steps, model)
        path, made_for = fetch([source(entry.name)])[0] / entry.files[0], entry.steps
        name, scale = entry.name, scale * entry.scale
    elif name == "auto":
        nearest = _nearest_lora(model, task, eta)
        if nearest is None:
            return None
        path, trained = nearest
        name = path.name
    elif not os.path.isfile(path):
        path = _hub_lora(name)
    metadata = read_header(path)[1]
    _check_family(path, f"--lora {name}", model)
    published = re.search(r"_eta(0\.\d+)\.safetensors$", path.name)
    for text in (metadata.get("eta"), published and published[1]):
        with suppress(ValueError):
            trained = trained or (float(text) if text and 0 < float(text) <= 1 else None)
    notice = None
    if trained is not None and abs(trained - eta) > 1e-6:
        notice = f"no LoRA for eta {eta:g}: {name}, trained for {trained:g}, is used"
    if made_for is not None and made_for != steps:
        wanted = counted(steps, "step")
        notice = f"no LoRA of {method} for {wanted}: {name}, made for {made_for}, is used"
    return LoraFile(name, path, scale, trained, metadata, notice)


_families: dict[tuple[Path, int, int], Family | None] = {}
"""By the states of the files that were read and checked."""


def _check_family(path: Path, label: str, model: ModelFiles) -> None:
    """Read and check a LoRA, unless the same file was read before. Raises InputError if it is for a
    kind of model whose text has another width than this model's."""
    state = file_state(path)
    if state not in _families:
        _families[state] = read_lora(path, label).family
    made = _families[state]
    if made is None:
        return
    width = read_object((model.config or model.base) / "unet" / "config.json").get(
        "cross_attention_dim", 2048
    )
    if made.cross != width:
        what, one = ("SDXL", "SDXL") if made.name != "SDXL" else (f"{width} wide", "this model")
        raise InputError(
            f"{label}: it is for {made.name} ({made.why}), and {model.name} is {what}: "
            f"choose one made for {one}"
        )


def _split_scale(spec: str) -> tuple[str, float]:
    """("file", 0.8) of "file:0.8". A file that is really named so wins, and C:\\file has no
    scale."""
    name, _, text = spec.rpartition(":")
    if not name or os.path.isfile(user_path(spec, "--lora")):
        return spec, 1.0
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
        if len(name) == 1:
            return spec, 1.0
    if not math.isfinite(scale):
        raise InputError(f"--lora {spec}: the scale {text!r} is not a number: write it as FILE:0.8")
    return name, scale


def _nearest_lora(
    model: ModelFiles, task: Literal["i2i", "v2v"], eta: float
) -> tuple[Path, float] | None:
    """(file, eta) of the LoRA trained nearest to `eta`, the lower one of two equally near."""
    if not model.pack:
        entry = std_lora(task, eta)
        assert entry.eta is not None
        return fetch([source(entry.name)])[0] / entry.files[0], entry.eta
    return _nearest_in_pack(model.pack, model.base, model.name, task, eta)


def pack_lora(
    pack: dict[str, Any], folder: Path, name: str, task: Literal["i2i", "v2v"], eta: float
) -> LoraFile | None:
    """What "auto" takes from a pack's own list, by its header alone; None if the list is empty.

    pack, folder, name: of the model. Raises InputError.
    """
    nearest = _nearest_in_pack(pack, folder, name, task, eta)
    if nearest is None:
        return None
    path, trained = nearest
    return LoraFile(path.name, path, 1.0, trained, read_header(path)[1], None)


def _nearest_in_pack(
    pack: dict[str, Any], folder: Path, name: str, task: Literal["i2i", "v2v"], eta: float
) -> tuple[Path, float] | None:
    choices = _pack_loras(pack, name, task)
    if not choices:
        return None
    nearest = min(choices, key=lambda e: (round(abs(e - eta), 6), e))
    return folder / choices[nearest], nearest


def _baseline(method: MethodName, steps: int, model: ModelFiles) -> ModelEntry:
    """The LoRA of a baseline. Raises InputError for a pack, which the published LoRAs are not made
    for."""
    entry = method_lora(method, steps)
    assert entry is not None  # every method but none has one
    if model.pack:
        raise InputError(
            f"--method {method}: its LoRA is made for SDXL, not for --model {model.name}: give "
            f"--lora none for its steps alone, or the FILE of a LoRA for this model"
        )
    return entry


def _pack_loras(pack: dict[str, Any], name: str, task: str) -> dict[float, str]:
    """{eta: file inside the pack} of the LoRAs for a task that a pack's std.json lists."""
    loras = pack.get("loras", [])
    found = {}
    for lora in loras if isinstance(loras, list) else [loras]:
        match lora:
            case {"file": str(file), "task": "i2i" | "v2v", "eta": float() | int() as eta} if (
                0 < eta <= 1
            ):
                inside = PurePosixPath(file)
            case _:
                raise InputError(
                    f"std.json of the model {name}: a LoRA needs file, task and eta, not {lora!r}"
                )
        if inside.is_absolute() or ".." in inside.parts or re.search(r"[\\:]", file):
            raise InputError(
                f"std.json of the model {name}: the LoRA {file!r} is outside of its folder"
            )
        if lora["task"] == task:
            found[float(eta)] = file
    return found


def _hub_lora(name: str) -> Path:
    """A LoRA file of a Hub repository; the only safetensors file in it if none is named."""
    hub = hub_id(name)
    if not hub:
        what = "is a folder: name the file in it" if os.path.isdir(name) else "is not there"
        raise InputError(
            f"--lora {name} {what}: it can be FILE.safetensors, owner/name on the Hub, auto or none"
        )
    repo, revision, file = hub
    file = file or only_file(HubRepo(repo, revision, include=("*.safetensors",)))
    return fetch([HubRepo(repo, revision, files=(file,))])[0] / file
