"""How SDXL is laid out on disk: the files of a diffusers folder, which of them to read, the keys of
a single file."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

from std_cli.errors import InputError, quote
from std_cli.weights.files import PICKLES, read_header
from std_cli.weights.fit import checkpoint_family, first_names

# The parts of a diffusers SDXL folder: how their weight files are called, and their config (one of
# these).
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


SINGLE_FILE_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}


def check_checkpoint(name: str, path: Path) -> None:
    """Raises InputError unless a file holds every part of SDXL base, by its keys."""
    shapes, _ = read_header(path)
    lacks = [
        f"{part} ({key})"
        for key, part in SINGLE_FILE_KEYS.items()
        if not any(k.startswith(key) for k in shapes)
    ]
    remedy = "choose an SDXL base model"
    if lacks:
        made = checkpoint_family(shapes)
        what = (
            f"{name} is not an SDXL checkpoint, but {made}"
            if made
            else f"{name} is not an SDXL checkpoint"
        )
        raise InputError(f"{what}: it lacks {', '.join(lacks)}: {remedy}")
    if other := next((kind for key, kind in OTHER_NOISE.items() if key in shapes), None):
        raise InputError(
            f"{name} is not an SDXL checkpoint, but {other}, whose noise std does not know: "
            f"{remedy}"
        )
    first = "model.diffusion_model.input_blocks.0.0.weight"
    check_unet(name, {"in_channels": (shapes[first] + [0, 0])[1]}, first)


def check_unet(name: str, found: Mapping[str, object], where: str) -> None:
    """Raises InputError unless a UNet's settings, as far as `found` has them, are those of SDXL
    base."""
    for setting, needed in (("addition_embed_type", "text_time"), ("in_channels", 4)):
        if setting in found and found[setting] != needed:
            made_for = next((use for channels, use in _CHANNELS if found[setting] == channels), "")
            what = f"{setting} in {where} is {quote(found[setting])}, not {needed!r}{made_for}"
            raise InputError(f"{name} is not an SDXL model: {what}: choose an SDXL base model")


_CHANNELS = ((8, " (made to follow instructions)"), (9, " (made for inpainting)"))

# --- what a checkpoint in one file says of the noise that it was trained on ---------------------

Prediction = Literal["epsilon", "v_prediction"]
# key -> what it is
OTHER_NOISE = {"edm_mean": "of Playground v2.5's kind", "edm_vpred.sigma_max": "of CosXL's kind"}
_SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_pred": "v_prediction"}
_SAID |= {"v_prediction": "v_prediction", "v-prediction": "v_prediction", "vpred": "v_prediction"}


def checkpoint_scheduler(name: str, path: Path) -> tuple[dict[str, object], list[str]]:
    """({prediction_type, rescale_betas_zero_snr} where the file says so, notices).

    Trainers mark a model of v-prediction (Salimans and Ho 2022, arXiv 2202.00512) by an empty
    tensor "v_pred", one of zero terminal SNR (Lin et al. 2023, arXiv 2305.08891) by "ztsnr"; the
    metadata of Stability's ModelSpec say "epsilon" or "v". Where they contradict each other the
    tensor counts, as in the programs that wrote it.
    """
    shapes, metadata = read_header(path)
    settings: dict[str, object] = {"prediction_type": "v_prediction"} if "v_pred" in shapes else {}
    if "ztsnr" in shapes:
        settings["rescale_betas_zero_snr"] = True
    notices = []
    for entry in ("modelspec.prediction_type", "modelspec.predict_key"):
        if entry not in metadata:
            continue
        said = _SAID.get(metadata[entry].strip().lower())
        shown = f"{name}: its metadata say {entry} {quote(metadata[entry])}"
        if said is None:
            notices.append(
                f"{shown}, which std does not know: {settings.get('prediction_type', 'epsilon')} "
                f"is used"
            )
        elif settings.setdefault("prediction_type", said) != said:
            notices.append(
                f"{shown}, its tensor v_pred says v_prediction: {settings['prediction_type']} is "
                f"used"
            )
    return settings, notices


# --- the names of tensors in one file ----------------------------------------------------------


def single_file_key(part: str, key: str) -> str:
    """The name in an SDXL checkpoint of a tensor that diffusers or transformers call `key` in a
    part of the model.

    The three projections of an attention of the second text encoder are one tensor there.
    """
    return SINGLE_FILE_PREFIXES[part] + _ORIGINAL[part](key)


def _replaced(key: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def _unet_key(key: str) -> str:
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)", key)
    if not match:
        return _replaced(key, _OUTER)
    side, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inside = int(kind == "attentions")
    if kind == "resnets":
        rest = _replaced(rest, _RESNET)
    if side == "mid":
        return f"middle_block.{1 if inside else 2 * index}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.{rest}"
    return (
        f"input_blocks.{3 * block + index + 1}.{inside}.{rest}"
        if side == "down"
        else (f"output_blocks.{3 * block + index}.{inside}.{rest}")
    )


def _vae_key(key: str) -> str:
    # counted from the other end
    key = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    return _replaced(key, _VAE)


def _open_clip_key(key: str) -> str:
    key = re.sub(r"\.[qkv]_proj\.", ".in_proj_", key.removeprefix("text_model."))
    return f"model.{_replaced(key, _OPEN_CLIP)}"


_OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
_OUTER |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
_OUTER |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_RESNET |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_VAE = {
    "down_blocks": "down",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
}
_VAE |= {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm"}
_VAE |= {
    "mid_block.attentions.0": "mid.attn_1",
    "to_out.0": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
}
_OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "layer_norm": "ln_",
}
_OPEN_CLIP |= {
    "embeddings.position_embedding.weight": "positional_embedding",
    "self_attn": "attn",
    "fc1": "c_fc",
}
_OPEN_CLIP |= {"embeddings.token_embedding": "token_embedding", "fc2": "c_proj"}
_OPEN_CLIP |= {"text_projection.weight": "text_projection"}
_ORIGINAL: dict[str, Callable[[str], str]] = {
    "unet": _unet_key,
    "vae": _vae_key,
    "text_encoder": lambda key: f"transformer.text_model.{key.removeprefix('text_model.')}",
    "text_encoder_2": _open_clip_key,
}

# --- a folder -----------------------------------------------------------------------------------


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
        if part in WEIGHTS and not (
            _weights_of(part, names, "") or _weights_of(part, names, ".fp16")
        ):
            absent = _shards_of(part, names, "")[1] or _shards_of(part, names, ".fp16")[1]
            lacks.append(first_names(absent) if absent else f"{part}/{WEIGHTS[part]}.safetensors")
            pickles |= any(n.endswith(PICKLES) for n in inside)
    remedy = (
        "its pickle weights (.bin) are not read: convert them to safetensors"
        if pickles
        else "complete it"
    )
    return f"it lacks {', '.join(lacks)}: {remedy}" if lacks else ""


def _weights_of(part: str, names: Collection[str], variant: str) -> list[str]:
    """The file, or all the shards, with a part's weights in a variant ("" or ".fp16"); [] if they
    are not all there."""
    stem = f"{part}/{WEIGHTS[part]}{variant}"
    if f"{stem}.safetensors" in names:
        return [f"{stem}.safetensors"]
    shards, absent = _shards_of(part, names, variant)
    return [] if absent else shards


def _shards_of(part: str, names: Collection[str], variant: str) -> tuple[list[str], list[str]]:
    """(shards of a part's weights in a variant, those that the others say there are, and the index,
    if absent)."""
    stem = f"{part}/{WEIGHTS[part]}"
    pattern = re.compile(rf"{re.escape(stem + variant)}-\d{{5}}-of-(\d{{5}})\.safetensors")
    shards = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    if not shards:
        return [], []
    total = shards[0][1]
    wanted = [f"{stem}{variant}-{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
    wanted.append(f"{stem}.safetensors.index{variant}.json")
    return [match[0] for match in shards], [name for name in wanted if name not in names]


def shard_index(file: Path) -> Path | None:
    """The index.json that a shard belongs to; None for a file in one piece."""
    match = re.fullmatch(r"(.+?)(\.fp16)?-\d{5}-of-\d{5}\.safetensors", file.name)
    return file.with_name(f"{match[1]}.safetensors.index{match[2] or ''}.json") if match else None


def choose_weights(names: Collection[str], prefer_half: bool) -> tuple[list[str], str | None]:
    """(weight files, diffusers' variant): the half-size fp16 files where nothing else is there, or
    where preferred."""
    plain = {part: _weights_of(part, names, "") for part in WEIGHTS}
    half = {part: _weights_of(part, names, ".fp16") for part in WEIGHTS}
    if any(not plain[part] for part in WEIGHTS) or (prefer_half and all(half.values())):
        return [file for part in WEIGHTS for file in half[part] or plain[part]], "fp16"
    return [file for part in WEIGHTS for file in plain[part]], None


def wanted_files(names: set[str]) -> list[str]:
    """What to download of a model: configs, one set of weights, its own IP-Adapter, all other
    folders of a pack."""
    wanted, _ = choose_weights(names, prefer_half=True)
    for name in names:
        folder, slash, _ = name.partition("/")
        own = folder in ("ip_adapter", "image_encoder") or (
            "std.json" in names and slash and folder not in _PARTS
        )
        if name.endswith((".json", ".txt")) or (own and name.endswith(".safetensors")):
            wanted.append(name)
    return wanted
