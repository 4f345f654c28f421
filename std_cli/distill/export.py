"""The trained adapter as files that other tools read."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from std_cli.errors import StdError
from std_cli.image import replace_file

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"


def diffusers_bytes(adapter: dict[str, Tensor], alpha: float, metadata: dict[str, str]) -> bytes:
    """diffusers' layout, "unet.<module>.lora_A|B.weight"; alpha stands in the metadata as diffusers writes it."""
    config = {"unet.r": _rank(adapter), "unet.lora_alpha": alpha}
    tensors = {f"unet.{k}": v.contiguous() for k, v in sorted(adapter.items())}
    return save(tensors, metadata | {"format": "pt", "lora_adapter_metadata": json.dumps(config)})


def kohya_bytes(adapter: dict[str, Tensor], alpha: float, metadata: dict[str, str]) -> bytes:
    """kohya's and ComfyUI's layout, "lora_unet_<module with _>.lora_down|up.weight" and ".alpha"."""
    tensors: dict[str, Tensor] = {}
    for key, value in sorted(adapter.items()):
        module, half = key.removesuffix(".weight").rsplit(".", 1)
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = value.half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return save(tensors, metadata | {"ss_network_dim": str(_rank(adapter)), "ss_network_alpha": str(alpha)})


def export(folder: Path, adapter: dict[str, Tensor], alpha: float, metadata: dict[str, Any]) -> Path:
    """Write both files and read the first one back: every key and value is there. Returns its path."""
    text = {k: str(v) for k, v in metadata.items()}
    half = {k: v.half() for k, v in adapter.items()}
    path = folder / DIFFUSERS
    replace_file(path, diffusers_bytes(half, alpha, text))
    replace_file(folder / KOHYA, kohya_bytes(half, alpha, text))
    with safe_open(path, framework="pt") as file:
        keys = file.keys()
        if {re.sub("^unet.", "", k) for k in keys} != set(adapter) or not all(
            torch.equal(file.get_tensor(k), half[re.sub("^unet.", "", k)]) for k in keys
        ):
            raise StdError(f"{path} was not written as it should be: check the disk and run the same command again")
    return path


def _rank(adapter: dict[str, Tensor]) -> int:
    return next(v.shape[0] for k, v in adapter.items() if k.endswith(".lora_A.weight"))
