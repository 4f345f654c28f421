"""Strict loading: SDXL's real shapes on the meta device, and weights of other families."""

from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file

from std_cli.diffusion.pipeline import add_motion, join_motion
from std_cli.errors import InputError
from std_cli.weights.files import read_header, read_object
from std_cli.weights.fit import check_ip_adapter, check_motion
from std_cli.weights.lora import check_lora, read_lora, resolve_lora
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.motion import HOTSHOT_CONFIG, MotionFiles, from_hotshot
from std_cli.weights.resolve import TINY, resolve_model
from std_cli.weights.zoo import zoo
from tests.micro import tiny_with_motion
from tests.weights.files import cache, hotshot_names, kohya, pairs, sdxl_folder, shapes, small_unet
from tests.weights.sdxl import UNET, VISION, ip_adapter

# AnimateDiff's sdxl-beta: config.json as published
BETA_CONFIG = HOTSHOT_CONFIG | {"motion_max_seq_length": 32}


@pytest.fixture(scope="module")
def real():
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNET)


@pytest.mark.parametrize("config", [HOTSHOT_CONFIG, BETA_CONFIG], ids=["hotshot", "animatediff"])
def test_every_key_of_the_real_video_weights_matches(real, config):
    """Counts as measured: motion 405 tensors, LoRA 968 layers and 1936 tensors, IP-Adapter 70
    pairs."""
    with torch.device("meta"):
        adapter = MotionAdapter.from_config(config)
        found = shapes(adapter.state_dict())
        if config is HOTSHOT_CONFIG:
            assert len(hotshot_names(adapter)) == 420
            found = from_hotshot(hotshot_names(adapter))
        assert len(found) == 405
        check_motion("real", found, adapter)
        unet = join_motion(real, adapter)
        assert sum(p.numel() for p in unet.parameters()) - sum(
            p.numel() for p in real.parameters()
        ) == sum(p.numel() for p in adapter.parameters())
        v2v, i2i = (pairs(network, rank=64, device="meta") for network in (unet, real))
        weights = ip_adapter("plus", UNET, VISION, heads=20)
    assert of_pairs("v2v", v2v, 64).family.name == of_pairs("i2i", i2i, 64).family.name == "SDXL"
    assert check_lora(of_pairs("v2v", v2v, 64), unet) == (1936, 1936)
    assert check_lora(of_pairs("i2i", i2i, 64), unet) == (1576, 1576)  # its own keys are all it has
    assert check_lora(of_pairs("i2i", i2i, 64), real) == (1576, 1576)
    assert sum(t.numel() for t in v2v.values()) == pytest.approx(221.123e6, rel=1e-5)
    assert sum(t.numel() for t in i2i.values()) == pytest.approx(196.751e6, rel=1e-5)
    with pytest.raises(
        InputError, match="1576 of 1936 tensors match this UNet, which lacks 180 of its layers"
    ):
        check_lora(of_pairs("v2v", v2v, 64), real)
    assert len([k for k in weights if k.startswith("ip_adapter")]) == 140
    for network in (real, unet):
        check_ip_adapter("plus", shapes(weights), network)


