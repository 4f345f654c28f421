"""The path of real weights, on folders that are SDXL in everything but width.

No real weight can be had where these tests run. Real here: the configs, as published, the names of
files and tensors, the number and place of the blocks, and the layout of the Hub's cache; what is
not: widths, values, the vocabulary, and the number of layers of the CLIP encoders.
"""

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, TCDScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from std_cli import stylize_image
from std_cli.config import image_settings
from std_cli.diffusion.pipeline import ImagePipeline
from std_cli.errors import InputError
from std_cli.media.palette import rounded
from std_cli.media.write_picture import read_metadata
from std_cli.weights import resolve
from std_cli.weights.convert import convert
from std_cli.weights.hub import source
from std_cli.weights.inspect import inspect_file
from std_cli.weights.parts import _in_one_file, check_model
from tests.hub import Hub
from tests.processes import std
from tests.weights.processes import std as std_of_home
from tests.weights.sdxl import (
    NARROW_UNET,
    NARROW_VAE,
    TEXT,
    TEXT_2,
    UNET,
    VAE,
    VISION,
    Sdxl,
    State,
    ip_adapter,
    link,
    original,
    write_json,
)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Sdxl:
    return Sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An HF_HOME of this test, empty, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "home"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ImagePipeline]:
    """The pipelines that a run builds."""
    pipelines = []

    class Kept(ImagePipeline):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            pipelines.append(self)

    monkeypatch.setattr("std_cli.diffusion.pipeline.ImagePipeline", Kept)
    return pipelines


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def assert_holds(part: torch.nn.Module, state: State, also: str = r"(?!)") -> None:
    """Its weights are exactly those of a file, in fp32; but for names that match `also`, which are
    in addition."""
    found = {
        key.removeprefix("text_model."): t
        for key, t in part.state_dict().items()
        if not re.search(also, key)
    }
    wanted = {key.removeprefix("text_model."): t.float() for key, t in state.items()}
    assert found.keys() == wanted.keys()
    assert [
        k
        for k, t in wanted.items()
        if found[k].dtype != torch.float32 or not torch.equal(found[k], t)
    ] == []


IP_WEIGHTS = r"_ip\.0\.weight$|^encoder_hid_proj\."

# --- a folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plus", "plain"])
def test_a_folder_of_fp16_files(
    sdxl: Sdxl,
    kind: str,
    home: Path,
    built: list[ImagePipeline],
    photo: Image.Image,
    reference: Path,
) -> None:
    """With the published LoRA and plus; without one and plain."""
    sdxl.fill(home)
    folder = home / "mine"
    link(sdxl.base, folder)
    link(sdxl.h94 / "models" / "image_encoder", folder / "image_encoder")
    (folder / "ip_adapter").mkdir()
    link(
        sdxl.h94 / "sdxl_models" / f"{sdxl.adapters[kind]}.safetensors",
        folder / "ip_adapter" / "any.safetensors",
    )
    lora = {"plus": "auto", "plain": "none"}[kind]
    request = {
        "model": str(folder),
        "size": 64,
        "steps": 1,
        "cfg": 6,
        "device": "cpu",
        "dtype": "fp32",
        "lora": lora,
    }
    small = photo.resize((64, 64))
    [out] = stylize_image(small, reference, **request)
    assert out.size == (64, 64)

    [whole] = built
    pipe = whole.pipe
    scales = {name: p.scale for name, p in pipe.unet.attn_processors.items() if hasattr(p, "scale")}
    styled = [f"up_blocks.0.attentions.1.transformer_blocks.{i}.attn2.processor" for i in range(10)]
    assert len(scales) == 70
    assert {name: scale for name, scale in scales.items() if scale != [0]} == {
        name: [1] for name in styled
    }
    found, adapter = pipe.unet.state_dict(), sdxl.states[kind]
    for i, name in enumerate(styled):  # InstantStyle's style block: ip_adapter.69 to 87
        for half in ("to_k_ip", "to_v_ip"):
            wanted = adapter[f"ip_adapter.{69 + 2 * i}.{half}.weight"].float()
            assert torch.equal(found[f"{name}.{half}.0.weight"], wanted)

    for part in ("vae", "text_encoder", "text_encoder_2"):
        assert_holds(getattr(pipe, part), sdxl.states[part])
    if kind == "plus":
        assert_fused(found, sdxl.states["unet"], sdxl.states["lora"])
    else:
        assert_holds(pipe.unet, sdxl.states["unet"], also=IP_WEIGHTS)
    for tokenizer, pad in ((pipe.tokenizer, 891), (pipe.tokenizer_2, 0)):
        assert (
            tokenizer("a dog", padding="max_length").input_ids == [890, 320, 828, 891] + [pad] * 73
        )
    assert isinstance(pipe.scheduler, TCDScheduler)
    # SDXL's last noise level
    assert float(pipe.scheduler.alphas_cumprod[999]) == pytest.approx(0.00466, rel=1e-3)

    # hidden states of 257 patches or one embedding, each for the unconditional side and the styled
    # one
    assert whole.style is not None
    assert whole.style.shape == {"plus": (2, 1, 257, 32), "plain": (2, 1, 48)}[kind]
    one, other = (render(whole, small, style, request) for style in (Image.open(reference), photo))
    assert difference(one, out) == 0 and difference(one, other) > 0


