"""Runs of every kind on real configs at reduced width, out of a cache that a small Hub on this
machine filled."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from std_cli.cli.commands import run
from std_cli.diffusion.pipeline import join_motion
from std_cli.media.video.join import read_comment
from std_cli.weights.hub import source
from std_cli.weights.zoo import find_entry
from tests.hub import serving
from tests.stylize.test_videos import frames_of, make_clip
from tests.weights.files import pairs
from tests.weights.processes import std as std_of_home
from tests.weights.sdxl import NARROW_UNET, Sdxl, link, original, write_json

pytestmark = pytest.mark.long

# AnimateDiff's sdxl-beta and DINOv2 ViT-S/14: their configs, as published, narrow.
BETA = {
    "_class_name": "MotionAdapter",
    "_diffusers_version": "0.25.0.dev0",
    "block_out_channels": NARROW_UNET["block_out_channels"],
    "motion_layers_per_block": 2,
    "motion_max_seq_length": 32,
    "motion_mid_block_layers_per_block": 1,
    "motion_norm_num_groups": 32,
    "motion_num_attention_heads": 8,
    "use_motion_mid_block": False,
}
DINO = {
    "apply_layernorm": True,
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 24,  # 384
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "torch_dtype": "float32",
    "transformers_version": "4.32.0.dev0",
    "use_swiglu_ffn": False,
}


class Home:
    """An HF_HOME that `std models pull` has filled; and the same SDXL as one file, with the
    original code's names."""

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "checkpoint.safetensors"
        sdxl = Sdxl(root / "sdxl")
        save_file(original(sdxl.states), self.file)
        places = {name: root / "hub" / name for name in ("std", "motion", "dino")}
        link(sdxl.lora, made(places["std"]) / sdxl.lora.name)
        torch.manual_seed(1)
        adapter = MotionAdapter.from_config(BETA)
        write_json(places["motion"] / "config.json", BETA)
        motion, backbone = (find_entry(name) for name in ("animatediff", "dinov2-small"))
        half = {key: tensor.half() for key, tensor in adapter.state_dict().items()}
        save_file(half, places["motion"] / motion.files[1], {"format": "pt"})
        unet = join_motion(UNet2DConditionModel.from_config(NARROW_UNET), adapter)
        v2v = {f"unet.{key}": 0.02 * tensor for key, tensor in pairs(unet, rank=4).items()}
        save_file(v2v, places["std"] / "std_sdxl_v2v_eta0.75.safetensors", {"format": "pt"})
        Dinov2Model(Dinov2Config(**DINO)).save_pretrained(places["dino"])
        write_json(places["dino"] / "config.json", DINO)
        write_json(places["dino"] / "preprocessor_config.json", {})
        repos = {"sdxl": sdxl.base, "ip-adapter-plus": sdxl.h94, "std-i2i-0.75": places["std"]}
        repos |= {motion.name: places["motion"], backbone.name: places["dino"]}
        with serving() as (url, handler):
            handler.repos.update({source(name).repo: folder for name, folder in repos.items()})
            names = [*repos, "ip-adapter", "std-v2v-0.75"]
            done = std_of_home("models", "pull", "-q", *names, home=root / "home", url=url)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        # where a run of the single file has no weights of the folder to fall back on
        shutil.copytree(root / "home", root / "bare", symlinks=True)
        repo = f"models--{source('sdxl').repo.replace('/', '--')}"
        for file in (root / "bare" / "hub" / repo / "snapshots").rglob("*.safetensors"):
            file.unlink()


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pictures(home: Home) -> Path:
    folder = made(home.root / "pictures")
    dice = np.random.default_rng(0)
    for i in range(3):
        small = Image.fromarray(dice.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((96, 80), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


@pytest.fixture
def model(request: pytest.FixtureRequest, home: Home, monkeypatch: pytest.MonkeyPatch) -> str:
    """What --model is given; with the cache that it has, off-line from here on."""
    cache, name = {"folder": ("home", "sdxl"), "single file": ("bare", str(home.file))}[
        request.param
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home.root / cache / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.root / "xdg"))
    # it changes the whole process
    monkeypatch.setattr("std_cli.cli.commands.silence_libraries", lambda: None)
    monkeypatch.setattr("std_cli.cli.models.silence_libraries", lambda: None)
    return name


def std(capsys: pytest.CaptureFixture[str], *command: str) -> list[dict[str, Any]]:
    """The events of a command that must succeed."""
    code = run([*command, "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("model", ["folder"], indirect=True)
def test_video(
    home: Home, model: str, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AnimateDiff's adapter, the published LoRA for videos with the motion layers' tensors, the
    IP-Adapter."""
    source, out = make_clip(tmp_path / "in.mp4", 2, (64, 64)), tmp_path / "out.mp4"
    command = [
        "stylize",
        "video",
        str(source),
        "--style",
        str(reference),
        "--model",
        model,
        "-o",
        str(out),
    ]
    events = std(capsys, *command, "--motion", "animatediff", "--size", "64", "--steps", "1")
    assert [e for e in events if e["event"] == "notice"] == []
    settings = read_comment(out)["settings"]
    assert settings["motion"]["name"] == "animatediff" and settings["window"] == 16
    assert settings["lora"]["name"] == "std_sdxl_v2v_eta0.75.safetensors"
    assert len(frames_of(out)) == 2 and events[-1]["event"] == "result"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["single file"], indirect=True)
def test_distill_and_stylize_with_what_it_made(
    model: str, pictures: Path, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two updates of all 788 layers with DINOv2 as the discriminator's features; then a picture
    with that LoRA."""
    folder, config = tmp_path / "run", tmp_path / "run.toml"
    std(capsys, "distill", "--init", str(config), "--model", model)
    changes = {
        "data.sources": [str(pictures)], "data.size": [64, 64], "data.held_out": 0,
        "data.workers": 1,
        "lora.rank": 2, "lora.alpha": 2, "distill.steps": 2, "optimizer.accumulation": 1,
        "optimizer.lr": 1e-3,
        "optimizer.warmup_steps": 0, "optimizer.scale_lr": False, "model.device": "cpu",
    }  # fmt: skip
    given = [
        part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    events = std(
        capsys,
        "distill",
        "--config",
        str(config),
        *given,
        "--max-steps",
        "2",
        "--output",
        str(folder),
    )
    progress = [e for e in events if e.get("stage") == "distill"]
    assert [e["step"] for e in progress] == [1, 2]
    assert all(
        np.isfinite([e["loss"], e["adversarial"], e["discriminator"]]).all() for e in progress
    )
    lora = folder / "pytorch_lora_weights.safetensors"
    assert events[-1]["event"] == "result" and events[-1]["output"] == str(lora)
    state = load_file(lora)
    assert (
        len(state) == 1576 and sum(bool(t.any()) for k, t in state.items() if "lora_B" in k) == 788
    )
    out = tmp_path / "out.png"
    command = [
        "stylize",
        "image",
        str(pictures / "0.png"),
        "--style",
        str(reference),
        "--model",
        model,
        "-o",
        str(out),
    ]
    events = std(capsys, *command, "--lora", str(lora), "--size", "64", "--output-size", "model")
    assert [e for e in events if e["event"] == "notice"] == []
    [start] = [e for e in events if e["event"] == "start"]
    assert [start["settings"][k] for k in ("eta", "steps", "schedule")] == [0.75, 2, "aligned"]
    again = std(capsys, *command[:-1], str(tmp_path / "plain.png"), "--ip-adapter", "plain",
    "--lora", str(lora),
                "--size", "64", "--output-size", "model")  # fmt: skip
    assert [e["settings"]["ip_adapter"] for e in again if e["event"] == "start"] == ["plain"]
    with Image.open(out) as picture, Image.open(tmp_path / "plain.png") as plain:
        assert picture.size == plain.size == (64, 53) and np.asarray(picture).std() > 5
        assert not np.array_equal(np.asarray(picture), np.asarray(plain))
