"""The discriminator and what feeds it, against plain torch written out, and numbers worked out by
hand."""

import io
import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from std_cli.distill.augment import augment, cut_out, jitter_color, prepare, translate
from std_cli.distill.discriminator import (
    Discriminator,
    PenaltyWeight,
    VirtualBatchNorm,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from std_cli.distill.text_condition import load_text_condition
from std_cli.errors import InputError
from std_cli.weights.dino import tiny_dino
from std_cli.weights.resolve import TINY


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


# --- heads -------------------------------------------------------------------------------------


def test_virtual_batch_norm_written_out():
    norm = VirtualBatchNorm(6)
    norm.weight.data, norm.bias.data = normal(6, seed=1), normal(6, seed=2)
    for batch, groups in [(1, [1]), (5, [5]), (8, [8]), (16, [8, 8]), (12, [6, 6]), (11, [6, 5])]:
        x = 3 * normal(batch, 6, 7, seed=batch) + 1
        expected = []
        for g in x.split(groups):
            mean = g.mean((0, 2), keepdim=True)
            var = (g - mean).square().mean((0, 2), keepdim=True)
            expected.append(
                (g - mean) / (var + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]
            )
        torch.testing.assert_close(norm(x), torch.cat(expected))
        torch.testing.assert_close(norm.eval()(x), torch.cat(expected))  # no running averages
    assert sorted(norm.state_dict()) == ["bias", "weight"]


def normed(conv):
    """The convolution's weight over its largest singular value, by the power iteration's
    vectors."""
    p = conv.parametrizations.weight
    matrix = p.original.flatten(1)
    return p.original / (p[0]._u @ matrix @ p[0]._v)


def head_written_out(head, x, condition):
    """StyleGAN-T's head, step by step; x (B, T, C)."""

    def block(layers, x):
        conv, norm, _ = layers
        half = conv.kernel_size[0] // 2
        if half:
            x = torch.cat([x[..., -half:], x, x[..., :half]], -1)  # circular
        x = sum(  # convolution as a sum over taps
            torch.einsum(
                "oi,bit->bot", normed(conv)[..., k], x[..., k : k + x.shape[-1] - 2 * half]
            )
            for k in range(conv.kernel_size[0])
        )
        x = x + conv.bias[:, None]
        mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), keepdim=True, unbiased=False)
        x = (x - mean) / (var + 1e-5).sqrt() * norm.weight[:, None] + norm.bias[:, None]
        return torch.where(x > 0, x, 0.2 * x)

    x = block(head.first, x.mT)
    x = (x + block(head.second, x)) / 2**0.5
    x = torch.einsum("oi,bit->bot", normed(head.out)[..., 0], x) + head.out.bias[:, None]
    projected = condition @ head.condition.weight.T + head.condition.bias
    return torch.einsum("bot,bo->bt", x, projected) / 8  # sqrt(64)


def test_heads_written_out():
    torch.manual_seed(0)
    discriminator = Discriminator(channels=12, condition_dim=10, heads=3).eval()
    for p in discriminator.parameters():  # no neutral value anywhere
        p.data += 0.1 * normal(*p.shape)
    features = [normal(4, 16, 12, seed=i) for i in range(3)]
    condition = normal(4, 10)
    heads = zip(discriminator.heads, features, strict=True)
    expected = torch.cat([head_written_out(head, x, condition) for head, x in heads], 1)
    logits = discriminator(features, condition)
    assert logits.shape == (4, 3 * 16)
    torch.testing.assert_close(logits, expected)


def test_spectral_norm_is_the_largest_singular_value():
    torch.manual_seed(0)
    discriminator = Discriminator(channels=12, condition_dim=10, heads=1)
    features, condition = [normal(2, 16, 12)], normal(2, 10)
    for _ in range(200):  # power iterations
        discriminator(features, condition)
    head = discriminator.eval().heads[0]
    convs = [head.first[0], head.second[0], head.out]
    assert [tuple(c.weight.shape) for c in convs] == [(12, 12, 1), (12, 12, 9), (64, 12, 1)]
    for conv in convs:
        exact = (
            conv.parametrizations.weight.original
            / torch.linalg.svdvals(conv.parametrizations.weight.original.flatten(1)).max()
        )
        torch.testing.assert_close(conv.weight, exact, rtol=1e-4, atol=1e-5)


