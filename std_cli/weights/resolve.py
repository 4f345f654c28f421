"""Names to files: models from the table, from disk or from the Hub, checked before a weight is
loaded.

Only safetensors are read, never pickles.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from std_cli.errors import InputError
from std_cli.paths import user_path
from std_cli.weights.configs.folder import check_folder, check_image_encoder
from std_cli.weights.files import file_names, read_header, read_object
from std_cli.weights.hub import HubRepo, cached_folder, fetch, hub_id, source
from std_cli.weights.sdxl_files import (
    SINGLE_FILE_PREFIXES,
    WEIGHTS,
    check_checkpoint,
    check_unet,
    checkpoint_scheduler,
    choose_weights,
    missing_files,
)
from std_cli.weights.zoo import names_of

TINY = Path(__file__).parents[1] / "packs" / "tiny"  # the model inside this package
# of models that have none of their own
IP_ADAPTERS = {"plus": "ip-adapter-plus", "plain": "ip-adapter"}


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk, checked as far as its file headers tell."""

    name: str
    """What the user asked for."""
    base: Path
    """A diffusers folder, or one .safetensors checkpoint."""
    single_file: bool
    config: Path | None
    """For a single file: the folder with the configs and tokenizers that it lacks
    (`from_single_file(config=...)`)."""
    variant: str | None
    """The `variant` that diffusers needs to find the weights of a folder: "fp16" or none."""
    ip_adapter: Path
    """IP-Adapter weights, plus or plain: keys "image_proj.*" and "ip_adapter.*"."""
    image_encoder: Path
    """Folder of the CLIPVisionModelWithProjection."""
    pack: dict[str, Any]
    """Contents of the folder's std.json, {} if it has none."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """What a single file says of its noise, in place of the config's: prediction_type,
    rescale_betas_zero_snr."""
    notices: list[str] = field(default_factory=list)
    """What the user should know about the files."""


def model_names() -> list[str]:
    """The names that --model takes."""
    return ["tiny", *names_of("base")]


# --- models ------------------------------------------------------------------------------------


def resolve_model(name: str, *, ip_adapter: str = "plus") -> ModelFiles:
    """The files of a model: a name of the table, a diffusers folder, a FILE.safetensors, or
    `owner/name[@revision]`.

    ip_adapter: "plus" or "plain", of a model that has none of its own. What is missing is
    downloaded. Raises InputError for what cannot be had or is no SDXL model.
    """
    path = user_path(name, "--model")
    if name == "tiny":
        return _folder_model(name, TINY, False, ip_adapter)
    if name in model_names():
        folder, _ = fetch([source(name), source(IP_ADAPTERS[ip_adapter])])
        return _folder_model(name, folder, True, ip_adapter)
    if os.path.isdir(path):
        return _folder_model(name, path, False, ip_adapter)
    if os.path.isfile(path):
        return _single_file_model(name, path, ip_adapter)
    hub = hub_id(name)
    if not hub or hub[2]:
        raise InputError(
            f"no model {name!r}: name one of {', '.join(model_names())}, a folder or .safetensors "
            "file that exists, or owner/name[@revision] on the Hub"
        )
    return _folder_model(name, fetch([HubRepo(hub[0], hub[1])])[0], True, ip_adapter)


def find_pack(name: str) -> tuple[dict[str, Any], str]:
    """The std.json of a model that is on this machine, and its path; ({}, "") where there is none.

    Nothing else of the model is looked at, and nothing is downloaded.
    """
    path = user_path(name, "--model")
    folder: Path | None = TINY if name == "tiny" else path if path.is_dir() else None
    if folder is None and name not in model_names() and (hub := hub_id(name)) and not hub[2]:
        folder = cached_folder(HubRepo(hub[0], hub[1]))
    file = folder / "std.json" if folder else None
    return (read_object(file), str(file)) if file and file.is_file() else ({}, "")


def _folder_model(name: str, folder: Path, from_hub: bool, kind: str) -> ModelFiles:
    """Check a diffusers folder, its headers included, and find its IP-Adapter."""
    names = file_names(folder, depth=2)
    if lacks := missing_files(names):
        raise InputError(f"the model {name} is not a whole SDXL folder ({folder}): {lacks}")
    unet = read_object(folder / "unet" / "config.json")
    check_unet(
        name,
        {key: unet.get(key) for key in ("addition_embed_type", "in_channels")},
        "unet/config.json",
    )
    check_folder(folder, names)
    noise = read_object(folder / "scheduler" / "scheduler_config.json").get("_class_name", "")
    if noise.startswith(("EDM", "FlowMatch")):  # Playground v2.5, CosXL, models of rectified flow
        raise InputError(
            f"{name} is not an SDXL model: it is made for {noise}: choose an SDXL base model"
        )
    weights, variant = choose_weights(names, prefer_half=from_hub)
    for weight in weights:
        read_header(folder / weight)
    pack = read_object(folder / "std.json") if "std.json" in names else {}
    return ModelFiles(
        name,
        folder,
        False,
        None,
        variant,
        *_ip_adapter(name, folder, names, kind),
        pack,
    )


def _single_file_model(name: str, path: Path, kind: str) -> ModelFiles:
    """Check a checkpoint in one file, and fetch what it cannot hold."""
    check_checkpoint(name, path)
    config, _ = fetch([source("sdxl-config"), source(IP_ADAPTERS[kind])])
    check_folder(config, file_names(config, depth=2))
    adapter = _ip_adapter(name, path.parent, set(), kind)
    scheduler, notices = checkpoint_scheduler(name, path)
    return ModelFiles(name, path, True, config, None, *adapter, {}, scheduler, notices)


def _ip_adapter(name: str, folder: Path, names: set[str], kind: str) -> tuple[Path, Path]:
    """(weights, image encoder folder): each the model's own if `names` tells that it has one, else
    the Hub's."""
    own = [
        folder / n
        for n in sorted(names)
        if n.startswith("ip_adapter/") and n.endswith(".safetensors")
    ]
    own_encoder = any(n.startswith("image_encoder/") for n in names)
    if len(own) > 1:
        raise InputError(
            f"the model {name} has {len(own)} files in ip_adapter/: leave the one to use"
        )
    if own and kind != "plus":
        raise InputError(
            f"--ip-adapter {kind}: the model {name} has an IP-Adapter of its own: leave it out"
        )
    published = source(IP_ADAPTERS[kind])
    hub = folder if own and own_encoder else fetch([published])[0]
    weights = own[0] if own else hub / published.files[0]
    encoder = folder / "image_encoder" if own_encoder else (hub / published.files[1]).parent
    if {key.split(".")[0] for key in read_header(weights)[0]} != {"image_proj", "ip_adapter"}:
        raise InputError(
            f"{weights} is not an IP-Adapter: its keys must be image_proj.* and ip_adapter.*"
        )
    check_image_encoder(encoder)
    read_header(encoder / "model.safetensors")
    return weights, encoder


