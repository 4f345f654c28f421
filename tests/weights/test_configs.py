"""Configs from anywhere: each value typed and bounded before a library sees it, each refusal one
line."""

import json
import shutil
from pathlib import Path

import pytest

from std_cli.cli.console import Reporter
from std_cli.config import check_pack
from std_cli.diffusion.memory import SDXL_UNET, SDXL_VAE
from std_cli.errors import InputError, StdError, printable, quote
from std_cli.weights.configs.base import check_config, read_config
from std_cli.weights.configs.folder import check_folder
from std_cli.weights.configs.networks import VAE, Motion, UNet
from std_cli.weights.files import file_names, read_object
from std_cli.weights.loading import loading
from std_cli.weights.motion import HOTSHOT_CONFIG
from tests.micro import tiny_with_motion


@pytest.fixture
def folder(tmp_path):
    """The configs of tiny with a motion adapter."""
    pack = Path(tiny_with_motion())
    for path in pack.rglob("*.json"):
        target = tmp_path / "model" / path.relative_to(pack)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "model"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_in_use_passes(folder):
    check_folder(folder, file_names(folder, 2))
    read_config(Motion, folder / "motion_adapter" / "config.json")
    check_config(UNet, SDXL_UNET | {"an_unknown_key": {"of": ["any"]}}, "sdxl")
    check_config(VAE, SDXL_VAE, "sdxl")
    check_config(Motion, HOTSHOT_CONFIG, "hotshot")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "unet/config.json",
            {"layers_per_block": 10**19},
            "layers_per_block 1000.*at most 32",
        ),
        (
            "unet/config.json",
            {"layers_per_block": True},
            "layers_per_block True: must be a whole number or a list",
        ),
        ("unet/config.json", {"block_out_channels": [10**12] * 3}, "block_out_channels .*16384"),
        ("unet/config.json", {"transformer_layers_per_block": [1, 1, 1, 60]}, None),
        (
            "unet/config.json",
            {"transformer_layers_per_block": [64] * 4, "layers_per_block": 9},
            "at most",
        ),
        ("unet/config.json", {"norm_num_groups": 7}, "no multiple of its norm's 7 groups"),
        ("unet/config.json", {"cross_attention_dim": 64}, "its text encoders make 128"),
        ("unet/config.json", {"act_fn": "x" * 10_000}, "act_fn 'xxx"),
        (
            "unet/config.json",
            {"quantization_config": {"a": 1}},
            "quantization_config .* is not used here",
        ),
        ("vae/config.json", {"force_upcast": "no"}, "force_upcast 'no'"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "must be 'AutoencoderKL'"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**12},
            "num_train_timesteps 1000000000000",
        ),
        ("text_encoder/config.json", {"vocab_size": 10**9}, "vocab_size"),
        ("text_encoder/config.json", {"vocab_size": 5}, "beyond the 5 of the text encoder"),
        (
            "text_encoder_2/config.json",
            {"attn_implementation": "owner/kernel"},
            "'owner/kernel' is not used here",
        ),
        (
            "text_encoder_2/config.json",
            {"projection_dim": 65},
            "projection_class_embeddings_input_dim",
        ),
        (
            "tokenizer/tokenizer_config.json",
            {"model_max_length": 10**30},
            "beyond the text encoder's 32",
        ),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"a": "b.c"}}, "auto_map"),
        (
            "model_index.json",
            {"unet": ["os", "system"]},
            "unet is .'os', 'system'., and std runs diffusers",
        ),
        ("model_index.json", {"_class_name": ["code", "Model"]}, "_class_name .'code', 'Model'."),
        ("model_index.json", {"other": ["subprocess", "Popen"]}, "is no part of SDXL"),
        (
            "feature_extractor/preprocessor_config.json",
            {"size": {"shortest_edge": 10**6}},
            "from 8 to 2048",
        ),
    ],
)
def test_a_value_is_typed_and_bounded(folder, file, values, message):
    change(folder / file, **values)
    if message is None:
        check_folder(folder, file_names(folder, 2))
        return
    with pytest.raises(InputError, match=message) as error:
        check_folder(folder, file_names(folder, 2))
    assert str(folder) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("longest", [10**19, 2**31, 0, -1, 1.5, "24", None, [24]])
def test_a_motion_adapter_is_bounded(folder, longest):
    change(folder / "motion_adapter/config.json", motion_max_seq_length=longest)
    with pytest.raises(InputError, match="motion_max_seq_length"):
        read_config(Motion, folder / "motion_adapter" / "config.json")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin"],
)
@pytest.mark.parametrize(
    "index", ["model.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_shards_stay_in_their_folder(folder, name, index):
    (folder / "unet" / index).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="is no .safetensors file of its folder"):
        check_folder(folder, file_names(folder, 2))


def test_an_adapter_beside_an_encoder_is_refused(folder):
    (folder / "text_encoder" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "owner/name"}'
    )
    with pytest.raises(InputError, match="would load another model"):
        check_folder(folder, file_names(folder, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "holds NaN, which is no finite number"),
        (b'{"a": 1e400}', "holds 1e400, which is no finite number"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": ' + b"1" * 100 + b"}", "a number of 100 digits"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a": "é"}'.encode("utf-16"), "not JSON in UTF-8"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "more than 32 levels deep"),
        (b" " * (16 * 2**20 + 1), "has 16 MiB, more than 16 MiB"),
    ],
)
def test_json_that_its_readers_differ_in(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    "pack", [{"base_resolution": "512"}, {"motion_window": True}, {"loras": [{"file": 1}]}]
)
def test_a_pack_is_typed(pack):
    with pytest.raises(InputError, match=f"here: {next(iter(pack))}"):
        check_pack(pack, "here")


def test_messages_are_one_clean_line(capsys):
    assert printable("a\x1b[31m\nb\u202e\udcff\u200d") == "a\\x1b[31m b\\u202e\\udcff\u200d"
    assert len(str(StdError("x" * 10_000))) < 2100 and len(quote("x" * 10_000)) < 100
    with Reporter() as report:
        report({"event": "notice", "message": "from \x1b[2J"})
    assert "\x1b[2J" not in capsys.readouterr().err
    with Reporter(as_json=True) as report:
        report({"event": "notice", "message": "\x9b\udcff\u202e"})
    assert json.loads(capsys.readouterr().out)["message"] == "\x9b\udcff\u202e"


def test_what_a_library_raises_is_one_line():
    with (
        pytest.raises(
            InputError, match=r"unet cannot be loaded from here \(KeyError: 'a'\): fetch it again"
        ),
        loading("unet", Path("here")),
    ):
        {}["a"]
    with pytest.raises(StdError, match="no memory to load unet"), loading("unet", Path("here")):
        raise MemoryError
