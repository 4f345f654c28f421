"""Training of the pack's AutoencoderKL: f = 4, four channels, started from an analytic solution.

The start makes the encoder a space-to-depth followed by the PCA of 4 x 4 patches, with SiLU and
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
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from std_cli.tinypack.model import half_precision, make_vae
from std_cli.tinypack.perceptual import content_loss, load_vgg16, style_loss
from std_cli.tinypack.scenes import Array

log = logging.getLogger(__name__)
CROP = 64
BATCH = 6
RATE = 1e-3
SHARPEN_CROP = 128
SHARPEN_BATCH = 4
SHARPEN_RATE = 4e-4


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
    """Set the weights of a new VAE so that it encodes and decodes by the PCA of 4 x 4 patches.

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
    """Four principal components of random 4 x 4 patches, (4, 48) of unit variance, and the patches'
    mean (48,).

    The channels are in the order in which two strided convolutions lay out a patch.
    """
    n = 6000
    corners = zip(
        rng.integers(0, len(pixels), n),
        rng.integers(0, 252, n),
        rng.integers(0, 252, n),
        strict=True,
    )
    stacked = np.stack([pixels[i, y : y + 4, x : x + 4] for i, y, x in corners])
    patches = torch.from_numpy(stacked).float() / 127.5 - 1
    fine = [(i, j, c) for i in (0, 1) for j in (0, 1) for c in range(3)]
    coarse = [(i, j) for i in (0, 1) for j in (0, 1)]
    order = [(i1 + 2 * i2, j1 + 2 * j2, c) for i2, j2 in coarse for i1, j1, c in fine]
    flat = torch.stack([patches[:, i, j, c] for i, j, c in order], 1)
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
    for k, (i, j, c) in enumerate((i, j, c) for i in (0, 1) for j in (0, 1) for c in range(3)):
        _tap(down, k, c, i, j)
    for c in range(12):
        _tap(encoder.down_blocks[1].resnets[0].conv_shortcut, c, c, 0, 0)
    # of every group of 8 channels, 6 carry the patch and 2 are constants that keep GroupNorm from
    # removing its mean
    carriers = [c for c in range(64) if c % 8 < 6]
    down = encoder.down_blocks[1].downsamplers[0].conv
    for k, (i, j, c) in enumerate((i, j, c) for i in (0, 1) for j in (0, 1) for c in range(12)):
        _tap(down, carriers[k], c, i, j)
    for c in range(64):
        if c % 8 >= 6:
            down.weight[c] *= 0.1
            down.bias[c] = 3.0 if c % 8 == 6 else -3.0
    out = encoder.conv_out
    out.weight.mul_(0.05)
    out.weight[4:] = 0
    out.bias[4:] = 0
    for q in range(4):
        out.weight[q] = 0
        for k, c in enumerate(carriers):
            out.weight[q, c, 1, 1] = pca[q, k]
        out.bias[q] = -(pca[q] * (3.0 + mean)).sum()


def _start_decoder(vae: AutoencoderKL, pixels: Array) -> None:
    """Give the decoder constants against GroupNorm, and the mean colour of some pictures."""
    decoder = vae.decoder
    shortcut = decoder.up_blocks[2].resnets[0].conv_shortcut
    for c in range(3, 32, 4):
        shortcut.weight[c] = 0
        shortcut.bias[c] = 4.0
    for block in decoder.up_blocks[:2]:
        block.upsamplers[0].conv.weight.mul_(1.5)
    decoder.conv_out.weight.mul_(0.5)
    x = to_tensor(pixels[:: len(pixels) // 8][:8, :128, :128])
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
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        l1 = (y - x).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + ((y - x) ** 2).mean() + 0.3 * min(1.0, done * 4) * gradient_l1(y, x) + 2e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            kept = min(0.998, step / (step + 20))
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - kept)
        losses.append(float(l1.detach()))
        if (step + 1) % 100 == 0:
            figures = (np.mean(losses[-100:]), float(kl), time.monotonic() - begin)
            log.info("vae step %d l1 %.4f kl %.2f (%.0f s)", step + 1, *figures)
    normalise_latents(average, to_tensor(pixels[:: len(pixels) // 96][:96]))
    average.save_pretrained(out)


def sharpen(data: Path, folder: Path, out: Path, seed: int, minutes: float) -> None:
    """Train the decoder of the VAE in `folder` by what VGG16 sees, and save it in `out`; the
    encoder stays, and with it all latents.

    By pixels alone the decoder gives the mean of all details that could be; here what it gives has
    as much texture as the picture.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pixels = load_pixels(data, 20)
    vae = AutoencoderKL.from_pretrained(folder).requires_grad_(False)
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    average = copy.deepcopy(vae).eval()
    averaged = nn.ModuleList([average.post_quant_conv, average.decoder])
    vgg = load_vgg16()
    optimizer = torch.optim.AdamW(trained.parameters(), SHARPEN_RATE, betas=(0.9, 0.99), fused=True)
    begin = time.monotonic()
    losses: list[list[float]] = []
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        step = len(losses)
        rate = SHARPEN_RATE * min(1, (step + 1) / 60, (1 - done) / 0.4 + 0.01)
        optimizer.param_groups[0]["lr"] = rate
        x = random_crops(pixels, rng, SHARPEN_BATCH, SHARPEN_CROP)
        with half_precision(True):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.mode()
                want = vgg(x)
            y = vae.decode(latents).sample.float()
            got = vgg(y)
        parts = (F.l1_loss(y, x), content_loss(got[1:], want[1:]), style_loss(got, want))
        optimizer.zero_grad()
        (4 * parts[0] + parts[1] + parts[2]).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            kept = min(0.995, step / (step + 20))
            torch._foreach_lerp_(list(averaged.parameters()), list(trained.parameters()), 1 - kept)
        losses.append([float(v.detach()) for v in parts])
        if (step + 1) % 50 == 0:
            figures = (*np.mean(losses[-50:], 0), time.monotonic() - begin)
            log.info("decoder step %d l1 %.4f content %.3f style %.3f (%.0f s)", step + 1, *figures)
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
