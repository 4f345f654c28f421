"""What a weights file is, by its header; a LoRA is read as `--lora` reads it, so that both say the
same.

A .pth has no header: it is read whole, but never run.
"""

import math
import re
from collections import Counter
from pathlib import Path

from std_cli.errors import InputError, counted
from std_cli.events import CheckpointFacts, Inspected, LoraFacts
from std_cli.paths import user_path
from std_cli.weights.files import read_header
from std_cli.weights.fit import Shapes, checkpoint_family, family
from std_cli.weights.lora import LoraWeights, read_lora
from std_cli.weights.lora.family import unet_layers
from std_cli.weights.lora.fuse import misfits, remedy
from std_cli.weights.lora.names import parse
from std_cli.weights.lora.read import cut, text_layers
from std_cli.weights.pickles import read_pickle
from std_cli.weights.resolve import TINY
from std_cli.weights.sdxl_files import SINGLE_FILE_KEYS, check_checkpoint

# What a key begins with or holds -> the kind of file; the first that matches.
KINDS = (
    (r"^ip_adapter\.", "ip-adapter"),
    (r"\.temporal_attentions\.", "hotshot"),
    (r"\.motion_modules\.", "motion"),
    (r"^model\.diffusion_model\.", "checkpoint"),
    (r"^(down_blocks|mid_block|up_blocks)\..*attentions.*attn2", "unet"),
    (r"^(encoder|decoder)\.(mid|mid_block|down|up|conv_in)|^decoder\.layers\.", "vae"),
    (r"^blocks\.\d+\.ls1\.gamma$", "dinov2-original"),
    (r"^(dinov2\.)?encoder\.layer\.\d+\.layer_scale1\.lambda1$", "dinov2"),
    (r"^(clip_[lg]|emb_params|string_to_param\.\*)$", "embedding"),
    (r"^(text_model|vision_model)\.|^encoder\.layers\.\d+\.self_attn", "clip"),
)
LAYOUTS = (
    (r"^lora_", "kohya"),
    (r"^lycoris_", "LyCORIS"),
    (r"^unet\.base_model\.model\.", "diffusers, with peft's prefix"),
    (r"^base_model\.model\.", "peft"),
    (r"^diffusion_model\.", "ComfyUI"),
    (r"(input_blocks|middle_block|output_blocks)\.", "OneTrainer"),
    (r"lora\.(down|up)\.", "diffusers, of old"),
    (r"^(unet|text_encoder|transformer)", "diffusers"),
)
NO_BIAS = (".to_q", ".to_k", ".to_v")  # of a UNet's layers
METADATA_CHARACTERS = 4096
METADATA_KEYS = 200
"""The most that is shown of a file's metadata: trainers write megabytes of it."""


def inspect_file(file: str | Path) -> Inspected:
    """{event: inspected, file, kind, tensors, parameters, metadata, metadata_cut, family, fits}; of
    a LoRA also layout, methods, modules, ranks, alphas, text_encoder and notices; of a LoRA and a
    checkpoint problem (why `--lora` or `--model` refuses it, or None).

    Long metadata are cut, and `metadata_cut` has the true lengths. Raises InputError for a file
    that is not there, or is neither a safetensors file nor a .pth of tensors.
    """
    path = user_path(file, "FILE")
    if not path.is_file():
        raise InputError(f"{file} is not a file: give a .safetensors file, or DINOv2's .pth")
    shapes, metadata = _pickled(path) if path.suffix == ".pth" else read_header(path)
    kind = next(
        (kind for pattern, kind in KINDS if any(re.search(pattern, key) for key in shapes)),
        "unknown",
    )
    if _is_lora(shapes, kind):
        kind = "lora"
    shown, shortened = _short(metadata)
    facts: Inspected = {
        "event": "inspected",
        "file": str(path),
        "kind": kind,
        "tensors": len(shapes),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "metadata": shown,
        "metadata_cut": shortened,
        "family": None,
        "fits": [],
    }
    if kind == "lora":
        return {**facts, **_lora(path, shapes)}
    made = (
        _motion_family(shapes) if kind in ("motion", "hotshot") else (family(shapes) or (None,))[0]
    )
    if kind == "checkpoint":
        return {**facts, **_checkpoint(path, shapes)}
    fits = {
        "ip-adapter": "ip_adapter/ in a model's folder",
        "unet": "unet/ in a model's folder",
        "vae": "vae/ in a model's folder",
        "hotshot": "--motion, once converted",
        "motion": "--motion",
        "dinov2-original": "adversarial.features of std distill, as it is or converted",
        "dinov2": "adversarial.features of std distill, in a folder with its config.json",
    }
    facts["family"] = made
    facts["fits"] = [fits[kind]] if kind in fits and made in (None, "SDXL") else []
    return facts


def _checkpoint(path: Path, shapes: Shapes) -> CheckpointFacts:
    """What a whole model is for, and why `--model` refuses it, as it says it there."""
    whole = all(any(key.startswith(start) for key in shapes) for start in SINGLE_FILE_KEYS)
    made = "SDXL" if whole else checkpoint_family(shapes)
    try:
        check_checkpoint(str(path), path)
    except InputError as error:
        return {"family": made, "fits": [], "problem": str(error)}
    return {"family": made, "fits": ["--model"], "problem": None}


