"""The one reader of LoRA files: of `--lora`, `std models inspect` and `std models convert`."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.errors import InputError, counted
from std_cli.weights.files import check_numbers, read_header, read_object
from std_cli.weights.lora.family import Family, Shape, lora_family
from std_cli.weights.lora.layer import DOWN, MID, PARTS, UP, Layer, fold_core, method_of
from std_cli.weights.lora.names import Name, parse

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"
"""The header's key under which diffusers keeps peft's configuration."""


@dataclass(frozen=True)
class LoraWeights:
    """The UNet part of a LoRA file, checked: every layer is whole, finite, and of a method that can
    be computed."""

    label: str
    """What messages call the file."""
    layers: dict[str, Layer]
    """By the layer's name in diffusers' UNets."""
    family: Family | None = None
    notices: list[str] = field(default_factory=list)
    """What is set aside, and what has no effect."""

    def shapes(self) -> dict[str, Shape]:
        """{layer: (out, in[, kh, kw]) of the change to its weight}; (out,) where the bias alone
        changes."""
        return {name: _shape(layer) for name, layer in self.layers.items()}


def read_lora(path: Path, label: str) -> LoraWeights:
    """Read a file of any known spelling and method; `label` begins every message.

    Raises InputError for a file that is damaged, is no LoRA, has nothing for the UNet, holds what
    is no number, whose layers are not whole, or are of a method that cannot be computed here.
    """
    from safetensors import safe_open

    header, metadata = read_header(path)
    names = {key: parse(key) for key in header}
    if not any(name.tensor for name in names.values()):
        raise InputError(
            f"{label}: no tensor of its {len(names)} is a LoRA's: is it a whole model?"
        )
    aside = _set_aside(label, names)
    keys = _group(label, {key: name for key, name in names.items() if name.part == "unet"}, header)
    with safe_open(path, framework="pt") as file:
        raw = {
            layer: {t: file.get_tensor(key) for t, key in tensors.items()}
            for layer, tensors in keys.items()
        }
    alphas = {
        layer: _alpha(label, keys[layer]["alpha"], t.pop("alpha"))
        for layer, t in raw.items()
        if "alpha" in t
    }
    check_numbers(
        label,
        (
            (cut(keys[layer][name]), tensor)
            for layer, t in raw.items()
            for name, tensor in t.items()
        ),
    )
    layers = _layers(label, path, metadata, raw, alphas)
    family = lora_family(
        {name: _shape(layer) for name, layer in layers.items()},
        metadata,
        [key for key, name in names.items() if name.part == "text"],
        any(name.original for name in names.values()),
    )
    idle = [name for name, layer in layers.items() if layer.alpha == 0 and layer.rank]
    if len(idle) == len(layers):
        raise InputError(
            f"{label}: alpha is 0 everywhere ({counted(len(idle), 'layer')}), so it changes "
            "nothing: choose another"
        )
    if idle:
        aside.append(
            f"alpha is 0 in {len(idle)} of its {len(layers)} layers, which adds nothing (first "
            f"{cut(idle[0])})"
        )
    return LoraWeights(label, layers, family, aside)


def of_pairs(label: str, adapter: "dict[str, Tensor]", alpha: float) -> LoraWeights:
    """A trained adapter, "<layer>.lora_A.weight" (r, in[, kh, kw]) and "<layer>.lora_B.weight", as
    if it was read."""
    names = {"lora_A": DOWN, "lora_B": UP}
    raw: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(adapter.items()):
        layer, half = key.removesuffix(".weight").rsplit(".", 1)
        raw.setdefault(layer, {})[names[half]] = tensor
    layers = {name: Layer(tensors, float(alpha)) for name, tensors in raw.items()}
    return LoraWeights(
        label, layers, lora_family({n: _shape(la) for n, la in layers.items()}, {}, (), False)
    )


def text_layers(header: dict[str, list[int]]) -> int:
    """How many layers of text encoders the file adapts, by its header."""
    names = (parse(key) for key in header)
    return len({name.layer for name in names if name.part == "text" and name.tensor})


def cut(name: str, most: int = 120) -> str:
    """A name out of a file for a message: of any length there, short here, and on one line."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[:most]}... ({len(name)} characters)"


def _set_aside(label: str, names: dict[str, Name]) -> list[str]:
    """A notice of the tensors that are not for the UNet. Raises InputError if all are such."""
    counts = Counter(name.part for name in names.values())
    others = " and ".join(
        f"{counted(count, 'tensor')} {what}"
        for count, what in (
            (counts["text"], "for the text encoders"),
            (counts["embedding"], "of bundled embeddings"),
        )
        if count
    )
    if not counts["unet"]:
        raise InputError(
            f"{label}: it has nothing for the UNet, only {others}: choose a LoRA that adapts "
            f"the UNet"
        )
    return [f"left out, as only the UNet is adapted: {others}"] if others else []


