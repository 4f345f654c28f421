"""Tensors of every method, and the names of SDXL's layers in the original code."""

import numpy as np
import torch

from std_cli.weights.lora.family import unet_layers

# --- names --------------------------------------------------------------------------------------


def original_names():
    """{diffusers' layer: name in the original SDXL}, by the rule that ComfyUI documents in
    `unet_to_diffusers`, and that sd-scripts' `SdxlUNet2DConditionModel` is built by: blocks count
    on, each with what it has inside.
    """
    resnet = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
    resnet |= {"norm1": "in_layers.0", "norm2": "out_layers.0", "conv_shortcut": "skip_connection"}
    out = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    out |= {f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)}
    out |= {f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)}
    places = {}
    number = 1
    for block in range(3):
        for at in range(2):
            places[f"down_blocks.{block}.resnets.{at}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{block}.attentions.{at}"] = f"input_blocks.{number}.1"
            number += 1
        out[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    places |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    places["mid_block.resnets.1"] = "middle_block.2"
    for number in range(9):
        block, at = divmod(number, 3)
        places[f"up_blocks.{block}.resnets.{at}"] = f"output_blocks.{number}.0"
        places[f"up_blocks.{block}.attentions.{at}"] = f"output_blocks.{number}.1"
        if at == 2:
            out[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.2.conv"
    for layer in unet_layers("SDXL"):
        for ours, theirs in places.items():
            if layer.startswith(f"{ours}."):
                rest = layer.removeprefix(f"{ours}.")
                out[layer] = f"{theirs}.{resnet[rest] if 'resnets' in ours else rest}"
    return {layer: name for layer, name in out.items() if layer in unet_layers("SDXL")}


# --- methods -----------------------------------------------------------------------------------


def number(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def low(out, inner, rank=2, kernel=()):
    return {
        "lora_down.weight": number(rank, inner, *kernel),
        "lora_up.weight": number(out, rank, *[1] * len(kernel)),
    }


def methods(out, inner, kernel=()):
    """{name: tensors} of every method that is computed, for a weight (out, in[, kh, kw]); sides are
    even."""
    ones = [1] * len(kernel)
    flat = int(np.prod(kernel)) if kernel else 1
    made = {
        "LoRA": low(out, inner, kernel=kernel),
        "DoRA": low(out, inner, kernel=kernel) | {"dora_scale": number(out, 1, *ones).abs() + 0.1},
        "DoRA of inputs": low(out, inner, kernel=kernel) | {"dora_scale": number(1, inner,
        *ones).abs() + 0.1},
        "LoHa": {f"hada_w{i}_a": number(out, 2) for i in (1, 2)}
        | {f"hada_w{i}_b": number(2, inner * flat) for i in (1, 2)},
        "LoKr": {"lokr_w1": number(2, 2), "lokr_w2": number(out // 2, inner // 2, *kernel)},
        "LoKr in factors": {
            "lokr_w1_a": number(2, 3), "lokr_w1_b": number(3, 2),
            "lokr_w2_a": number(out // 2, 3), "lokr_w2_b": number(3, inner // 2, *kernel),
        },
        "GLoRA": {
            "a1": number(inner, 2, *ones), "a2": number(2, inner, *ones),
            "b1": number(out, 2, *ones), "b2": number(2, inner, *kernel),
        },
        "full difference": {"diff": number(out, inner, *kernel)},
    }  # fmt: skip
    if kernel:
        made["LoRA with a core"] = low(out, inner, kernel=(1, 1)) | {
            "lora_mid.weight": number(2, 2, *kernel)
        }
        made["LoHa with cores"] = {
            f"hada_w{i}_{s}": number(2, out if s == "a" else inner) for i in (1, 2) for s in "ab"
        }
        made["LoHa with cores"] |= {f"hada_t{i}": number(2, 2, *kernel) for i in (1, 2)}
        made["LoKr with a core"] = {"lokr_w1": number(2, 2), "lokr_w2_a": number(3, out // 2)}
        made["LoKr with a core"] |= {
            "lokr_w2_b": number(3, inner // 2),
            "lokr_t2": number(3, 3, *kernel),
        }
    return made
