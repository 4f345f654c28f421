"""The temporal layers of the embedded pack: moving scenes, what learns and what does not, and the
exported folder."""

import json

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from scipy import ndimage

from std_cli.tinypack import export, model, motion_clips, motion_losses, train_denoiser
from std_cli.tinypack import moving_scenes as moving
from std_cli.tinypack import train_motion as motion
from std_cli.tinypack.model import ALPHAS_CUMPROD, Denoiser, make_unet, make_vae, noise_from_v
from std_cli.tinypack.vocabulary import make_tokenizer

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tinypack") / "tokenizer")


@pytest.fixture
def narrow(monkeypatch):
    """Networks of fewer channels that see smaller references: training works on any."""
    for module in (model, motion, train_denoiser):
        monkeypatch.setattr(module, "WIDTHS", (16, 32, 48), raising=False)
        monkeypatch.setattr(module, "VISION_SIZE", 56, raising=False)


@pytest.fixture
def net(tokenizer):
    torch.manual_seed(0)
    net = Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id).eval()
    for module in net.modules():  # what a trained network has, and a new one has not
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.8 / module.weight[0].numel() ** 0.5)
    return net


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    make_vae().save_pretrained(folder)
    return folder


@pytest.fixture
def clips(monkeypatch):
    """Still clips of noise, small and few; the plain ones flicker."""
    monkeypatch.setattr(motion, "HELD_OUT", 2)
    monkeypatch.setattr(motion, "FRAMES", 3)
    g, n, side = torch.Generator().manual_seed(0), 6, 16
    plain, styled = (
        torch.randn(n, 4, 1, side, side, generator=g).expand(-1, -1, 3, -1, -1).half()
        for _ in range(2)
    )
    stirred = (plain + 0.5 * torch.randn(n, 4, 3, side, side, generator=g)).half()
    flow, seen = (
        torch.zeros(n, 2, side, side, 2).half(),
        torch.ones(n, 2, side, side, dtype=torch.bool),
    )
    reference = np.random.default_rng(0).integers(0, 255, (n, 128, 128, 3), np.uint8)
    return motion_clips.Clips(
        stirred, styled, plain, flow, seen, reference, np.array(["halftone print, red"] * n)
    )


# --- moving scenes -----------------------------------------------------------------------------


def test_a_clip_repeats_and_is_a_picture():
    a, b, c = (moving.moving_scene(np.random.default_rng(s), frames=3, size=64) for s in (1, 1, 2))
    assert a.plain.shape == a.styled.shape == (3, 64, 64, 3) and a.reference.shape == (128, 128, 3)
    assert a.flow.shape == (2, 64, 64, 2) and a.seen.shape == (2, 64, 64)
    pictures = (a.plain, a.styled, a.clean, a.reference)
    assert all(x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1 for x in pictures)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and not np.array_equal(
        a.plain, c.plain
    )


def test_a_pan_by_whole_pixels_copies_pixels():
    canvas = np.random.default_rng(0).random((256, 256, 5), dtype=np.float32)
    at, centre = np.full((3, 2), 15.5), np.array([[100.5, 120.5], [103.5, 120.5], [103.5, 113.5]])
    maps = moving.similarity(np.ones(3), np.zeros(3), at, centre)
    a, b, c = moving.resample(canvas, maps, 32, 32)
    assert np.abs(a - canvas[105:137, 85:117]).max() < 2e-4  # grid_sample's places are float32
    assert np.abs(b - canvas[105:137, 88:120]).max() < 2e-4
    assert np.abs(c[7:] - b[:-7]).max() < 4e-4


@pytest.mark.parametrize("seed", [2, 3, 5, 7])
def test_the_flow_tells_where_things_go(seed):
    """The next frame, fetched along the flow, is this frame wherever it can be seen: far nearer
    than without."""
    c = moving.moving_scene(np.random.default_rng(seed), frames=4, size=96)
    assert 0.5 < c.seen.mean() <= 1
    y, x = np.mgrid[0:96, 0:96]
    along, still = [], []
    for i in range(3):
        at = (y + c.flow[i, ..., 1], x + c.flow[i, ..., 0])
        fetched = np.stack(
            [ndimage.map_coordinates(c.styled[i + 1, ..., k], at, order=1) for k in range(3)], -1
        )
        along.append(np.abs(fetched - c.styled[i])[c.seen[i]].mean())
        still.append(np.abs(c.styled[i + 1] - c.styled[i])[c.seen[i]].mean())
    assert np.mean(along) < 0.5 * np.mean(still)


