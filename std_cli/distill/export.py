"""The trained adapter as files that other tools read."""

from pathlib import Path

import torch
from torch import Tensor

from std_cli.errors import StdError
from std_cli.paths import replace_file
from std_cli.weights.lora.read import of_pairs, read_lora
from std_cli.weights.lora.write import lora_bytes

DIFFUSERS = "pytorch_lora_weights.safetensors"
KOHYA = "lora_kohya.safetensors"


def diffusers_bytes(adapter: dict[str, Tensor], alpha: float, metadata: dict[str, str]) -> bytes:
    """A file that diffusers' `load_lora_weights` takes, "unet.<layer>.lora_A|B.weight", in the
    adapter's precision.

    adapter: "<layer>.lora_A.weight" (r, in[, kh, kw]) and "<layer>.lora_B.weight" (out, r[, 1, 1]).
    """
    return lora_bytes(of_pairs("the adapter", adapter, alpha), "diffusers", metadata)


def kohya_bytes(adapter: dict[str, Tensor], alpha: float, metadata: dict[str, str]) -> bytes:
    """A file for kohya's tools and ComfyUI, "lora_unet_<layer with _>.lora_down|up.weight" and
    ".alpha"."""
    weights = of_pairs("the adapter", adapter, alpha)
    rank = next(iter(weights.layers.values())).rank
    return lora_bytes(
        weights, "kohya", metadata | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    )


def export(
    folder: Path, adapter: dict[str, Tensor], alpha: float, metadata: dict[str, str]
) -> Path:
    """Write both files in fp16 and read them back; the path of the one for diffusers. Raises
    StdError unless every layer and value is in both.

    adapter: as for `diffusers_bytes`. alpha: the scale of the adapter is alpha / rank. metadata:
    of the files' headers.
    """
    half = {k: v.half() for k, v in adapter.items()}
    wanted = of_pairs("the adapter", half, alpha).layers
    for name, make in ((DIFFUSERS, diffusers_bytes), (KOHYA, kohya_bytes)):
        path = folder / name
        replace_file(path, make(half, alpha, metadata))
        found = read_lora(path, str(path)).layers
        if found.keys() != wanted.keys() or not all(
            torch.equal(tensor, found[layer].tensors[part])
            for layer, given in wanted.items()
            for part, tensor in given.tensors.items()
        ):
            raise StdError(
                f"{path} does not hold what was written: check the disk and run the same command "
                "again"
            )
    return folder / DIFFUSERS
