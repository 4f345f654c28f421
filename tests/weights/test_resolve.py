"""Names to files: models on disk, in a Hub cache laid out by hand, on a small local Hub."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from std_cli import stylize_image
from std_cli.errors import InputError
from std_cli.weights import resolve
from std_cli.weights.hub import source, without_downloads
from std_cli.weights.sdxl_files import SINGLE_FILE_KEYS
from tests.hub import Hub
from tests.weights.files import ADAPTER, cache, sdxl_folder, tensors, truncate
from tests.weights.processes import client

SDXL_COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sdxl_folder(tmp_path / "model")


# --- model folders and files -------------------------------------------------------------------


def test_folder_with_its_own_adapter(folder: Path) -> None:
    (folder / "std.json").write_text('{"base_resolution": 512}')
    model = resolve.resolve_model(str(folder))
    assert (model.base, model.single_file, model.variant, model.config) == (
        folder,
        False,
        None,
        None,
    )
    assert model.ip_adapter == folder / "ip_adapter" / "ip-adapter-plus_x.safetensors"
    assert model.image_encoder == folder / "image_encoder"
    assert model.pack == {"base_resolution": 512}


def test_tiny_is_the_folder_in_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("std_cli", "packs", "tiny") == resolve.TINY.relative_to(
        Path(resolve.__file__).parents[2]
    )
    monkeypatch.setattr(resolve, "TINY", folder)
    assert resolve.resolve_model("tiny").base == folder


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["unet/diffusion_pytorch_model.fp16.safetensors"], None),  # next to the plain one
        (
            [
                "-unet/diffusion_pytorch_model.safetensors",
                "unet/diffusion_pytorch_model.fp16.safetensors",
            ],
            "fp16",
        ),
        (
            ["-unet/diffusion_pytorch_model.safetensors"]
            + [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
            + ["unet/diffusion_pytorch_model.safetensors.index.json"],
            None,
        ),
    ],
)
def test_variant(folder: Path, files: list[str], variant: str | None) -> None:
    for file in files:
        if file.startswith("-"):
            (folder / file[1:]).unlink()
        elif file.endswith(".json"):
            (folder / file).write_text('{"weight_map": {}}')
        else:
            tensors(folder / file)
    assert resolve.resolve_model(str(folder)).variant == variant


def test_all_missing_parts_are_named_at_once(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "tokenizer_2" / "vocab.json").rename(folder / "tokenizer_2" / "other.txt")
    with pytest.raises(InputError) as error:
        resolve.resolve_model(str(folder))
    for part in (
        "model_index.json",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer_2/vocab.json",
        "scheduler/",
    ):
        assert part in str(error.value)
    assert "text_encoder/" not in str(error.value)


def break_bin(folder: Path) -> None:
    for file in folder.glob("*/*model.safetensors"):
        file.rename(file.with_suffix(".bin"))


def break_shards(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_bin, "pickle weights .* convert them to safetensors"),
        (break_shards, "lacks unet/diffusion_pytorch_model-00002-of-00002.safetensors"),
        (
            lambda f: (f / "unet/config.json").write_text('{"in_channels": 4}'),
            "not an SDXL model: addition_embed_type",
        ),
        (
            lambda f: (f / "unet/config.json").write_text(
                '{"addition_embed_type": "text_time", "in_channels": 9}'
            ),
            "not an SDXL model: in_channels",
        ),
        (lambda f: (f / "unet/config.json").write_text("{"), "config.json is missing or not JSON"),
        (
            lambda f: (f / "std.json").write_text("[1]"),
            "std.json must hold a JSON object, not list",
        ),
        (lambda f: (f / "std.json").write_text("[" * 100_000), "std.json is missing or not JSON"),
        (lambda f: truncate(f / "vae/diffusion_pytorch_model.safetensors"), "vae.* damaged"),
        (lambda f: truncate(f / "image_encoder/model.safetensors"), "image_encoder.* damaged"),
        (lambda f: (f / "image_encoder/model.safetensors").unlink(), "image_encoder.* missing"),
        (lambda f: tensors(f / "ip_adapter/ip-adapter-plus_x.safetensors"), "not an IP-Adapter"),
        (lambda f: tensors(f / "ip_adapter/second.safetensors", ADAPTER), "2 files in ip_adapter/"),
    ],
)
def test_damaged_folder(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        resolve.resolve_model(str(folder))
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_pickle_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="lacks model_index.json, unet/, vae/, text_.*scheduler/: complete it"
    ):
        resolve.resolve_model(str(tmp_path))
    for suffix in (".ckpt", ".pt", ".bin"):
        (tmp_path / f"x{suffix}").write_bytes(b"x")
        with pytest.raises(InputError, match="pickle.*convert it to safetensors"):
            resolve.resolve_model(str(tmp_path / f"x{suffix}"))
    for name in (
        "sdlx",
        "a/b/c",
        "../no-such-folder",
        "x/..",
        "./x",
        "a--b/c",
        "a/b@",
        "a/b@../c",
        "/no",
        "n/x.pt",
    ):
        with pytest.raises(
            InputError, match="name one of tiny, sdxl, dreamshaper, a folder or .safetensors file"
        ):
            resolve.resolve_model(name)


def test_single_file(tmp_path: Path) -> None:
    one = torch.zeros(1, 4)
    keys = {key + "x" * key.endswith("."): one.clone() for key in SINGLE_FILE_KEYS}
    path = tensors(tmp_path / "checkpoint.safetensors", keys)
    # the checkpoint itself is fine
    with without_downloads(), pytest.raises(InputError, match="this command downloads nothing"):
        resolve.resolve_model(str(path))
    del keys["conditioner.embedders.1.model.x"]
    with pytest.raises(InputError, match="not an SDXL checkpoint: it lacks second text encoder"):
        resolve.resolve_model(str(tensors(path, keys)))
    truncate(path)
    with pytest.raises(
        InputError, match="checkpoint.safetensors is missing, damaged or no safetensors file"
    ):
        resolve.resolve_model(str(path))


def cached_adapter(home: Path) -> None:
    folder = cache(home, "h94/IP-Adapter", source("ip-adapter-plus").revision)
    ip_adapter, config, encoder = (folder / file for file in source("ip-adapter-plus").files)
    tensors(ip_adapter, ADAPTER)
    tensors(encoder)
    config.write_text("{}")


def test_without_a_network_one_line_says_what_to_run(tmp_path: Path) -> None:
    lines = client(
        'resolve.resolve_model("sdxl")', tmp_path, HF_ENDPOINT="http://no-such-host.invalid"
    ).splitlines()
    assert len(lines) == 1 and "the Hub cannot be reached" in lines[0]
    assert lines[0].startswith("NotDownloaded sdxl and ip-adapter-plus are not downloaded, and ")
    assert lines[0].endswith(
        "run std models pull sdxl ip-adapter-plus with a network, or use --model tiny"
    )
    offline = client('resolve.resolve_model("a/b@v1")', tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline and "hf download a/b --revision v1 " in offline


def test_cached_models_need_no_network(tmp_path: Path) -> None:
    sdxl_folder(
        cache(tmp_path, "stabilityai/stable-diffusion-xl-base-1.0", SDXL_COMMIT),
        ".fp16",
        adapter=False,
    )
    sdxl_folder(cache(tmp_path, "me/mine", "main"), ".fp16", adapter=False)
    sdxl_folder(next(tmp_path.glob("hub/models--me*/snapshots/*")))
    cached_adapter(tmp_path)
    shown = client(
        'm = resolve.resolve_model("sdxl"); print(m.variant, m.ip_adapter, m.image_encoder);'
        'm = resolve.resolve_model("me/mine"); print(m.variant, m.ip_adapter, m.image_encoder)',
        tmp_path,
        HF_HUB_OFFLINE="1",
    ).splitlines()
    hub, own = shown[0].split(), shown[1].split()
    # of the Hub's models the small files, where both are there
    assert hub[0] == "fp16" and own[0] == "fp16"
    assert hub[1].endswith("sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors")
    assert hub[2].endswith("models/image_encoder")
    assert (
        own[1].endswith("ip_adapter/ip-adapter-plus_x.safetensors") and "models--me--mine" in own[2]
    )


def test_the_plain_ip_adapter_where_it_is_asked_for(tmp_path: Path) -> None:
    sdxl_folder(
        cache(tmp_path, "stabilityai/stable-diffusion-xl-base-1.0", SDXL_COMMIT),
        ".fp16",
        adapter=False,
    )
    cached_adapter(tmp_path)
    plain = 'print(resolve.resolve_model("sdxl", ip_adapter="plain").ip_adapter.name)'
    assert "NotDownloaded ip-adapter is not downloaded" in client(
        plain, tmp_path, HF_HUB_OFFLINE="1"
    )
    folder = next(tmp_path.glob("hub/models--h94*/snapshots/*"))
    tensors(folder / source("ip-adapter").files[0], ADAPTER)
    assert client(plain, tmp_path, HF_HUB_OFFLINE="1") == "ip-adapter_sdxl_vit-h.safetensors"
    with pytest.raises(
        InputError, match="--ip-adapter plain: the model tiny has an IP-Adapter of its own"
    ):
        resolve.resolve_model("tiny", ip_adapter="plain")


def test_download_takes_the_small_weights_and_no_pickle(
    tmp_path: Path, hub: tuple[str, type[Hub]]
) -> None:
    url, handler = hub
    source = handler.repos["who/model"] = sdxl_folder(sdxl_folder(tmp_path / "source"), ".fp16")
    for extra in (
        "unet/model.bin",
        "run.py",
        "checkpoint.safetensors",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ):
        tensors(source / extra)
    show = 'm = resolve.resolve_model("who/model"); print(m.variant, m.base)'
    variant, base = client(show, tmp_path / "home", HF_ENDPOINT=url).split()
    assert variant == "fp16"
    assert {file for file in handler.sent if file.endswith((".safetensors", ".bin", ".py"))} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "ip_adapter/ip-adapter-plus_x.safetensors",
        "image_encoder/model.safetensors",
    }
    # no network from now on
    assert client(show, tmp_path / "home", HF_HUB_OFFLINE="1").split() == [variant, base]


def test_what_the_hub_refuses(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    url, handler = hub
    handler.repos["who/partial"] = sdxl_folder(tmp_path / "source")
    handler.refused |= {
        "who/gated": (403, "GatedRepo"),
        "who/unknown": (404, "RepoNotFound"),
        "who/broken": (500, ""),
    }
    break_bin(tmp_path / "source")
    names = ("who/gated", "who/unknown", "who/broken", "who/partial", "who/partial@v9")
    code = f"""
    for name in {names}:
        try: resolve.resolve_model(name)
        except errors.StdError as error: print(type(error).__name__, error)
