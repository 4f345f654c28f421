"""What a weights file is, by its header and the few numbers that tell a LoRA's alpha: nothing else is read.

A .pth has no header: it is read whole, but never run.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from std_cli.errors import InputError
from std_cli.files import read_header
from std_cli.layout import SINGLE_FILE_KEYS
from std_cli.lora import PREFIX, LoraFile, configured_alphas
from std_cli.match import Shapes, family
from std_cli.paths import user_path
from std_cli.pickles import read_pickle

# What a key begins with or holds -> the kind of file; the first that matches.
KINDS = (
    (r"(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)\.", "lora"),
    (r"^ip_adapter\.", "ip-adapter"),
    (r"\.temporal_attentions\.", "hotshot"),
    (r"\.motion_modules\.", "motion"),
    (r"^model\.diffusion_model\.", "checkpoint"),
    (r"^(down_blocks|mid_block|up_blocks)\..*attentions.*attn2", "unet"),
    (r"^(encoder|decoder)\.(mid|mid_block|down|up|conv_in)|^decoder\.layers\.", "vae"),
    (r"^blocks\.\d+\.ls1\.gamma$", "dinov2-original"),
    (r"^(dinov2\.)?encoder\.layer\.\d+\.layer_scale1\.lambda1$", "dinov2"),
    (r"^(text_model|vision_model)\.|^encoder\.layers\.\d+\.self_attn", "clip"),
)
LAYOUTS = (
    (r"^lora_unet_", "kohya"),
    (r"^unet\.base_model\.model\.", "diffusers, with peft's prefix"),
    (r"^base_model\.model\.", "peft"),
    (r"lora\.(down|up)\.", "diffusers, of old"),
    (r"^unet\.", "diffusers"),
)


def inspect_file(file: str | Path) -> dict[str, Any]:
    """{event: inspected, file, kind, tensors, parameters, metadata}; of a LoRA also layout, modules, ranks, alphas,
    family and fits. Raises InputError for a file that is not there, or is neither a safetensors file nor a .pth of
    tensors.
    """
    path = user_path(file, "FILE")
    if not path.is_file():
        raise InputError(f"{file} is not a file: give a .safetensors file, or DINOv2's .pth")
    shapes, metadata = _pickled(path) if path.suffix == ".pth" else read_header(path)
    kind = next((kind for pattern, kind in KINDS if any(re.search(pattern, key) for key in shapes)), "unknown")
    facts: dict[str, Any] = {
        "event": "inspected",
        "file": str(path),
        "kind": kind,
        "tensors": len(shapes),
        "parameters": sum(_count(shape) for shape in shapes.values()),
        "metadata": metadata,
    }
    made = _motion_family(shapes) if kind in ("motion", "hotshot") else (family(shapes) or (None,))[0]
    if kind == "lora":
        return facts | _lora(path, shapes, metadata) | {"family": made, "fits": _fits(shapes)}
    if kind == "checkpoint":
        sdxl = all(any(key.startswith(k) for key in shapes) for k in SINGLE_FILE_KEYS)
        return facts | {"family": "SDXL" if sdxl else made, "fits": ["--model"] if sdxl else []}
    fits = {
        "ip-adapter": "ip_adapter/ in a model's folder",
        "unet": "unet/ in a model's folder",
        "vae": "vae/ in a model's folder",
        "hotshot": "--motion, once converted",
        "motion": "--motion",
        "dinov2-original": "adversarial.features of std distill, as it is or converted",
        "dinov2": "adversarial.features of std distill, in a folder with its config.json",
    }
    return facts | {"family": made, "fits": [fits[kind]] if kind in fits and made in (None, "SDXL") else []}


def _pickled(path: Path) -> tuple[Shapes, dict[str, str]]:
    return {key: list(tensor.shape) for key, tensor in read_pickle(path).items()}, {}


def _motion_family(shapes: Shapes) -> str | None:
    """What a motion adapter is made for, by its widths: Stable Diffusion 1.5 has a block of the last one more."""
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(".proj_in.weight") and len(shape) == 2}
    if widths != {320, 640, 1280}:
        return None
    return "Stable Diffusion 1.5" if any(key.startswith("down_blocks.3.") for key in shapes) else "SDXL"


def _lora(path: Path, shapes: Shapes, metadata: dict[str, str]) -> dict[str, Any]:
    from safetensors import safe_open

    downs = {k: s for k, s in shapes.items() if re.search(r"(lora_A|lora_down|lora\.down)\.", k)}
    named = [key for key, shape in shapes.items() if key.endswith(".alpha") and _count(shape) == 1]
    with safe_open(path, framework="pt") as file:
        alphas = Counter(float(file.get_tensor(key).item()) for key in named)
    if not named:  # then a config tells it, or it is the rank
        rank_of = {re.sub(PREFIX, "", key.split(".lora")[0]): shape[0] for key, shape in downs.items() if shape}
        configured = configured_alphas(LoraFile(str(path), path, 1.0, None, metadata, None), rank_of)
        alphas = Counter(configured.values() if configured != rank_of else ())
    layout = next((name for pattern, name in LAYOUTS if any(re.search(pattern, key) for key in downs)), "bare")
    ranks = Counter(shape[0] for shape in downs.values() if shape)
    return {
        "layout": layout,
        "modules": len(downs),
        "ranks": {str(rank): n for rank, n in sorted(ranks.items())},
        "alphas": {f"{alpha:g}": n for alpha, n in sorted(alphas.items())},  # none: alpha is the rank
        "text_encoder": sum(key.startswith(("text_encoder", "lora_te")) for key in downs),
    }


def _fits(shapes: Shapes) -> list[str]:
    made = family(shapes)
    if made and made[0] != "SDXL":
        return []
    moving = any("motion_modules" in key for key in shapes)
    return ["--lora, for videos with a motion adapter"] if moving else ["--lora, for pictures and videos"]


def _count(shape: list[int]) -> int:
    out = 1
    for side in shape:
        out *= side
    return out
