"""LoRA files: found by name, read in any common spelling, checked against the UNet, in the form diffusers takes."""

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from std_cli.errors import InputError
from std_cli.files import read_header, read_object
from std_cli.hub import HubRepo, fetch, hub_id, only_file, source
from std_cli.match import family, some
from std_cli.paths import user_path
from std_cli.weights import ModelFiles
from std_cli.zoo import Entry, MethodName, method_lora, std_lora

if TYPE_CHECKING:
    import torch

PREFIX = r"^(unet\.)?(base_model\.model\.)?"


# --- find ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file on disk, by its header."""

    name: str
    path: Path
    scale: float
    """Strength that the user asked for, 1 if not."""
    eta: float | None
    """The eta that it was trained for, if anything tells."""
    metadata: dict[str, str]
    """Of the safetensors header."""
    notice: str | None
    """What the user should know about the choice."""


def resolve_lora(
    spec: str,
    *,
    model: ModelFiles,
    task: Literal["i2i", "v2v"],
    eta: float,
    method: MethodName = "std",
    steps: int = 8,
) -> LoraFile | None:
    """The LoRA file that `spec` names: "none", "auto", FILE[:SCALE], owner/name[@revision][/file.safetensors][:SCALE].

    "auto" is, by `method`: STD's for `task` trained nearest to `eta`, of the pack's own list or the published one, None
    if the pack lists none; a baseline's made for the number nearest to `steps`, None if it has none. Raises InputError
    for a file that is no LoRA, or cannot be had.
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
    shapes, metadata = read_header(path)
    if not any("lora_" in key or ".lora." in key for key in shapes):
        raise InputError(f"--lora {name}: no tensor of its {len(shapes)} is a LoRA's: is it a whole model?")
    made = family(shapes)
    if made and made[0] != "SDXL":
        width = read_object((model.config or model.base) / "unet" / "config.json").get("cross_attention_dim")
        if made[1] != width:
            raise InputError(
                f"--lora {name}: it is for {made[0]} (by its shapes, {made[1]} wide), and {model.name} is SDXL: choose "
                "one made for SDXL"
            )
    published = re.search(r"_eta(0\.\d+)\.safetensors$", path.name)
    for text in (metadata.get("eta"), published and published[1]):
        with suppress(ValueError):
            trained = trained or (float(text) if text and 0 < float(text) <= 1 else None)
    notice = None
    if trained is not None and abs(trained - eta) > 1e-6:
        notice = f"no LoRA for eta {eta:g}: {name}, trained for {trained:g}, is used"
    if made_for is not None and made_for != steps:
        notice = f"no LoRA of {method} for {steps} steps: {name}, made for {made_for}, is used"
    return LoraFile(name, path, scale, trained, metadata, notice)


def _split_scale(spec: str) -> tuple[str, float]:
    """("file", 0.8) of "file:0.8". A file that is really named so wins, and C:\\file has no scale."""
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


def _nearest_lora(model: ModelFiles, task: Literal["i2i", "v2v"], eta: float) -> tuple[Path, float] | None:
    """(file, eta) of the LoRA trained nearest to `eta`, the lower one of two equally near."""
    if not model.pack:
        entry = std_lora(task, eta)
        assert entry.eta is not None
        return fetch([source(entry.name)])[0] / entry.files[0], entry.eta
    choices = _pack_loras(model, task)
    if not choices:
        return None
    nearest = min(choices, key=lambda e: (round(abs(e - eta), 6), e))
    return model.base / choices[nearest], nearest


def _baseline(method: MethodName, steps: int, model: ModelFiles) -> Entry:
    """The LoRA of a baseline. Raises InputError for a pack, which the published LoRAs are not made for."""
    entry = method_lora(method, steps)
    assert entry is not None  # every method but none has one
    if model.pack:
        raise InputError(
            f"--method {method}: its LoRA is made for SDXL, not for --model {model.name}: give one with --lora FILE, "
            "or --lora none for its steps alone"
        )
    return entry


def _pack_loras(model: ModelFiles, task: str) -> dict[float, str]:
    """{eta: file inside the pack} of the LoRAs for a task that a pack's std.json lists."""
    loras = model.pack.get("loras", [])
    found = {}
    for lora in loras if isinstance(loras, list) else [loras]:
        match lora:
            case {"file": str(file), "task": "i2i" | "v2v", "eta": float() | int() as eta} if 0 < eta <= 1:
                inside = PurePosixPath(file)
            case _:
                raise InputError(f"std.json of the model {model.name}: a LoRA needs file, task and eta, not {lora!r}")
        if inside.is_absolute() or ".." in inside.parts or re.search(r"[\\:]", file):
            raise InputError(f"std.json of the model {model.name}: the LoRA {file!r} is outside of its folder")
        if lora["task"] == task:
            found[float(eta)] = file
    return found