def _group(
    label: str, names: dict[str, Name], header: dict[str, list[int]]
) -> dict[str, dict[str, str]]:
    """{layer: {tensor: key}}; InputError for tensors of no known method, or two of one kind for a
    layer."""
    out: dict[str, dict[str, str]] = {}
    for key, name in names.items():
        tensors = out.setdefault(name.layer, {})
        if name.tensor and name.tensor in tensors:
            raise InputError(
                f"{label}: several of its tensors are for the same layer "
                f"({cut(tensors[name.tensor])} and {cut(key)}): "
                "it mixes two spellings; choose a file that has each layer once"
            )
        if name.tensor:
            tensors[name.tensor] = key
    methods: dict[str, list[str]] = {}
    for layer, tensors in out.items():
        for tensor, key in tensors.items():
            method = method_of(tensor)
            if tensor == "oft_blocks" and len(header[key]) == 4:
                method = "BOFT"
            if method and method not in PARTS:
                methods.setdefault(method, []).append(layer)
    if methods:
        found = "; ".join(
            f"{len(set(layers))} as {m} (first {cut(layers[0])})" for m, layers in methods.items()
        )
        raise InputError(
            f"{label}: of {counted(len(out), 'layer')} {found}, which cannot be computed here: "
            f"choose a "
            f"LoRA, DoRA, LoHa, "
            "LoKr, GLoRA or full difference"
        )
    if unknown := [
        key
        for key, name in names.items()
        if not name.tensor or not re.fullmatch(r"[\w.]+", name.layer)
    ]:
        raise InputError(
            f"{label}: {len(unknown)} of its tensors are of no kind that is known here (first "
            f"{cut(unknown[0])}): "
            "choose a LoRA for SDXL's UNet"
        )
    return out


def _alpha(label: str, key: str, tensor: "Tensor") -> float:
    """A scalar of any real type and shape."""
    if tensor.numel() != 1 or tensor.is_complex() or not math.isfinite(float(tensor.float())):
        kind = str(tensor.dtype).removeprefix("torch.")
        what = (
            f"{kind} {tuple(tensor.shape)}"
            if tensor.numel() != 1 or tensor.is_complex()
            else str(tensor.item())
        )
        raise InputError(
            f"{label}: {cut(key)} is {what}, and an alpha is one finite number: choose another file"
        )
    return float(tensor.float())


def _layers(
    label: str,
    path: Path,
    metadata: dict[str, str],
    raw: "dict[str, dict[str, Tensor]]",
    alphas: dict[str, float],
) -> dict[str, Layer]:
    """The layers, whole and consistent, in one form: no cores (lora_mid), no halves' biases, no 1-D
    magnitudes."""
    for tensors in raw.values():
        for name, tensor in tensors.items():
            # float8 has no arithmetic
            tensors[name] = tensor.half() if tensor.itemsize == 1 else tensor
    found = {name: Layer(tensors, alphas.get(name)) for name, tensors in raw.items()}
    _check_sizes(label, found)
    for layer in found.values():
        if {"magnitude", "dora_scale"} & layer.tensors.keys():
            _tidy_magnitude(layer.tensors)
    if short := [name for name, layer in found.items() if layer.lacks]:
        first = found[short[0]]
        raise InputError(
            f"{label}: not whole: {len(short)} of {counted(len(found), 'layer')} (first "
            f"{cut(short[0])}: {' '.join(first.methods)} without {', '.join(first.lacks)}): fetch "
            f"it again"
        )
    ranks = {name: layer.rank or 0 for name, layer in found.items() if DOWN in layer.tensors}
    configured = configured_alphas(label, path, metadata, ranks)
    out = {}
    for name, layer in found.items():
        try:
            out[name] = _folded(Layer(layer.tensors, alphas.get(name, configured.get(name))))
            _shape(out[name])
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(f"{t} {tuple(tensor.shape)}" for t, tensor in layer.tensors.items())
            raise InputError(
                f"{label}: {cut(name)}: {shapes} do not fit each other: choose another file"
            ) from error
    return out


