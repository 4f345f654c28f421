"""LoRA and UNet: every layer finds its place, and the sum is diffusers' sum."""

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.lora import (
    LoraFile,
    check_lora,
    fuse_lora,
)
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.parts import check_adapter
from std_cli.weights.resolve import resolve_model
from tests.weights.files import SDXL, SHAPE, pairs, small_unet
from tests.weights.lora.tensors import low


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_fused_as_diffusers_fuses(plain: dict[str, torch.Tensor], strength: float) -> None:
    unet, reference = small_unet(), small_unet()
    fuse_lora(of_pairs("mine", plain, 2.0), unet, strength)
    state, alphas = (
        {f"unet.{k}": t for k, t in plain.items()},
        {f"unet.{k.split('.lora_')[0]}.alpha": 2.0 for k in plain},
    )
    StableDiffusionXLImg2ImgPipeline.load_lora_into_unet(
        state, alphas, reference, adapter_name="std"
    )
    reference.fuse_lora(strength)
    reference.unload_lora()
    wanted = reference.state_dict()
    for key, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], msg=key)


def test_check_against_a_unet(plain: dict[str, torch.Tensor]) -> None:
    lora, count = of_pairs("mine", plain, 4), len(plain)
    motion = {
        f"down_blocks.0.motion_modules.0.proj_in.lora_{half}.weight": torch.zeros(2, 2)
        for half in "AB"
    }
    both = of_pairs("mine", plain | motion, 4)
    partly = (
        f"{count} of {count + 2} tensors match this UNet, which lacks 1 of its layers "
        f".down_blocks.0.motion"
    )
    with pytest.raises(
        InputError,
        match=f"{partly}.*it is for videos: name a motion adapter with --motion.*--allow-partial",
    ):
        check_lora(both, small_unet())
    assert check_lora(both, small_unet(), allow_partial=True) == (count, count + 2)
    with pytest.raises(
        InputError, match="0 of 2 tensors match this UNet.*it is for videos"
    ) as error:
        check_lora(of_pairs("mine", motion, 4), small_unet(), allow_partial=True)
    assert "--allow-partial" not in str(error.value)
    with torch.device("meta"):
        sdxl = UNet2DConditionModel(**SHAPE, **SDXL)
    with pytest.raises(
        InputError,
        match=r"layers? of another shape \(first down_blocks.*made for another architecture",
    ):
        check_lora(lora, sdxl)
    full = pairs(sdxl, rank=64, device="meta")
    assert check_lora(of_pairs("published", full, 64), sdxl) == (1576, 1576)  # 788 layers


def test_a_misfit_is_known_before_a_weight_is_loaded(tmp_path):
    """As std plan and --dry-run need it: in another width, of another model, for videos, and on
    convolutions."""
    from PIL import Image

    from std_cli.stylize.pictures import prepare_images

    moving = "down_blocks.0.motion_modules.0.proj_in"
    for layer, pair, message in (
        (
            "mid_block.attentions.0.proj_in",
            low(96, 128),
            r"1 layer of another shape .first .*: .96, 128. for .128, 128.",
        ),
        (
            "mid_block.resnets.7.conv1",
            low(128, 128, kernel=(3, 3)),
            "0 of 2 tensors match this UNet",
        ),
        (moving, low(48, 48), "it is for videos: name a motion adapter with --motion"),
        ("mid_block.attentions.0.proj_in", low(1280, 1280), "it is for SDXL|of another shape"),
    ):
        save_file(
            {f"unet.{layer}.{key}": tensor for key, tensor in pair.items()},
            tmp_path / "x.safetensors",
        )
        file = LoraFile("x", tmp_path / "x.safetensors", 1.0, None, {}, None)
        with pytest.raises(InputError, match=message):
            check_adapter(resolve_model("tiny"), None, file, False)
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(InputError, match="--lora .*x.safetensors: 1 layer of another shape"):
        prepare_images(
            picture, picture, model="tiny", size=64, lora=str(tmp_path / "x.safetensors")
        )