def test_the_students_step_moves_nothing_and_a_resumed_run_is_the_same():
    def step(discriminator, optimizer, i):
        """Like a training step: the student's look in evaluation, the discriminator's own in
        training."""
        real, fake = ([normal(2, 9, 8, seed=10 * i + j + k) for j in range(2)] for k in (0, 5))
        condition = normal(2, 6, seed=i)
        discriminator.eval().requires_grad_(False)
        before = {k: v.clone() for k, v in discriminator.state_dict().items()}
        seen = generator_loss(discriminator(fake, condition)).item()
        assert all(torch.equal(v, before[k]) for k, v in discriminator.state_dict().items())
        discriminator.train().requires_grad_(True)
        loss = discriminator_loss(discriminator(real, condition), discriminator(fake, condition))
        loss = loss + gradient_penalty(discriminator, real, fake, condition, torch.full((2,), 0.3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return seen, loss.item()

    def new(seed):
        torch.manual_seed(seed)
        discriminator = Discriminator(channels=8, condition_dim=6, heads=2)
        return discriminator, torch.optim.AdamW(discriminator.parameters(), 1e-2)

    whole = new(0)
    losses = [step(*whole, i) for i in range(3)]
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    losses += [step(*whole, i) for i in range(3, 6)]

    resumed = new(1)  # other weights, other vectors
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert [step(*resumed, i) for i in range(3, 6)] == losses[3:]
    final = whole[0].state_dict()
    assert all(torch.equal(v, final[k]) for k, v in resumed[0].state_dict().items())
    assert sum(key.endswith(("_u", "_v")) for key in final) == 2 * 3 * 2


def test_heads_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    discriminator = Discriminator(channels=8, condition_dim=6, heads=1).eval()
    features, condition = normal(2, 9, 8).bfloat16(), normal(2, 6).bfloat16()
    plain = discriminator([features.float()], condition.float())
    with torch.autocast("cpu", torch.bfloat16):
        under = discriminator([features], condition)
    assert under.dtype == torch.float32
    assert torch.equal(under, plain)


# --- losses ------------------------------------------------------------------------------------

REAL, FAKE = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 1.0]])


@pytest.mark.parametrize(
    ("loss", "of_discriminator", "of_generator"),
    [
        ("wgan", (-1 - 0.5) / 2 + (-1 + 1) / 2, 1),
        ("hinge", (0 + 0.5) / 2 + (0 + 2) / 2, 1),
        # log(1 + e^-2) = 0.126928, log(1 + e^-0.5) = 0.474077; log(1 + e^-3) = 0.048587, log(1 + e)
        # = 1.313262
        ("bce", (0.126928 + 0.474077) / 2 + (0.048587 + 1.313262) / 2, (3.048587 + 0.313262) / 2),
    ],
)
def test_losses_worked_out_by_hand(loss, of_discriminator, of_generator):
    assert discriminator_loss(REAL, FAKE, loss).item() == pytest.approx(of_discriminator, abs=1e-6)
    assert generator_loss(FAKE, loss).item() == pytest.approx(of_generator, abs=1e-6)


def test_the_clamped_wgan_is_the_hinge_loss_less_two():
    real, fake = 2 * normal(4, 9, seed=1), 2 * normal(4, 9, seed=2)
    wgan, hinge = (discriminator_loss(real, fake, loss) for loss in ("wgan", "hinge"))
    torch.testing.assert_close(wgan, hinge - 2)


class Linear(torch.nn.Module):
    """A discriminator whose gradient is known: 3 everywhere on the first feature, 4 on the
    second."""

    def forward(self, features, condition):
        return torch.cat([3 * features[0].flatten(1), 4 * features[1].flatten(1)], 1)


class Square(torch.nn.Module):
    def forward(self, features, condition):
        return features[0].square().flatten(1)


def test_gradient_penalty_worked_out_by_hand():
    features = [torch.zeros(2, 1, 1), torch.zeros(2, 1, 1)]
    u = torch.tensor([0.25, 1.0])
    # (sqrt(3^2 + 4^2) - 1)^2
    assert gradient_penalty(Linear(), features, features, None, u).item() == 16
    # Gradient of x^2 at x = u real + (1 - u) fake: 2 x, with x = 0.25 * 2 + 0.75 * -2 = -1, and 2
    real, fake = [torch.full((2, 1, 1), 2.0)], [torch.full((2, 1, 1), -2.0)]
    penalty = gradient_penalty(Square(), real, fake, None, u)
    assert penalty.item() == ((2 - 1) ** 2 + (4 - 1) ** 2) / 2