def _hub_lora(name: str) -> Path:
    """A LoRA file of a Hub repository; the only safetensors file in it if none is named."""
    hub = hub_id(name)
    if not hub:
        what = "is a folder: name the file in it" if os.path.isdir(name) else "is not there"
        raise InputError(f"--lora {name} {what}: it can be FILE.safetensors, owner/name on the Hub, auto or none")
    repo, revision, file = hub
    file = file or only_file(HubRepo(repo, revision, include=("*.safetensors",)))
    return fetch([HubRepo(repo, revision, files=(file,))])[0] / file


# --- read ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraWeights:
    """The UNet part of a LoRA, as diffusers' `load_lora_into_unet(state_dict, network_alphas, unet)` takes it."""

    name: str
    state_dict: dict[str, "torch.Tensor"]
    """"unet.<module>.lora_A.weight": (r, in[, kh, kw]) and "unet.<module>.lora_B.weight": (out, r[, 1, 1])."""
    network_alphas: dict[str, float]
    """"unet.<module>.alpha" for every module: the adapter is scaled by alpha / r."""
    text_tensors: int
    """Tensors for the text encoders, which are left out."""


def read_lora(file: LoraFile) -> LoraWeights:
    """Read a LoRA of any common spelling: diffusers', peft's (with its prefixes), lora.down/up, kohya's.

    Raises InputError for a damaged file, and for tensors that are no LoRA pairs (LoKr, DoRA, a lone half).
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
    from safetensors.torch import load_file

    read_header(file.path)
    tensors = load_file(file.path)
    unet = {key: tensor for key, tensor in tensors.items() if not key.startswith(("text_encoder", "lora_te"))}
    halves = {key: tensor for key, tensor in unet.items() if not key.endswith(".alpha")}
    plain = {re.sub(PREFIX, "", key): tensor for key, tensor in halves.items() if not key.startswith("lora_unet_")}
    plain |= _from_kohya(file.name, {key: tensor for key, tensor in halves.items() if key.startswith("lora_unet_")})
    plain = convert_unet_state_dict_to_peft(plain)
    if len(plain) != len(halves):
        raise InputError(f"--lora {file.name}: several of its tensors are for the same layer: repair the file")
    state_dict = {f"unet.{key}": tensor for key, tensor in plain.items()}
    pairs = _pairs(file.name, state_dict)

    # Renaming keeps the tensors themselves, which tells what an alpha of the old name belongs to now.
    new_key = {id(tensor): key for key, tensor in plain.items()}
    module_of = {key.split(".lora")[0]: new_key[id(t)].split(".lora_")[0] for key, t in halves.items()}
    configured = configured_alphas(file, {module: down.shape[0] for module, (down, _) in pairs.items()})
    alphas = {f"unet.{module}.alpha": alpha for module, alpha in configured.items()}
    for key, tensor in unet.items():
        if key.endswith(".alpha"):
            module = module_of.get(key.removesuffix(".alpha"))
            if module is None or tensor.numel() != 1 or not math.isfinite(tensor.item()):
                raise InputError(f"--lora {file.name}: {key!r} is not the alpha of a layer in it: repair the file")
            alphas[f"unet.{module}.alpha"] = float(tensor.item())
    return LoraWeights(file.name, state_dict, alphas, len(tensors) - len(unet))


def _from_kohya(name: str, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """kohya's `lora_unet_*` keys, in SDXL's original block names or in diffusers', by diffusers' own converter."""
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

    if not tensors:
        return {}
    sdxl = SimpleNamespace(layers_per_block=2)
    try:
        converted, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(tensors, unet_config=sdxl)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"--lora {name}: its lora_unet_* keys are not those of pairs for SDXL layers") from error
    return {key.removeprefix("unet."): tensor for key, tensor in converted.items()}


def _pairs(name: str, state_dict: "dict[str, torch.Tensor]") -> "dict[str, tuple[torch.Tensor, torch.Tensor]]":
    """{module: (lora_A, lora_B)}; InputError for any other tensor, a lone half, or ranks that differ."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        match = re.fullmatch(r"unet\.([\w.]+)\.lora_([AB])\.weight", key)
        if not match:
            raise InputError(f"--lora {name}: {key!r} is no LoRA pair's lora_A or lora_B: other kinds do not work here")
        found.setdefault(match[1], {})[match[2]] = tensor
    if lone := [module for module, pair in found.items() if len(pair) < 2]:
        raise InputError(f"--lora {name}: {len(lone)} layers lack lora_A or lora_B (first {lone[0]}): copy it again")
    for module, pair in found.items():
        a, b = pair["A"].shape, pair["B"].shape
        if len(a) < 2 or len(a) != len(b) or a[0] != b[1] or not a[0]:
            raise InputError(f"--lora {name}: {module}: lora_A {tuple(a)}, lora_B {tuple(b)}: copy it again")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def configured_alphas(file: LoraFile, ranks: dict[str, int]) -> dict[str, float]:
    """{module: alpha} by peft's config, in the file's metadata or beside it (peft's way); without one, the rank."""
    try:
        config = json.loads(file.metadata.get("lora_adapter_metadata", "{}"))
        if file.path.name == "adapter_model.safetensors" and file.path.with_name("adapter_config.json").is_file():
            config = read_object(file.path.with_name("adapter_config.json"))
        config = {key.removeprefix("unet."): value for key, value in config.items()}
        # peft takes the names as regular expressions (unsafe from an unknown file), diffusers writes plain ones
        pattern = {key.replace("\\.", "."): float(alpha) for key, alpha in config.get("alpha_pattern", {}).items()}
        if not all(re.fullmatch(r"\^?[\w.]+", key) for key in pattern):
            raise ValueError("alpha_pattern is a regular expression")
        alphas = {}
        for module, rank in ranks.items():
            key = next((k for k in pattern if f"^{module}" == k or f".{module}".endswith(f".{k}")), "")
            alphas[module] = float(pattern.get(key, config.get("lora_alpha", rank)))
            alphas[module] *= math.sqrt(rank) if config.get("use_rslora") else 1
        if not all(map(math.isfinite, alphas.values())):
            raise ValueError("alpha is not finite")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"--lora {file.name}: its adapter config cannot be used: save it again without it") from error
    return alphas