def test_shards_follow_from_their_number(tmp_path, vae_folder, monkeypatch):
    monkeypatch.setattr(motion_clips, "SHARD", 1)
    monkeypatch.setattr(motion_clips, "CLIP_SIZE", 32)
    motion_clips.make_clips(tmp_path / "a", vae_folder, 3, 2)
    motion_clips.make_clips(tmp_path / "b", vae_folder, 3, 1)
    a, b = motion_clips.load_clips(tmp_path / "a"), motion_clips.load_clips(tmp_path / "b")
    assert a.plain.shape == a.styled.shape == (2, 4, 8, 16, 16) and a.plain.dtype == torch.float16
    assert a.flow.shape == (2, 7, 16, 16, 2) and a.seen.shape == (2, 7, 16, 16)
    assert (
        torch.equal(a.styled[:1], b.styled)
        and a.caption[0] == b.caption[0]
        and a.caption.shape == (2,)
    )


# --- noise, motion, identity -------------------------------------------------------------------


@pytest.mark.parametrize("m", [0.0, 0.4, 1.0])
def test_mixed_noise_is_noise(m):
    g = torch.Generator().manual_seed(0)
    x = motion_losses.mix_noise(
        torch.randn(1, 50_000, generator=g), torch.randn(2, 50_000, generator=g), m
    )
    assert x.var(1).sub(1).abs().max() < 0.03
    assert abs(float((x[0] * x[1]).mean()) - m) < 0.02


def test_along_follows_the_motion():
    x = torch.arange(6.0).view(1, 1, 1, 1, 6).repeat(1, 1, 3, 4, 1)
    x[:, :, 1] += 0.25  # frame 1 has the same things a quarter of a pixel to the left
    flow = torch.zeros(1, 2, 4, 6, 2)
    flow[:, 0, ..., 0] = -0.25
    flow[:, 1, ..., 1] = 1.0  # rows are all alike, so this changes nothing
    out = motion_losses.along(x, flow)
    assert torch.allclose(out[0, 0, 0, :, 1:], x[0, 0, 0, :, 1:], atol=1e-5)
    assert torch.allclose(out[0, 0, 1], x[0, 0, 2], atol=1e-5)


def test_steadied_is_the_mean_of_neighbours_that_show_the_place():
    x = torch.tensor([0.0, 3.0, 9.0]).view(1, 1, 3, 1, 1).repeat(1, 1, 1, 4, 4)
    still, seen = torch.zeros(1, 2, 4, 4, 2), torch.ones(1, 2, 4, 4)
    assert motion_losses.steadied(x, still, seen)[0, 0, :, 2, 2].tolist() == [1.5, 4.0, 6.0]
    seen[:, 1] = 0  # the last frame shows something else
    assert motion_losses.steadied(x, still, seen)[0, 0, :, 2, 2].tolist() == [1.5, 1.5, 9.0]


def test_new_temporal_layers_change_nothing(net):
    unet = motion.make_motion_unet(net, motion.make_adapter())
    g = torch.Generator().manual_seed(1)
    x, states = torch.randn(2, 4, 3, 8, 8, generator=g), torch.randn(2, 32, 128, generator=g)
    pooled, hidden = torch.randn(2, 64, generator=g), torch.randn(2, 1, 10, 128, generator=g)
    sizes, t = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), torch.tensor([500, 20])
    more = {"text_embeds": pooled, "time_ids": sizes, "image_embeds": [hidden]}
    with torch.no_grad():
        v = unet(x, t, states.repeat_interleave(3, 0), added_cond_kwargs=more).sample
        got = noise_from_v(v, x, ALPHAS_CUMPROD[t].view(-1, 1, 1, 1, 1))
        tokens = net.unet.encoder_hid_proj.image_projection_layers[0](hidden[:, 0])
        each = [net(x[:, :, i], t, states, pooled, tokens, sizes) for i in range(3)]
    assert got.std() > 0.05
    assert (got - torch.stack(each, 2)).abs().max() < 1e-5 * max(1, float(got.abs().max()))


def test_new_temporal_layers_see_what_deviates_along_time():
    layer = motion.make_adapter().up_blocks[1].motion_modules[0]
    torch.nn.init.eye_(layer.proj_out.weight)
    g = torch.Generator().manual_seed(2)
    still = torch.randn(1, 96, 6, 6, generator=g).expand(8, -1, -1, -1)
    change = 0.1 * torch.randn(8, 96, 6, 6, generator=g)
    with torch.no_grad():
        nothing = (
            layer(still, num_frames=8)
            - still
            - motion.CONSTANT * torch.tensor([1.0, -1.0]).repeat(48)[:, None, None]
        )
        something = layer(still + change, num_frames=8) - layer(still, num_frames=8) - change
    assert nothing.abs().mean() < 0.2  # of 0.8
    wanted = change - change.mean(0)
    assert np.corrcoef(something.flatten(), wanted.flatten())[0, 1] > 0.95


