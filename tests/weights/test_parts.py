"""Weight files that lack tensors, or hold what is no weight: found by their headers, or as they are
read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from std_cli import stylize_image
from std_cli.diffusion.pipeline import not_a_number
from std_cli.errors import InputError
from std_cli.weights.motion import MotionFiles, resolve_motion
from std_cli.weights.networks import read_ip_adapter, read_motion, read_network
from std_cli.weights.parts import check_model
from std_cli.weights.resolve import ModelFiles, resolve_model
from std_cli.weights.sdxl_files import WEIGHTS
from tests.micro import tiny_with_motion
from tests.weights.sdxl import NARROW_VAE

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
    "ip_adapter": "ip_adapter/ip-adapter-plus_tiny.safetensors",
    "motion": "motion_adapter/diffusion_pytorch_model.safetensors",
}
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny model with a motion adapter; its files are links, and replaced where a test changes
    them."""
    shutil.copytree(tiny_with_motion(), tmp_path / "mine", copy_function=os.link)
    return tmp_path / "mine"


def rewrite(path: Path, state: State) -> None:
    path.unlink()
    save_file(state, path, {"format": "pt"})


def check(folder: Path, motion: bool = False) -> None:
    model = resolve_model(str(folder))
    check_model(model, resolve_motion(str(folder / "motion_adapter"), model) if motion else None)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        check(folder, motion=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", FILES)
def test_each_part_of_a_folder(part: str, folder: Path) -> None:
    """A tensor that is not there, of another shape, of integers, of complex numbers."""
    path = folder / FILES[part]
    state = load_file(path)
    key = next(k for k in sorted(state) if state[k].ndim in (2, 4))
    own = {"motion": ("fit: 1 lacks .", "fit: 1 differ in shape ."), "ip_adapter": ("", "")}
    lacks, shape = own.get(
        part,
        (f"{part} lacks 1 of {len(state)} tensors .first ", f"{part} has 1 of .* shape .first "),
    )
    rewrite(path, {k: t for k, t in state.items() if k != key})
    refused(folder, f"{lacks}.*{key}")
    rewrite(path, state | {key: torch.zeros(3, 5)})
    refused(folder, f"{shape}.*{key}.*3, 5")
    for dtype, name in ((torch.int32, "I32"), (torch.complex64, "C64")):
        rewrite(path, state | {key: torch.ones(state[key].shape, dtype=dtype)})
        refused(folder, f"1 tensor without floating-point numbers .first {key}: {name}")
    rewrite(
        path,
        state | {"text_model.embeddings.position_ids": torch.arange(32)[None]}
        if "enc" in part
        else state,
    )
    check(folder, motion=True)


def test_an_adapter_lacks_what_reads_pictures(folder: Path) -> None:
    path = folder / FILES["ip_adapter"]
    state = load_file(path)
    for key in ("image_proj.latents", "image_proj.layers.3.1.3.weight", "image_proj.norm_out.bias"):
        rewrite(path, {k: t for k, t in state.items() if k != key})
        refused(folder, f"ip_adapter .*first {key}")
    key = "image_proj.proj_in.weight"  # made for another image encoder
    rewrite(path, state | {key: torch.zeros(state[key].shape[0], 7)})
    refused(folder, f"ip_adapter has 1 of .* shape .first {key}: .*, 7. for .*, 128.")


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "image_encoder"])
def test_both_spellings_of_clip(part: str, folder: Path) -> None:
    state = load_file(folder / FILES[part])
    prefix = "vision_model." if part == "image_encoder" else "text_model."
    bare = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    spelt = {k if "projection" in k else f"{prefix}{k}": t for k, t in bare.items()}
    for content in (bare, spelt):
        rewrite(folder / FILES[part], content)
        check(folder)
        key = sorted(content)[0]
        rewrite(folder / FILES[part], {k: t for k, t in content.items() if k != key})
        refused(folder, f"{part} lacks 1 of {len(state)} tensors .first {key}.: fetch it again")


