"""The measures that have weights, against plain ports and other packages' numbers, on small weights
in the published layouts."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import nn

from std_cli.comparison.measure import choose_measures
from std_cli.comparison.measures import MEASURES, Sample
from std_cli.comparison.measures.clip import Clip, aesthetic_score, load_head
from std_cli.comparison.measures.csd import csd_features, load_csd
from std_cli.comparison.measures.features import Features, clip_input, cosine
from std_cli.comparison.measures.lpips import load_lpips
from std_cli.errors import InputError
from std_cli.weights.cache import files_of
from tests.comparison import weights

PHOTO, OTHER = data.astronaut()[:120, :160].copy(), data.coffee()[:100, :90].copy()
SAMPLE = Sample([PHOTO], OTHER, [PHOTO[::-1].copy()], prompt="a red cat")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty places for weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def csd_port(tensors, x):
    """OpenAI's image encoder with CSD's projection for style, written plainly: (1, 3, side, side)
    -> (1, C)."""
    t = {k.removeprefix("module.").removeprefix("backbone."): v for k, v in tensors.items()}
    width, patch = t["conv1.weight"].shape[0], t["conv1.weight"].shape[-1]
    heads = width // 64

    def norm(x, name):
        return F.layer_norm(x, (width,), t[f"{name}.weight"], t[f"{name}.bias"])

    x = F.conv2d(x, t["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([t["class_embedding"].expand(len(x), 1, -1), x], 1)
    x = norm(x + t["positional_embedding"], "ln_pre")
    for i in range(sum(key.endswith(".ln_1.weight") for key in t)):
        at = f"transformer.resblocks.{i}"
        y = norm(x, f"{at}.ln_1")
        qkv = F.linear(y, t[f"{at}.attn.in_proj_weight"], t[f"{at}.attn.in_proj_bias"])
        q, k, v = (z.unflatten(2, (heads, 64)).transpose(1, 2) for z in qkv.chunk(3, 2))
        y = (q @ k.mT / 8).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2)
        x = x + F.linear(y, t[f"{at}.attn.out_proj.weight"], t[f"{at}.attn.out_proj.bias"])
        y = norm(x, f"{at}.ln_2")
        y = F.linear(y, t[f"{at}.mlp.c_fc.weight"], t[f"{at}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, t[f"{at}.mlp.c_proj.weight"], t[f"{at}.mlp.c_proj.bias"])
    return norm(x[:, 0], "ln_post") @ t["last_layer_style"]


def test_csd_is_the_published_forward_pass(tmp_path):
    tensors, path = weights.csd_tensors(), tmp_path / "pytorch_model.bin"
    checkpoint = {"model_state_dict": tensors, "args": argparse.Namespace(lr=1.0), "iter": 3}
    torch.save(checkpoint, path)
    x = clip_input(PHOTO, weights.SIDE)[None]
    wanted = F.normalize(csd_port(tensors, x)[0], dim=0)
    torch.testing.assert_close(csd_features(path, "cpu")(PHOTO), wanted, rtol=1e-4, atol=1e-5)
    del tensors["module.backbone.ln_post.bias"]
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"is no CSD: 1 tensor too few or too many"):
        load_csd(path)
    torch.save({"model_state_dict": {"a": torch.ones(2)}}, path)
    with pytest.raises(InputError, match="is no CSD"):
        load_csd(path)


def test_csd_of_the_published_shapes(tmp_path):
    """ViT-L/14 at 224 pixels, one picture, with random weights."""
    tensors, path = weights.published_csd_tensors(), tmp_path / "pytorch_model.bin"
    assert sum(t.numel() for t in tensors.values()) == 304_752_640
    torch.save({"model_state_dict": tensors}, path)
    x = clip_input(PHOTO, 224)[None]
    with torch.inference_mode():
        wanted = csd_port(tensors, x)[0]
        found = load_csd(path)(x).image_embeds[0]
    assert wanted.shape == (768,) and 0.1 < wanted.std() < 10
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_clip_sees_is_as_its_authors_prepare_it():
    """By hand: a picture whose left third is black, 2:1, of which the middle square is seen."""
    picture = np.full((100, 200, 3), 255, np.uint8)
    picture[:, :70] = 0
    x = clip_input(picture, 50)
    assert x.shape == (3, 50, 50)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert torch.allclose(x[:, 20, 40], white) and bool((x[:, :, 5] < 0).all())


def test_clip_is_transformers_forward_pass(tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    weights.clip_folder(tmp_path)
    clip, model = Clip(tmp_path, "cpu"), CLIPModel.from_pretrained(tmp_path).eval()
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(["a red cat"], return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=clip_input(PHOTO, weights.SIDE)[None], **tokens)
    assert tokens["input_ids"].shape == (1, 9)
    assert cosine(clip.picture(PHOTO), clip.words("a red cat")) == pytest.approx(
        float((out.image_embeds @ out.text_embeds.T).item()), abs=1e-5
    )
    assert clip.words("cat " * 100).shape == (weights.OUT,)


def test_the_aesthetic_head_is_its_published_layers(tmp_path):
    """In the published shapes, after the features of ViT-L/14."""
    tensors, path = weights.head_tensors(768, (1024, 128, 64, 16)), tmp_path / "head.pth"
    torch.save(tensors, path)
    published = nn.Sequential(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    published.load_state_dict({k.removeprefix("layers."): v for k, v in tensors.items()})
    x = F.normalize(torch.randn(768, generator=torch.manual_seed(0)), dim=0)
    assert aesthetic_score(load_head(path), x) == pytest.approx(published(x).item(), abs=1e-5)
    torch.save({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)}, path)
    load_head.cache_clear()
    with pytest.raises(InputError, match="does not end in one number"):
        load_head(path)


def test_lpips_is_torchmetrics(tmp_path):
    """The number is torchmetrics' 1.9.0, with these weights (its trunk is torchvision's)."""
    channels = 64, 128, 256, 512, 512
    torch.save(weights.vgg_tensors(channels), tmp_path / "vgg16.pth")
    torch.save(weights.lpips_tensors(channels), tmp_path / "lpips.pth")
    network = load_lpips(tmp_path / "vgg16.pth", tmp_path / "lpips.pth", "cpu")
    r = np.random.default_rng(0)
    a, b = (r.integers(0, 256, (64, 80, 3), dtype=np.uint8) for _ in range(2))
    assert network.distance(a, b) == pytest.approx(0.6202220320701599, abs=1e-6)
    assert network.distance(a, a) == 0
    torch.save(weights.lpips_tensors((1, 2, 3, 4, 5)), tmp_path / "other.pth")
    with pytest.raises(InputError, match="is not for the channels"):
        load_lpips(tmp_path / "vgg16.pth", tmp_path / "other.pth", "cpu")


def test_features_are_computed_once():
    seen = []
    features = Features(lambda picture: seen.append(picture) or torch.tensor([3.0, 4.0]))
    assert features(PHOTO).tolist() == features(PHOTO.copy()).tolist()
    assert features(PHOTO)[0] == pytest.approx(0.6) and len(seen) == 1
    features(OTHER)
    assert len(seen) == 2


def test_networks_run_on_the_device_of_the_run(cache):
    """The meta device stands for a GPU: what would be computed on the processor would have
    numbers."""
    weights.install("csd", "clip-l", "aesthetic", "vgg16", "lpips")
    chosen, _ = choose_measures(tuple(set(MEASURES) - {"warp"}), with_clips=True, device="meta")
    assert {measure.device for measure in chosen.values()} == {"meta"}
    lpips = chosen["lpips"]
    trunk, heads = (next(iter(files_of(name).values())) for name in lpips.weights)
    features = load_lpips(trunk, heads, lpips.device)._features(PHOTO)
    assert {x.device.type for x in features} == {"meta"}
    networks = [chosen["clip"].clip.picture, csd_features(*files_of("csd").values(), "meta")]
    for network in networks:
        assert network._network(PHOTO).device.type == "meta"


def test_a_measure_without_its_weights_says_what_to_pull(cache):
    reasons = {name: kind().available() for name, kind in MEASURES.items()}
    assert reasons["csd"] == "csd is not downloaded: run std models pull csd"
    assert reasons["lpips"] == "vgg16 and lpips are not downloaded: run std models pull vgg16 lpips"
    assert reasons["colour"] is None and reasons["warp"] is None
    weights.install("vgg16")
    assert MEASURES["lpips"]().available() == "lpips is not downloaded: run std models pull lpips"


def test_every_measure_by_its_name_on_small_weights(cache):
    """Figures are finite and in range; a picture is nearest to itself; what a sample lacks is
    said."""
    weights.install("csd", "clip-l", "aesthetic", "vgg16", "lpips")
    kinds = {name: kind() for name, kind in MEASURES.items() if kind.domain == "picture"}
    assert not [name for name, measure in kinds.items() if measure.available()]
    for name, measure in kinds.items():
        assert measure.lacks(SAMPLE) is None
        value = measure.compute(SAMPLE)
        low, high = measure.range
        assert np.isfinite(value) and (low <= value <= high or name == "aesthetic"), name
        assert measure.licence if measure.weights else measure.licence == ""
        assert len(measure.made_with) == len(measure.weights)
    itself = Sample([PHOTO], PHOTO, [PHOTO])
    exact = {"csd": 1, "lpips": 0, "colour": 0, "texture": 0, "edges": 1}
    assert {name: kinds[name].compute(itself) for name in exact} == pytest.approx(exact, abs=1e-5)
    assert kinds["clip"].lacks(itself) == "no prompt was given"
    small = Sample([PHOTO[:8]], OTHER, [PHOTO[:8]])
    assert kinds["lpips"].lacks(small) == "it is smaller than 16 pixels"
