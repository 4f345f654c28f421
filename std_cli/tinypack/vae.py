"""Training of the pack's AutoencoderKL: f = 2, four channels, started from an analytic solution.

The start makes the encoder a space-to-depth followed by the PCA of 2 x 2 patches, with SiLU and
GroupNorm held in their linear range. Training only has to improve on that; the start is worth more
than an hour of steps.
"""

import copy
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from std_cli.tinypack.model import FACTOR, half_precision, make_vae
from std_cli.tinypack.scenes import Array

log = logging.getLogger(__name__)
CROP = 64
BATCH = 6
RATE = 1e-3
KL = 5e-5
DECODER_CROP = 96
DECODER_RATE = 5e-4
MOST_NOISE = 0.2  # deviation, where latents have 1


def load_pixels(folder: Path, shards: int) -> Array:
    """Return plain and styled pictures of the first shards, uint8 (N, 256, 256, 3)."""
    parts = []
    for path in sorted(folder.glob("groups-????.npz"))[:shards]:
        with np.load(path) as z:
            parts += [z[k][::2].reshape(-1, 256, 256, 3) for k in ("plain", "styled")]
    return np.concatenate(parts)


def to_tensor(pixels: Array) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(pixels: Array, rng: np.random.Generator, count: int, side: int) -> Tensor:
    """Crops of random pictures of uint8 (N, 256, 256, 3), as (count, 3, side, side)."""
    corners = zip(
        rng.integers(0, len(pixels), count),
        *rng.integers(0, 256 - side + 1, (2, count)),
        strict=True,
    )
    return to_tensor(np.stack([pixels[i, y : y + side, x : x + side] for i, y, x in corners]))


def _tap(conv: torch.nn.Conv2d, out: int, source: int, y: int = 1, x: int = 1) -> None:
    """Make output channel `out` a copy of one input channel at one position of the kernel."""
    assert conv.bias is not None
    conv.weight[out] = 0
    conv.bias[out] = 0
    size = conv.weight.shape[-1]
    conv.weight[out, source, min(y, size - 1), min(x, size - 1)] = 1


@torch.no_grad()
def analytic_start(vae: AutoencoderKL, pixels: Array, rng: np.random.Generator) -> None:
    """Set the weights of a new VAE so that it encodes and decodes by the PCA of 2 x 2 patches.

    `pixels` is uint8 (N, H, W, 3).
    """
    for name, module in vae.named_modules():
        if name.endswith("conv2"):
            module.weight *= 0.1
            module.bias.zero_()
    for norm in (vae.encoder.conv_norm_out, vae.decoder.conv_norm_out):
        norm.weight.fill_(1.6)  # SiLU is nearly linear about 3
        norm.bias.fill_(3.0)
    _start_encoder(vae, *_patch_pca(pixels, rng))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        for c in range(conv.weight.shape[0]):
            conv.weight[c, c] = 1
    vae.quant_conv.bias[4:] = -6  # log-variance
    _start_decoder(vae, pixels)


