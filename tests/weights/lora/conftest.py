"""What several tests of LoRAs share."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from std_cli.weights.resolve import TINY
from tests.weights.files import pairs, small_unet


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return pairs(small_unet(), rank=4)


@pytest.fixture(scope="module")
def tiny_unet():
    return UNet2DConditionModel.from_pretrained(TINY, subfolder="unet")
