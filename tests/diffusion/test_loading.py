"""How the networks come by their weights."""

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

from std_cli.diffusion.pipeline import join_motion
from std_cli.weights.motion import HOTSHOT_CONFIG
from std_cli.weights.resolve import TINY
from tests.weights.sdxl import NARROW_UNET


def tiny() -> tuple[UNet2DConditionModel, MotionAdapter]:
    return (
        UNet2DConditionModel.from_pretrained(TINY / "unet", dtype=torch.float32),
        MotionAdapter.from_pretrained(TINY / "motion_adapter"),
    )


def narrow() -> tuple[UNet2DConditionModel, MotionAdapter]:
    """SDXL's and HotShot-XL's blocks, the UNet in bf16 and the adapter in fp16."""
    torch.manual_seed(0)
    widths = NARROW_UNET["block_out_channels"]
    adapter = MotionAdapter.from_config(HOTSHOT_CONFIG | {"block_out_channels": widths})
    return UNet2DConditionModel.from_config(NARROW_UNET).bfloat16(), adapter.half()


@pytest.mark.parametrize("make", [tiny, narrow])
def test_a_motion_unet_is_that_of_diffusers_and_holds_the_unet_once(make) -> None:
    unet, adapter = make()
    reference = UNetMotionModel.from_unet2d(unet, adapter)
    # which from_unet2d leaves random
    reference.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    moving = join_motion(unet, adapter)
    found, wanted = moving.state_dict(), reference.to(unet.dtype).state_dict()
    assert list(found) == list(wanted)
    assert [k for k, t in wanted.items() if not torch.equal(found[k], t)] == []
    assert {t.dtype for t in found.values()} == {unet.dtype}
    assert moving.config == reference.config and not moving.training
    assert not any(t.is_meta for t in (*moving.parameters(), *moving.buffers()))
    places = {k: t.data_ptr() for k, t in unet.state_dict().items()}
    assert {k: found[k].data_ptr() for k in places} == places
