"""How SDXL is laid out on disk: the files of a diffusers folder, which of them to read, the keys of a single file."""

import re
from collections.abc import Collection
from pathlib import Path

from std_cli.errors import InputError
from std_cli.files import PICKLES, read_header

# The parts of a diffusers SDXL folder: how their weight files are called, and their config (one of these).
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
_PARTS = {
    **dict.fromkeys(WEIGHTS, ("config.json",)),
    **dict.fromkeys(("tokenizer", "tokenizer_2"), ("vocab.json", "tokenizer.json")),
    "scheduler": ("scheduler_config.json",),
}
SINGLE_FILE_KEYS = {  # start of a key -> the part that it proves
    "model.diffusion_model.input_blocks.0.0.weight": "UNet",
    "model.diffusion_model.label_emb.0.0.weight": "UNet of the SDXL kind",
    "conditioner.embedders.0.transformer.": "first text encoder",
    "conditioner.embedders.1.model.": "second text encoder",
    "first_stage_model.": "VAE",
}


def check_checkpoint(name: str, path: Path) -> None:
    """Raises InputError unless a file holds every part of SDXL, by its keys."""
    shapes, _ = read_header(path)
    lacks = [f"{part} ({key})" for key, part in SINGLE_FILE_KEYS.items() if not any(k.startswith(key) for k in shapes)]
    if lacks:
        raise InputError(f"{name} is not an SDXL checkpoint: it lacks {', '.join(lacks)}: choose an SDXL base model")


def missing_files(names: Collection[str]) -> str:
    """What an SDXL folder with these files lacks, and what to do about it; "" if it is whole."""
    lacks = [] if "model_index.json" in names else ["model_index.json"]
    pickles = False
    for part, configs in _PARTS.items():
        inside = [n for n in names if n.startswith(f"{part}/")]
        if not inside:
            lacks.append(f"{part}/")
            continue
        if not any(f"{part}/{config}" in inside for config in configs):
            lacks.append(f"{part}/{configs[0]}")
        if part in WEIGHTS and not (_weights_of(part, names, "") or _weights_of(part, names, ".fp16")):
            lacks.append(f"{part}/{WEIGHTS[part]}.safetensors")
            pickles |= any(n.endswith(PICKLES) for n in inside)
    remedy = "its pickle weights (.bin) are not read: convert them to safetensors" if pickles else "complete it"
    return f"it lacks {', '.join(lacks)}: {remedy}" if lacks else ""


def _weights_of(part: str, names: Collection[str], variant: str) -> list[str]:
    """The file, or all the shards, with a part's weights in a variant ("" or ".fp16"); [] if they are not all there."""
    stem = f"{part}/{WEIGHTS[part]}{variant}"
    if f"{stem}.safetensors" in names:
        return [f"{stem}.safetensors"]
    pattern = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.safetensors")
    shards = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    return [m[0] for m in shards] if shards and len(shards) == int(shards[0][1]) else []


def choose_weights(names: Collection[str], prefer_half: bool) -> tuple[list[str], str | None]:
    """(weight files, diffusers' variant): the half-size fp16 files where nothing else is there, or where preferred."""
    plain = {part: _weights_of(part, names, "") for part in WEIGHTS}
    half = {part: _weights_of(part, names, ".fp16") for part in WEIGHTS}
    if any(not plain[part] for part in WEIGHTS) or (prefer_half and all(half.values())):
        return [file for part in WEIGHTS for file in half[part] or plain[part]], "fp16"
    return [file for part in WEIGHTS for file in plain[part]], None


def wanted_files(names: set[str]) -> list[str]:
    """What to download of a model: configs, one set of weights, its own IP-Adapter, all other folders of a pack."""
    wanted, _ = choose_weights(names, prefer_half=True)
    for name in names:
        folder, slash, _ = name.partition("/")
        own = folder in ("ip_adapter", "image_encoder") or ("std.json" in names and slash and folder not in _PARTS)
        if name.endswith((".json", ".txt")) or (own and name.endswith(".safetensors")):
            wanted.append(name)
    return wanted
