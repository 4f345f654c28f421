"""The one writer of LoRA files, of `std models convert` and `std distill`; equal contents give
equal bytes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError, StdError, counted
from std_cli.weights.lora.layer import DOWN, UP, Layer
from std_cli.weights.lora.names import parse, to_original
from std_cli.weights.lora.read import METADATA, LoraWeights, cut, read_lora
from std_cli.weights.zoo import LoraLayout

if TYPE_CHECKING:
    from torch import Tensor


def lora_bytes(weights: LoraWeights, to: LoraLayout, metadata: dict[str, str]) -> bytes:
    """A safetensors file in a spelling, with `metadata` in its header; peft's also needs
    `peft_config` next to it.

    diffusers  "unet.<layer>.lora_A|B.weight", peft's configuration in the header, as
               `save_lora_weights` writes it
    kohya      "lora_unet_<layer with _>.lora_down|up.weight" and ".alpha"; SDXL's layers in the
               original's names, as sd-scripts, ComfyUI and diffusers read them; the tensors of
               every other method, too
    peft       "base_model.model.<layer>.lora_A|B.weight"

    Raises InputError for layers that are no plain LoRA in a spelling that has no place for them.
    """
    kept = {key: value for key, value in metadata.items() if key != METADATA} | {"format": "pt"}
    if to == "kohya":
        tensors = _kohya(weights)
    else:
        tensors = _pairs(weights, "unet." if to == "diffusers" else "base_model.model.", to)
    names = map(parse, tensors)
    if lost := [name.layer for name in names if name.layer not in weights.layers]:
        raise InputError(
            f"{weights.label}: {to} spelling has no place for the names of its layers (first "
            f"{cut(lost[0])}): use another --to"
        )
    if to == "diffusers":
        config = {f"unet.{key}": value for key, value in peft_config(weights).items()}
        kept[METADATA] = json.dumps(config, sort_keys=True)
    return safetensors_bytes(tensors, kept)


def check_written(weights: LoraWeights, file: Path, to: LoraLayout) -> None:
    """Raises StdError unless a file that was written holds every layer, number and scale."""
    import torch

    nothing = Layer({}, None)
    back = read_lora(file, weights.label).layers
    for name in weights.layers.keys() | back.keys():
        given = weights.layers.get(name, nothing)
        found = back.get(name, nothing)
        same = given.tensors.keys() == found.tensors.keys() and given.scale == found.scale
        if not same or not all(
            torch.equal(tensor, found.tensors[key]) for key, tensor in given.tensors.items()
        ):
            raise StdError(
                f"{weights.label}: {cut(name)} is not read back as it was from {to} spelling, so "
                f"the file cannot be used: check the disk, and report it if that is sound"
            )


def peft_config(weights: LoraWeights) -> dict[str, Any]:
    """The fields of peft's LoraConfig that describe the layers: every layer by its whole name,
    ranks and alphas."""
    ranks = {name: layer.rank or 0 for name, layer in sorted(weights.layers.items())}
    alphas = {name: _alpha(weights.layers[name]) for name in ranks}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        # peft takes names as regular expressions that may match in the middle: ^ keeps them apart
        "rank_pattern": {f"^{name}": r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{name}": a for name, a in alphas.items() if a != alpha},
        "target_modules": list(ranks),
    }


def _alpha(layer: Layer) -> float | int:
    """Alpha as LoraConfig has it: a whole number where it is one."""
    alpha = layer.scale * (layer.rank or 0) if layer.alpha is None else layer.alpha
    return int(alpha) if float(alpha).is_integer() else alpha


def _pairs(weights: LoraWeights, prefix: str, to: str) -> "dict[str, Tensor]":
    out: dict[str, Tensor] = {}
    other = [name for name, layer in weights.layers.items() if layer.tensors.keys() != {DOWN, UP}]
    if other:
        methods = " with ".join(weights.layers[other[0]].methods)
        raise InputError(
            f"{weights.label}: no plain LoRA: {len(other)} of "
            f"{counted(len(weights.layers), 'layer')} (first "
            f"{cut(other[0])}: {methods}), for which the spelling of {to} has no place: use --to "
            f"kohya"
        )
    for name, layer in weights.layers.items():
        out[f"{prefix}{name}.lora_A.weight"] = layer.tensors[DOWN]
        out[f"{prefix}{name}.lora_B.weight"] = layer.tensors[UP]
    return out


def _kohya(weights: LoraWeights) -> "dict[str, Tensor]":
    """The original's names only if all layers have one: diffusers drops the original's where both
    are in a file."""
    import torch

    original = {name: to_original(name) for name in weights.layers}
    sdxl = weights.family is not None and weights.family.name == "SDXL" and all(original.values())
    out: dict[str, Tensor] = {}
    for name, layer in weights.layers.items():
        flat = ((original[name] if sdxl else None) or name).replace(".", "_")
        for part, tensor in layer.tensors.items():
            part = f"{part}.weight" if part in ("a1", "a2", "b1", "b2") else part
            out[f"lora_unet_{flat}.{part}"] = tensor
        if layer.alpha is not None:
            out[f"lora_unet_{flat}.alpha"] = torch.tensor(float(layer.alpha))
    return out


def safetensors_bytes(tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> bytes:
    """A safetensors file with its metadata in sorted order: the library's own order differs from
    run to run."""
    from safetensors.torch import save

    data = memoryview(save({key: tensor.contiguous() for key, tensor in sorted(tensors.items())}))
    size = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(bytes(data[8:size]))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, data[size:]])