def test_fine_bands_and_their_strength():
    x = torch.randn(1, 2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    ramp = torch.arange(40.0).expand_as(x)
    assert motion_losses.fine(ramp)[..., 2:-2, 2:-2].abs().max() < 1e-5  # the filter keeps planes
    assert motion_losses.fine(x + ramp)[..., 2:-2, 2:-2].allclose(
        motion_losses.fine(x)[..., 2:-2, 2:-2], atol=1e-4
    )
    assert motion_losses.strength(3 * x).shape == x.shape and motion_losses.strength(
        3 * x
    ).mean() == pytest.approx(3, rel=0.05)
    assert motion_losses.strength(2 * x).allclose(2 * motion_losses.strength(x), rtol=1e-3)


# --- training ----------------------------------------------------------------------------------


def go(clips, net, tokenizer, out, steps=2, rate=1e-3):
    return motion.train(
        clips, net, tokenizer, None, out, seed=1, steps=steps, minutes=1e6, rate=rate
    )


def test_training_lowers_the_loss_and_moves_the_temporal_layers_alone(
    narrow, clips, net, tokenizer, tmp_path, monkeypatch
):
    unets, make = [], motion.make_motion_unet
    monkeypatch.setattr(motion, "make_motion_unet", lambda *a: unets.append(make(*a)) or unets[-1])
    own = {k: v.clone() for k, v in net.state_dict().items()}
    adapter = go(clips, net, tokenizer, tmp_path, steps=20, rate=2e-3)
    [unet], plain = unets, make(net, motion.make_adapter())
    trainer = motion.Trainer(clips, net, tokenizer, np.random.default_rng(0))
    figures, start = motion.validate(unet, trainer), motion.validate(plain, trainer)
    after, before = (
        x[0] + motion.FLICKER * x[1] + motion.SOFTNESS * x[2] for x in (figures, start)
    )
    assert after < 0.99 * before
    # the denoiser alone
    assert start[:2] == pytest.approx(start[3:], rel=1e-3) and start[2] < 1e-3 * start[0]
    assert all(torch.equal(v, own[k]) for k, v in net.state_dict().items())
    old, new = plain.state_dict(), unet.state_dict()
    moved = {k for k, v in new.items() if not torch.equal(v, old[k])}
    assert moved and all("motion_modules" in k for k in moved)
    assert all(torch.equal(v, new[k]) for k, v in adapter.state_dict().items())


def test_resumed_is_uninterrupted(narrow, clips, net, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(motion, "SAVE_EVERY", 1)
    monkeypatch.setattr(motion, "validate", lambda unet, trainer: [0.0] * 5)
    whole = go(clips, net, tokenizer, tmp_path / "whole").state_dict()
    losses, calls = motion.Trainer.losses, []

    def dies(self, unet, chosen, size):
        calls.append(unet.training or torch.is_grad_enabled())
        if sum(calls) == 2:
            raise KeyboardInterrupt
        return losses(self, unet, chosen, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(motion.Trainer, "losses", dies)
        go(clips, net, tokenizer, tmp_path / "cut")
    resumed = go(clips, net, tokenizer, tmp_path / "cut").state_dict()
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())


def test_the_folder_loads_with_stock_classes(tmp_path, net):
    adapter = motion.make_adapter()
    torch.nn.init.normal_(adapter.up_blocks[0].motion_modules[1].proj_out.weight)
    want = {k: v.clone() for k, v in adapter.state_dict().items()}
    motion.save(adapter, tmp_path / "motion_adapter")
    (tmp_path / "pack").mkdir()
    export.add_motion(tmp_path / "motion_adapter", tmp_path / "pack")
    folder = tmp_path / "pack" / "motion_adapter"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 7e6
    assert json.loads((folder / "config.json").read_text())["motion_max_seq_length"] == 24

    stock = MotionAdapter.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(v.half().float(), stock.state_dict()[k]) for k, v in want.items())
    unet = UNetMotionModel.from_unet2d(make_unet(), stock)
    assert torch.equal(
        unet.up_blocks[0].motion_modules[1].proj_out.weight,
        stock.up_blocks[0].motion_modules[1].proj_out.weight,
    )


def test_a_blend_is_the_mean_of_weights(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        motion.save(motion.make_adapter(), folder)
    motion.blend(folders, 0.25, tmp_path / "c")
    a, b, c = (
        MotionAdapter.from_pretrained(f, dtype=torch.float32).state_dict()
        for f in [*folders, tmp_path / "c"]
    )
    assert any(not torch.equal(v, b[k]) for k, v in a.items())
    assert all(c[k].allclose(0.75 * v + 0.25 * b[k], atol=1e-3) for k, v in a.items())


def test_a_weakened_adapter_adds_its_share(tmp_path):
    adapter = motion.make_adapter()
    for p in adapter.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    motion.save(adapter, tmp_path / "whole")
    motion.weaken(tmp_path / "whole", 0.25, tmp_path / "quarter")
    x = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    folders = (tmp_path / "whole", tmp_path / "quarter")
    layers = [
        MotionAdapter.from_pretrained(f).down_blocks[0].motion_modules[0].float() for f in folders
    ]
    with torch.no_grad():
        added = [layer(x, num_frames=4) - x for layer in layers]
    assert added[0].std() > 0.01 and torch.allclose(
        added[1], added[0] / 4, atol=0.02 * added[0].std()
    )
