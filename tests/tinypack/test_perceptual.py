"""The losses by what VGG16 sees: what they hold for alike, and what learns by them. The network
here has random weights, which see texture and structure, too."""

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from std_cli.tinypack import perceptual, vae
from std_cli.tinypack import train_denoiser as train
from std_cli.tinypack.model import ALPHAS_CUMPROD, make_vae
from std_cli.tinypack.perceptual import LEVELS, VGG16, content_loss, style_loss
from std_cli.tinypack.vocabulary import make_tokenizer

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def vgg():
    g = torch.Generator().manual_seed(0)
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    state = {"scaling_layer.shift": torch.zeros(1), "scaling_layer.scale": torch.ones(1)}
    inside = 3
    for (level, convolutions, filtered), width in zip(LEVELS, (8, 12, 16, 16), strict=True):
        if filtered is not None:
            low_pass = torch.outer(row, row).expand(inside, 1, 3, 3).clone()
            state[f"net.slice{level}.{filtered}.filt"] = low_pass
        for i in convolutions:
            weight = torch.randn(width, inside, 3, 3, generator=g) * (2 / (9 * inside)) ** 0.5
            state |= {f"net.slice{level}.{i}.weight": weight}
            state |= {f"net.slice{level}.{i}.bias": torch.zeros(width)}
            inside = width
    return VGG16(state)


def stripes(period, shift=0):
    wave = torch.sin((torch.arange(64.0) + shift) * 2 * torch.pi / period)
    return wave.expand(1, 3, 64, 64)


def test_levels_halve(vgg):
    shapes = [(8, 64), (12, 32), (16, 16), (16, 8)]
    assert [f.shape for f in vgg(stripes(8))] == [(1, c, s, s) for c, s in shapes]


def test_moved_texture_is_the_same_style_and_another_content(vgg):
    with torch.no_grad():
        # two periods in a window
        one, moved, fine = (vgg(x) for x in (stripes(8), stripes(8, 4), stripes(2)))
        wide, moved_wide = (vgg(x)[2:] for x in (stripes(16), stripes(16, 8)))
    assert style_loss(one, one) == content_loss(wide, wide) == 0
    assert style_loss(moved, one) < 0.1 * style_loss(fine, one)
    assert content_loss(moved_wide, wide) > 0.5


def test_a_picture_without_texture_does_not_outweigh_the_others(vgg):
    flat = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        far = style_loss(vgg(stripes(8)), vgg(flat))
    assert 0.5 < far <= 1.01


def test_grain_on_a_smooth_place_does_not_make_up_for_edges_that_are_soft(vgg):
    """The left half of the target has stripes, the right half nothing."""
    left = (torch.arange(64) < 32).float()
    target, soft = stripes(8) * left, 0.5 * stripes(8) * left
    grain = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * (1 - left)
    # the lost energy
    grain = grain * ((target.square().sum() - soft.square().sum()) / grain.square().sum()).sqrt()
    with torch.no_grad():
        far, farther = (style_loss(vgg(x), vgg(target)) for x in (soft, soft + grain))
    assert farther > 1.5 * far


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps stlpips-pytorch"):
        perceptual.load_vgg16()


def test_what_is_seen_of_latents_is_learned_from(vgg):
    torch.manual_seed(0)
    looks = perceptual.Looks(make_vae(), vgg)
    looks.vae.register_to_config(scaling_factor=2.5)  # a folder's own, not this code's
    latents = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        pictures = looks.vae.decode(latents / 2.5).sample
    other = torch.randn(2, 4, 16, 16, requires_grad=True)
    far = looks.loss(other, pictures)
    assert looks.loss(latents, pictures) < 0.02 < far  # where bf16 is native, it is not exact
    far.backward()
    assert other.grad is not None and other.grad.abs().sum() > 0


def test_a_second_evaluation_starts_where_the_first_ended(tmp_path):
    """A network that knows the answer leaves, after one evaluation, the noise that it predicted."""
    latents = train.Latents(*[torch.zeros(1)] * 2, *[np.zeros(1)] * 2, torch.zeros(1), np.zeros(1))
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    trainer = train.Trainer(latents, tokenizer, np.random.default_rng(0))
    g = torch.Generator().manual_seed(0)
    plain, styled = (torch.randn(8, 4, 8, 8, generator=g) for _ in range(2))
    noised = trainer.bridge(plain, styled, np.arange(8) < 2)
    asked = []

    def knows(x_t, t):
        abar = ALPHAS_CUMPROD[t].view(-1, 1, 1, 1)
        asked.append((x_t - abar.sqrt() * styled) / (1 - abar).sqrt())
        return asked[-1]

    second = trainer.second(noised, plain, styled, knows)
    chosen = noised.bridged
    assert 0 < chosen.sum() < 8
    assert torch.allclose(second.target[chosen], asked[0][chosen], atol=1e-4)
    assert (second.t[chosen] < noised.start[chosen]).all()
    for name in ("x_t", "t", "target", "weight"):
        assert torch.equal(getattr(second, name)[~chosen], getattr(noised, name)[~chosen]), name


def noise(deviation):
    g = torch.Generator().manual_seed(1)
    return deviation * torch.randn(1, 3, 64, 64, generator=g)


@pytest.mark.parametrize("deviation", [0.1, 0.4])
def test_fine_detail_counts_alike_where_there_is_little_and_much(deviation):
    """Twice the noise is nearly log 2 farther, at any height; what is flat has the least."""
    once, twice = (perceptual.grain(noise(d) + 0.5) for d in (deviation, 2 * deviation))
    assert once.shape == (1, 6, 8, 8)
    assert float((twice - once).mean()) == pytest.approx(np.log(2), abs=0.1)
    flat = perceptual.grain(torch.ones(1, 3, 64, 64))
    assert torch.allclose(flat.exp(), torch.tensor(perceptual.LEAST_GRAIN))


def test_a_decoder_that_saw_noise_decodes_it_better_and_leaves_the_latents_alone(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shapes = cv2.GaussianBlur(rng.integers(0, 255, (256, 256, 3), np.uint8), (0, 0), 6)
    shard = {k: np.tile(shapes, (4, 2, 1, 1, 1)) for k in ("plain", "styled")}
    np.savez(tmp_path / "groups-0000.npz", **shard)
    vae.train(tmp_path, tmp_path / "vae", 1, 100)
    vae.train_decoder(tmp_path, tmp_path / "vae", tmp_path / "decoder", seed=1, steps=60)
    before, after = (AutoencoderKL.from_pretrained(tmp_path / n) for n in ("vae", "decoder"))
    x = vae.to_tensor(shapes[None])
    with torch.no_grad():
        z = before.encode(x).latent_dist.mode()
        z = z + 0.2 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        errors = [float((v.decode(z).sample - x).square().mean()) for v in (before, after)]
    assert errors[1] < errors[0]
    old, new = before.state_dict(), after.state_dict()
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert changed and all(k.startswith(("decoder.", "post_quant_conv.")) for k in changed)
