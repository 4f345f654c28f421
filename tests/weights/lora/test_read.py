"""LoRA files of every spelling, as the one reader takes them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights.inspect import inspect_file
from std_cli.weights.lora import (
    LoraWeights,
    check_lora,
    read_lora,
    resolve_lora,
)
from tests.weights.files import SPELLINGS, model, small_unet, tensors
from tests.weights.lora.tensors import low, number


def read(
    path: Path, content: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> LoraWeights:
    tensors(path, content, metadata)
    return read_lora(path, path.name)


def scales(weights: LoraWeights) -> dict[str, float]:
    return {name: layer.scale for name, layer in weights.layers.items()}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_layers(
    tmp_path: Path, plain: dict[str, torch.Tensor], spelling: str
) -> None:
    lora = read(
        tmp_path / "x.safetensors",
        {SPELLINGS[spelling](key): tensor for key, tensor in plain.items()},
    )
    assert 2 * len(lora.layers) == len(plain) and lora.notices == []
    assert check_lora(lora, small_unet()) == (len(plain), len(plain))
    for name, layer in lora.layers.items():
        assert torch.equal(layer.tensors["lora_down.weight"], plain[f"{name}.lora_A.weight"])
        assert torch.equal(layer.tensors["lora_up.weight"], plain[f"{name}.lora_B.weight"])
        assert layer.scale == 1


def test_kohya_names_of_the_original_blocks(tmp_path: Path) -> None:
    """Pairs of names from the conversion table in diffusers'
    scripts/convert_diffusers_to_original_sdxl.py."""
    attentions = "down_blocks.1.attentions.0", "up_blocks.0.attentions.2"
    inside = "transformer_blocks.0.attn1.to_q", "transformer_blocks.9.ff.net.0.proj"
    names = {
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": f"{attentions[0]}.{inside[0]}",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks_2_1_transformer_blocks_9_ff_net_0_proj": f"{attentions[1]}.{inside[1]}",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    }
    content = {}
    for rank, name in enumerate(names, start=1):
        content[f"lora_unet_{name}.lora_down.weight"] = torch.zeros(rank, 3)
        content[f"lora_unet_{name}.lora_up.weight"] = torch.zeros(5, rank)
        content[f"lora_unet_{name}.alpha"] = torch.tensor(rank / 2)
    content["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.zeros(2, 2)
    lora = read(tmp_path / "x.safetensors", content)
    assert {name: layer.alpha for name, layer in lora.layers.items()} == {
        m: r / 2 for r, m in enumerate(names.values(), 1)
    }
    assert lora.notices == ["left out, as only the UNet is adapted: 1 tensor for the text encoders"]


@pytest.mark.parametrize("spelling", ["hook", "lora.down", "kohya"])
def test_alpha_of_each_layer(tmp_path: Path, plain: dict[str, torch.Tensor], spelling: str) -> None:
    """Also with ranks that differ, and with an alpha for some layers only: the others keep alpha =
    rank."""
    content, wanted = {}, {}
    for index, module in enumerate(sorted({key.split(".lora_")[0] for key in plain})):
        rank = 2 + index % 3
        for half, size in (("lora_A.weight", 0), ("lora_B.weight", 1)):
            key = f"{module}.{half}"
            content[SPELLINGS[spelling](key)] = (
                plain[key].narrow(size, 0, rank if rank < 4 else 4).contiguous()
            )
        wanted[module] = 1.0
        if index % 4:
            alpha = 1.0 + index % 5
            content[SPELLINGS[spelling](f"{module}.lora_A.weight").split(".lora")[0] + ".alpha"] = (
                torch.tensor(alpha)
            )
            wanted[module] = alpha / rank
    assert scales(read(tmp_path / "x.safetensors", content)) == wanted


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_from_what_diffusers_and_peft_save(tmp_path: Path, rslora: bool) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = small_unet()
    special = {"mid_block.resnets.0.conv1": 3}
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["to_q", "conv1"],
        use_rslora=rslora,
        alpha_pattern=special,
    )
    unet.add_adapter(config, "trained")
    wanted = {
        name: module.scaling["trained"]
        for name, module in unet.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(wanted.values()) == ({8, 1.5} if rslora else {4, 0.75})
    state = get_peft_model_state_dict(unet, adapter_name="trained")
    StableDiffusionXLImg2ImgPipeline.save_lora_weights(
        tmp_path, state, unet_lora_adapter_metadata=unet.peft_config["trained"].to_dict()
    )
    unet.save_lora_adapter(tmp_path / "unet", "trained")
    state = {f"base_model.model.{key}": tensor for key, tensor in state.items()}
    other = tensors(tmp_path / "peft" / "adapter_model.safetensors", state)
    config.save_pretrained(other.parent)
    for path in (*tmp_path.rglob("pytorch_lora_weights.safetensors"), other):
        file = resolve_lora(str(path), model=model(tmp_path), task="i2i", eta=0.75)
        assert file
        assert scales(read_lora(file.path, file.name)) == pytest.approx(wanted, rel=1e-12)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def drop_b(content: dict[str, torch.Tensor]) -> None:
    del content["unet.mid_block.resnets.0.conv1.lora_B.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop_b,
            "not whole: 1 of .* layers? .first mid_block.resnets.0.conv1: LoRA without "
            "lora_up.weight",
        ),
        (
            lambda c: c.update({"unet.conv_in.lokr_w1": torch.ones(1)}),
            "LoKr without lokr_w2_a, lokr_w2_b",
        ),
        (
            lambda c: c.update({"unet.conv_in.lora_A.bias": torch.ones(1)}),
            "LoRA with a bias between its halves",
        ),
        (
            lambda c: c.update({"unet.a(b)+.lora_A.weight": torch.ones(1)}),
            "of no kind that is known here .first unet.a",
        ),
        (
            lambda c: c.update({"unet.conv_in.bias": torch.ones(1)}),
            "of no kind that is known here .first unet.conv_in.bias",
        ),
        (
            lambda c: c.update({"unet.conv_in.alpha": torch.ones(1)}),
            "conv_in has an alpha and nothing else",
        ),
        (
            lambda c: c.update({"unet.mid_block.resnets.0.conv1.alpha": torch.tensor(math.inf)}),
            "alpha is inf",
        ),
        (
            lambda c: c.update({"unet.mid_block.resnets.0.conv1.alpha": torch.ones(2)}),
            r"alpha is float32 .2,.",
        ),
        (
            lambda c: c.update(
                {"unet.mid_block.resnets.0.conv1.alpha": torch.ones(1, dtype=torch.cfloat)}
            ),
            "complex64",
        ),
        (
            lambda c: c.update({"mid_block.resnets.0.conv1.lora_A.weight": torch.ones(1)}),
            "several of its tensors",
        ),
        (
            lambda c: c.update({"lora_unet_x.lora_down.weight": torch.ones(1)}),
            "first x: LoRA without lora_up.weight",
        ),
        (
            lambda c: c.update(
                {"unet.mid_block.resnets.0.conv1.lora_B.weight": torch.ones(8, 9, 1, 1)}
            ),
            "do not fit each",
        ),
        (
            lambda c: c.update(
                {"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(0, 9, 3, 3)}
            ),
            "rank 0",
        ),
        (
            lambda c: c.update({"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.tensor(1.0)}),
            "is a single number",
        ),
        (
            lambda c: c.update(
                {"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(4, 9) * math.nan}
            ),
            "NaN or infinity in",
        ),
        (
            lambda c: c.update(
                {"unet.mid_block.resnets.0.conv1.lora_A.weight": torch.ones(4, 9).int()}
            ),
            "is int32, and",
        ),
        (
            lambda c: c.update({f"{k.split('.lora_')[0]}.alpha": torch.zeros(1) for k in list(c)}),
            "so it changes nothing",
        ),
        (
            lambda c: c.update({"unet.conv_in.oft_blocks": torch.ones(2, 4, 4)}),
            "1 as OFT .first conv_in., which cannot be",
        ),
        (lambda c: c.update({"unet.conv_in.oft_blocks": torch.ones(2, 2, 4, 4)}), "1 as BOFT"),
        (
            lambda c: c.update(
                {"unet.conv_in.on_input": torch.ones(1), "unet.conv_in.weight": torch.ones(4)}
            ),
            "1 as IA3",
        ),
    ],
)
def test_tensors_that_are_no_pairs(
    tmp_path: Path, plain: dict[str, torch.Tensor], change: Any, message: str
) -> None:
    content = {f"unet.{key}": tensor for key, tensor in plain.items()}
    change(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.safetensors", content)


@pytest.mark.parametrize(
    "config",
    [
        *("{", "[]", "[" * 100_000, '{"unet.lora_alpha": "much"}', '{"lora_alpha": NaN}'),
        *('{"alpha_pattern": {"(a+)+$": 1}}', '{"alpha_pattern": 3}'),
    ],
)
def test_adapter_config_that_cannot_be_used(
    tmp_path: Path, plain: dict[str, torch.Tensor], config: str
) -> None:
    with pytest.raises(InputError, match="adapter config cannot be used"):
        read(tmp_path / "x.safetensors", plain, {"lora_adapter_metadata": config})


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
