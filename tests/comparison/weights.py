"""Small weights in the layouts that the measures' models are published in, where std finds them."""

import json
import math
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

from std_cli.weights.hub import hub_cache
from std_cli.weights.web_files import web_file
from std_cli.weights.zoo import find_entry

WIDTH, LAYERS, PATCH, SIDE, MLP, OUT = 64, 2, 14, 56, 128, 24
CHANNELS = (4, 6, 8, 8, 8)
CONVOLUTIONS = {0: (3, 0), 2: (0, 0), 5: (0, 1), 7: (1, 1), 10: (1, 2), 12: (2, 2), 14: (2, 2),
                17: (2, 3), 19: (3, 3), 21: (3, 3), 24: (3, 4), 26: (4, 4), 28: (4, 4)}  # fmt: skip


def csd_tensors(seed=0):
    """A CSD in OpenAI's names, as its training saved it."""
    torch.manual_seed(seed)
    return _csd(lambda *shape: torch.randn(shape) * shape[-1] ** -0.5,
                WIDTH, LAYERS, MLP, OUT, PATCH, (SIDE // PATCH) ** 2)  # fmt: skip


def published_csd_tensors(seed=5):
    """A CSD in the published shapes: ViT-L/14 at 224 pixels, 304 million numbers. Its matrices are
    parts of one buffer, which takes a hundredth of their time and memory, in a file, too."""
    width, mlp = 1024, 4096
    torch.manual_seed(seed)
    buffer = torch.randn(2 * mlp * width) * width**-0.5

    def part(*shape):
        count = math.prod(shape)
        start = int(torch.randint(len(buffer) - count, ()))
        return buffer[start : start + count].view(shape)

    return _csd(part, width, 24, mlp, 768, 14, 256)


def _csd(make, width, layers, mlp, out, patch, patches):
    """make: gives random numbers in a shape."""

    def norm(name):
        return {f"{name}.weight": 1 + make(width), f"{name}.bias": make(width).clone()}

    tensors = {
        "class_embedding": make(width),
        "positional_embedding": make(patches + 1, width),
        "conv1.weight": make(width, 3, patch, patch),
        **norm("ln_pre"),
        **norm("ln_post"),
    }
    for i in range(layers):
        at = f"transformer.resblocks.{i}"
        tensors |= norm(f"{at}.ln_1") | norm(f"{at}.ln_2")
        tensors |= {
            f"{at}.attn.in_proj_weight": make(3 * width, width),
            f"{at}.attn.in_proj_bias": make(3 * width),
            f"{at}.attn.out_proj.weight": make(width, width),
            f"{at}.attn.out_proj.bias": make(width),
            f"{at}.mlp.c_fc.weight": make(mlp, width),
            f"{at}.mlp.c_fc.bias": make(mlp),
            f"{at}.mlp.c_proj.weight": make(width, mlp),
            f"{at}.mlp.c_proj.bias": make(width),
        }
    return {f"module.backbone.{name}": tensor for name, tensor in tensors.items()} | {
        f"module.last_layer_{name}": make(width, out) for name in ("style", "content")
    }


def head_tensors(width, hidden=(16, 8, 6, 4), seed=1):
    """The aesthetic predictor: five linear layers, numbered with the dropouts between them."""
    torch.manual_seed(seed)
    widths = (width, *hidden, 1)
    sizes = dict(zip((0, 2, 4, 6, 7), zip(widths[1:], widths[:-1], strict=True), strict=True))
    return {f"layers.{i}.weight": torch.randn(s) * s[1] ** -0.5 for i, s in sizes.items()} | {
        f"layers.{i}.bias": torch.randn(s[0]) for i, s in sizes.items()
    }


def vgg_tensors(channels=CHANNELS, seed=2):
    """VGG16's convolutions in torchvision's names, of these widths."""
    torch.manual_seed(seed)
    found = {}
    for i, (before, group) in CONVOLUTIONS.items():
        wide = 3 if i == 0 else channels[before]
        weight = torch.randn(channels[group], wide, 3, 3) * (2 / (9 * wide)) ** 0.5
        found |= {f"features.{i}.weight": weight, f"features.{i}.bias": torch.zeros(len(weight))}
    return found


def lpips_tensors(channels=CHANNELS, seed=3):
    torch.manual_seed(seed)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}


def clip_folder(folder: Path) -> None:
    """A CLIP as on the Hub."""
    torch.manual_seed(4)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    half = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": OUT,
    }
    text = half | {
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    vision = half | {"image_size": SIDE, "patch_size": PATCH}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=OUT)
    CLIPModel(config).save_pretrained(folder)
    files = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps({"model_max_length": 16}),
        "special_tokens_map.json": "{}",
        "preprocessor_config.json": "{}",
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def install(*names: str) -> None:
    """Put small models of these names of the table where std finds them."""
    for name in names:
        entry, file = find_entry(name), web_file(name)
        folder = (
            file.path.parent
            if file
            else hub_cache() / f"models--{entry.repo.replace('/', '--')}/snapshots/{entry.revision}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / entry.files[0]
        if name == "clip-l":
            clip_folder(folder)
        elif name == "csd":
            torch.save({"model_state_dict": csd_tensors(), "opt_bb": {"state": {}}}, path)
        elif name == "aesthetic":
            torch.save(head_tensors(OUT), path)
        elif name == "vgg16":
            torch.save(vgg_tensors(), path)
        elif name == "lpips":
            torch.save(lpips_tensors(), path)
