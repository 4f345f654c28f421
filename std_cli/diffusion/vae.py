"""The VAE as every part of std runs it: its precision, and between pixels and latents."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


LARGEST = torch.finfo(torch.float16).max / 2
"""The largest number inside a VAE with which it may work in fp16: half of what fp16 holds."""
CLOSE = 4 / 255
"""How far the pixels of a VAE in half precision may be from those in fp32, on average, of [-1, 1]:
two levels of 255."""
_SIDE = 8
"""Of the latents that a VAE is tried with."""


def is_wide(config: Mapping[str, object]) -> bool:
    """Whether a VAE says of itself that it overflows in fp16: `force_upcast`, diffusers' default.
    Only a plan believes it, which does not load the weights."""
    return bool(config.get("force_upcast", True))


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 in its hardware, as NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@torch.no_grad()  # inference_mode would leave weights that training cannot use
def choose_precision(vae: "AutoencoderKL", device: torch.device) -> torch.dtype:
    """The precision of a VAE in a run in fp16: fp16 if its weights allow it, else bf16 where the
    device has it, else fp32.

    SDXL's VAE overflows in fp16, and copies of it are in many checkpoints; others were trained to
    keep their activations small ("SDXL-VAE-FP16-Fix", whose outputs are nearly the same), and their
    configs do not always say so. The difference is how large the numbers inside become. Fixed
    latents, as wide as those of pictures and twice as wide, are decoded in fp32, and pixels are
    encoded: the largest number of all layers must leave half of fp16's range free, and what comes
    out in the lower precision must be finite and close. The VAE is left in the chosen precision.
    """
    before = next(vae.parameters()).device
    vae.to(device, torch.float32)
    with _largest(vae) as found:
        exact = _tried(vae)
    fits = found[0] < LARGEST
    narrower = [torch.float16] if fits else []
    narrower += [torch.bfloat16] if computes_in_bf16(device) else []
    chosen = torch.float32
    for dtype in narrower:
        if _is_close(_tried(copy.deepcopy(vae).to(dtype)), exact):
            chosen = dtype
            break
    vae.to(before, chosen)
    return chosen


def _tried(vae: "AutoencoderKL") -> list[Tensor]:
    """What a VAE makes of fixed latents, and of the pixels that it made."""
    device = next(vae.parameters()).device
    noise = torch.randn(1, 4, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise[..., :4, :4], size=_SIDE, mode="bicubic")
    latents = torch.cat([noise, 2 * smooth]).to(device)
    pixels = decode(vae, latents).float()
    given = torch.nn.functional.interpolate(latents[:, :3], size=pixels.shape[-2:]).clamp(-1, 1)
    return [pixels.clamp(-1, 1), encode(vae, given)]


def _is_close(found: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether all is finite and on average as near to `exact` as pictures may be."""
    return all(bool(torch.isfinite(each).all()) for each in found) and all(
        float((a - b).abs().mean()) <= CLOSE * max(1.0, float(b.abs().max()))
        for a, b in zip(found, exact, strict=True)
    )


@contextmanager
def _largest(network: nn.Module) -> Iterator[list[float]]:
    """Inside, the largest number that any layer of a network gives; in a list of one."""
    found = [0.0]

    def look(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            largest = float(output.abs().max())
            found[0] = max(found[0], largest if largest == largest else float("inf"))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


# --- pixels and latents ------------------------------------------------------------------------


def encode(vae: "AutoencoderKL", pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, h, w), fp32: the mode of the
    posterior, so that it repeats."""
    mode: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
    return _scaled(vae, mode.float())


def sample(
    vae: "AutoencoderKL", pixels: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """As `encode`, drawn from the posterior, in `dtype`: what diffusers' img2img begins with."""
    pixels = pixels.to(dtype).to(vae.dtype)
    return _scaled(vae, vae.encode(pixels).latent_dist.sample(generator).to(dtype))


def decode(vae: "AutoencoderKL", latents: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) -> pixels (B, 3, H, W), about [-1, 1], in the VAE's precision."""
    latents = latents.to(vae.dtype)
    spread = _spread(vae, latents)
    if spread is None:
        scaled = latents / vae.config.scaling_factor
    else:
        mean, deviation = spread
        scaled = latents * deviation / vae.config.scaling_factor + mean
    return vae.decode(scaled, return_dict=False)[0]  # type: ignore[no-any-return]


def _scaled(vae: "AutoencoderKL", latents: Tensor) -> Tensor:
    spread = _spread(vae, latents)
    if spread is None:
        return vae.config.scaling_factor * latents  # type: ignore[no-any-return]
    mean, deviation = spread
    return (latents - mean) * vae.config.scaling_factor / deviation  # type: ignore[no-any-return]


def _spread(vae: "AutoencoderKL", latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """(mean, standard deviation) of the latents, (1, 4, 1, 1), of a VAE whose config has them."""
    values = (vae.config.get("latents_mean"), vae.config.get("latents_std"))
    if None in values:
        return None
    mean, deviation = (torch.tensor(each).view(1, 4, 1, 1).to(latents) for each in values)
    return mean, deviation
