"""SDXL base 1.0 and its image encoder: the published configs, and models of reduced width."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from std_cli.weights import resolve
from std_cli.weights.hub import source
from tests.weights.files import cache, pairs

State = dict[str, torch.Tensor]


# --- SDXL base 1.0 and h94's image encoder: their configs, as published -------------------------

INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.20.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,  # neither is true of the tokenizer: the models are published so
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float16",
    "transformers_version": "4.32.0.dev0",
    "vocab_size": 49408,
}
TEXT_2 = TEXT | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
VISION = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0",
}


def special_token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


SPECIAL_TOKENS = {
    "bos_token": special_token("<|startoftext|>"),
    "eos_token": special_token("<|endoftext|>"),
    "unk_token": special_token("<|endoftext|>"),
}


# --- the same, narrow ---------------------------------------------------------------------------

NARROW_UNET = UNET | {
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [32, 64, 96],
    "cross_attention_dim": 96,  # of both text encoders together, as in SDXL
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64 + 6 * 8,
}
NARROW_VAE = VAE | {"block_out_channels": [32, 64, 96, 96]}
LAYERS = {"num_attention_heads": 2, "num_hidden_layers": 2}
NARROW_TEXT = (
    TEXT
    | LAYERS
    | {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "vocab_size": 892}
)
NARROW_TEXT_2 = (
    TEXT_2
    | LAYERS
    | {"hidden_size": 64, "intermediate_size": 128, "projection_dim": 64, "vocab_size": 892}
)
NARROW_VISION = VISION | LAYERS | {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 48}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 1)


def ip_adapter(kind: str, unet: dict[str, Any], vision: dict[str, Any], heads: int) -> State:
    """An IP-Adapter for SDXL as h94 publishes it: attentions numbered 1, 3, ... in the order down,
    up, middle."""
    _, half, quarter = unet["block_out_channels"]
    cross, state = unet["cross_attention_dim"], {}
    for i, width in enumerate(
        [half] * 4 + [quarter] * 20 + [quarter] * 30 + [half] * 6 + [quarter] * 10
    ):
        for name in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * i + 1}.{name}.weight"] = noise(width, cross)
    if kind == "plain":
        shapes = {"proj.weight": (4 * cross, vision["projection_dim"]), "proj.bias": (4 * cross,)}
        shapes |= {"norm.weight": (cross,), "norm.bias": (cross,)}
    else:
        inside = 64 * heads
        shapes = {"latents": (1, 16, inside)}
        shapes |= {"proj_in.weight": (inside, vision["hidden_size"]), "proj_in.bias": (inside,)}
        shapes |= {"proj_out.weight": (cross, inside), "proj_out.bias": (cross,)}
        shapes |= {"norm_out.weight": (cross,), "norm_out.bias": (cross,)}
        for layer in (f"layers.{i}." for i in range(4)):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"{layer}{norm}.weight": (inside,), f"{layer}{norm}.bias": (inside,)}
            shapes |= {
                f"{layer}0.to_q.weight": (inside, inside),
                f"{layer}0.to_kv.weight": (2 * inside, inside),
            }
            shapes |= {f"{layer}0.to_out.weight": (inside, inside)}
            shapes |= {
                f"{layer}1.1.weight": (4 * inside, inside),
                f"{layer}1.3.weight": (inside, 4 * inside),
            }
    return state | {f"image_proj.{name}": noise(*shape) for name, shape in shapes.items()}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_tokenizer(folder: Path, pad: str) -> None:
    """In the four files of SDXL's tokenizers, with the small vocabulary of the tiny pack."""
    model = json.loads((resolve.TINY / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))[
        "model"
    ]
    write_json(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS | {"pad_token": pad})
    tokens = {name: {"__type": "AddedToken", **token} for name, token in SPECIAL_TOKENS.items()}
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
    }
    settings |= {"pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", tokens | settings)


@dataclass(frozen=True)
class Shapes:
    """The configs of a model with SDXL's layers."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    text_2: dict[str, Any]
    vision: dict[str, Any]
    heads: int
    """Of the IP-Adapter's resampler, each 64 wide."""


REAL = Shapes(UNET, VAE, TEXT, TEXT_2, VISION, 20)
NARROW = Shapes(NARROW_UNET, NARROW_VAE, NARROW_TEXT, NARROW_TEXT_2, NARROW_VISION, 2)
MEDIUM = Shapes(
    UNET
    | {
        "attention_head_dim": [2, 4, 8],
        "block_out_channels": [128, 256, 512],
        "cross_attention_dim": 512,
        "projection_class_embeddings_input_dim": 256 + 6 * 256,
    },
    VAE,
    TEXT | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4},
    TEXT_2
    | {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "projection_dim": 256,
    },
    VISION | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    8,
)
"""0.6 billion parameters in all; REAL has 4.5."""


