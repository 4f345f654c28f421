"""The VAE's precision: fp16 where its weights allow it."""

import os
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from std_cli.config import image_settings
from std_cli.diffusion import vae as own_vae
from std_cli.diffusion.pipeline import ImagePipeline
from std_cli.diffusion.vae import choose_precision, decode, encode
from std_cli.weights.resolve import resolve_model
from tests.micro import micro

CPU = torch.device("cpu")
LATENTS = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))


def grown(state, factor, part="decoder"):
    """The state of a VAE whose numbers inside are larger by a factor, as in SDXL's: of the sums
    that each block adds to; the norms before the blocks take it out again."""
    first = {"decoder": "post_quant_conv", "encoder": None}[part]
    shares = {f"{part}.conv_in": factor ** (0.5 if first else 1), first: factor**0.5}
    return {
        key: tensor * shares.get(key.rpartition(".")[0], 1) if part in key or first else tensor
        for key, tensor in state.items()
    }


def narrow(factor=1.0, part="decoder"):
    """micro's VAE in fp16."""
    vae = AutoencoderKL.from_pretrained(f"{micro()}/vae", dtype=torch.float32)
    vae.load_state_dict(grown(vae.state_dict(), factor, part))
    return vae.half()


@pytest.mark.parametrize("part", ["decoder", "encoder"])
@pytest.mark.parametrize(
    ("factor", "bf16", "chosen"),
    [
        (1, False, torch.float16),
        (1e6, False, torch.float32),
        (1e6, True, torch.bfloat16),
    ],
)
def test_what_a_vae_works_in(monkeypatch, part, factor, bf16, chosen):
    monkeypatch.setattr(own_vae, "computes_in_bf16", lambda device: bf16)
    vae = narrow(min(factor, 6e4) if part == "encoder" else factor, part)
    if part == "encoder" and factor > 1:  # one layer cannot hold so large weights in fp16
        vae.float().encoder.conv_in.weight.data.mul_(100)
    before = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
    assert choose_precision(vae, CPU) == vae.dtype == chosen
    assert all(torch.equal(before[k].to(chosen), t) for k, t in vae.state_dict().items())
    assert not any(parameter.is_inference() for parameter in vae.parameters())
    with torch.no_grad():
        assert torch.isfinite(decode(vae, LATENTS)).all()
        if factor > 1:  # so the check is needed
            pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            half = vae.half()
            made = decode(half, LATENTS) if part == "decoder" else encode(half, pixels)
            assert not torch.isfinite(made).all()


def test_what_only_just_fits_is_not_taken(monkeypatch):
    """Half of fp16's range is left free: pictures may be larger inside than what was tried."""
    with torch.no_grad():
        vae = narrow()
        with own_vae._largest(vae.float()) as found:
            own_vae._tried(vae)
        largest = found[0]
    monkeypatch.setattr(own_vae, "LARGEST", largest * 1.01)
    assert choose_precision(narrow(), CPU) == torch.float16
    monkeypatch.setattr(own_vae, "LARGEST", largest * 0.99)
    assert choose_precision(narrow(), CPU) == torch.float32


def test_a_vae_that_is_not_close_in_bf16_works_in_fp32(monkeypatch):
    monkeypatch.setattr(own_vae, "computes_in_bf16", lambda device: True)
    monkeypatch.setattr(own_vae, "CLOSE", 0.0)
    assert choose_precision(narrow(), CPU) == torch.float32


def test_a_run_in_fp16_says_what_its_vae_works_in(tmp_path, monkeypatch):
    monkeypatch.setattr("std_cli.diffusion.pipeline.has_arithmetic", lambda device, dtype: True)
    folder = tmp_path / "grown"
    shutil.copytree(micro(), folder, copy_function=os.link)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    file.unlink()
    save_file({k: t.half() for k, t in grown(state, 1e6).items()}, file, {"format": "pt"})
    s = image_settings({"model": str(folder), "steps": 1, "size": 64})
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    made = {}
    for dtype in (torch.float16, torch.float32):
        pipeline = ImagePipeline(resolve_model(str(folder)), None, CPU, dtype)
        assert pipeline.pipe.vae.dtype == torch.float32
        said = [notice for notice in pipeline.notices if "VAE" in notice]
        assert len(said) == (dtype == torch.float16)
        assert not said or said[0].startswith("the VAE works in fp32: in fp16 its weights")
        pipeline.set_style([picture], [1.0], 1.0, "all")
        made[dtype] = pipeline.stylize(picture, s, "quickstart", lambda step: None)
    assert np.abs(made[torch.float16] - made[torch.float32]).mean() < 3


def test_latents_with_a_mean_are_those_of_diffusers():
    """A config may give the latents' mean and standard deviation (img2img's arithmetic)."""
    vae = narrow().float()
    mean, deviation = [0.1, -0.2, 0.3, 0.0], [1.1, 0.9, 1.0, 2.0]
    vae.register_to_config(latents_mean=mean, latents_std=deviation)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, b = (torch.tensor(each).view(1, 4, 1, 1) for each in (mean, deviation))
    with torch.no_grad():
        plain = vae.encode(pixels).latent_dist.mode()
        latents = encode(vae, pixels)
        torch.testing.assert_close(latents, (plain - a) * vae.config.scaling_factor / b)
        torch.testing.assert_close(decode(vae, latents), vae.decode(plain).sample)
