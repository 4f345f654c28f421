"""Small weight files that tests make: model folders, LoRAs, a Hub's cache."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from std_cli.weights import resolve
from std_cli.weights.resolve import ModelFiles

ADAPTER = {"image_proj.latents": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)}


def tensors(
    path: Path,
    content: dict[str, torch.Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a small safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the cache keeps equal files once
    own = torch.tensor(list(f"{path.parent.name}/{path.name}".encode()))
    save_file(content or {"weight": own}, path, metadata)
    return path


TINY_PACK = resolve.TINY  # a test sets another one there


def sdxl_folder(folder: Path, variant: str = "", adapter: bool = True) -> Path:
    """A diffusers folder with SDXL's files, by name and header only; the configs are tiny's."""
    parts = (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        *(("image_encoder",) if adapter else ()),
    )
    for part in parts:
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        tensors(folder / part / f"{stem}{'' if part == 'image_encoder' else variant}.safetensors")
        (folder / part / "config.json").write_bytes((TINY_PACK / part / "config.json").read_bytes())
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes((TINY_PACK / file).read_bytes())
    for file in ("tokenizer/vocab.json", "tokenizer_2/vocab.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    if adapter:
        tensors(folder / "ip_adapter" / "ip-adapter-plus_x.safetensors", ADAPTER)
    return folder


def zeros(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """A file of zeros in fp16, which a file system keeps as a hole."""
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def cache(home: Path, repo: str, revision: str) -> Path:
    """The snapshot folder of a repository, as huggingface_hub lays out its cache."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    commit = revision if len(revision) == 40 else "c" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    return root / "snapshots" / commit


def small_lora(path: Path, **metadata: str) -> Path:
    content = {"unet.x.lora_A.weight": torch.zeros(2, 4), "unet.x.lora_B.weight": torch.zeros(4, 2)}
    return tensors(path, content, metadata)


# --- LoRAs -------------------------------------------------------------------------------------

# METHOD.md section 5
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *(
        "conv1",
        "conv2",
        "conv_shortcut",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
        "time_emb_proj",
    ),
)
SHAPE = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "block_out_channels": (32, 32, 64),
    "attention_head_dim": (2, 2, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SHAPE, **SMALL)


def pairs(unet: torch.nn.Module, rank: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """ "<module>.lora_A.weight" and "<module>.lora_B.weight" for every layer that the method
    adapts."""
    found = {}
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and name.endswith(
            tuple(f".{t}" for t in TARGETS)
        ):
            out, *inside = module.weight.shape
            found[f"{name}.lora_A.weight"] = torch.randn(rank, *inside, device=device)
            found[f"{name}.lora_B.weight"] = torch.randn(
                out, rank, *[1] * len(inside[1:]), device=device
            )
    return found


def kohya(key: str) -> str:
    module, half = key.split(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if half[0] == 'A' else 'up'}.weight"


SPELLINGS = {
    "hook": lambda key: f"unet.{key}",
    "checkpoint-final": lambda key: f"unet.base_model.model.{key}",
    "peft": lambda key: f"base_model.model.{key}",
    "bare": lambda key: key,
    "lora.down": lambda key: (
        f"unet.{key.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up')}"
    ),
    "kohya": kohya,
}


def shapes(tensors):
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


def hotshot_names(adapter):
    """HotShot-XL's own names: temporal_attentions, attention blocks in a list, the positions once
    per attention."""
    out = {}
    for key, shape in shapes(adapter.state_dict()).items():
        new = key.replace(".motion_modules.", ".temporal_attentions.").replace(
            ".norm3.", ".ff_norm."
        )
        for i in (1, 2):
            new = new.replace(f".attn{i}.", f".attention_blocks.{i - 1}.").replace(
                f"0.norm{i}.", f"0.norms.{i - 1}."
            )
        if key.endswith(".pos_embed.pe"):
            for i in (0, 1):
                place = f".attention_blocks.{i}.pos_encoder.positional_encoding"
                out[new.replace(".pos_embed.pe", place)] = shape
        else:
            out[new] = shape
    return out


# --- files made to harm ------------------------------------------------------------------------


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def model(base: Path, **pack: Any) -> ModelFiles:
    return ModelFiles("mine", base, False, None, None, base, base, pack)
