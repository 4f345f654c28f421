"""The frozen feature network of the discriminator: DINOv2 (Oquab et al. 2023, arXiv 2304.07193)
through transformers.

Its weights come from a transformers folder or from the original `dinov2_vits14_pretrain.pth`.
Either way the sizes are read off the tensors themselves, and the tensors pass through
`from_pretrained` under the names that files on the Hub have, which transformers maps to those it
has in memory (other ones since version 5).
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from std_cli.errors import InputError, counted
from std_cli.weights.files import check_numbers, read_header, read_object
from std_cli.weights.pickles import check_size, read_pickle

# side of the pictures that the pre-trained nets see here (StyleGAN-T, and the reference of STD)
SIZE = 224
_HEAD_WIDTH = 64  # of every DINOv2 net; the original files do not contain it

# The original's names -> those of the files on the Hub. "attn.qkv" is three layers there.
_NAMES = (
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)


class Dino(nn.Module):
    """Patch features of a frozen DINOv2: gradients flow through to the pictures, never to the
    weights."""

    def __init__(
        self, model: Dinov2Model, blocks: tuple[int, ...] | None = None, size: int = SIZE
    ) -> None:
        """`blocks`: which ones to read, from 0; by default the last of each quarter (2, 5, 8, 11 of
        12)."""
        super().__init__()
        depth = model.config.num_hidden_layers
        self.blocks = blocks or tuple(
            sorted({math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)})
        )
        if not all(0 <= block < depth for block in self.blocks):
            raise InputError(
                f"blocks {self.blocks} of a DINOv2 that has {depth}: choose from 0 to {depth - 1}"
            )
        self.size = size
        self.channels = model.config.hidden_size
        self.patch: int = model.embeddings.patch_embeddings.projection.kernel_size[0]
        self.model = model.requires_grad_(False).train(False)
        # in place of transformers' method
        self.model.embeddings.interpolate_pos_encoding = self._positions

    def train(self, mode: bool = True) -> "Dino":
        return super().train(False)  # frozen for good, whatever is asked of a model that holds it

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One (B, T, C) per block, after the final LayerNorm, without the class token.

        `images`: (B, 3, H, W), normalised by ImageNet's mean and std; T = floor(H / patch) *
        floor(W / patch).
        """
        # 1 + depth of (B, 1 + T, C)
        states = self.model(images, output_hidden_states=True).hidden_states
        return [self.model.layernorm(states[block + 1])[:, 1:] for block in self.blocks]

    def _positions(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Position embeddings (1, 1 + T, C) for a picture of this size, as the original net makes
        them.

        It gives bicubic interpolation a scale factor that is a tenth of a patch too large (against
        rounding, https://github.com/facebookresearch/dino/issues/8), so it samples at other places
        than transformers does, which gives the size.
        """
        table: torch.Tensor = self.model.embeddings.position_embeddings
        rows, columns = height // self.patch, width // self.patch
        side = math.isqrt(table.shape[1] - 1)
        if (rows, columns) == (side, side):
            return table
        grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic"
        )
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], 1)


# --- load and convert --------------------------------------------------------------------------


def load_dino(path: Path, blocks: tuple[int, ...] | None = None) -> Dino:
    """A DINOv2 in float32 from a transformers folder, or from an original .pth, which is read
    without running its code.

    Raises InputError if it is missing, damaged, or no DINOv2 of this kind (ViT with MLP, without
    registers).
    """
    if path.is_dir():
        config = read_object(path / "config.json")
        if config.get("model_type") != "dinov2":
            raise InputError(
                f"{path} is no DINOv2: model_type in config.json is {config.get('model_type')!r}"
            )
        weights = path / "model.safetensors"
        read_header(weights)
        check_size(weights, weights.stat().st_size)
        tensors = load_file(weights)
        check_numbers(str(weights), tensors.items())
        return Dino(_build(path, tensors, config.get("num_attention_heads")), blocks)
    return Dino(_build(path, _read_original(path)), blocks)


def convert_dino(pth: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write the original .pth into a folder as transformers reads it: config.json and
    model.safetensors, whose tensors are returned."""
    tensors = _read_original(pth)
    config = _build(pth, tensors).config
    (folder / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    return tensors


def _read_original(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an original .pth under the names of the Hub's files: float32, each with memory
    of its own."""
    tensors: dict[str, torch.Tensor] = {}
    pickled = read_pickle(path)
    check_numbers(str(path), pickled.items())
    for key, tensor in pickled.items():
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        if ".attn.qkv." in key and tensor.ndim and len(tensor) % 3 == 0:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                tensors[key.replace(".attn.qkv.", f".attention.attention.{part}.")] = (
                    rows.float().clone()
                )
        else:
            tensors[key] = tensor.float().clone(memory_format=torch.contiguous_format)
    return tensors


def _build(path: Path, tensors: dict[str, torch.Tensor], heads: int | None = None) -> Dinov2Model:
    """The network that these tensors (under the names of the Hub's files) belong to, and no
    other."""
    other = "is no DINOv2 of the kind that works here (ViT-S, B or L, without registers)"
    try:
        _, positions, width = tensors["embeddings.position_embeddings"].shape
        patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
        mlp = tensors["encoder.layer.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path} {other}: {error}") from error
    if heads is None:
        heads = width // _HEAD_WIDTH
    side = math.isqrt(max(positions - 1, 0))
    sizes_fit = (
        type(heads) is int
        and min(heads, width, patch, side) > 0
        and width % heads == mlp % width == 0
    )
    if not sizes_fit or side**2 + 1 != positions:
        sizes = (
            f"width {width}, {counted(heads, 'head')}, MLP {mlp}, {counted(positions, 'position')}"
        )
        raise InputError(f"{path} {other}: {sizes} do not go together")
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=sum(
            bool(re.fullmatch(r"encoder\.layer\.\d+\.norm1\.weight", key)) for key in tensors
        ),
        num_attention_heads=heads,
        mlp_ratio=mlp // width,
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        use_mask_token="embeddings.mask_token" in tensors,
    )
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that differ
        raise InputError(
            f"{path} {other}: its tensors differ in shape from those of its sizes"
        ) from error
    model: Dinov2Model = loaded[0]
    info: dict[str, set[str]] = loaded[1]
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise InputError(
            f"{path} {other}: {counted(len(wrong), 'tensor')} too few or too many (first "
            f"{wrong[0]})"
        )
    return model


# --- without weights ---------------------------------------------------------------------------


def tiny_dino(seed: int = 0) -> Dino:
    """A small net of the same kind with random weights (a function of `seed`), for where there are
    none to be had.

    Random features are a weak measure of likeness, yet one that a discriminator can train on. The
    patch embedding keeps the pictures' variance; the blocks' matrices have half of the gain that
    would keep it, because heads learnt faster on them than at full gain, measured by telling
    blurred pictures. 48 channels, 14 x 14 tokens of 8 x 8 pixels.
    """
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=8
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 or parameter.ndim == 4:  # linear layers, the patch embedding
                gain = 1 if parameter.ndim == 4 else 0.5
                parameter.normal_(0, gain * parameter[0].numel() ** -0.5, generator=generator)
            elif parameter.ndim == 3:  # class token and positions
                parameter.normal_(0, 0.02, generator=generator)
    return Dino(model, size=112)