def render(
    whole: ImagePipeline, image: Image.Image, style: Image.Image, request: dict[str, Any]
) -> Image.Image:
    """Once more with a pipeline that is there already."""
    whole.set_style([style.convert("RGB")], [1.0], 1.0, "style")
    levels = whole.stylize(image, image_settings(request), "quickstart", lambda step: None)
    return Image.fromarray(rounded(levels))


def assert_fused(found: State, base: State, lora: State) -> None:
    """Every one of METHOD's 788 layers is W + B A, and all else is as it was."""
    layers = {
        key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in lora if "lora_A" in key
    }
    assert len(layers) == 788
    for key, tensor in base.items():
        layer, wanted = key.removesuffix(".weight"), tensor.float()
        if key.endswith(".weight") and layer in layers:
            down, up = (lora[f"unet.{layer}.lora_{half}.weight"] for half in "AB")
            wanted = wanted + (up.flatten(1) @ down.flatten(1)).view_as(wanted)
            layers.remove(layer)
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=1e-6, msg=key)
    assert not layers
    # no wrapper is left
    assert all(re.search(IP_WEIGHTS, key) for key in found.keys() - base.keys())


def test_half_precision(
    sdxl: Sdxl,
    home: Path,
    built: list[ImagePipeline],
    photo: Image.Image,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a GPU runs by default: the VAE, too, though its config says force_upcast, as these
    weights fit into fp16."""
    monkeypatch.setattr("std_cli.diffusion.pipeline.has_arithmetic", lambda device, dtype: True)
    sdxl.fill(home)
    small = photo.resize((64, 64))
    request: dict[str, Any] = {
        "model": "sdxl",
        "size": 64,
        "steps": 1,
        "device": "cpu",
        "lora": "none",
    }
    [half] = stylize_image(small, reference, dtype="fp16", **request)
    pipe, decoded_in = built[0].pipe, []
    pipe.vae.decoder.register_forward_pre_hook(
        lambda module, inputs: decoded_in.append(inputs[0].dtype)
    )
    again = render(built[0], small, Image.open(reference), request)
    assert difference(half, again) == 0
    assert decoded_in == [torch.float16] and {pipe.unet.dtype, pipe.vae.dtype} == {torch.float16}
    [full] = stylize_image(small, reference, dtype="fp32", **request)
    assert difference(half, full) <= 3


# --- the Hub's cache, end to end ---------------------------------------------------------------


def off_line(home: Path) -> None:
    """What HF_HOME and HF_HUB_OFFLINE=1 make of a process that has imported the Hub's client."""
    from huggingface_hub import constants

    constants.HF_HUB_CACHE = str(home / "hub")
    constants.HF_HUB_OFFLINE = True


@pytest.mark.parametrize(("model", "eta"), [("sdxl", 0.75), ("dreamshaper", 0.8)])
def test_from_the_cache_without_a_network(
    sdxl: Sdxl, model: str, eta: float, tmp_path: Path, picture: Path, reference: Path
) -> None:
    sdxl.fill(tmp_path / "home", model)
    command = [
        "stylize",
        "image",
        picture,
        "--style",
        reference,
        "--model",
        model,
        "--lora",
        "auto",
    ]
    command += ["--eta", eta, "--size", 64, "--output-size", "model", "--steps", 1, "-o", "out.png"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    offline = partial(off_line, tmp_path / "home")
    done = std(*command, "--json", cwd=tmp_path, env=env, before=offline)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    events = [json.loads(line) for line in done.stdout.splitlines()]
    lora = "std_sdxl_i2i_eta0.75.safetensors"
    [start] = [event for event in events if event["event"] == "start"]
    settings = [start["settings"][name] for name in ("eta", "cfg", "style_blocks", "schedule")]
    assert (start["model"], start["lora"], settings) == (
        model,
        lora,
        [eta, 6, "style", "quickstart"],
    )
    notice = (
        [f"no LoRA for eta 0.8: {lora}, trained for 0.75, is used"]
        if model == "dreamshaper"
        else []
    )
    assert [event["message"] for event in events if event["event"] == "notice"] == notice
    with Image.open(tmp_path / "out.png") as out:
        out.load()
        assert (out.format, out.mode, out.width) == ("PNG", "RGB", 64)
    assert read_metadata(tmp_path / "out.png")["settings"]["model"]["name"] == model


def test_pulled_from_a_hub_and_run_without_it(
    sdxl: Sdxl, hub: tuple[str, type[Hub]], tmp_path: Path, picture: Path, reference: Path
) -> None:
    url, handler = hub
    (tmp_path / "std").mkdir()
    link(sdxl.lora, tmp_path / "std" / sdxl.lora.name)
    places = {"sdxl": sdxl.base, "ip-adapter-plus": sdxl.h94, "std-i2i-0.75": tmp_path / "std"}
    handler.repos.update({source(name).repo: folder for name, folder in places.items()})
    image = ["stylize", "image", picture, "--style", reference, "--size", 64, "--steps", 2]
    out = tmp_path / "out.png"
    for command in (
        ["models", "pull", "--for", "image"],
        [*image, "--offline", "-o", out, "--method", "std"],
    ):
        where = {"home": tmp_path / "home", "url": url, "XDG_CACHE_HOME": str(tmp_path / "xdg")}
        done = std_of_home(*command, "--json", **where)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert read_metadata(tmp_path / "out.png")["settings"]["lora"]["name"] == sdxl.lora.name


def test_a_checkpoint_in_one_file(
    sdxl: Sdxl, home: Path, built: list[ImagePipeline], photo: Image.Image, reference: Path
) -> None:
    """Of the Hub, only the configs are in the cache: every weight must come out of the file."""
    sdxl.fill(home)
    for file in (home / "hub").glob("models--stabilityai--*/snapshots/*/*/*.safetensors"):
        file.unlink()
    state = original(sdxl.states)
    for known in (
        "input_blocks.3.0.op.bias",
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight",
        "middle_block.2.in_layers.0.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.8.0.skip_connection.bias",
        "label_emb.0.0.weight",
        "out.2.bias",
    ):
        assert f"model.diffusion_model.{known}" in state
    save_file(state, home / "checkpoint.safetensors")
    [out] = stylize_image(
        photo,
        reference,
        model=str(home / "checkpoint.safetensors"),
        size=64,
        output_size="model",
        steps=1,
        cfg=6,
        device="cpu",
        dtype="fp32",
        lora="none",
    )
    assert out.size == (64, 64)
    pipe = built[0].pipe
    assert_holds(pipe.unet, sdxl.states["unet"], also=IP_WEIGHTS)
    for part in ("vae", "text_encoder", "text_encoder_2"):
        assert_holds(getattr(pipe, part), sdxl.states[part])
    assert pipe.vae.config.force_upcast and pipe.vae.config.scaling_factor == 0.13025

    convert(home / "checkpoint.safetensors", home / "folder")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        [file] = (home / "folder" / part).glob("*.safetensors")
        written = {
            key.removeprefix("text_model."): tensor for key, tensor in load_file(file).items()
        }
        assert written.keys() == {key.removeprefix("text_model.") for key in sdxl.states[part]}
        for key, tensor in sdxl.states[part].items():
            assert torch.equal(written[key.removeprefix("text_model.")], tensor), key
    assert (
        pipe.scheduler.config.beta_schedule == "scaled_linear" and pipe.tokenizer_2.pad_token == "!"
    )


def test_a_checkpoint_that_predicts_v(
    sdxl: Sdxl, home: Path, built: list[ImagePipeline], photo: Image.Image, reference: Path
) -> None:
    sdxl.fill(home)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = home / "checkpoint.safetensors"
    save_file(original(sdxl.states) | marks, path, {"modelspec.prediction_type": "epsilon"})
    events: list[dict[str, Any]] = []
    stylize_image(
        photo,
        reference,
        model=str(path),
        size=64,
        steps=1,
        device="cpu",
        dtype="fp32",
        lora="none",
        on_event=events.append,
    )
    wanted = ("v_prediction", True)
    config = built[0].pipe.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == wanted
    assert float(built[0].pipe.scheduler.alphas_cumprod[999]) == 0
    contradiction = "its tensor v_pred says v_prediction: v_prediction is used"
    assert [contradiction in e["message"] for e in events if e["event"] == "notice"] == [True]
    done = convert(path, home / "folder")
    assert [contradiction in notice for notice in done["notices"]] == [True]
    written = json.loads((home / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert (written["prediction_type"], written["rescale_betas_zero_snr"]) == wanted


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "model.diffusion_model.output_blocks.5.2.conv.weight"),
        ("vae", "first_stage_model.decoder.up.3.upsample.conv.bias"),
        (
            "text_encoder",
            "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
        ),
        (
            "text_encoder_2",
            "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        ),
    ],
)
def test_a_checkpoint_that_lacks_a_layer(sdxl: Sdxl, home: Path, part: str, key: str) -> None:
    sdxl.fill(home)
    state = original(sdxl.states)
    checkpoint = home / "checkpoint.safetensors"
    save_file({k: t for k, t in state.items() if k != key}, checkpoint)
    model = resolve.resolve_model(str(checkpoint))
    message = rf"{part} lacks 1 of \d+ tensors \(first {re.escape(key)}\): fetch it again"
    with pytest.raises(InputError, match=message):
        check_model(model)
    with pytest.raises(InputError, match=message):
        convert(checkpoint, home / "folder")
    save_file(state | {key: torch.zeros(5)}, checkpoint)
    with pytest.raises(
        InputError, match=rf"{part} has 1 of .* shape \(first {re.escape(key)}: \[5\] for"
    ):
        check_model(model)
    save_file(state | {key: state[key].int()}, checkpoint)
    with pytest.raises(
        InputError, match=rf"{part} has 1 tensor without .* \(first {re.escape(key)}: I32"
    ):
        check_model(model)
    save_file(state | {key: state[key] * float("nan")}, checkpoint)
    check_model(model)
    with pytest.raises(
        InputError,
        match=rf"checkpoint.safetensors: NaN or infinity in 1 of .*first {re.escape(key)}",
    ):
        convert(checkpoint, home / "folder")
    assert not (home / "folder").exists()


def test_single_files_of_other_models_are_named(sdxl: Sdxl, home: Path) -> None:
    sdxl.fill(home)
    state, first = original(sdxl.states), "model.diffusion_model.input_blocks.0.0.weight"
    path = home / "x.safetensors"

    def refused(content: State, message: str) -> None:
        save_file(content, path)
        facts = inspect_file(path)
        assert facts["fits"] == [] and re.search(message, facts["problem"])
        for use in (resolve.resolve_model, lambda file: convert(file, home / "folder")):
            with pytest.raises(InputError, match=message):
                use(str(path))

    for channels, use in ((9, "inpainting"), (8, "to follow instructions")):
        wide = state | {first: torch.zeros(32, channels, 3, 3)}
        refused(
            wide,
            rf"is not an SDXL model: in_channels in .* is {channels}, not 4 \(made for "
            rf"{use}|made {use}\)",
        )
    refused(
        state | {"edm_mean": torch.zeros(4)},
        "not an SDXL checkpoint, but of Playground v2.5's kind",
    )
    unet = {k: t for k, t in state.items() if k.startswith("model.")}
    cross = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    for width, name in ((768, "Stable Diffusion 1.5"), (1024, "Stable Diffusion 2")):
        rest = {k: t for k, t in unet.items() if "attn2" not in k and "label_emb" not in k}
        refused(
            rest | {cross: torch.zeros(64, width)}, f"not an SDXL checkpoint, but {name}: it lacks"
        )
    refiner = unet | {"conditioner.embedders.0.model.ln_final.weight": torch.zeros(4)}
    refused(refiner, "not an SDXL checkpoint, but the SDXL refiner: it lacks")
    flux = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}
    refused(flux, "not an SDXL checkpoint, but Flux: it lacks")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**19}, "layers_per_block 1000"),
        ("model_index.json", {"scheduler": ["diffusers", "NoScheduler"]}, "cannot be loaded from"),
        ("scheduler/scheduler_config.json", {"beta_start": 1e-300}, None),
    ],
)
def test_configs_that_a_checkpoint_is_converted_with(
    sdxl: Sdxl, home: Path, file: str, values: dict[str, Any], message: str | None
) -> None:
    """What a library raises for them is one line, and nothing is left."""
    sdxl.fill(home)
    save_file(original(sdxl.states), home / "checkpoint.safetensors")
    [folder] = (home / "hub").glob("models--stabilityai--*/snapshots/*")
    config = json.loads((folder / file).read_text())
    (folder / file).unlink()
    write_json(folder / file, config | values)
    if message is None:
        convert(home / "checkpoint.safetensors", home / "folder")
    else:
        with pytest.raises(InputError, match=message) as error:
            convert(home / "checkpoint.safetensors", home / "folder")
        assert "\n" not in str(error.value)
    assert {path.name for path in home.iterdir()} <= {"hub", "checkpoint.safetensors", "folder"}