class Sdxl:
    """SDXL base 1.0, h94/IP-Adapter and a published STD LoRA, narrow unless other shapes are given,
    on disk; and what is in their files."""

    def __init__(self, root: Path, given: Shapes = NARROW) -> None:
        torch.manual_seed(0)
        self.base, self.h94, self.lora = (
            root / "sdxl",
            root / "h94",
            root / "std_sdxl_i2i_eta0.75.safetensors",
        )
        write_json(self.base / "model_index.json", INDEX)
        write_json(self.base / "scheduler" / "scheduler_config.json", SCHEDULER)
        write_tokenizer(self.base / "tokenizer", "<|endoftext|>")
        write_tokenizer(self.base / "tokenizer_2", "!")
        unet = UNet2DConditionModel.from_config(given.unet)
        text = CLIPTextModel(CLIPTextConfig(**given.text)).state_dict()
        self.states: dict[str, State] = {
            "unet": unet.state_dict(),
            "vae": AutoencoderKL.from_config(given.vae).state_dict(),
            # transformers 5 dropped the prefix from its names, not from the files of old
            "text_encoder": {
                f"text_model.{key.removeprefix('text_model.')}": tensor
                for key, tensor in text.items()
            },
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**given.text_2)
            ).state_dict(),
        }
        configs = {
            "unet": given.unet,
            "vae": given.vae,
            "text_encoder": given.text,
            "text_encoder_2": given.text_2,
        }
        for part, config in configs.items():
            write_json(self.base / part / "config.json", config)
            self.states[part] = {key: tensor.half() for key, tensor in self.states[part].items()}
            stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
            save_file(
                self.states[part], self.base / part / f"{stem}.fp16.safetensors", {"format": "pt"}
            )

        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**given.vision)).state_dict()
        # as transformers 4.28 saved it
        vision["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
        write_json(self.h94 / "models" / "image_encoder" / "config.json", given.vision)
        save_file(
            vision, self.h94 / "models" / "image_encoder" / "model.safetensors", {"format": "pt"}
        )
        (self.h94 / "sdxl_models").mkdir()
        self.adapters = {"plus": "ip-adapter-plus_sdxl_vit-h", "plain": "ip-adapter_sdxl_vit-h"}
        for kind, stem in self.adapters.items():
            self.states[kind] = {
                k: t.half()
                for k, t in ip_adapter(kind, given.unet, given.vision, heads=given.heads).items()
            }
            save_file(self.states[kind], self.h94 / "sdxl_models" / f"{stem}.safetensors")

        self.states["lora"] = {
            f"unet.{key}": 0.02 * tensor for key, tensor in pairs(unet, rank=4).items()
        }
        save_file(self.states["lora"], self.lora, {"format": "pt"})

    def fill(self, home: Path, model: str = "sdxl") -> None:
        """Lay out the Hub's cache under an HF_HOME."""
        base, adapter = source(model), source("ip-adapter-plus")
        link(self.base, cache(home, base.repo, base.revision))
        link(self.h94, cache(home, adapter.repo, adapter.revision))
        link(self.lora, cache(home, source("std-i2i-0.75").repo, "main") / self.lora.name)


def link(source: Path, target: Path) -> None:
    """As huggingface_hub does: symbolic links, and copies on Windows."""
    place = shutil.copy2 if os.name == "nt" else os.symlink
    if source.is_dir():
        shutil.copytree(source, target, copy_function=place, dirs_exist_ok=True)
    else:
        place(source, target)


# --- a checkpoint in one file, with the names of the original code -----------------------------


def original(states: dict[str, State]) -> State:
    """The tensors of an SDXL folder under the names of sd_xl_base_1.0.safetensors."""
    out = {
        f"model.diffusion_model.{unet_name(key)}": tensor for key, tensor in states["unet"].items()
    }
    for key, tensor in states["vae"].items():
        linear = "attentions" in key and tensor.ndim == 2  # a convolution of 1 x 1 in the original
        out[f"first_stage_model.{vae_name(key)}"] = tensor[:, :, None, None] if linear else tensor
    out |= {
        f"conditioner.embedders.0.transformer.{key}": tensor
        for key, tensor in states["text_encoder"].items()
    }
    out["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(
        77
    )[None]
    text_2 = {"logit_scale": torch.tensor(4.6)}
    for key, tensor in states["text_encoder_2"].items():
        if ".q_proj." in key:  # one tensor in the original
            qkv = torch.cat(
                [states["text_encoder_2"][key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            )
            text_2[open_clip_name(key).replace("q_proj.", "in_proj_")] = qkv
        elif ".k_proj." not in key and ".v_proj." not in key:
            text_2[open_clip_name(key)] = tensor.T if key == "text_projection.weight" else tensor
    out |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in text_2.items()}
    return {key: tensor.contiguous() for key, tensor in out.items()}


def renamed(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def unet_name(key: str) -> str:
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d))?\.(\w+)\.(\d)\.(.+)", key)
    if not match:
        names = {
            "time_embedding.linear_1": "time_embed.0",
            "time_embedding.linear_2": "time_embed.2",
        }
        names |= {
            "add_embedding.linear_1": "label_emb.0.0",
            "add_embedding.linear_2": "label_emb.0.2",
        }
        return renamed(
            key,
            names | {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
        )
    side, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        names = {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
        }
        rest = renamed(
            rest, names | {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
        )
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.{rest}"
    place = (
        f"input_blocks.{3 * block + index + 1}"
        if side == "down"
        else f"output_blocks.{3 * block + index}"
    )
    return f"{place}.{int(kind == 'attentions')}.{rest}"


def vae_name(key: str) -> str:
    key = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    names = {
        "down_blocks": "down",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "resnets": "block",
    }
    names |= {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "group_norm": "norm"}
    names |= {
        "mid_block.attentions.0": "mid.attn_1",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    return renamed(key, names)


def open_clip_name(key: str) -> str:
    names = {
        "text_model.encoder.layers": "transformer.resblocks",
        "text_model.final_layer_norm": "ln_final",
    }
    names |= {"text_model.embeddings.position_embedding.weight": "positional_embedding"}
    names |= {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_projection.weight": "text_projection",
    }
    names |= {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn": "attn",
        "fc1": "c_fc",
        "fc2": "c_proj",
    }
    return renamed(key, names)