def test_weights_of_other_families_are_named(real, tmp_path):
    plus = shapes(ip_adapter("plus", UNET | {"cross_attention_dim": 768}, VISION, heads=2))
    with pytest.raises(
        InputError, match="its shapes are those of Stable Diffusion 1.5, 768 wide, not 2048"
    ):
        check_ip_adapter("mine.safetensors", plus, real)
    with torch.device("meta"):
        whole = shapes(ip_adapter("plain", UNET, VISION, heads=2))
    lacking = {k: s for k, s in whole.items() if k != "ip_adapter.7.to_k_ip.weight"} | {
        "ip_adapter.141.x": [1]
    }
    message = (
        "139 of 140 tensors fit: 1 lacks .ip_adapter.7.to_k_ip.weight.; 1 has beyond them "
        ".ip_adapter.141.x."
    )
    with pytest.raises(InputError, match=message):
        check_ip_adapter("mine.safetensors", lacking, real)

    folder = sdxl_folder(tmp_path / "model")
    model = resolve_model(str(folder))
    sd3, flux = "transformer.transformer_blocks.0.attn", "lora_unet_double_blocks_0_img_attn_qkv"
    mid = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    flat = f"lora_unet_{mid.replace('.', '_')}"
    for name, content in {
        "Stable Diffusion 1.5": {
            f"unet.{mid}.lora_A.weight": (4, 768),
            f"unet.{mid}.lora_B.weight": (1280, 4),
        },
        "Stable Diffusion 2": {
            f"{flat}.lora_down.weight": (4, 1024),
            f"{flat}.lora_up.weight": (1280, 4),
        },
        "Stable Diffusion 3": {
            f"{sd3}.to_q.lora_A.weight": (4, 1536),
            f"{sd3}.to_q.lora_B.weight": (1536, 4),
        },
        "Stable Diffusion 3.5": {
            f"{sd3}.add_k_proj.lora_A.weight": (4, 2432),
            f"{sd3}.add_k_proj.lora_B.weight": (2432, 4),
        },
        "Flux": {f"{flux}.lora_down.weight": (4, 3072), f"{flux}.lora_up.weight": (9216, 4)},
    }.items():
        save_file(
            {key: torch.zeros(shape) for key, shape in content.items()}, tmp_path / "x.safetensors"
        )
        with pytest.raises(
            InputError, match=f"it is for {name} .by its shapes.* wide.*choose one made for SDXL"
        ):
            resolve_lora(str(tmp_path / "x.safetensors"), model=model, task="i2i", eta=0.75)


def test_a_motion_adapter_that_does_not_fit(tmp_path):
    base = Path(tiny_with_motion(), "motion_adapter")
    config = read_object(base / "config.json")
    tensors = {
        k: torch.zeros(s)
        for k, s in read_header(base / "diffusion_pytorch_model.safetensors")[0].items()
    }
    first, second, *_ = sorted(tensors)
    tensors[second] = torch.zeros(3)
    del tensors[first]
    save_file(tensors | {"extra.weight": torch.zeros(1)}, tmp_path / "m.safetensors")
    motion = MotionFiles("mine", tmp_path / "m.safetensors", config, False, 8)
    unet = UNet2DConditionModel.from_pretrained(TINY, subfolder="unet")
    with pytest.raises(
        InputError, match=r"--motion mine: \d+ of \d+ tensors fit: 1 lacks .*; 1 differ in shape"
    ):
        add_motion(unet, motion)


def test_each_baseline_in_its_published_key_layout(tmp_path, monkeypatch):
    """kohya's names with an alpha for each of the layers (LCM, PCM, TDD, Lightning: 788 layers,
    2364 tensors)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    unet = small_unet()
    plain = pairs(unet, rank=4)
    modules = {key.split(".lora_")[0] for key in plain}
    content = {kohya(key): tensor for key, tensor in plain.items()}
    content |= {
        kohya(f"{m}.lora_A.weight").split(".lora")[0] + ".alpha": torch.tensor(0.5) for m in modules
    }
    model = resolve_model(str(sdxl_folder(tmp_path / "model")))
    for method in ("lcm", "tcd", "pcm", "tdd", "hyper-sd", "lightning"):
        entry = next(e for e in zoo().models.values() if e.method == method)
        path = cache(tmp_path, entry.repo, entry.revision) / entry.files[0]
        path.parent.mkdir(exist_ok=True)
        save_file(content, path)
        steps = entry.steps or 4
        file = resolve_lora("auto", model=model, task="i2i", eta=0.75, method=method, steps=steps)
        assert (file.name, file.scale, file.notice) == (entry.name, 1, None)
        weights = read_lora(file.path, file.name)
        assert check_lora(weights, unet) == (len(plain), len(plain))
        assert {name: layer.scale for name, layer in weights.layers.items()} == dict.fromkeys(
            modules, 1 / 8
        )
    other = resolve_lora("auto", model=model, task="i2i", eta=0.75, method="lightning", steps=1)
    assert other.notice == "no LoRA of lightning for 1 step: lightning-2, made for 2, is used"