def test_gradient_penalty_and_its_gradient_by_finite_differences():
    torch.manual_seed(0)
    discriminator = Discriminator(channels=6, condition_dim=5, heads=2).eval()
    real, fake = ([normal(3, 5, 6, seed=j + k) for j in range(2)] for k in (0, 5))
    condition, u = normal(3, 5), torch.tensor([0.1, 0.5, 0.9])
    mixed = [
        u.view(3, 1, 1) * r + (1 - u.view(3, 1, 1)) * f for r, f in zip(real, fake, strict=True)
    ]
    step = 1e-2
    squares = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for feature in mixed:
            for index in torch.cartesian_prod(*map(torch.arange, feature.shape)).tolist():
                place = tuple(index)
                value = feature[place].item()
                ends = []
                for moved in (value + step, value - step):
                    feature[place] = moved
                    ends.append(discriminator(mixed, condition).double().sum())
                feature[place] = value
                squares[place[0]] += ((ends[0] - ends[1]) / (2 * step)) ** 2
    penalty = gradient_penalty(discriminator, real, fake, condition, u)
    assert penalty.item() == pytest.approx((squares.sqrt() - 1).square().mean().item(), rel=2e-2)

    penalty.backward()
    weight = discriminator.heads[0].condition.weight
    direction = weight.grad / weight.grad.norm()
    ends = []
    for moved in (step, -step):
        with torch.no_grad():
            weight += moved * direction
        ends.append(gradient_penalty(discriminator, real, fake, condition, u).item())
        with torch.no_grad():
            weight -= moved * direction
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(weight.grad.norm().item(), rel=2e-2)


def test_gradient_penalty_leaves_the_features_alone():
    features = [normal(2, 5, 6).requires_grad_()]
    gradient_penalty(
        Discriminator(6, 5, 1), features, features, normal(2, 5), torch.rand(2)
    ).backward()
    assert features[0].grad is None


def test_penalty_weight_is_raised_once_in_500_steps_at_most():
    weight = PenaltyWeight()
    assert weight.update(1e4, 500) == 1e-5  # too early
    assert weight.update(99.9, 501) == 1e-5
    assert weight.update(100, 501) == 5e-5
    assert weight.update(1e4, 1001) == 5e-5
    resumed = PenaltyWeight()
    resumed.load_state_dict(json.loads(json.dumps(weight.state_dict())))
    assert resumed.update(1e4, 1001) == 5e-5
    assert resumed.update(1e4, 1002) == 25e-5


# --- augmentation ------------------------------------------------------------------------------


def pictures(batch=3, height=40, width=48, seed=0):
    return torch.rand(batch, 3, height, width, generator=rng(seed)) * 2 - 1