def _check_sizes(label: str, layers: dict[str, Layer]) -> None:
    """Raises InputError for a layer without a matrix: an alpha alone, no numbers, a single
    number."""
    for name, layer in layers.items():
        if not layer.tensors:
            raise InputError(
                f"{label}: {cut(name)} has an alpha and nothing else: the file is not whole; fetch "
                f"it again"
            )
        for part, tensor in layer.tensors.items():
            if not tensor.numel():
                raise InputError(
                    f"{label}: {cut(name)}: {part} {tuple(tensor.shape)} holds no number (rank 0): "
                    f"choose another file"
                )
            if not tensor.ndim:
                raise InputError(
                    f"{label}: {cut(name)}: {part} is a single number, no matrix: choose another "
                    f"file"
                )


def _tidy_magnitude(tensors: "dict[str, Tensor]") -> None:
    """peft's magnitude (out,) or (1, out, 1, 1) in LyCORIS' form (out, 1, ...)."""
    if "magnitude" in tensors:
        magnitude = tensors.pop("magnitude")
        dims = max((t.ndim for t in tensors.values()), default=2)
        tensors["dora_scale"] = magnitude.reshape(-1, *[1] * (dims - 1))
    elif tensors["dora_scale"].ndim == 1:
        tensors["dora_scale"] = tensors["dora_scale"].reshape(-1, 1)


def _folded(layer: Layer) -> Layer:
    """The same change without a core and without a half's bias. Raises RuntimeError if they do not
    fit."""
    tensors = dict(layer.tensors)
    if MID in tensors:
        tensors[DOWN] = fold_core(tensors.pop(MID), tensors[DOWN])
    if "lora_up.bias" in tensors:
        added = tensors.pop("lora_up.bias").float() * layer.scale
        tensors["diff_b"] = tensors["diff_b"].float() + added if "diff_b" in tensors else added
    return Layer(tensors, layer.alpha)


def _shape(layer: Layer) -> Shape:
    """Of its change to the weight, or to the bias if that is all."""
    if layer.tensors.keys() == {DOWN, UP}:
        return _shape_of_pair(*(tuple(layer.tensors[name].shape) for name in (UP, DOWN)))
    bare = layer.to("meta")
    change, bias = bare.change(), bare.bias()
    if change is None and bias is not None:
        return tuple(bias.shape)
    assert change is not None
    if "a1" in bare.tensors and (
        bare.tensors["a1"].shape[1] != bare.tensors["a2"].shape[0]
        or bare.tensors["a1"].shape[0] != bare.tensors["a2"].shape[1]
        or bare.tensors["a2"].shape[1] != change.shape[1]
    ):
        raise ValueError("GLoRA's factors of the weight are not those of its inputs")
    if "dora_scale" in bare.tensors and bare.tensors["dora_scale"].numel() not in change.shape[:2]:
        raise ValueError("DoRA's magnitudes are neither of outputs nor of inputs")
    if bias is not None and bias.shape != change.shape[:1]:
        raise ValueError("the bias is not of the outputs")
    return tuple(change.shape)


def _shape_of_pair(up: Shape, down: Shape) -> Shape:
    """Of the product of a plain LoRA's halves. torch's meta device has it for every method; its
    arithmetic takes a second to import, and 0.2 s for a file."""
    if len(up) < 2 or len(down) < 2 or math.prod(up[1:]) != down[0]:
        raise ValueError("the halves have different ranks")
    return (up[0], *down[1:])


def configured_alphas(
    label: str, path: Path, metadata: dict[str, str], ranks: dict[str, int]
) -> dict[str, float]:
    """{layer: alpha} by peft's config, in the file's metadata or next to it (peft's way); without
    one, the rank."""
    try:
        config = json.loads(metadata.get(METADATA, "{}"))
        if (
            path.name == "adapter_model.safetensors"
            and path.with_name("adapter_config.json").is_file()
        ):
            config = read_object(path.with_name("adapter_config.json"))
        config = {key.removeprefix("unet."): value for key, value in config.items()}
        # peft takes the names as regular expressions (unsafe from an unknown file), diffusers
        # writes plain ones
        pattern = {
            key.replace("\\.", "."): float(alpha)
            for key, alpha in config.get("alpha_pattern", {}).items()
        }
        if not all(re.fullmatch(r"\^?[\w.]+", key) for key in pattern):
            raise ValueError("alpha_pattern is a regular expression")
        alphas = {}
        for layer, rank in ranks.items():
            key = next(
                (k for k in pattern if f"^{layer}" == k or f".{layer}".endswith(f".{k}")), ""
            )
            alphas[layer] = float(pattern.get(key, config.get("lora_alpha", rank)))
            alphas[layer] *= math.sqrt(rank) if config.get("use_rslora") else 1
        if not all(map(math.isfinite, alphas.values())):
            raise ValueError("alpha is not finite")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{label}: its adapter config cannot be used: save it again without it"
        ) from error
    return alphas