"""
    gated, unknown, broken, partial, revision = client(
        code.strip(), tmp_path / "home", HF_ENDPOINT=url
    ).splitlines()
    assert (
        "InputError who/gated is gated: accept its licence at https://huggingface.co/who/gated "
        "and set" in gated
    )
    assert "InputError no such model on the Hub" in unknown and "who/unknown" in unknown
    assert "NetworkError the Hub answered 500 about who/broken" in broken
    assert "InputError" in partial and "convert them to safetensors" in partial
    assert "InputError who/partial has no revision v9 on the Hub" in revision
    assert not handler.sent  # refused by the list of files, before anything was downloaded


def test_files_without_a_suffix_next_to_half_weights(
    tmp_path: Path, picture: Path, reference: Path
) -> None:
    """diffusers looks for a variant after the first dot of every name in such a folder."""
    folder = tmp_path / "model"
    shutil.copytree(resolve.TINY, folder)
    request = {"model": str(folder), "size": 64, "steps": 1, "device": "cpu", "lora": "none"}
    [plain] = stylize_image(picture, reference, **request)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        [file] = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        (place / "LICENSE").touch()
    assert resolve.resolve_model(str(folder)).variant == "fp16"
    [half] = stylize_image(picture, reference, **request)
    assert half.tobytes() == plain.tobytes()