# --- SDXL's real size, without memory ----------------------------------------------------------


def test_real_shapes() -> None:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(UNET), AutoencoderKL.from_config(VAE)
        adapter = ip_adapter("plus", UNET, VISION, heads=20)
        narrow = (
            UNet2DConditionModel.from_config(NARROW_UNET),
            AutoencoderKL.from_config(NARROW_VAE),
        )
    assert [len(m.state_dict()) for m in (unet, vae)] == [1680, 248]
    assert [sum(p.numel() for p in m.parameters()) for m in (unet, vae)] == [
        2_567_463_684,
        83_653_863,
    ]
    # so that what is shown above with a narrow model is shown of the names of the real one
    assert [m.state_dict().keys() for m in (unet, vae)] == [m.state_dict().keys() for m in narrow]

    # the names and shapes of the real checkpoint in one file
    with torch.device("meta"):
        encoders = (
            CLIPTextModel(CLIPTextConfig(**TEXT)),
            CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2)),
        )
    networks = dict(
        zip(("unet", "vae", "text_encoder", "text_encoder_2"), (unet, vae, *encoders), strict=True)
    )
    states: dict[str, State] = {part: network.state_dict() for part, network in networks.items()}
    states["text_encoder"] = {
        f"text_model.{key}": tensor for key, tensor in states["text_encoder"].items()
    }
    stored = {key: (list(tensor.shape), "F16") for key, tensor in original(states).items()}
    wanted = {part: _in_one_file(part, network, stored) for part, network in networks.items()}
    assert [len(names) for names in wanted.values()] == [1680, 248, 196, 389]
    for part, names in wanted.items():
        assert {key: stored[key][0] for key in names} == names, part

    kinds = ("image_proj", "ip_adapter")
    unet._load_ip_adapter_weights(
        {
            kind: {k.removeprefix(f"{kind}."): t for k, t in adapter.items() if k.startswith(kind)}
            for kind in kinds
        }
    )
    taken = {name: p for name, p in unet.attn_processors.items() if hasattr(p, "to_k_ip")}
    assert len(taken) == 70 and all(name.endswith("attn2.processor") for name in taken)
    assert sum(w.numel() for p in taken.values() for w in p.parameters()) == 340_787_200
    [projection] = unet.encoder_hid_proj.image_projection_layers
    assert projection.latents.shape == (1, 16, 1280) and projection.proj_out.weight.shape == (
        2048,
        1280,
    )