def weight_files(model: ModelFiles) -> dict[str, tuple[list[Path], str]]:
    """The weight files of the UNet, the VAE and the text encoders, and what the keys of each part
    start with there."""
    if model.single_file:
        return {part: ([model.base], start) for part, start in SINGLE_FILE_PREFIXES.items()}
    chosen, _ = choose_weights(file_names(model.base, depth=2), prefer_half=model.variant == "fp16")
    return {
        part: ([model.base / file for file in chosen if file.startswith(f"{part}/")], "")
        for part in WEIGHTS
    }


def scheduler_config(model: ModelFiles) -> dict[str, Any]:
    """What a model says of the noise that it was trained on, in the words of diffusers'
    schedulers."""
    folder = (model.config or model.base) / "scheduler"
    return read_object(folder / "scheduler_config.json") | model.scheduler


def blind_at_the_end(model: ModelFiles) -> bool:
    """Whether the last timestep tells the model nothing: it predicts noise, and there all is noise.

    With zero terminal SNR (Lin et al. 2023, arXiv 2305.08891) x0 = (x - eps) / 0 at timestep 999.
    """
    config = scheduler_config(model)
    return (
        bool(config.get("rescale_betas_zero_snr"))
        and config.get("prediction_type", "epsilon") == "epsilon"
    )


# --- features ----------------------------------------------------------------------------------


def resolve_features(name: str) -> Path:
    """A DINOv2 on disk: "dinov2" (ViT-S/14, from the Hub), or a folder or .pth file that exists."""
    path = user_path(name, "adversarial.features")
    if name == "dinov2":
        return fetch([source("dinov2-small")])[0]
    if not path.exists():
        raise InputError(
            f"adversarial.features {name!r}: give dinov2, random, none, or a folder or .pth that "
            f"exists"
        )
    return path
