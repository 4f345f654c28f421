"""Motion adapters: names to files, and HotShot-XL's layers under the names of diffusers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from std_cli.errors import InputError, counted, quote
from std_cli.paths import user_path
from std_cli.weights.configs.base import read_config
from std_cli.weights.configs.networks import Motion
from std_cli.weights.files import read_header, read_object
from std_cli.weights.hub import HubRepo, fetch, hub_id, source
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.zoo import find_entry, names_of


@dataclass(frozen=True)
class MotionFiles:
    """A motion adapter on disk, checked against the UNet's config."""

    name: str
    """What the user asked for, or what auto chose."""
    weights: Path
    config: dict[str, Any]
    """Of diffusers' MotionAdapter."""
    hotshot: bool
    """The weights have HotShot-XL's own keys."""
    window: int
    """Frames that it denoises at once."""


# HotShot-XL's layers as a MotionAdapter's (SDXL's three blocks, none in the middle).
HOTSHOT_CONFIG: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 8,
    "motion_norm_num_groups": 32,
    "motion_max_seq_length": 24,
    "use_motion_mid_block": False,
}


WINDOW = 8
"""Frames, of an adapter of which nothing else is known: STD trains its video LoRAs on 8 frames."""


def resolve_motion(spec: str, model: ModelFiles) -> MotionFiles | None:
    """The motion adapter that `spec` names: auto, none, hotshot, animatediff, a diffusers folder,
    or a Hub id; None for "none", and for "auto" with a pack that has none.

    "auto" is the pack's own (`motion_adapter/` in the model's folder, with `motion_window` in its
    std.json), else HotShot-XL, which STD's video LoRAs are trained with. Raises InputError if it is
    not there, is no motion adapter, or does not fit the model's UNet.
    """
    if spec == "none":
        return None
    own = model.base / "motion_adapter"
    if spec == "auto" and (model.pack or own.is_dir()):
        if not own.is_dir():
            return None
        name, folder, window = "motion_adapter", own, _own_window(model)
    else:
        name, folder, window = _find_motion(spec)
    if name == "hotshot":
        weights = folder / find_entry(name).files[0]
        config = HOTSHOT_CONFIG
    else:
        _, config = read_config(Motion, folder / "config.json")
        found = [folder / f"diffusion_pytorch_model{v}.safetensors" for v in (".fp16", "")]
        weights = next((f for f in found if f.is_file()), found[1])
    keys = read_header(weights)[0]
    if not any(".motion_modules." in key or ".temporal_attentions." in key for key in keys):
        raise InputError(
            f"--motion {name}: of {counted(len(keys), 'tensor')} in {weights.name} none is a "
            f"motion "
            f"adapter's: choose another"
        )
    _check_blocks(name, config, model)
    window = min(window, int(config.get("motion_max_seq_length", 32)))
    return MotionFiles(name, weights, config, name == "hotshot", window)


def _own_window(model: ModelFiles) -> int:
    """Frames that a pack's own adapter denoises at once, by its std.json."""
    window = model.pack.get("motion_window", WINDOW)
    if type(window) is not int or not 1 <= window <= 64:
        raise InputError(
            f"{model.base}/std.json: motion_window {quote(window)}: give a number from 1 to 64"
        )
    return window


def _find_motion(spec: str) -> tuple[str, Path, int]:
    """(name, folder, frames that it denoises at once) of an adapter of the table, on disk, or on
    the Hub."""
    if spec in ("auto", *names_of("motion")):
        name = "hotshot" if spec == "auto" else spec
        return name, fetch([source(name)])[0], find_entry(name).window or WINDOW
    path = user_path(spec, "--motion")
    if path.is_dir():
        return spec, path, WINDOW
    hub = hub_id(spec)
    if not hub or hub[2]:
        raise InputError(
            f"no motion adapter {spec!r}: give auto, none, {', '.join(names_of('motion'))}, a "
            f"diffusers folder, or owner/name"
        )
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    return spec, fetch([HubRepo(hub[0], hub[1], files=files)])[0], WINDOW


def _check_blocks(name: str, config: dict[str, Any], model: ModelFiles) -> None:
    """Raises InputError unless an adapter has the UNet's blocks, by both configs."""
    unet = read_object((model.config or model.base) / "unet" / "config.json")
    for theirs, ours in (
        ("block_out_channels", "block_out_channels"),
        ("motion_layers_per_block", "layers_per_block"),
    ):
        if config.get(theirs) != unet.get(ours):
            raise InputError(
                f"--motion {name} does not fit --model {model.name}: its {theirs} is "
                f"{config.get(theirs)}, the UNet's "
                f"{ours} {unet.get(ours)}: choose an adapter made for this model, or --motion none"
            )


T = TypeVar("T")


def from_hotshot(weights: dict[str, T]) -> dict[str, T]:
    """HotShot-XL's temporal layers (or their shapes) under the keys of diffusers' MotionAdapter;
    the same weights."""
    out = {}
    for key, tensor in weights.items():
        new = key.replace(".temporal_attentions.", ".motion_modules.").replace(
            ".ff_norm.", ".norm3."
        )
        new = re.sub(r"\.norms\.(\d)\.", lambda m: f".norm{int(m[1]) + 1}.", new)
        block = re.search(r"\.attention_blocks\.(\d)\.", new)
        if new.endswith(".pos_encoder.positional_encoding"):
            new = new[: block.start()] + ".pos_embed.pe" if block else new
        elif block:
            new = new.replace(block[0], f".attn{int(block[1]) + 1}.")
        out[new] = tensor
    return out
