"""The original DINOv2 at reduced size."""

import math

import torch

# a DINOv2 in small; heads of 64 as in every DINOv2
WIDTH, HEADS, DEPTH, PATCH, GRID = 128, 2, 4, 4, 5


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def original_weights(seed=0):
    """Random weights under the names of the original net, of a size that makes every part of it
    count."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        for name, shape in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (4 * WIDTH, WIDTH),
            "mlp.fc2": (WIDTH, 4 * WIDTH),
            "norm1": (WIDTH,),
            "norm2": (WIDTH,),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.ls{n}.gamma": (WIDTH,) for n in (1, 2)}
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(s, generator=generator) * math.prod(s[1:]) ** -0.5 for k, s in shapes.items()
    }