def test_the_old_names_of_the_vae(folder: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL.from_config(NARROW_VAE)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    check(folder)
    path = folder / FILES["vae"]
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    old = {}
    for key, tensor in load_file(path).items():
        for new, was in names.items():
            key = key.replace(new, was)
        old[key] = tensor
    rewrite(path, old)
    check(folder)
    loaded = AutoencoderKL.from_pretrained(folder / "vae")
    assert all(torch.equal(t, vae.state_dict()[k]) for k, t in loaded.state_dict().items())
    ours = read_network("vae", resolve_model(str(folder)), torch.float32, torch.device("cpu"))
    assert all(torch.equal(t, vae.state_dict()[k]) for k, t in ours.state_dict().items())
    del old["decoder.mid_block.attentions.0.query.weight"]
    rewrite(path, old)
    refused(folder, "vae lacks 1 of 248 tensors .first decoder.mid_block.attentions.0.to_q.weight")


@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
def test_shards(part: str, folder: Path) -> None:
    path = folder / FILES[part]
    state = load_file(path)
    keys = sorted(state)
    names = [path.with_name(f"{path.stem}-0000{i}-of-00002.safetensors") for i in (1, 2)]
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    index = path.with_name(f"{path.name}.index.json")
    places = {key: names[i].name for i in (0, 1) for key in halves[i]}
    path.unlink()
    for name, half in zip(names, halves, strict=True):
        save_file({key: state[key] for key in half}, name, {"format": "pt"})
    refused(folder, f"lacks {part}/{index.name}: complete it")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    check(folder)
    cpu = torch.device("cpu")
    whole, ours = (
        read_network(part, resolve_model(name), torch.float16, cpu)
        for name in ("tiny", str(folder))
    )
    assert all(torch.equal(t, whole.state_dict()[k]) for k, t in ours.state_dict().items())
    index.write_text(json.dumps({"weight_map": places | {"x": "more.safetensors"}}))
    refused(folder, "more.safetensors.*: fetch it again")
    index.write_text(json.dumps({"weight_map": []}))
    refused(folder, "weight_map")
    index.write_text(json.dumps({"weight_map": places}))
    save_file({key: state[key] for key in halves[1][1:]}, names[1], {"format": "pt"})
    refused(folder, f"{part} lacks 1 of {len(keys)} tensors .first {halves[1][0]}")
    names[1].unlink()
    refused(folder, f"lacks {part}/{names[1].name}: complete it")


def test_nothing_is_computed_with_a_model_that_is_not_whole(
    folder: Path, picture: Path, reference: Path
) -> None:
    state = load_file(folder / FILES["text_encoder_2"])
    del state["text_model.encoder.layers.1.mlp.fc2.weight"]
    rewrite(folder / FILES["text_encoder_2"], state)
    out = picture.with_name("new")
    with pytest.raises(
        InputError, match="^--model .*: text_encoder_2 lacks 1 of 37 tensors .*: fetch it again"
    ):
        stylize_image(picture, reference, out, model=str(folder), size=64, steps=1)
    assert not out.exists()


def read(model: ModelFiles, motion: MotionFiles | None, dtype: torch.dtype) -> None:
    device = torch.device("cpu")
    for part in ("image_encoder", *WEIGHTS):
        read_network(part, model, dtype, device)
    read_ip_adapter(model, dtype, device)
    if motion is not None:
        read_motion(motion, dtype, device)


@pytest.mark.parametrize("part", FILES)
def test_nan_is_named_by_file_and_tensor(part: str, folder: Path) -> None:
    path = folder / FILES[part]
    state = load_file(path)
    key = sorted(state)[-1]
    state[key].view(-1)[-1] = float("nan")
    rewrite(path, state)
    model = resolve_model(str(folder))
    motion = resolve_motion(str(folder / "motion_adapter"), model)
    with pytest.raises(
        InputError,
        match=rf"{path.name}: NaN or infinity in 1 of {len(state)} tensors .*{key}",
    ):
        read(model, motion, torch.float32)


def test_half_precision_is_asked_only_for_itself(folder: Path) -> None:
    path = folder / FILES["unet"]
    state = {key: tensor.float() for key, tensor in load_file(path).items()}
    state["conv_in.bias"][0] = 1e6
    rewrite(path, state)
    model = resolve_model(str(folder))
    read(model, None, torch.bfloat16)
    with pytest.raises(
        InputError,
        match=r"65504, which fp16 cannot hold, in 1 of .* .first conv_in.bias.: use --dtype bf16",
    ):
        read(model, None, torch.float16)


def test_no_remedy_names_the_precision_in_use() -> None:
    assert "try --dtype bf16 or --dtype fp32" in not_a_number(torch.float16)
    assert not_a_number(torch.bfloat16).endswith("in bf16: try --dtype fp32")
    assert "--dtype" not in not_a_number(torch.float32)
