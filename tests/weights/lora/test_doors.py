"""LoRA files of every spelling and method: one reader for `--lora`, inspect and convert, and one
writer."""

import random

import pytest
import torch
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.convert import convert
from std_cli.weights.files import read_header
from std_cli.weights.inspect import METADATA_CHARACTERS, METADATA_KEYS, inspect_file
from std_cli.weights.lora import check_lora, read_lora, resolve_lora
from std_cli.weights.lora.names import to_original
from std_cli.weights.resolve import resolve_model
from tests.weights.lora.tensors import low, methods

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
        message = str(refused.value).removeprefix("--lora ")
        assert (
            message == str(unconverted.value) == facts["problem"]
            and "\n" not in message
            and "repair" not in message
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
            with pytest.raises(InputError, match="no plain LoRA: .* .first .*use --to kohya"):
                convert(file, tmp_path / to, to=to)
            continue
        assert convert(file, tmp_path / to, to=to)["notices"] == weights.notices
        back = read_lora(
            tmp_path / to / "adapter_model.safetensors" if to == "peft" else tmp_path / to, "y"
        )
        assert back.layers.keys() == weights.layers.keys() and back.notices == []


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