def _pickled(path: Path) -> tuple[Shapes, dict[str, str]]:
    return {key: list(tensor.shape) for key, tensor in read_pickle(path).items()}, {}


def _motion_family(shapes: Shapes) -> str | None:
    """What a motion adapter is made for, by its widths: Stable Diffusion 1.5 has a block of the
    last one more."""
    widths = {
        shape[1]
        for key, shape in shapes.items()
        if key.endswith(".proj_in.weight") and len(shape) == 2
    }
    if widths != {320, 640, 1280}:
        return None
    return (
        "Stable Diffusion 1.5"
        if any(key.startswith("down_blocks.3.") for key in shapes)
        else "SDXL"
    )


def _is_lora(shapes: Shapes, kind: str) -> bool:
    """Whether the tensors are those of any adapter's, and the file is of no other kind that is
    known for sure."""
    methods = sum(bool(parse(key).tensor) for key in shapes)
    return 2 * methods > len(shapes) or (methods > 0 and kind in ("unknown", "clip", "embedding"))


def _short(metadata: dict[str, str]) -> tuple[dict[str, str], dict[str, int]]:
    """(metadata to show, {key: characters of what was cut}; "..." counts the keys that were left
    out)."""
    kept = {cut(key): value for key, value in list(metadata.items())[:METADATA_KEYS]}
    shortened = {key: len(value) for key, value in kept.items() if len(value) > METADATA_CHARACTERS}
    if len(metadata) > METADATA_KEYS:
        shortened["..."] = len(metadata) - METADATA_KEYS
    return {key: value[:METADATA_CHARACTERS] for key, value in kept.items()}, shortened


def _lora(path: Path, shapes: Shapes) -> LoraFacts:
    adapted = [key for key in shapes if parse(key).tensor]
    facts: LoraFacts = {
        "layout": next(
            (name for pattern, name in LAYOUTS if any(re.search(pattern, key) for key in adapted)),
            "bare",
        ),
        "methods": {},
        "modules": len(
            {(name.part, name.layer) for name in map(parse, adapted) if name.part == "unet"}
        ),
        "ranks": {},
        "alphas": {},  # none: alpha is the rank
        "text_encoder": text_layers(shapes),
        "family": None,
        "fits": [],
        "notices": [],
        "problem": None,
    }
    try:
        weights = read_lora(path, str(path))
    except InputError as error:
        return {**facts, "problem": str(error)}
    layers = weights.layers.values()
    ranks = Counter(layer.rank for layer in layers if layer.rank)
    alphas = Counter(layer.alpha for layer in layers if layer.rank and layer.alpha is not None)
    as_ranks = all(layer.alpha in (layer.rank, None) for layer in layers)
    fits, problem = _fits(weights)
    return {
        **facts,
        "methods": dict(Counter(" + ".join(layer.methods) for layer in layers)),
        "ranks": {str(rank): n for rank, n in sorted(ranks.items())},
        "alphas": {} if as_ranks else {f"{alpha:g}": n for alpha, n in sorted(alphas.items())},
        "family": weights.family.name if weights.family else None,
        "fits": fits,
        "notices": weights.notices,
        "problem": problem,
    }


def _fits(weights: LoraWeights) -> tuple[list[str], str | None]:
    """(the options that take a LoRA, why none does), by the layers of SDXL's UNet and of the
    embedded model's.

    Motion modules are a motion adapter's, of which there are several.
    """
    spatial = {
        name: layer for name, layer in weights.layers.items() if ".motion_modules." not in name
    }
    moving = len(spatial) < len(weights.layers)
    still = LoraWeights(weights.label, spatial, weights.family)
    option = (
        "--lora, for videos with a motion adapter" if moving else "--lora, for pictures and videos"
    )
    made = weights.family
    if made and made.name != "SDXL":
        return [], f"it is for {made.name} ({made.why}), and only SDXL's are taken"
    if made:
        layers = unet_layers("SDXL")
        lost, wrong = misfits(
            still, layers, {*layers} - {name for name in layers if name.endswith(NO_BIAS)}
        )
        if wrong:
            return (
                [],
                f"{counted(len(wrong), 'layer')} of another shape than SDXL's (first {wrong[0]})",
            )
        if lost:
            return (
                [],
                f"SDXL's UNet lacks {len(lost)} of its layers (first {cut(lost[0])}): "
                f"{remedy(weights, lost)}",
            )
        return [option], None
    header = read_header(TINY / "unet" / "diffusion_pytorch_model.safetensors")[0]
    tiny = {
        key.removesuffix(".weight"): tuple(shape)
        for key, shape in header.items()
        if key.endswith(".weight")
    }
    biases = {key.removesuffix(".bias") for key in header if key.endswith(".bias")}
    if not any(misfits(still, tiny, biases)):
        return [f"{option}, with --model tiny"], None
    return [f"{option}, with a model of its shapes"], None
