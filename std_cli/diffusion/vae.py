"""The VAE as every part of std runs it: its precision, and between pixels and latents."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def works_in_fp32(config: Mapping[str, Any], fp16: bool) -> bool:
    """Whether a VAE works in fp32 though the run is in fp16, where it would overflow: its
    `force_upcast` says so, which is diffusers' default."""
    return fp16 and bool(config.get("force_upcast", True))


def upcast_vae(vae: Any, dtype: torch.dtype) -> None:
    """Cast a VAE to fp32 if it must be in a run of `dtype`."""
    if works_in_fp32(vae.config, dtype == torch.float16):
        vae.to(torch.float32)


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, h, w), fp32: the mode of the
    posterior, so that it repeats."""
    mode: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
    return mode.float() * vae.config.scaling_factor  # type: ignore[no-any-return]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) -> pixels (B, 3, H, W), about [-1, 1], fp32."""
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(scaled, return_dict=False)[0].float()  # type: ignore[no-any-return]
