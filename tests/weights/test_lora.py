"""LoRA files of every spelling and method: one reader for `--lora`, inspect and convert, and one
writer."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.convert import convert
from std_cli.weights.files import read_header
from std_cli.weights.inspect import METADATA_CHARACTERS, METADATA_KEYS, inspect_file
from std_cli.weights.lora import LoraFile, check_lora, read_lora, resolve_lora
from std_cli.weights.lora.family import UNETS, lora_family, unet_layers
from std_cli.weights.lora.layer import Layer
from std_cli.weights.lora.names import from_original, parse, to_original
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.lora.write import lora_bytes
from std_cli.weights.parts import check_adapter
from std_cli.weights.resolve import TINY, resolve_model
from tests.weights.test_sdxl_files import UNET

# --- names --------------------------------------------------------------------------------------


def original_names():
    """{diffusers' layer: name in the original SDXL}, by the rule that ComfyUI documents in
    `unet_to_diffusers`, and that sd-scripts' `SdxlUNet2DConditionModel` is built by: blocks count
    on, each with what it has inside.
    """
    resnet = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
    resnet |= {"norm1": "in_layers.0", "norm2": "out_layers.0", "conv_shortcut": "skip_connection"}
    out = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    out |= {f"time_embedding.linear_{i + 1}": f"time_embed.{2 * i}" for i in range(2)}
    out |= {f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)}
    places = {}
    number = 1
    for block in range(3):
        for at in range(2):
            places[f"down_blocks.{block}.resnets.{at}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{block}.attentions.{at}"] = f"input_blocks.{number}.1"
            number += 1
        out[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    places |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    places["mid_block.resnets.1"] = "middle_block.2"
    for number in range(9):
        block, at = divmod(number, 3)
        places[f"up_blocks.{block}.resnets.{at}"] = f"output_blocks.{number}.0"
        places[f"up_blocks.{block}.attentions.{at}"] = f"output_blocks.{number}.1"
        if at == 2:
            out[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number}.2.conv"
    for layer in unet_layers("SDXL"):
        for ours, theirs in places.items():
            if layer.startswith(f"{ours}."):
                rest = layer.removeprefix(f"{ours}.")
                out[layer] = f"{theirs}.{resnet[rest] if 'resnets' in ours else rest}"
    return {layer: name for layer, name in out.items() if layer in unet_layers("SDXL")}


CONFIGS = {
    "SDXL": UNET,
    "Stable Diffusion 1.5": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
    },
    "Stable Diffusion 2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "SDXL refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "transformer_layers_per_block": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
    },
}


@pytest.mark.parametrize("name", UNETS)
def test_the_layers_of_each_family_are_those_of_diffusers(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(CONFIGS[name])
    weighty = {
        n: tuple(m.weight.shape)
        for n, m in unet.named_modules()
        if getattr(m, "weight", None) is not None
    }
    assert unet_layers(name) == weighty


def test_every_name_of_sdxl_in_both_block_namings():
    names = original_names()
    assert names.keys() == unet_layers("SDXL").keys() and len(set(names.values())) == 1050
    for layer, theirs in names.items():
        assert (to_original(layer), from_original(theirs)) == (theirs, layer)
        for key in (
            f"lora_unet_{theirs.replace('.', '_')}",
            f"diffusion_model.{theirs}",
            f"unet.{theirs}",
            theirs,
        ):
            assert parse(f"{key}.lora_up.weight").layer == layer, key
        for key in (
            f"lora_unet_{layer.replace('.', '_')}",
            f"unet.base_model.model.{layer}",
            layer,
        ):
            assert parse(f"{key}.lora_up.weight").layer == layer, key


def test_the_kohya_spelling_has_the_keys_that_other_tools_map():
    """ComfyUI maps "lora_unet_" and an original name with _ for each ".", and the same with
    diffusers' names.

    sd-scripts adapts layers inside of Transformer2DModel, ResnetBlock2D, Downsample2D and
    Upsample2D by their original names. So what `std distill` trains by default has a place in both.
    """
    from std_cli.weights.lora.write import _kohya
    from tests.weights.test_resolve import pairs

    with torch.device("meta"):
        plain = pairs(UNet2DConditionModel.from_config(UNET), rank=4, device="meta")
    names = {
        f"lora_unet_{theirs.replace('.', '_')}": layer for layer, theirs in original_names().items()
    }
    made = _kohya(of_pairs("mine", plain, 4))
    ends = {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(made) == 3 * 788
    for key, tensor in made.items():
        module, end = key.split(".", 1)
        assert end in ends and (
            "input_blocks" in key or "middle_block" in key or "output_blocks" in key
        )
        if end != "alpha":
            assert (
                tensor
                is plain[f"{names[module]}.lora_{'A' if end == 'lora_down.weight' else 'B'}.weight"]
            )


# --- methods -----------------------------------------------------------------------------------


def number(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def low(out, inner, rank=2, kernel=()):
    return {
        "lora_down.weight": number(rank, inner, *kernel),
        "lora_up.weight": number(out, rank, *[1] * len(kernel)),
    }


def methods(out, inner, kernel=()):
    """{name: tensors} of every method that is computed, for a weight (out, in[, kh, kw]); sides are
    even."""
    ones = [1] * len(kernel)
    flat = int(np.prod(kernel)) if kernel else 1
    made = {
        "LoRA": low(out, inner, kernel=kernel),
        "DoRA": low(out, inner, kernel=kernel) | {"dora_scale": number(out, 1, *ones).abs() + 0.1},
        "DoRA of inputs": low(out, inner, kernel=kernel) | {"dora_scale": number(1, inner,
        *ones).abs() + 0.1},
        "LoHa": {f"hada_w{i}_a": number(out, 2) for i in (1, 2)}
        | {f"hada_w{i}_b": number(2, inner * flat) for i in (1, 2)},
        "LoKr": {"lokr_w1": number(2, 2), "lokr_w2": number(out // 2, inner // 2, *kernel)},
        "LoKr in factors": {
            "lokr_w1_a": number(2, 3), "lokr_w1_b": number(3, 2),
            "lokr_w2_a": number(out // 2, 3), "lokr_w2_b": number(3, inner // 2, *kernel),
        },
        "GLoRA": {
            "a1": number(inner, 2, *ones), "a2": number(2, inner, *ones),
            "b1": number(out, 2, *ones), "b2": number(2, inner, *kernel),
        },
        "full difference": {"diff": number(out, inner, *kernel)},
    }  # fmt: skip
    if kernel:
        made["LoRA with a core"] = low(out, inner, kernel=(1, 1)) | {
            "lora_mid.weight": number(2, 2, *kernel)
        }
        made["LoHa with cores"] = {
            f"hada_w{i}_{s}": number(2, out if s == "a" else inner) for i in (1, 2) for s in "ab"
        }
        made["LoHa with cores"] |= {f"hada_t{i}": number(2, 2, *kernel) for i in (1, 2)}
        made["LoKr with a core"] = {"lokr_w1": number(2, 2), "lokr_w2_a": number(3, out // 2)}
        made["LoKr with a core"] |= {
            "lokr_w2_b": number(3, inner // 2),
            "lokr_t2": number(3, 3, *kernel),
        }
    return made


def by_hand(name, tensors, weight, alpha):
    """The adapted weight in float64, written out position by position of the kernel."""
    t = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    out, inner = weight.shape[:2]
    base = weight.double().numpy().reshape(out, inner, -1)
    at = range(base.shape[2])

    def kernel(key):
        return t[key].reshape(*t[key].shape[:2], -1)

    def core(key, a, b):
        return np.stack([a.T @ kernel(key)[:, :, k] @ b for k in at], 2)

    if name.startswith(("LoRA", "DoRA")):
        up, down = t["lora_up.weight"].reshape(out, -1), kernel("lora_down.weight")
        middle = (
            [kernel("lora_mid.weight")[:, :, k] @ down[:, :, 0] for k in at]
            if "core" in name
            else down.transpose(2, 0, 1)
        )
        change = np.stack([up @ m for m in middle], 2) * alpha / 2
    elif name == "LoHa":
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * alpha / 2
    elif name == "LoHa with cores":
        change = (
            core("hada_t1", t["hada_w1_a"], t["hada_w1_b"])
            * core("hada_t2", t["hada_w2_a"], t["hada_w2_b"])
            * alpha
            / 2
        )
    elif name.startswith("LoKr"):
        first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        if "core" in name:
            second = core("lokr_t2", t["lokr_w2_a"], t["lokr_w2_b"])
        elif "factors" in name:
            second = np.stack([t["lokr_w2_a"] @ kernel("lokr_w2_b")[:, :, k] for k in at], 2)
        else:
            second = kernel("lokr_w2")
        change = np.stack([np.kron(first, second[:, :, k]) for k in at], 2)
        # whole factors have no rank to be scaled by
        change = change * (1 if name == "LoKr" else alpha / 3)
    elif name == "GLoRA":
        a = t["a1"].reshape(inner, -1) @ t["a2"].reshape(-1, inner)
        b = [t["b1"].reshape(out, -1) @ kernel("b2")[:, :, k] for k in at]
        change = np.stack([base[:, :, k] @ a + b[k] for k in at], 2) * alpha / 2
    else:
        change = t["diff"]
    new = base + change.reshape(base.shape)
    if name == "DoRA":
        new *= t["dora_scale"].reshape(-1, 1, 1) / np.sqrt((new**2).sum((1, 2), keepdims=True))
    elif name == "DoRA of inputs":
        new *= t["dora_scale"].reshape(1, -1, 1) / np.sqrt((new**2).sum((0, 2), keepdims=True))
    return torch.from_numpy(new.reshape(weight.shape))


@pytest.mark.parametrize("kernel", [(), (3, 3), (1, 1)], ids=["linear", "3x3", "1x1"])
def test_methods_against_their_formulas(tmp_path, kernel):
    weight = number(8, 6, *kernel) + 1
    for name, tensors in methods(8, 6, kernel).items():
        keys = {
            f"lora_unet_conv_in.{k}{'.weight' * (len(k) == 2)}": tensor
            for k, tensor in tensors.items()
        }
        save_file(
            keys | {"lora_unet_conv_in.alpha": torch.tensor(3, dtype=torch.int64)},
            tmp_path / "x.safetensors",
        )
        [layer] = read_lora(tmp_path / "x.safetensors", name).layers.values()
        wanted = by_hand(name, tensors, weight, 3)
        torch.testing.assert_close(
            layer.weight(weight).double(), wanted, rtol=1e-4, atol=1e-4, msg=name
        )
        half = layer.weight(weight, 0.5).double()
        torch.testing.assert_close(half, (weight + wanted) / 2, rtol=1e-4, atol=1e-4, msg=name)


def test_convolutions_for_linear_layers_and_the_reverse():
    """A 1 x 1 kernel is as good as none, on either side."""
    pair = low(8, 6)
    with_kernel = {key: tensor[:, :, None, None] for key, tensor in pair.items()}
    weight = number(8, 6)
    wanted = weight + pair["lora_up.weight"] @ pair["lora_down.weight"]
    for tensors, base in product((pair, with_kernel), (weight, weight[:, :, None, None])):
        torch.testing.assert_close(Layer(tensors, 2.0).weight(base).flatten(1), wanted)


def test_what_peft_adds_to_a_pair(tmp_path):
    """A bias of lora_B is scaled as the product is; DoRA's magnitude is (out,)."""
    pair = low(8, 6)
    content = {"base_model.model.x.lora_A.default.weight": pair["lora_down.weight"]}
    content |= {"base_model.model.x.lora_B.default.weight": pair["lora_up.weight"]}
    content |= {
        "base_model.model.x.lora_B.default.bias": torch.ones(8),
        "base_model.model.x.alpha": torch.tensor([[6.0]]),
    }
    content |= {"base_model.model.x.lora_magnitude_vector.default.weight": torch.full((8,), 2.0)}
    save_file(content, tmp_path / "x.safetensors")
    layer = read_lora(tmp_path / "x.safetensors", "x").layers["x"]
    assert layer.methods == ["DoRA", "LoRA", "full difference"] and layer.scale == 3
    assert torch.equal(layer.bias(), torch.full((8,), 3.0))
    torch.testing.assert_close(layer.weight(number(8, 6)).norm(dim=1), torch.full((8,), 2.0))


# --- one reader for all ------------------------------------------------------------------------

SPELLINGS = {
    "kohya": lambda layer: f"lora_unet_{layer.replace('.', '_')}",
    "kohya, original blocks": lambda layer: f"lora_unet_{to_original(layer).replace('.', '_')}",
    "lycoris": lambda layer: f"lycoris_{layer.replace('.', '_')}",
    "diffusers": lambda layer: f"unet.{layer}",
    "peft": lambda layer: f"base_model.model.{layer}",
    "comfyui": lambda layer: f"diffusion_model.{to_original(layer)}",
    "onetrainer": lambda layer: f"unet.{to_original(layer)}",
    "bare": lambda layer: layer,
}
HALVES = {
    "lora_down.weight": (
        "lora_down.weight",
        "lora_A.weight",
        "lora_A.default.weight",
        "lora.down.weight",
        "lora_A",
    ),
    "lora_up.weight": (
        "lora_up.weight",
        "lora_B.weight",
        "lora_B.default.weight",
        "lora.up.weight",
        "lora_B",
    ),
}
ASIDE = (
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "te1.text_model.encoder.layers.0.mlp.fc1.hada_w1_a",
    "bundle_emb.tok.clip_l",
    "embeddings.tok.clip_g",
    "emb_params",
)


@pytest.fixture(scope="module")
def tiny_unet():
    return UNet2DConditionModel.from_pretrained(TINY, subfolder="unet")


def random_file(dice, unet):
    """(content, what it is) of a file that fits the embedded model: some layers, each of a random
    method."""
    layers = {
        n: m
        for n, m in unet.named_modules()
        if getattr(m, "weight", None) is not None and m.weight.ndim in (2, 4)
    }
    spelling = dice.choice(list(SPELLINGS))
    half = dice.randrange(5)
    content = {}
    for layer in dice.sample(sorted(layers), 4):
        out, inner, *kernel = layers[layer].weight.shape
        choices = (
            methods(out, inner, tuple(kernel))
            if out % 2 == inner % 2 == 0
            else {"LoRA": low(out, inner)}
        )
        if 1 in (out, inner) or (out, inner) == (4, 48):
            choices = {"LoRA": low(out, inner, kernel=tuple(kernel))}
        for part, tensor in dice.choice(list(choices.values())).items():
            end = (
                HALVES[part][half]
                if part in HALVES
                else f"{part}.weight"
                if len(part) == 2
                else part
            )
            content[f"{SPELLINGS[spelling](layer)}.{end}"] = tensor.to(
                dice.choice([torch.float32, torch.bfloat16])
            )
        if dice.random() < 0.5:
            content[f"{SPELLINGS[spelling](layer)}.alpha"] = torch.tensor(dice.choice([1, 2.5]))
    for key in dice.sample(ASIDE, dice.randrange(3)):
        content[key] = torch.ones(2)
    return content, spelling


def damage(dice, content):
    """Make it a file that nobody can use; content is changed."""
    key = dice.choice(
        [k for k in content if k not in ASIDE and not k.endswith((".alpha", ".diff", ".diff_b"))]
        or [*content]
    )
    match dice.randrange(6):
        case 0:
            content[key] = torch.full_like(content[key], torch.nan)
        case 1:
            content[key] = content[key].int()
        case 2:
            content["unet.mid_block.attentions.0.proj_in.oft_blocks"] = torch.ones(2, 3, 3)
        case 3:
            content["unet.mid_block.resnets.0.conv1.lora_A.weight"] = torch.ones(2, 128, 3, 3)
        case 4:
            content["unet.mid_block.nothing_known"] = torch.ones(2)
        case 5:
            for name in [k for k in content if k not in ASIDE]:
                del content[name]
            content[ASIDE[0]] = torch.ones(1)


@pytest.mark.parametrize("seed", range(40))
def test_the_three_doors_agree(tmp_path, tiny_unet, seed):
    dice = random.Random(seed)
    content, spelling = random_file(dice, tiny_unet)
    broken = seed % 2 == 1
    if broken:
        damage(dice, content)
    file = tmp_path / "x.safetensors"
    save_file(content, file)
    facts = inspect_file(file)
    assert facts["kind"] == "lora"
    asked = {"model": resolve_model("tiny"), "task": "i2i", "eta": 0.75}
    if broken:
        with pytest.raises(InputError) as refused:
            resolve_lora(str(file), **asked)
        with pytest.raises(InputError) as unconverted:
            convert(file, tmp_path / "out", to="kohya")
        told = str(refused.value).removeprefix("--lora ")
        assert (
            told == str(unconverted.value) == facts["problem"]
            and "\n" not in told
            and "repair" not in told
        )
        assert facts["fits"] == [] and not (tmp_path / "out").exists()
        return
    assert resolve_lora(str(file), **asked) is not None
    weights = read_lora(file, "x")
    matched, total = check_lora(weights, tiny_unet)
    assert matched == total and len(weights.layers) == 4, spelling
    assert facts["problem"] is None and facts["fits"] == [
        "--lora, for pictures and videos, with --model tiny"
    ]
    assert facts["notices"] == weights.notices and len(weights.notices) == any(
        key in content for key in ASIDE
    )
    plain = facts["methods"].keys() == {"LoRA"}
    for to in ("kohya", "diffusers", "peft"):
        if to != "kohya" and not plain:
            with pytest.raises(InputError, match="no plain LoRA .first .*use --to kohya"):
                convert(file, tmp_path / to, to=to)
            continue
        assert convert(file, tmp_path / to, to=to)["notices"] == weights.notices
        back = read_lora(
            tmp_path / to / "adapter_model.safetensors" if to == "peft" else tmp_path / to, "y"
        )
        assert back.layers.keys() == weights.layers.keys() and back.notices == []


def test_a_misfit_is_known_before_a_weight_is_loaded(tmp_path):
    """As std plan and --dry-run need it: in another width, of another model, for videos, and on
    convolutions."""
    from PIL import Image

    from std_cli.stylize.pictures import prepare_images

    moving = "down_blocks.0.motion_modules.0.proj_in"
    for layer, pair, told in (
        (
            "mid_block.attentions.0.proj_in",
            low(96, 128),
            r"1 layers differ in shape .first .*: .96, 128. for .128, 128.",
        ),
        (
            "mid_block.resnets.7.conv1",
            low(128, 128, kernel=(3, 3)),
            "0 of 2 tensors match this UNet",
        ),
        (moving, low(48, 48), "it is for videos: give --motion auto"),
        ("mid_block.attentions.0.proj_in", low(1280, 1280), "it is for SDXL|differ in shape"),
    ):
        save_file(
            {f"unet.{layer}.{key}": tensor for key, tensor in pair.items()},
            tmp_path / "x.safetensors",
        )
        file = LoraFile("x", tmp_path / "x.safetensors", 1.0, None, {}, None)
        with pytest.raises(InputError, match=told):
            check_adapter(resolve_model("tiny"), None, file, False)
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(InputError, match="--lora .*x.safetensors: 1 layers differ in shape"):
        prepare_images(
            picture, picture, model="tiny", size=64, lora=str(tmp_path / "x.safetensors")
        )


@pytest.mark.parametrize(
    "old", ["processor.{}_lora.{}.weight", "processor.{}.lora_linear_layer.{}.weight"]
)
def test_attention_as_diffusers_named_it_first(tmp_path, tiny_unet, old):
    attention, content = "mid_block.attentions.0.transformer_blocks.0.attn1", {}
    for layer in ("to_q", "to_k", "to_v", "to_out"):
        for half, part in (("down", "lora_down.weight"), ("up", "lora_up.weight")):
            content[f"unet.{attention}.{old.format(layer, half)}"] = low(128, 128)[part]
    save_file(content, tmp_path / "x.safetensors")
    weights = read_lora(tmp_path / "x.safetensors", "x")
    assert {*weights.layers} == {
        f"{attention}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    assert (
        check_lora(weights, tiny_unet) == (8, 8)
        and inspect_file(tmp_path / "x.safetensors")["problem"] is None
    )


# --- families ----------------------------------------------------------------------------------


def some_layers(family, *ends, start=""):
    return {
        n: s for n, s in unet_layers(family).items() if n.endswith(ends) and n.startswith(start)
    }


@pytest.mark.parametrize("family", UNETS)
@pytest.mark.parametrize(
    "ends", [("attn1.to_q", "ff.net.0.proj"), ("conv1", "conv2"), ("attn2.to_k",), ("proj_in",)]
)
def test_families_by_shapes_alone(family, ends):
    """Without cross attention, too; only what both have in the same shape leaves a choice of 1.5
    and 2."""
    found = lora_family(some_layers(family, *ends), {}, (), False)
    if found is None:
        assert family in ("Stable Diffusion 1.5", "Stable Diffusion 2")
    else:
        assert found.name == family and found.why == f"by its shapes, {found.cross} wide"


def test_families_where_shapes_leave_a_choice():
    """The first level's first attention of 640 is the same in SD 1.5, 2 and SDXL, but for its
    depth."""
    ends = ("0.attn1.to_k", "0.attn1.to_q", "0.ff.net.0.proj", "0.ff.net.2")
    shapes = some_layers("SDXL", *ends, start="down_blocks.1.attentions.0")
    old = lora_family(shapes, {}, (), False)
    assert old is None
    assert lora_family(shapes, {}, (), True).name == "SDXL", (
        "only SDXL's have the original's names in kohya's files"
    )
    for version, name in {
        "sdxl_base_v1-0": "SDXL",
        "sd_v1": "Stable Diffusion 1.5",
        "sd_v2": "Stable Diffusion 2",
    }.items():
        found = lora_family(shapes, {"ss_base_model_version": version}, (), True)
        assert (found.name, found.why) == (name, "by its metadata")
    said = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    assert lora_family(shapes, said, (), False).name == "SDXL"
    assert lora_family(shapes, {}, ["lora_te2_x.alpha"], False).why == "by its second text encoder"
    wide = some_layers("SDXL", "attn2.to_v")
    assert lora_family(wide, {"ss_base_model_version": "sd_v1"}, (), False).name == "SDXL", (
        "shapes go first"
    )
    assert lora_family({"conv_in": (8, 4, 3, 3)}, said, (), True) is None


# --- what is shown and written -----------------------------------------------------------------


def test_long_metadata_are_cut(tmp_path, capsys):
    from std_cli.cli.commands import run

    pair = {f"unet.conv_in.{key}": tensor for key, tensor in low(48, 4, kernel=(3, 3)).items()}
    metadata = {"ss_tag_frequency": "x" * 8_000_000, "a": "short"} | {
        f"key{i}": "v" for i in range(300)
    }
    save_file(pair, tmp_path / "x.safetensors", metadata)
    facts = inspect_file(tmp_path / "x.safetensors")
    assert max(map(len, facts["metadata"].values())) <= METADATA_CHARACTERS
    assert (
        len(facts["metadata"]) == METADATA_KEYS
        and facts["metadata_cut"]["..."] == 302 - METADATA_KEYS
    )
    for flags, most in ([], 4_000), (["--json"], 20_000):
        assert run(["models", "inspect", str(tmp_path / "x.safetensors"), *flags]) == 0
        assert len(capsys.readouterr().out) < most
    convert(tmp_path / "x.safetensors", tmp_path / "out", to="diffusers")
    assert len(read_header(tmp_path / "out")[1]["ss_tag_frequency"]) == 8_000_000, (
        "convert keeps it whole"
    )


def test_equal_contents_give_equal_bytes():
    weights = of_pairs("x", {f"conv_in.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}, 2)
    metadata = {f"key{i}": "é" for i in range(40)}
    made = {
        lora_bytes(weights, to, dict(items))
        for to in ("kohya",)
        for items in (metadata.items(), [*metadata.items()][::-1])
    }
    assert len(made) == 1
    [data] = made
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0 and data[8 : 8 + size].startswith(b'{"__metadata__":{"format":"pt","key0"')
