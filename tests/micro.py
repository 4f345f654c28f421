"""A model with all the parts of the embedded pack, a motion adapter, and a fraction of its layers,
with random weights: for tests of what happens around the network, where its pictures do not
matter."""

import atexit
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from std_cli.tinypack.train_motion import make_adapter, save
from std_cli.weights.files import read_object
from std_cli.weights.resolve import TINY

UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [1, 1],
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
}
MOTION = {
    "block_out_channels": [16, 32],
    "motion_layers_per_block": 1,
    "motion_max_seq_length": 24,
    "motion_norm_num_groups": 8,
    "motion_num_attention_heads": 1,
    "use_motion_mid_block": False,
}
MADE = "STD_TESTS_MODELS"
"""The environment variable that holds the folder of both models."""


def write_micro(folder: Path) -> None:
    """Write the model as a diffusers folder; the same bits every time."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("loras"))
    # its LoRAs are of larger layers
    settings = read_object(folder / "std.json") | {"loras": [], "base_resolution": 128}
    del settings["video_resolution"], settings["steady"]
    (folder / "std.json").write_text(json.dumps(settings))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        unet = _narrow(folder / "unet", UNet2DConditionModel, UNET)
        _narrow(folder / "vae", AutoencoderKL, VAE)
        save(MotionAdapter.from_config(MOTION), folder / "motion_adapter")
        [file] = (folder / "ip_adapter").glob("*.safetensors")
        image_proj = {k: v for k, v in load_file(file).items() if k.startswith("image_proj.")}
        save_file(image_proj | _ip_layers(unet), file, {"format": "pt"})


def micro() -> str:
    """The model's folder, as `model` takes it: written once by a process, for its children too."""
    return _made("micro", write_micro)


def tiny_with_motion() -> str:
    """The folder of the embedded pack with a motion adapter that fits it and adds nothing."""
    return _made("tiny", _write_tiny_with_motion)


def _write_tiny_with_motion(folder: Path) -> None:
    shutil.copytree(TINY, folder)
    save(make_adapter(), folder / "motion_adapter")


def _made(name: str, write: Callable[[Path], None]) -> str:
    if MADE not in os.environ:
        os.environ[MADE] = mkdtemp(prefix="std-models-")
        atexit.register(shutil.rmtree, os.environ[MADE], ignore_errors=True)
    folder = Path(os.environ[MADE], name)
    if not folder.exists():
        write(folder.with_suffix(".part"))
        folder.with_suffix(".part").rename(folder)
    return str(folder)


def _narrow(folder: Path, kind: type, changes: dict) -> torch.nn.Module:
    config = json.loads((folder / "config.json").read_text()) | changes
    network = kind.from_config(config)
    shutil.rmtree(folder)
    network.half().save_pretrained(folder)
    return network


def _ip_layers(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The keys and values of every cross attention, numbered as IP-Adapter's files number them."""
    layers = {}
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for half in ("k", "v"):
                weight = getattr(attention, f"to_{half}").weight
                layers[f"ip_adapter.{i}.to_{half}_ip.weight"] = torch.randn_like(weight) / 10
    return layers
