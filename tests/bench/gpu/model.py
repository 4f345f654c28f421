"""A model folder with SDXL's shapes, or narrow ones in its topology, and random weights in fp16:
the UNet, the VAE, the text encoders, CLIP ViT-H, an IP-Adapter plus and a motion adapter like
HotShot-XL's. What timings and memory need, without a download; the pictures mean nothing."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from std_cli.weights import resolve
from std_cli.weights.files import read_object
from std_cli.weights.motion import HOTSHOT_CONFIG
from tests.weights import sdxl

NARROW_MOTION = HOTSHOT_CONFIG | {
    "block_out_channels": sdxl.NARROW_UNET["block_out_channels"],
    "motion_num_attention_heads": 2,
}


def make_model(folder: Path, narrow: bool, device: torch.device) -> None:
    """Write the folder; nothing is left of one that was not finished. On a GPU SDXL's 10 GB take
    half a minute, most of it for the disk."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        _networks(part, narrow)
        _encoders(part, narrow)
        unet, vision = (
            (sdxl.NARROW_UNET, sdxl.NARROW_VISION) if narrow else (sdxl.UNET, sdxl.VISION)
        )
        layers = sdxl.ip_adapter("plus", unet, vision, heads=2 if narrow else 20)
    (part / "ip_adapter").mkdir()
    state = {name: tensor.half().cpu() for name, tensor in layers.items()}
    save_file(state, part / "ip_adapter" / "ip-adapter-plus_random.safetensors", {"format": "pt"})
    _descriptions(part)
    os.replace(part, folder)


def _networks(folder: Path, narrow: bool) -> None:
    unet = UNet2DConditionModel.from_config(sdxl.NARROW_UNET if narrow else sdxl.UNET)
    unet.conv_out.weight.mul_(0.1)  # else the latents grow beyond fp16
    unet.half().save_pretrained(folder / "unet")
    del unet
    vae = AutoencoderKL.from_config(sdxl.NARROW_VAE if narrow else sdxl.VAE)
    vae.decoder.conv_out.weight.mul_(0.1)
    vae.half().save_pretrained(folder / "vae")
    motion = MotionAdapter.from_config(NARROW_MOTION if narrow else HOTSHOT_CONFIG)
    motion.half().save_pretrained(folder / "motion_adapter")


def _encoders(folder: Path, narrow: bool) -> None:
    kinds: tuple[tuple[str, Any, Any, dict[str, Any], dict[str, Any]], ...] = (
        ("text_encoder", CLIPTextModel, CLIPTextConfig, sdxl.TEXT, sdxl.NARROW_TEXT),
        (
            "text_encoder_2",
            CLIPTextModelWithProjection,
            CLIPTextConfig,
            sdxl.TEXT_2,
            sdxl.NARROW_TEXT_2,
        ),
        (
            "image_encoder",
            CLIPVisionModelWithProjection,
            CLIPVisionConfig,
            sdxl.VISION,
            sdxl.NARROW_VISION,
        ),
    )
    for name, kind, config, real, small in kinds:
        kind(config(**(small if narrow else real))).half().save_pretrained(folder / name)


def _descriptions(folder: Path) -> None:
    """The files without weights."""
    sdxl.write_json(folder / "scheduler" / "scheduler_config.json", sdxl.SCHEDULER)
    sdxl.write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    sdxl.write_tokenizer(folder / "tokenizer_2", "!")
    sdxl.write_json(
        folder / "feature_extractor" / "preprocessor_config.json",
        read_object(resolve.TINY / "feature_extractor" / "preprocessor_config.json")
        | {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}},
    )
    parts = {
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    sdxl.write_json(folder / "model_index.json", sdxl.INDEX | parts)
