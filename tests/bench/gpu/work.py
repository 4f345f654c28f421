"""The work of the networks in floating-point operations, counted on the meta device."""

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch.utils.flop_counter import FlopCounterMode

TOKENS = 77


@cache
def unet_flop(folder: Path, size: tuple[int, int], frames: int = 1, motion: bool = False) -> int:
    """FLOP of the UNet's forward for one picture, or for one window of frames with the motion
    adapter; a multiply-add is two. The IP-Adapter's own layers, less than 1%, are left out.

    size: (width, height) in pixels.
    """
    unet = _unet(folder, motion)
    (height, width), config = _latent(folder, size), unet.config
    ids = 6 * config.addition_time_embed_dim
    latents = torch.empty(1, 4, *([frames] if motion else []), height, width, device="meta")
    added = {
        "text_embeds": torch.empty(
            1, config.projection_class_embeddings_input_dim - ids, device="meta"
        ),
        "time_ids": torch.empty(1, 6, device="meta"),
    }
    states = torch.empty(frames if motion else 1, TOKENS, config.cross_attention_dim, device="meta")
    times = torch.empty(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(latents, times, states, added_cond_kwargs=added)
    return counter.get_total_flops()


@cache
def vae_flop(folder: Path, size: tuple[int, int]) -> tuple[int, int]:
    """(encoding, decoding) of one picture."""
    vae = _vae(folder)
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        vae.encode(torch.empty(1, 3, size[1], size[0], device="meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        vae.decode(torch.empty(1, 4, *_latent(folder, size), device="meta"))
    return encoding.get_total_flops(), decoding.get_total_flops()


def _latent(folder: Path, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a latent."""
    factor = 2 ** (len(_vae(folder).config.block_out_channels) - 1)
    return size[1] // factor, size[0] // factor


@cache
def _unet(folder: Path, motion: bool) -> UNet2DConditionModel | UNetMotionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        if motion:
            config = MotionAdapter.load_config(folder / "motion_adapter")
            unet = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_config(config))
    return unet.eval()


@cache
def _vae(folder: Path) -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")).eval()
