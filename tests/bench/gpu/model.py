"""A model folder with SDXL's shapes, or narrow ones in its topology, and random weights in fp16:
the UNet, the VAE, the text encoders, CLIP ViT-H, an IP-Adapter plus and a motion adapter like
HotShot-XL's. What timings and memory need, without a download; the pictures mean nothing."""

import os
import shutil
from pathlib import Path

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

RANK = 16
"""Of the LoRA."""


def make_model(folder: Path, narrow: bool, device: torch.device) -> None:
    """Write the folder; nothing is left of one that was not finished. On a GPU SDXL's 10 GB take
    half a minute, most of it for the disk."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shapes = sdxl.NARROW if narrow else sdxl.REAL
    torch.manual_seed(0)
    with torch.device(device), torch.no_grad():
        _networks(part, shapes)
        _encoders(part, shapes)
        layers = sdxl.ip_adapter("plus", shapes.unet, shapes.vision, shapes.heads)
    (part / "ip_adapter").mkdir()
    state = {name: tensor.half().cpu() for name, tensor in layers.items()}
    save_file(state, part / "ip_adapter" / "ip-adapter-plus_random.safetensors", {"format": "pt"})
    _descriptions(part)
    os.replace(part, folder)


def write_lora(model: Path, path: Path) -> None:
    """A LoRA file for the attention layers of a model's UNet, in fp16."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_object(model / "unet" / "config.json"))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".attn" in name:
            for half, shape in (
                ("A", (RANK, layer.in_features)),
                ("B", (layer.out_features, RANK)),
            ):
                numbers = torch.randn(shape, generator=generator) / 100
                state[f"unet.{name}.lora_{half}.weight"] = numbers.half()
    save_file(state, path, {"format": "pt"})


def _networks(folder: Path, shapes: sdxl.Shapes) -> None:
    unet = UNet2DConditionModel.from_config(shapes.unet)
    unet.conv_out.weight.mul_(0.1)  # else the latents grow beyond fp16
    unet.half().save_pretrained(folder / "unet")
    del unet
    vae = AutoencoderKL.from_config(shapes.vae)
    vae.decoder.conv_out.weight.mul_(0.1)
    vae.half().save_pretrained(folder / "vae")
    widths = shapes.unet["block_out_channels"]
    heads = min(8, widths[0] // 16)  # 8 of HotShot-XL's
    config = {"block_out_channels": widths, "motion_num_attention_heads": heads}
    MotionAdapter.from_config(HOTSHOT_CONFIG | config).half().save_pretrained(
        folder / "motion_adapter"
    )


def _encoders(folder: Path, shapes: sdxl.Shapes) -> None:
    for name, network in (
        ("text_encoder", CLIPTextModel(CLIPTextConfig(**shapes.text))),
        ("text_encoder_2", CLIPTextModelWithProjection(CLIPTextConfig(**shapes.text_2))),
        ("image_encoder", CLIPVisionModelWithProjection(CLIPVisionConfig(**shapes.vision))),
    ):
        network.half().save_pretrained(folder / name)


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