def _patch_pca(pixels: Array, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Four principal components of random patches of FACTOR x FACTOR pixels, (4, D) of unit
    variance, and the patches' mean (D,); D counts rows, columns and colours in this order."""
    n = 6000
    corners = zip(
        rng.integers(0, len(pixels), n), *rng.integers(0, 257 - FACTOR, (2, n)), strict=True
    )
    stacked = np.stack([pixels[i, y : y + FACTOR, x : x + FACTOR] for i, y, x in corners])
    flat = torch.from_numpy(stacked).float().flatten(1) / 127.5 - 1
    mean = flat.mean(0)
    _, s, vh = torch.linalg.svd(flat - mean, full_matrices=False)
    log.info(
        "four principal components of a patch hold %.3f of its variance",
        float((s[:4] ** 2).sum() / (s**2).sum()),
    )
    return vh[:4] / (s[:4, None] / n**0.5), mean


def _start_encoder(vae: AutoencoderKL, pca: Tensor, mean: Tensor) -> None:
    """Make the encoder a space-to-depth, followed by the projection onto the components."""
    encoder = vae.encoder
    for c in range(3):
        _tap(encoder.conv_in, c, c)
    down = encoder.down_blocks[0].downsamplers[0].conv
    for k, (i, j, c) in enumerate(np.ndindex(FACTOR, FACTOR, 3)):
        _tap(down, k, c, i, j)
    # of every group of channels, three quarters carry the patch and the others are constants that
    # keep GroupNorm from removing its mean
    wide = encoder.down_blocks[1].resnets[0].conv_shortcut
    size = wide.out_channels // encoder.conv_norm_out.num_groups
    held = size * 3 // 4
    carriers = [c for c in range(wide.out_channels) if c % size < held]
    for k in range(len(mean)):
        _tap(wide, carriers[k], k)
    for c in range(wide.out_channels):
        if c % size >= held:
            wide.weight[c] *= 0.1
            wide.bias[c] = 3.0 if c % size == held else -3.0
    out = encoder.conv_out
    out.weight.mul_(0.05)
    out.weight[4:] = 0
    out.bias[4:] = 0
    for q in range(4):
        out.weight[q] = 0
        for k in range(len(mean)):
            out.weight[q, carriers[k], 1, 1] = pca[q, k]
        out.bias[q] = -(pca[q] * (3.0 + mean)).sum()


def _start_decoder(vae: AutoencoderKL, pixels: Array) -> None:
    """Give the decoder constants against GroupNorm, and the mean colour of some pictures."""
    decoder = vae.decoder
    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut
    for c in range(3, 32, 4):
        shortcut.weight[c] = 0
        shortcut.bias[c] = 4.0
    for block in decoder.up_blocks[:-1]:
        block.upsamplers[0].conv.weight.mul_(1.5)
    decoder.conv_out.weight.mul_(0.5)
    x = to_tensor(pixels[:: max(1, len(pixels) // 8)][:8, :128, :128])
    decoder.conv_out.bias -= vae.decode(vae.encode(x).latent_dist.mode()).sample.mean((0, 2, 3))


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of horizontal and vertical differences at distances 1 and 2."""
    d = a - b
    return sum(
        (
            (d[..., s:] - d[..., :-s]).abs().mean() + (d[..., s:, :] - d[..., :-s, :]).abs().mean()
            for s in (1, 2)
        ),
        torch.zeros(()),
    )


def pixel_loss(a: Tensor, b: Tensor, gradients: float) -> Tensor:
    """L1, the squared error, and gradient_l1 with the weight `gradients`."""
    d = a - b
    return d.abs().mean() + (d**2).mean() + gradients * gradient_l1(a, b)


def train(data: Path, out: Path, seed: int, steps: int) -> None:
    """Train the VAE on the shards in `data` and save its folder, with the latents' mean and
    deviation folded into the quant convolutions."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pixels = load_pixels(data, 20)
    vae = make_vae()
    analytic_start(vae, pixels, rng)
    average = copy.deepcopy(vae).eval()
    optimizer = torch.optim.AdamW(
        vae.parameters(), RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    begin = time.monotonic()
    losses = []
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / 60)
            group["lr"] = RATE * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        x = random_crops(pixels, rng, BATCH, CROP)
        with half_precision(True):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixel_loss(y, x, 0.3 * min(1.0, done * 4)) + KL * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            kept = min(0.998, step / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - kept)
        losses.append(float((y - x).detach().abs().mean()))
        if (step + 1) % 100 == 0:
            figures = (np.mean(losses[-100:]), float(kl.detach()), time.monotonic() - begin)
            log.info("vae step %d l1 %.4f kl %.2f (%.0f s)", step + 1, *figures)
    normalise_latents(average, to_tensor(pixels[:: max(1, len(pixels) // 96)][:96]))
    average.save_pretrained(out)


def train_decoder(data: Path, folder: Path, out: Path, seed: int, steps: int) -> None:
    """Train the decoder of the VAE in `folder` on latents with a little noise, as the denoiser
    leaves it, and save it in `out`; the encoder stays, and with it all latents."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pixels = load_pixels(data, 20)
    vae = AutoencoderKL.from_pretrained(folder).requires_grad_(False)
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    average = copy.deepcopy(vae).eval()
    averaged = nn.ModuleList([average.post_quant_conv, average.decoder])
    optimizer = torch.optim.AdamW(trained.parameters(), DECODER_RATE, betas=(0.9, 0.99), fused=True)
    begin = time.monotonic()
    losses: list[float] = []
    for step in range(steps):
        rate = DECODER_RATE * min(1, (step + 1) / 60, (1 - step / steps) / 0.5 + 0.01)
        optimizer.param_groups[0]["lr"] = rate
        x = random_crops(pixels, rng, BATCH, DECODER_CROP)
        deviation = rng.uniform(0, MOST_NOISE, BATCH) * (rng.random(BATCH) < 0.7)
        with half_precision(True):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.mode().float()
            noise = torch.randn_like(latents) * torch.from_numpy(deviation).float().view(
                -1, 1, 1, 1
            )
            y = vae.decode(latents + noise).sample.float()
        loss = pixel_loss(y, x, 0.3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            kept = min(0.998, step / (step + 20))
            torch._foreach_lerp_(list(averaged.parameters()), list(trained.parameters()), 1 - kept)
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            figures = (np.mean(losses[-100:]), time.monotonic() - begin)
            log.info("decoder step %d loss %.4f (%.0f s)", step + 1, *figures)
    average.save_pretrained(out)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, sample: Tensor) -> None:
    """Fold the mean and deviation that the latents of `sample` (N, 3, H, W) have into the quant
    convolutions, so that they become 0 and 1."""
    z = torch.cat([vae.encode(x).latent_dist.mode() for x in sample.split(16)])
    errors = []
    for latents, x in zip(z.split(16), sample.split(16), strict=True):
        errors.append(((vae.decode(latents).sample.clamp(-1, 1) - x) ** 2).mean((1, 2, 3)))
    decibels = (10 * torch.log10(4 / torch.cat(errors))).mean()
    log.info("vae %.2f dB on %d pictures", float(decibels), len(sample))
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= std.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, 4, 1, 1)
