"""Style similarity by CSD (Somepalli et al. 2024, Measuring Style Similarity in Diffusion Models,
arXiv 2404.01292), the measure of the method's paper.

Its network is CLIP's ViT-L/14 with a projection for style, trained further. The published file is a
checkpoint of training in OpenAI's names, which transformers' network takes after they are mapped.
"""

import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.comparison.measures.base import Moment, PictureMeasure, Sample
from std_cli.comparison.measures.features import Features, clip_input, cosine
from std_cli.errors import InputError, counted
from std_cli.media.video.clip import Pixels
from std_cli.weights.cache import files_of
from std_cli.weights.files import check_numbers
from std_cli.weights.loading import loading
from std_cli.weights.pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPVisionModelWithProjection

MAX_BYTES = 3 * 2**30
"""The published file has 2.4 GB, half of which is the optimizer's state."""
HEAD_WIDTH = 64
"""Of each attention head of CLIP's image encoders; the file does not contain it."""

# OpenAI's names -> transformers'. "attn.in_proj" is three layers there.
_NAMES = (
    (r"^backbone\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^backbone\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^backbone\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^backbone\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^backbone\.ln_post\.", "vision_model.post_layernorm."),
    (r"^backbone\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


class Csd(PictureMeasure):
    """Cosine of the style features of the result and of the reference."""

    name = "csd"
    direction = "higher"
    range = (-1.0, 1.0)
    source = (
        "Somepalli et al., Measuring Style Similarity in Diffusion Models, 2024 (arXiv 2404.01292)"
    )
    weights = ("csd",)

    def of(self, moment: Moment, sample: Sample) -> float:
        features = csd_features(files_of("csd")["pytorch_model.bin"], self.device)
        return cosine(features(moment.result), features(sample.style))


@cache
def csd_features(path: Path, device: str) -> Features:
    """The style features of pictures by the network of a file, which is loaded once."""
    network: Any = load_csd(path)
    network.to(device)
    side: int = network.config.image_size

    def of(picture: Pixels) -> "Tensor":
        return network(clip_input(picture, side)[None].to(device)).image_embeds[0]  # type: ignore[no-any-return]

    return Features(of)


def load_csd(path: Path) -> "CLIPVisionModelWithProjection":
    """The image encoder of CSD with its projection for style, float32, from the published file.

    Raises InputError if it is damaged, or no CSD.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tensors = _as_transformers(read_pickle(path, ("model_state_dict", "state_dict"), MAX_BYTES))
    check_numbers(str(path), tensors.items())
    try:
        projected, width = tensors["visual_projection.weight"].shape
        positions = tensors["vision_model.embeddings.position_embedding.weight"].shape[0]
        patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
        mlp = tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path} is no CSD ({error} is missing): download it again") from error
    layers = {match[1] for key in tensors if (match := re.search(r"\.layers\.(\d+)\.", key))}
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        projection_dim=projected,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    with loading("CSD", path):
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    model: CLIPVisionModelWithProjection = loaded[0]
    model.requires_grad_(False).train(False)
    if wrong := sorted({*loaded[1]["missing_keys"], *loaded[1]["unexpected_keys"]}):
        raise InputError(
            f"{path} is no CSD: {counted(len(wrong), 'tensor')} too few or too many (first "
            f"{wrong[0]}): download it again"
        )
    return model


def _as_transformers(stored: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors of the published file under transformers' names, without the projection for
    content."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        key = key.removeprefix("module.")  # of torch's DistributedDataParallel
        if key == "last_layer_content":
            continue
        if key == "last_layer_style":
            tensors["visual_projection.weight"] = tensor.float().T.contiguous()
            continue
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        if ".in_proj_" in key:
            for part, rows in zip("qkv", tensor.float().chunk(3), strict=True):
                tensors[key.replace(".in_proj_", f".{part}_proj.")] = rows.clone()
        else:
            tensors[key] = tensor.float().clone()
    return tensors