def test_colour_jitter_by_hand():
    x = pictures()
    torch.testing.assert_close(jitter_color(x, torch.zeros(3), torch.ones(3), torch.ones(3)), x)
    grey = jitter_color(x, torch.zeros(3), torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = jitter_color(x, torch.tensor([0.1, 0.2, -0.3]), torch.ones(3), torch.zeros(3))
    expected = x.mean((1, 2, 3)) + torch.tensor([0.1, 0.2, -0.3])
    torch.testing.assert_close(flat, expected.view(3, 1, 1, 1).expand_as(x))
    # grey 0.3; saturation 2: -0.3, 0.3, 0.9; contrast 0.5
    one = torch.tensor([0.0, 0.3, 0.6]).view(1, 3, 1, 1)
    factor = (torch.tensor([v]) for v in (0.1, 2.0, 0.5))
    torch.testing.assert_close(jitter_color(one, *factor).flatten(), torch.tensor([0.1, 0.4, 0.7]))


def test_translation_and_cutout_by_hand():
    x = pictures(2)
    assert torch.equal(translate(x, [[0, 0], [0, 0]]), x)
    moved = translate(x, [[2, -3], [-1, 5]])
    assert torch.equal(moved[0, :, 2:, :-3], x[0, :, :-2, 3:])
    assert torch.equal(moved[1, :, :-1, 5:], x[1, :, 1:, :-5])
    assert not moved[0, :, :2].any() and not moved[0, :, :, -3:].any()
    assert not moved[1, :, -1:].any() and not moved[1, :, :, :5].any()

    cut = cut_out(x, [[10, 20], [0, 48]], [4, 5])
    hole = torch.zeros(2, 40, 48, dtype=torch.bool)
    hole[0, 8:12, 18:23] = True
    hole[1, 0:2, 46:48] = True
    assert torch.equal(cut == 0, hole[:, None].expand_as(cut))
    assert torch.equal(cut[~hole[:, None].expand_as(cut)], x[~hole[:, None].expand_as(cut)])


def test_augmentation_repeats_and_differs_between_pictures():
    x = pictures(1).expand(4, -1, -1, -1)
    once, again, other = augment(x, rng(1)), augment(x, rng(1)), augment(x, rng(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not any(torch.equal(once[0], picture) for picture in once[1:])
    assert once.shape == x.shape


def test_augmentation_covers_its_ranges():
    """Every random part over many draws, read off the pictures themselves."""
    white = torch.ones(400, 3, 40, 80)
    out = augment(white, rng(0))  # grey, so colour is 1 + brightness; then holes of 0
    level = out.amax((1, 2, 3))
    assert 0.5 <= level.min() < 0.52 and 1.48 < level.max() <= 1.5
    rows, columns = (out[:, 0] != 0).any(2), (out[:, 0] != 0).any(1)  # what translation left
    assert set((~rows).sum(1).tolist()) == set(range(6)) and set((~columns).sum(1).tolist()) == set(
        range(11)
    )
    assert (~rows[:, 0]).any() and (~rows[:, -1]).any()  # moved both ways
    inside = rows[:, :, None] & columns[:, None]
    hole = (inside & (out[:, 0] == 0)).sum((1, 2))
    assert hole.max() == 8 * 16 and hole.min() < 8 * 16 / 2

    # too small to be moved or cut
    tinted = torch.tensor([0.0, 0.3, 0.6]).view(1, 3, 1, 1).expand(2000, 3, 2, 2)
    out = augment(tinted, rng(0))
    # saturation in [0, 2] times contrast in [0.5, 1.5]
    spread = (out.amax((1, 2, 3)) - out.amin((1, 2, 3))) / 0.6
    assert 0 <= spread.min() < 0.05 and 2.7 < spread.max() <= 3
    assert spread.mean().item() == pytest.approx(1, abs=0.05)


def test_augmentation_passes_gradients():
    x = pictures().requires_grad_()
    out = prepare(augment(x, rng(0)), 16, rng(1))
    out.sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).float().mean() > 0.1
    # By finite differences, in a direction of its own
    direction = normal(*x.shape, seed=3)
    with torch.no_grad():
        ends = [
            prepare(augment(x + h * direction, rng(0)), 16, rng(1)).double().sum()
            for h in (1e-2, -1e-2)
        ]
    assert ((ends[0] - ends[1]) / 2e-2).item() == pytest.approx(
        (x.grad * direction).sum().item(), rel=1e-2
    )


def test_prepare_resizes_by_area_and_normalises():
    x = pictures(2, 32, 48)
    out = prepare(x, 16, rng(0), crop=0)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    expected = ((x + 1) / 2).unflatten(3, (16, 3)).unflatten(2, (16, 2)).mean((3, 5))
    torch.testing.assert_close(out, (expected - mean) / std)
    # not larger: neither cropped nor resized
    same = prepare(pictures(2, 16, 16), 16, rng(0), crop=1)
    torch.testing.assert_close(same * std + mean, (pictures(2, 16, 16) + 1) / 2)
    assert prepare(pictures(2, 8, 8), 16, rng(0)).shape == (2, 3, 16, 16)
    oblong = prepare(pictures(2, 8, 40), 16, rng(0), crop=1)  # one side is too short for a crop
    torch.testing.assert_close(oblong, prepare(pictures(2, 8, 40), 16, rng(0), crop=0))


def test_prepare_crops_half_of_the_pictures_at_random():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    x = torch.stack([rows, columns, rows]).expand(400, 3, 20, 24) / 24  # a pixel tells its place
    out = prepare(x, 16, rng(0))
    assert torch.equal(out, prepare(x, 16, rng(0)))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    places = ((out * std + mean) * 2 - 1) * 24
    # rows one apart: not resized
    cropped = (places[:, 0, 15, 0] - places[:, 0, 0, 0] - 15).abs() < 1e-3
    assert 160 < cropped.sum() < 240
    corners = places[cropped][:, :2, 0, 0].round().int().tolist()
    assert {r for r, _ in corners} == set(range(5)) and {c for _, c in corners} == set(range(9))


# --- together ----------------------------------------------------------------------------------


def test_a_discriminator_on_random_features_learns_to_tell_blurred_pictures(photo):
    """The whole chain, without augmentation: heads over `tiny_dino` tell crops of a photograph from
    blurred ones."""
    import numpy as np

    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 127.5 - 1
    torch.manual_seed(0)
    generator, dino = rng(0), tiny_dino()
    discriminator = Discriminator(dino.channels, 8)
    optimizer = torch.optim.AdamW(discriminator.parameters(), 2e-3)

    def batch(count):
        corners = torch.randint(0, 512 - 112, (count, 2), generator=generator).tolist()
        real = torch.stack([pixels[:, r : r + 112, c : c + 112] for r, c in corners])
        return real, F.interpolate(F.avg_pool2d(real, 4), scale_factor=4, mode="bilinear")

    def logits(images):
        features = dino(prepare(images, dino.size, generator))
        return discriminator(features, torch.ones(len(images), 8))

    for _ in range(60):
        real, fake = batch(4)
        loss = discriminator_loss(logits(real), logits(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    discriminator.eval()
    with torch.no_grad():
        real, fake = batch(16)
        right = (logits(real).mean(1)[:, None] > logits(fake).mean(1)[None]).float().mean()
    assert right > 0.7  # 0.5 by chance

    fake.requires_grad_()
    generator_loss(logits(fake)).backward()
    assert fake.grad.isfinite().all() and fake.grad.abs().sum() > 0


# --- text --------------------------------------------------------------------------------------


def test_text_condition_is_the_projected_embedding(tmp_path):
    """Of a text tower, and of a whole CLIP whose config tells the projection's width in its own
    field only."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

    tower, whole = tmp_path / "tower", tmp_path / "whole"
    shutil.copytree(TINY / "tokenizer_2", tower)
    shutil.copytree(TINY / "tokenizer_2", whole)
    reference = CLIPTextModelWithProjection.from_pretrained(
        TINY / "text_encoder_2", dtype=torch.float32
    )
    reference.save_pretrained(tower)
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {k: v for k, v in reference.config.to_dict().items() if k != "projection_dim"}
    clip = CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=reference.config.projection_dim
        )
    )
    clip.text_projection.load_state_dict(reference.text_projection.state_dict())
    clip.text_model.load_state_dict(reference.text_model.state_dict())
    clip.save_pretrained(whole)

    captions = ["a red house", "", "stripes " * 200]
    tokens = CLIPTokenizer.from_pretrained(tower)(
        captions, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = reference(tokens.input_ids).text_embeds
    for folder in (tower, whole):
        embeddings = load_text_condition(folder)(captions)
        assert embeddings.dtype == torch.float32 and not embeddings.requires_grad
        torch.testing.assert_close(embeddings, expected)

    def refused(message):
        with pytest.raises(InputError, match=message) as error:
            load_text_condition(tower)
        assert "\n" not in str(error.value)

    config = reference.config.to_dict()
    (tower / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}))
    refused("hidden_size 64 is no multiple of num_attention_heads 7")
    (tower / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    refused("model_type in config.json is 'bert'")
    (tower / "config.json").write_text(json.dumps(config))
    weights = load_file(tower / "model.safetensors")
    key = next(iter(weights))
    for dtype in (torch.int32, torch.complex64):
        save_file(weights | {key: weights[key].to(dtype)}, tower / "model.safetensors")
        refused(f"the tensor {re.escape(key)} is .*weights are floating-point numbers")
    # older files hold the positions, which are no weights
    positions = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    save_file(weights | positions, tower / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load_text_condition(tower)(captions), expected)
    weights.popitem()
    save_file(weights, tower / "model.safetensors", {"format": "pt"})
    refused("lacks 1 tensor")
    for name in ("tokenizer.json", "vocab.json"):
        (tower / name).unlink(missing_ok=True)
    refused("has no tokenizer")
