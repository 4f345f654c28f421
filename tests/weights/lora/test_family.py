"""Which kind of model a LoRA is for."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from std_cli.weights.lora.family import UNETS, lora_family, unet_layers
from tests.weights.sdxl import UNET

CONFIGS = {
    "SDXL": UNET,
    "Stable Diffusion 1.5": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
    },
    "Stable Diffusion 2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "SDXL refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "transformer_layers_per_block": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    },
}


@pytest.mark.parametrize("name", UNETS)
def test_the_layers_of_each_family_are_those_of_diffusers(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(CONFIGS[name])
    weighty = {
        n: tuple(m.weight.shape)
        for n, m in unet.named_modules()
        if getattr(m, "weight", None) is not None
    }
    assert unet_layers(name) == weighty


def some_layers(family, *ends, start=""):
    return {
        n: s for n, s in unet_layers(family).items() if n.endswith(ends) and n.startswith(start)
    }


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize(
    "ends", [("attn1.to_q", "ff.net.0.proj"), ("conv1", "conv2"), ("attn2.to_k",), ("proj_in",)]
)
def test_families_by_shapes_alone(family, ends):
    """Without cross attention, too; only what both have in the same shape leaves a choice of 1.5
    and 2."""
    found = lora_family(some_layers(family, *ends), {}, (), False)
    assert found is not None
    if found.cross is None:
        assert found.name == "Stable Diffusion 1.5 or Stable Diffusion 2" and family in found.name
    else:
        assert found.name == family and found.why == f"by its shapes, {found.cross} wide"


def test_families_where_shapes_leave_a_choice():
    """The first level's first attention of 640 is the same in SD 1.5, 2 and SDXL, but for its
    depth."""
    ends = ("0.attn1.to_k", "0.attn1.to_q", "0.ff.net.0.proj", "0.ff.net.2")
    shapes = some_layers("SDXL", *ends, start="down_blocks.1.attentions.0")
    old = lora_family(shapes, {}, (), False)
    assert old is None
    assert lora_family(shapes, {}, (), True).name == "SDXL", (
        "only SDXL's have the original's names in kohya's files"
    )
    for version, name in {
        "sdxl_base_v1-0": "SDXL",
        "sd_v1": "Stable Diffusion 1.5",
        "sd_v2": "Stable Diffusion 2",
    }.items():
        found = lora_family(shapes, {"ss_base_model_version": version}, (), True)
        assert (found.name, found.why) == (name, "by its metadata")
    said = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert lora_family(shapes, said, (), False).name == "SDXL"
    assert lora_family(shapes, {}, ["lora_te2_x.alpha"], False).why == "by its second text encoder"
    wide = some_layers("SDXL", "attn2.to_v")
    assert lora_family(wide, {"ss_base_model_version": "sd_v1"}, (), False).name == "SDXL", (
        "shapes go first"
    )
    assert lora_family({"conv_in": (8, 4, 3, 3)}, said, (), True) is None
