"""What is written: the keys that other tools map, and equal bytes for equal contents."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from std_cli.errors import InputError
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.lora.write import lora_bytes
from tests.weights.files import pairs
from tests.weights.lora.tensors import original_names
from tests.weights.sdxl import UNET


def test_the_kohya_spelling_has_the_keys_that_other_tools_map():
    """ComfyUI maps "lora_unet_" and an original name with _ for each ".", and the same with
    diffusers' names.

    sd-scripts adapts layers inside of Transformer2DModel, ResnetBlock2D, Downsample2D and
    Upsample2D by their original names. So what `std distill` trains by default has a place in both.
    """
    from std_cli.weights.lora.write import _kohya

    with torch.device("meta"):
        plain = pairs(UNet2DConditionModel.from_config(UNET), rank=4, device="meta")
    names = {
        f"lora_unet_{theirs.replace('.', '_')}": layer for layer, theirs in original_names().items()
    }
    made = _kohya(of_pairs("mine", plain, 4))
    ends = {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(made) == 3 * 788
    for key, tensor in made.items():
        module, end = key.split(".", 1)
        assert end in ends and (
            "input_blocks" in key or "middle_block" in key or "output_blocks" in key
        )
        if end != "alpha":
            assert (
                tensor
                is plain[f"{names[module]}.lora_{'A' if end == 'lora_down.weight' else 'B'}.weight"]
            )


def test_equal_contents_give_equal_bytes():
    weights = of_pairs("x", {f"conv_in.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, 2)
    metadata = {f"key{i}": "é" for i in range(40)}
    made = {
        lora_bytes(weights, to, dict(items))
        for to in ("kohya",)
        for items in (metadata.items(), [*metadata.items()][::-1])
    }
    assert len(made) == 1
    [data] = made
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0 and data[8 : 8 + size].startswith(b'{"__metadata__":{"format":"pt","key0"')


def test_names_without_a_place_in_a_spelling_are_said():
    """The words of Flux's layers cannot be separated where "_" stands for "."."""
    layer = "double_blocks.0.img_attn.qkv"
    weights = of_pairs("x", {f"{layer}.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, 2)
    with pytest.raises(InputError, match="^x: kohya spelling has no place .*use another --to"):
        lora_bytes(weights, "kohya", {})
    for to in ("diffusers", "peft"):
        assert lora_bytes(weights, to, {})