def check_lora(weights: LoraWeights, unet: "torch.nn.Module", allow_partial: bool = False) -> tuple[int, int]:
    """(tensors whose layer is in this UNet, tensors in all): the same number, unless `allow_partial`.

    The UNet may have layers that the file does not adapt: a LoRA for pictures fits a motion UNet. Raises InputError if
    a tensor finds no layer, or one of another shape, or if none finds any.
    """
    layers = dict(unet.named_modules())
    lost, wrong = [], []
    pairs = _pairs(weights.name, weights.state_dict)
    for module, (a, b) in pairs.items():
        weight = getattr(layers.get(module), "weight", None)
        if weight is None or weight.ndim < 2:
            lost.append(module)
            continue
        ones = [1] * (weight.ndim - 2)
        if list(a.shape[1:]) != list(weight.shape[1:]) or list(b.shape) != [weight.shape[0], a.shape[0], *ones]:
            wrong.append(f"{module}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} for {tuple(weight.shape)}")
    other = "made for another architecture? Choose one for this model"
    if wrong:
        raise InputError(f"--lora {weights.name}: {len(wrong)} layers differ in shape (first {wrong[0]}): {other}")
    matched, total = 2 * (len(pairs) - len(lost)), 2 * len(pairs)
    if not matched:
        raise InputError(f"--lora {weights.name}: 0 of {total} tensors match this UNet: {other}")
    if lost and not allow_partial:
        moving = all(".motion_modules." in module for module in lost)
        remedy = "it is for videos: give --motion auto, or another LoRA" if moving else other
        raise InputError(
            f"--lora {weights.name}: {matched} of {total} tensors match this UNet, which lacks {len(lost)} of its "
            f"layers ({some(lost)}): {remedy}; --allow-partial goes on without them"
        )
    return matched, total
