"""DINOv2 from both kinds of file, against the network written out."""

import json
import math
import pickle
import zipfile

import pytest
import torch
import torch.nn.functional as F

from std_cli.errors import InputError
from std_cli.weights import dino as dino_module
from std_cli.weights.convert import convert
from std_cli.weights.dino import load_dino, tiny_dino
from tests.weights.dino import DEPTH, GRID, HEADS, PATCH, WIDTH, normal, original_weights


def original_features(w, images, blocks):
    """DINOv2's ViT written out (facebookresearch/dinov2, vision_transformer.py): normed patch
    tokens of `blocks`."""
    batch, _, height, width = images.shape
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w["cls_token"].expand(batch, 1, WIDTH), x.flatten(2).mT], 1)
    positions = w["pos_embed"]
    if (height, width) != (GRID * PATCH, GRID * PATCH):
        grid = positions[0, 1:].T.reshape(1, WIDTH, GRID, GRID)
        scale = [(side // PATCH + 0.1) / GRID for side in (height, width)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=False)
        assert grid.shape[2:] == (height // PATCH, width // PATCH)
        positions = torch.cat([positions[:, :1], grid.flatten(2).mT], 1)
    x = x + positions

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    features = []
    for i in range(DEPTH):
        p = f"blocks.{i}"
        h = F.linear(norm(x, f"{p}.norm1"), w[f"{p}.attn.qkv.weight"], w[f"{p}.attn.qkv.bias"])
        q, k, v = h.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        h = ((q @ k.mT / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + w[f"{p}.ls1.gamma"] * F.linear(
            h, w[f"{p}.attn.proj.weight"], w[f"{p}.attn.proj.bias"]
        )
        h = F.linear(norm(x, f"{p}.norm2"), w[f"{p}.mlp.fc1.weight"], w[f"{p}.mlp.fc1.bias"])
        h = F.linear(
            h / 2 * (1 + torch.erf(h / math.sqrt(2))),
            w[f"{p}.mlp.fc2.weight"],
            w[f"{p}.mlp.fc2.bias"],
        )
        x = x + w[f"{p}.ls2.gamma"] * h
        if i in blocks:
            features.append(norm(x, "norm")[:, 1:])
    return features


@pytest.fixture(scope="module")
def weights():
    return original_weights()


@pytest.fixture
def pth(tmp_path, weights):
    torch.save(weights, tmp_path / "dino.pth")
    return tmp_path / "dino.pth"


# The grid that it was trained on, smaller, larger, oblong, and sides that are no multiple of the
# patch.
@pytest.mark.parametrize("sides", [(20, 20), (12, 12), (32, 32), (16, 28), (21, 30)])
def test_dino_features_are_those_of_the_original_net(pth, weights, sides):
    images = normal(2, 3, *sides)
    for blocks in (None, (1, 3)):
        features = load_dino(pth, blocks)(images)
        expected = original_features(weights, images, blocks or (0, 1, 2, 3))
        for ours, reference in zip(features, expected, strict=True):
            assert ours.shape == (2, (sides[0] // PATCH) * (sides[1] // PATCH), WIDTH)
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_positions_are_not_interpolated_as_transformers_does(pth, weights):
    """What the test above is able to tell apart."""
    images = normal(1, 3, 32, 32)
    dino = load_dino(pth)
    ours = dino(images)[-1]
    del dino.model.embeddings.interpolate_pos_encoding
    assert (dino(images)[-1] - ours).abs().max() > 1e-3


def test_default_blocks_end_the_quarters(pth):
    assert load_dino(pth).blocks == (0, 1, 2, 3)
    twelve = dino_module.Dinov2Config(hidden_size=12, num_attention_heads=1, num_hidden_layers=12)
    assert dino_module.Dino(dino_module.Dinov2Model(twelve)).blocks == (2, 5, 8, 11)
    with pytest.raises(
        InputError, match="blocks \\(4,\\) of a DINOv2 that has 4: choose from 0 to 3"
    ):
        load_dino(pth, (4,))


def test_gradients_reach_the_picture_and_never_the_weights(pth):
    dino = load_dino(pth).train()
    assert not dino.model.training
    images = normal(1, 3, 32, 32).requires_grad_()
    dino(images)[-1].square().sum().backward()
    assert images.grad.abs().min() > 0
    assert not any(p.requires_grad or p.grad is not None for p in dino.parameters())


def test_converted_folder_gives_the_same_features(pth, tmp_path, weights):
    folder = tmp_path / "dino"
    convert(pth, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "dino",
        "dino.pth",
    ]  # nothing else is left
    images = normal(1, 3, 32, 20)
    for ours, other in zip(load_dino(folder)(images), load_dino(pth)(images), strict=True):
        assert torch.equal(ours, other)
    # plain transformers
    model, info = dino_module.Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    # at this size it needs no interpolation
    whole = model(normal(1, 3, 20, 20)).last_hidden_state[:, 1:]
    torch.testing.assert_close(
        whole, original_features(weights, normal(1, 3, 20, 20), (3,))[0], rtol=1e-5, atol=1e-5
    )


def test_a_folder_that_transformers_saved_loads_too(tmp_path):
    """As on the Hub, where heads are not of 64."""
    dino = tiny_dino()
    dino.model.save_pretrained(tmp_path)
    images = normal(1, 3, 64, 64)
    for ours, other in zip(load_dino(tmp_path)(images), dino(images), strict=True):
        torch.testing.assert_close(ours, other)


class Payload:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def one_line(error):
    assert "\n" not in str(error.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    target = tmp_path / "ran"
    torch.save({"cls_token": Payload(target)}, tmp_path / "zip.pth")
    torch.save(
        {"cls_token": Payload(target)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(target)))
    for name in ("zip", "old", "plain"):
        with pytest.raises(InputError, match="would run code when read") as error:
            load_dino(tmp_path / f"{name}.pth")
        one_line(error)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("cls_token"),
            "1 tensor too few or too many \\(first embeddings.cls_token\\)",
        ),
        (lambda w: w.pop("pos_embed"), "embeddings.position_embeddings"),
        (lambda w: w.update(register_tokens=torch.zeros(1, 4, WIDTH)), "register_tokens"),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 25, WIDTH)),
            "25 positions do not go together",
        ),
        (lambda w: w.update(pos_embed=torch.zeros(1, 26, 0)), "width 0, 0 heads"),
        (
            lambda w: w.update({"blocks.2.attn.qkv.weight": torch.zeros(7, 7)}),
            "too few or too many",
        ),
        (lambda w: w.update({"blocks.2.mlp.fc2.weight": torch.zeros(7, 7)}), "differ in shape"),
        (lambda w: w.update(cls_token="x"), "named tensors only"),
        (lambda w: w.update(mask_token=torch.zeros(1).expand(2**35)), "more than the 2"),
    ],
    ids=[
        "lacks one",
        "lacks positions",
        "registers",
        "no square",
        "no width",
        "qkv",
        "shape",
        "no tensor",
        "huge view",
    ],
)
def test_what_is_no_dino_is_refused_in_one_line(tmp_path, weights, change, message):
    other = dict(weights)
    change(other)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(InputError, match=message) as error:
        load_dino(tmp_path / "other.pth")
    one_line(error)


def test_numbers_that_are_none_are_named(weights, tmp_path):
    key = sorted(weights)[0]
    for value, message in (
        (weights[key] * torch.nan, "NaN or infinity in"),
        (weights[key].long(), "is int64"),
    ):
        torch.save(weights | {key: value}, tmp_path / "dino.pth")
        with pytest.raises(InputError, match=rf"dino.pth: .*{message}") as error:
            load_dino(tmp_path / "dino.pth")
        assert key in str(error.value)


def test_damaged_files_are_refused_in_one_line(pth, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(pth.read_bytes()[:5000])
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("dino/data/0", b"")
        archive.filelist[0].file_size = 3 * 2**30
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    torch.save([1], tmp_path / "list.pth")
    for path, message in [
        (cut, "missing or damaged"),
        (tmp_path / "none.pth", "missing or damaged"),
        (bomb, "holds 3.0 GiB, more than the 2"),
        (tmp_path / "empty", "config.json is missing"),
        (other, "model_type in config.json is 'vit'"),
        (tmp_path / "list.pth", "named tensors only"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            load_dino(path)
        one_line(error)


def test_tiny_dino_is_a_function_of_its_seed_and_tells_pictures_apart():
    images = normal(2, 3, 112, 112)
    one, same, other = tiny_dino(1)(images), tiny_dino(1)(images), tiny_dino(2)(images)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert [f.shape for f in one] == [(2, 196, 48)] * 4
    assert not torch.equal(one[0], other[0])
    ends = torch.stack([one[0].flatten(), one[-1].flatten()])
    assert torch.corrcoef(ends)[0, 1] < 0.98  # the blocks do something
    assert all((f[0] - f[1]).square().mean() > 0.1 for f in one)
