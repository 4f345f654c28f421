"""How the networks come by their weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from std_cli.config import image_settings
from std_cli.diffusion.pipeline import (
    LAYERS,
    ImagePipeline,
    Pipeline,
    compute_in,
    join_motion,
)
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.weights.files import mapped_tensors, read_header
from std_cli.weights.lora import LoraFile
from std_cli.weights.motion import HOTSHOT_CONFIG, resolve_motion
from std_cli.weights.networks import read_network, read_tensors
from std_cli.weights.resolve import TINY, resolve_model
from tests.micro import micro, tiny_with_motion
from tests.weights.sdxl import NARROW_UNET


def tiny() -> tuple[UNet2DConditionModel, MotionAdapter]:
    return (
        UNet2DConditionModel.from_pretrained(TINY / "unet", dtype=torch.float32),
        MotionAdapter.from_pretrained(Path(tiny_with_motion(), "motion_adapter")),
    )


def narrow() -> tuple[UNet2DConditionModel, MotionAdapter]:
    """SDXL's and HotShot-XL's blocks, the UNet in bf16 and the adapter in fp16."""
    torch.manual_seed(0)
    widths = NARROW_UNET["block_out_channels"]
    adapter = MotionAdapter.from_config(HOTSHOT_CONFIG | {"block_out_channels": widths})
    return UNet2DConditionModel.from_config(NARROW_UNET).bfloat16(), adapter.half()


@pytest.mark.parametrize("make", [tiny, narrow])
def test_a_motion_unet_is_that_of_diffusers_and_holds_the_unet_once(make) -> None:
    unet, adapter = make()
    reference = UNetMotionModel.from_unet2d(unet, adapter)
    # which from_unet2d leaves random
    reference.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    moving = join_motion(unet, adapter)
    found, wanted = moving.state_dict(), reference.to(unet.dtype).state_dict()
    assert list(found) == list(wanted)
    assert [k for k, t in wanted.items() if not torch.equal(found[k], t)] == []
    assert {t.dtype for t in found.values()} == {unet.dtype}
    assert moving.config == reference.config and not moving.training
    assert not any(t.is_meta for t in (*moving.parameters(), *moving.buffers()))
    places = {k: t.data_ptr() for k, t in unet.state_dict().items()}
    assert {k: found[k].data_ptr() for k in places} == places


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
        ("image_encoder", CLIPVisionModelWithProjection),
    ],
)
def test_a_network_is_that_of_its_library(part, kind, dtype) -> None:
    wanted = kind.from_pretrained(TINY / part, dtype=dtype)
    found = read_network(part, resolve_model("tiny"), dtype, torch.device("cpu"))
    assert type(found) is kind and not found.training and not wanted.training
    for name in ("parameters", "buffers"):  # with those that are in no file
        ours, theirs = (dict(getattr(n, f"named_{name}")()) for n in (found, wanted))
        assert list(ours) == list(theirs)
        assert [k for k, t in theirs.items() if not torch.equal(ours[k], t)] == []
        assert [k for k, t in theirs.items() if ours[k].dtype != t.dtype] == []
        assert [k for k, t in theirs.items() if ours[k].requires_grad != t.requires_grad] == []
    if part in ("unet", "vae"):
        ours, theirs = (
            {k: v for k, v in n.config.items() if not k.startswith("_")} for n in (found, wanted)
        )
        assert ours == theirs
    else:
        assert found.config._attn_implementation == wanted.config._attn_implementation


def test_a_file_is_mapped_again_and_never_written_to(tmp_path, monkeypatch) -> None:
    state = {f"{i}": torch.randn(8, generator=torch.Generator().manual_seed(i)) for i in range(9)}
    path = tmp_path / "x.safetensors"
    save_file(state, path)
    before = path.read_bytes()
    monkeypatch.setattr("std_cli.weights.files._MAPPED", 50)  # two tensors at once
    found = dict(mapped_tensors(path, state))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    read = read_tensors(path, ["3", "4"], torch.float32, torch.device("cpu"))
    read["3"].add_(1)
    assert read.keys() == {"3", "4"} and path.read_bytes() == before
    assert torch.equal(read["3"], state["3"] + 1)


def a_lora(path, files) -> LoraFile:
    """Of one layer of the UNet, and of a text encoder."""
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = read_header(files.base / "unet" / "diffusion_pytorch_model.safetensors")[0][
        f"{name.removeprefix('unet.')}.weight"
    ][0]
    lora = {f"{name}.lora_A.weight": torch.zeros(2, width)}
    lora |= {f"{name}.lora_B.weight": torch.zeros(width, 2)}
    lora |= {"text_encoder.a.lora_A.weight": torch.zeros(2, 2)}
    save_file(lora, path)
    return LoraFile("a", path, 1.0, None, {}, None)


@pytest.mark.parametrize("motion", ["auto", "none"])
def test_all_of_a_model_is_on_its_device(tmp_path, motion) -> None:
    """The meta device stands for a GPU: weights, LoRA, adapters, and what is in no file."""
    files, meta = resolve_model(micro()), torch.device("meta")
    adapter = resolve_motion(motion, files)
    lora = a_lora(tmp_path / "a.safetensors", files)
    pipe = Pipeline(files, lora, meta, torch.float32, motion=adapter).pipe
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 5
    for module in modules:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        assert [k for k, t in tensors.items() if t.device != meta] == [], type(module)


def test_encoders_return_for_another_prompt_and_style(monkeypatch) -> None:
    """A video on a GPU sends them to main memory; the same pipeline makes another one."""
    video = VideoPipeline(resolve_model(micro()), None, torch.device("cpu"), torch.float32)
    asked = []
    for name in ("text_encoder", "text_encoder_2", "image_encoder"):
        encoder = getattr(video.pipe, name)
        monkeypatch.setattr(encoder, "to", lambda device, name=name: asked.append((name, device)))
    monkeypatch.setattr(video.pipe, "encode_prompt", lambda *_, **__: asked.append("prompt") or [])
    embed = "prepare_ip_adapter_image_embeds"
    monkeypatch.setattr(video.pipe, embed, lambda *_, **__: asked.append("style") or [None])
    video.device = gpu = torch.device("cuda")
    everything = [(name, gpu) for name in ("text_encoder", "text_encoder_2", "image_encoder")]
    with pytest.raises(ValueError, match="zip"):  # there are no embeddings
        video.encode_prompt("another", "")
    video.set_style([Image.new("RGB", (8, 8))], [1.0], 1.0, "all")
    assert asked == [*everything, "prompt", *everything, "style"]


def test_a_gpu_that_is_too_small_to_load_to_is_no_second_message(tmp_path, monkeypatch) -> None:
    """The model is loaded again, to main memory."""
    files = resolve_model(micro())
    load, tries = StableDiffusionXLImg2ImgPipeline.load_ip_adapter, []

    def full_at_first(*arguments, **options):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return load(*arguments, **options)

    monkeypatch.setattr(StableDiffusionXLImg2ImgPipeline, "load_ip_adapter", full_at_first)
    pipeline = Pipeline(
        files,
        a_lora(tmp_path / "a.safetensors", files),
        torch.device("cpu"),
        torch.float32,
    )
    assert len(tries) == 2
    [notice] = pipeline.notices
    assert "text encoder" in notice


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_processor_without_half_precision_works_in_fp32(dtype, monkeypatch) -> None:
    """Bit for bit as the rounded weights do in fp32; the weights of the layers stay as they are."""
    monkeypatch.setattr("std_cli.diffusion.pipeline.has_arithmetic", lambda device, dtype: False)
    files, cpu = resolve_model(micro()), torch.device("cpu")
    held = ImagePipeline(files, None, cpu, dtype)
    assert held.dtype == torch.float32
    assert [n for n in held.notices if "no arithmetic" in n] != []
    rounded = ImagePipeline(files, None, cpu, torch.float32)
    assert [n for n in rounded.notices if "no arithmetic" in n] == []
    settings = image_settings({"model": micro(), "steps": 2, "size": 64})
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    made = []
    for pipeline in (held, rounded):
        pipe = pipeline.pipe
        if pipeline is rounded:
            for part in (pipe.unet, pipe.vae):
                part.to(dtype).to(torch.float32)
            for part in pipeline._encoders:
                part.to(dtype)
            compute_in(pipe.unet, torch.float32)  # what the encoders give is not in fp32
        pipeline.set_style([picture], [1.0], 1.0, "all")
        made.append(pipeline.stylize(picture, settings, "quickstart", lambda step: None))
    assert np.array_equal(*made)
    for part in (held.pipe.unet, held.pipe.vae):
        assert {m.weight.dtype for m in part.modules() if isinstance(m, LAYERS)} == {dtype}
