"""Names to files: models on disk, in a Hub cache laid out by hand, on a small local Hub; LoRAs in
every spelling."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from std_cli.errors import InputError
from std_cli.weights import fingerprints, resolve
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.hub import source
from std_cli.weights.lora import (
    LoraFile,
    LoraWeights,
    check_lora,
    fuse_lora,
    read_lora,
    resolve_lora,
)
from std_cli.weights.lora.read import of_pairs
from std_cli.weights.resolve import ModelFiles
from std_cli.weights.sdxl_files import SINGLE_FILE_KEYS
from tests.hub import Hub

SDXL_COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
ADAPTER = {"image_proj.latents": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)}


def tensors(
    path: Path,
    content: dict[str, torch.Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a small safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the cache keeps equal files once
    own = torch.tensor(list(f"{path.parent.name}/{path.name}".encode()))
    save_file(content or {"weight": own}, path, metadata)
    return path


TINY_PACK = resolve.TINY  # a test sets another one there


def sdxl_folder(folder: Path, variant: str = "", adapter: bool = True) -> Path:
    """A diffusers folder with SDXL's files, by name and header only; the configs are tiny's."""
    parts = (
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        *(("image_encoder",) if adapter else ()),
    )
    for part in parts:
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        tensors(folder / part / f"{stem}{'' if part == 'image_encoder' else variant}.safetensors")
        (folder / part / "config.json").write_bytes((TINY_PACK / part / "config.json").read_bytes())
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes((TINY_PACK / file).read_bytes())
    for file in ("tokenizer/vocab.json", "tokenizer_2/vocab.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    if adapter:
        tensors(folder / "ip_adapter" / "ip-adapter-plus_x.safetensors", ADAPTER)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sdxl_folder(tmp_path / "model")


# --- model folders and files -------------------------------------------------------------------


def test_folder_with_its_own_adapter(folder: Path) -> None:
    (folder / "std.json").write_text('{"base_resolution": 512}')
    model = resolve.resolve_model(str(folder), local_only=True)
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
    assert resolve.resolve_model("tiny", local_only=True).base == folder


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["unet/diffusion_pytorch_model.fp16.safetensors"], None),  # beside the plain one
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
    assert resolve.resolve_model(str(folder), local_only=True).variant == variant


def test_all_missing_parts_are_named_at_once(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "tokenizer_2" / "vocab.json").rename(folder / "tokenizer_2" / "other.txt")
    with pytest.raises(InputError) as error:
        resolve.resolve_model(str(folder), local_only=True)
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


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


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
        resolve.resolve_model(str(folder), local_only=True)
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_pickle_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="lacks model_index.json, unet/, vae/, text_.*scheduler/: complete it"
    ):
        resolve.resolve_model(str(tmp_path), local_only=True)
    for suffix in (".ckpt", ".pt", ".bin"):
        (tmp_path / f"x{suffix}").write_bytes(b"x")
        with pytest.raises(InputError, match="pickle.*convert it to safetensors"):
            resolve.resolve_model(str(tmp_path / f"x{suffix}"))
    for name in (
        "sdlx",
        "a/b/c",
        "../x",
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
    with pytest.raises(InputError, match="downloads are switched off"):
        resolve.resolve_model(str(path), local_only=True)
    del keys["conditioner.embedders.1.model.x"]
    with pytest.raises(InputError, match="not an SDXL checkpoint: it lacks second text encoder"):
        resolve.resolve_model(str(tensors(path, keys)))
    truncate(path)
    with pytest.raises(
        InputError, match="checkpoint.safetensors is missing, damaged or no safetensors file"
    ):
        resolve.resolve_model(str(path))


# --- the Hub: a cache laid out by hand, and a small Hub on this machine ------------------------


def client(code: str, home: Path, **env: str) -> str:
    """What `code` prints in a process of its own with this HF_HOME; a StdError is printed too."""
    script = f"""
import sys
from std_cli import errors
from std_cli.weights import resolve
try:
    {code}
except errors.StdError as error:
    print(type(error).__name__, error)
assert "diffusers" not in sys.modules
assert "torch" not in sys.modules or "resolve_lora" in globals()
"""
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=kept | settings | env,
        capture_output=True,
        text=True,
    )
    # a download would retry for 23 s
    assert run.returncode == 0 and "Retrying" not in run.stderr, run.stderr
    return run.stdout.strip()


def cache(home: Path, repo: str, revision: str) -> Path:
    """The snapshot folder of a repository, as huggingface_hub lays out its cache."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    commit = revision if len(revision) == 40 else "c" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    return root / "snapshots" / commit


def cached_adapter(home: Path) -> None:
    folder = cache(home, "h94/IP-Adapter", source("ip-adapter-plus").revision)
    ip_adapter, config, encoder = (folder / file for file in source("ip-adapter-plus").files)
    tensors(ip_adapter, ADAPTER)
    tensors(encoder)
    config.write_text("{}")


def test_without_a_network_one_line_says_what_to_run(tmp_path: Path) -> None:
    sdxl = (
        f"hf download stabilityai/stable-diffusion-xl-base-1.0 --revision {SDXL_COMMIT} "
        f'--include "*.json"'
    )
    lines = client(
        'resolve.resolve_model("sdxl")', tmp_path, HF_ENDPOINT="http://no-such-host.invalid"
    ).splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("NotDownloaded")
        and "the Hub cannot be reached" in lines[0]
    )
    assert (
        sdxl in lines[0] and "hf download h94/IP-Adapter" in lines[0] and "--model tiny" in lines[0]
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
    assert "NotDownloaded h94/IP-Adapter" in client(plain, tmp_path, HF_HUB_OFFLINE="1")
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
    assert "StdError the Hub answered 500 about who/broken" in broken
    assert "InputError" in partial and "convert them to safetensors" in partial
    assert "InputError who/partial has no revision v9 on the Hub" in revision
    assert not handler.sent  # refused by the list of files, before anything was downloaded


def test_lora_from_the_hub(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    url, handler = hub
    for name, files in {"one": ["a"], "two": ["b", "c"]}.items():
        handler.repos[f"who/{name}"] = tmp_path / name
        for file in files:
            small_lora(tmp_path / name / "sub" / f"{file}.safetensors", name=f"{name}/{file}")
    handler.repos[source("std-v2v-0.75").repo] = tmp_path / "std"
    small_lora(tmp_path / "std" / "std_sdxl_v2v_eta0.75.safetensors", name="std")
    code = """
    from pathlib import Path
    from std_cli.weights.lora import resolve_lora
    model = resolve.ModelFiles("sdxl", Path("x"), False, None, None, Path("x"), Path("x"), {})
    specs = "who/one:0.5", "who/two/sub/c.safetensors", "auto", "who/two", "who/two/d.safetensors"
    for spec in specs:
        try:
            lora = resolve_lora(spec, model=model, task="v2v", eta=0.8)
            print(lora.name, lora.path.name, lora.scale, lora.eta, lora.notice)
        except errors.StdError as error: print(error)
"""
    lines = client(code.strip(), tmp_path / "home", HF_ENDPOINT=url).splitlines()
    assert lines[0] == "who/one a.safetensors 0.5 None None"
    assert lines[1] == "who/two/sub/c.safetensors c.safetensors 1.0 None None"
    auto = "std_sdxl_v2v_eta0.75.safetensors"
    assert (
        lines[2] == f"{auto} {auto} 1.0 0.75 no LoRA for eta 0.8: {auto}, trained for 0.75, is used"
    )
    assert (
        "holds 2 safetensors files (sub/b.safetensors, sub/c.safetensors): name one as who/two/file"
        in lines[3]
    )
    assert "lacks d.safetensors" in lines[4]
    offline = client(code.strip(), tmp_path / "home", HF_HUB_OFFLINE="1").splitlines()
    assert offline[:3] == lines[:3] and all("HF_HUB_OFFLINE is set" in line for line in offline[3:])


# --- fingerprints ------------------------------------------------------------------------------


def test_fingerprint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{16}", one) and fingerprint(folder) == one
    (folder / "notes.md").write_text("not a part")
    assert fingerprint(folder) == one
    config = folder / "vae" / "config.json"
    config.rename(config.with_name("renamed.json"))
    assert fingerprint(folder) != one
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert fingerprint(tmp_path / "abc") == "ba7816bf8f01cfea"
    assert not (tmp_path / "cache").exists()  # small files are not remembered

    large, store = tmp_path / "large", tmp_path / "cache" / "std" / "sha256.json"
    large.write_bytes(bytes(2**24 + 1))
    digest = fingerprint(large)
    assert list(json.loads(store.read_text())) == [
        f"{large}|{2**24 + 1}|{large.stat().st_mtime_ns}"
    ]
    for damaged in ("[", "[]", json.dumps(dict.fromkeys(json.loads(store.read_text()), 1))):
        store.write_text(damaged)
        fingerprints._sha256_of.cache_clear()
        assert fingerprint(large) == digest
    store.write_text(json.dumps(dict.fromkeys(json.loads(store.read_text()), "f" * 64)))
    fingerprints._sha256_of.cache_clear()
    assert fingerprint(large) == "f" * 16  # not read a second time


# --- LoRA: which file --------------------------------------------------------------------------


def model(base: Path, **pack: Any) -> ModelFiles:
    return ModelFiles("mine", base, False, None, None, base, base, pack)


def small_lora(path: Path, **metadata: str) -> Path:
    content = {"unet.x.lora_A.weight": torch.zeros(2, 4), "unet.x.lora_B.weight": torch.zeros(4, 2)}
    return tensors(path, content, metadata)


@pytest.mark.parametrize(
    ("eta", "file", "notice"),
    [
        (0.75, "b", None),
        (0.7, "a", "no LoRA for eta 0.7: a.safetensors, trained for 0.65, is used"),
        (1.0, "b", ""),
    ],
)
def test_auto_takes_the_nearest_of_the_pack(
    tmp_path: Path, eta: float, file: str, notice: str | None
) -> None:
    loras = [
        {"file": "loras/b.safetensors", "task": "i2i", "eta": 0.75},
        {"file": "loras/a.safetensors", "task": "i2i", "eta": 0.65},
        {"file": "loras/c.safetensors", "task": "v2v", "eta": 0.7},
    ]
    for lora in loras:
        small_lora(tmp_path / str(lora["file"]))
    found = resolve_lora("auto", model=model(tmp_path, loras=loras), task="i2i", eta=eta)
    assert found and found.path == tmp_path / "loras" / f"{file}.safetensors" and found.scale == 1
    assert found.notice == notice or (notice == "" and found.notice)


def test_no_lora(tmp_path: Path) -> None:
    assert resolve_lora("none", model=model(tmp_path), task="i2i", eta=0.75) is None
    for pack in ({"loras": []}, {"schedule": "aligned"}):
        assert resolve_lora("auto", model=model(tmp_path, **pack), task="i2i", eta=0.75) is None


@pytest.mark.parametrize(
    "lora",
    ["x", {}, {"file": 1, "task": "i2i", "eta": 0.5}, {"file": "a", "task": "t2i", "eta": 0.5}]
    + [
        {"file": file, "task": "i2i", "eta": 0.5}
        for file in ("/etc/x", "../x", "a/../../x", "C:/x", "..\\x")
    ],
)
def test_a_pack_cannot_point_outside_of_itself(tmp_path: Path, lora: Any) -> None:
    with pytest.raises(InputError, match=r"std.json of the model mine"):
        resolve_lora("auto", model=model(tmp_path, loras=[lora]), task="i2i", eta=0.5)


@pytest.mark.parametrize(
    ("spec", "scale"),
    [("{}", 1.0), ("{}:0.8", 0.8), ("{}:-1", -1.0), ("{}:1e-2", 0.01), ("{}:0.8", 0.8)],
)
def test_file_and_scale(tmp_path: Path, spec: str, scale: float) -> None:
    path = small_lora(tmp_path / "x.safetensors", eta="0.85")
    found = resolve_lora(spec.format(path), model=model(tmp_path), task="i2i", eta=0.85)
    assert found == LoraFile(str(path), path, scale, 0.85, {"eta": "0.85"}, None)


def test_a_file_that_is_really_named_so_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_lora(tmp_path / "x.safetensors")
    small_lora(tmp_path / "x.safetensors:0.5")
    found = resolve_lora("x.safetensors:0.5", model=model(tmp_path), task="i2i", eta=0.75)
    assert found and found.path.name == "x.safetensors:0.5" and found.scale == 1
    published = small_lora(tmp_path / "std_sdxl_i2i_eta0.65.safetensors", eta="nonsense")
    found = resolve_lora(str(published), model=model(tmp_path), task="i2i", eta=0.75)
    assert found and found.eta == 0.65 and found.notice and "trained for 0.65" in found.notice


def test_unusable_lora_files(tmp_path: Path) -> None:
    file = small_lora(tmp_path / "x.safetensors")
    whole = tensors(tmp_path / "whole.safetensors")
    cut = small_lora(tmp_path / "cut.safetensors")
    truncate(cut)
    pickle = tmp_path / "x.bin"
    pickle.write_bytes(b"x")
    for spec, message in {
        f"{file}:nan": "the scale 'nan' is not a number",
        f"{file}:inf": "not a number",
        f"{file}:big": "the scale 'big' is not a number",
        f"{file}:": "not a number",
        str(whole): "is it a whole model",
        str(cut): "damaged",
        str(pickle): "pickle",
        str(tmp_path): "is a folder: name the file in it",
        str(tmp_path / "no.safetensors"): "is not there",
        "C:\\no.safetensors": "is not there",
        "no/x.safetensors": "is not there",
        "": "--lora is empty",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            resolve_lora(spec, model=model(tmp_path), task="i2i", eta=0.75)


# --- LoRA: what is in it -----------------------------------------------------------------------

# METHOD.md section 5
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *(
        "conv1",
        "conv2",
        "conv_shortcut",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
        "time_emb_proj",
    ),
)
SHAPE = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "block_out_channels": (32, 32, 64),
    "attention_head_dim": (2, 2, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**SHAPE, **SMALL)


def pairs(unet: torch.nn.Module, rank: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """ "<module>.lora_A.weight" and "<module>.lora_B.weight" for every layer that the method
    adapts."""
    found = {}
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and name.endswith(
            tuple(f".{t}" for t in TARGETS)
        ):
            out, *inside = module.weight.shape
            found[f"{name}.lora_A.weight"] = torch.randn(rank, *inside, device=device)
            found[f"{name}.lora_B.weight"] = torch.randn(
                out, rank, *[1] * len(inside[1:]), device=device
            )
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return pairs(small_unet(), rank=4)


def read(
    path: Path, content: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> LoraWeights:
    tensors(path, content, metadata)
    return read_lora(path, path.name)


def scales(weights: LoraWeights) -> dict[str, float]:
    return {name: layer.scale for name, layer in weights.layers.items()}


def kohya(key: str) -> str:
    module, half = key.split(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if half[0] == 'A' else 'up'}.weight"


SPELLINGS = {
    "hook": lambda key: f"unet.{key}",
    "checkpoint-final": lambda key: f"unet.base_model.model.{key}",
    "peft": lambda key: f"base_model.model.{key}",
    "bare": lambda key: key,
    "lora.down": lambda key: (
        f"unet.{key.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up')}"
    ),
    "kohya": kohya,
}


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


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_fused_as_diffusers_fuses(plain: dict[str, torch.Tensor], strength: float) -> None:
    unet, reference = small_unet(), small_unet()
    fuse_lora(of_pairs("mine", plain, 2.0), unet, strength)
    state, alphas = (
        {f"unet.{k}": t for k, t in plain.items()},
        {f"unet.{k.split('.lora_')[0]}.alpha": 2.0 for k in plain},
    )
    StableDiffusionXLImg2ImgPipeline.load_lora_into_unet(
        state, alphas, reference, adapter_name="std"
    )
    reference.fuse_lora(strength)
    reference.unload_lora()
    wanted = reference.state_dict()
    for key, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], msg=key)


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
    for number, module in enumerate(sorted({key.split(".lora_")[0] for key in plain})):
        rank = 2 + number % 3
        for half, size in (("lora_A.weight", 0), ("lora_B.weight", 1)):
            key = f"{module}.{half}"
            content[SPELLINGS[spelling](key)] = (
                plain[key].narrow(size, 0, rank if rank < 4 else 4).contiguous()
            )
        wanted[module] = 1.0
        if number % 4:
            alpha = 1.0 + number % 5
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
    beside = tensors(tmp_path / "peft" / "adapter_model.safetensors", state)
    config.save_pretrained(beside.parent)
    for path in (*tmp_path.rglob("pytorch_lora_weights.safetensors"), beside):
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
            "1 of its .* layers are not whole .first mid_block.resnets.0.conv1: LoRA without "
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
            "hold NaN",
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
            "1 are OFT .first conv_in., which cannot be",
        ),
        (lambda c: c.update({"unet.conv_in.oft_blocks": torch.ones(2, 2, 4, 4)}), "1 are BOFT"),
        (
            lambda c: c.update(
                {"unet.conv_in.on_input": torch.ones(1), "unet.conv_in.weight": torch.ones(4)}
            ),
            "1 are IA3",
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


def test_check_against_a_unet(plain: dict[str, torch.Tensor]) -> None:
    lora, count = of_pairs("mine", plain, 4), len(plain)
    motion = {
        f"down_blocks.0.motion_modules.0.proj_in.lora_{half}.weight": torch.zeros(2, 2)
        for half in "AB"
    }
    both = of_pairs("mine", plain | motion, 4)
    partly = (
        f"{count} of {count + 2} tensors match this UNet, which lacks 1 of its layers "
        f".down_blocks.0.motion"
    )
    with pytest.raises(
        InputError, match=f"{partly}.*it is for videos: give --motion auto.*--allow-partial"
    ):
        check_lora(both, small_unet())
    assert check_lora(both, small_unet(), allow_partial=True) == (count, count + 2)
    with pytest.raises(
        InputError, match="0 of 2 tensors match this UNet.*it is for videos"
    ) as error:
        check_lora(of_pairs("mine", motion, 4), small_unet(), allow_partial=True)
    assert "--allow-partial" not in str(error.value)
    with torch.device("meta"):
        sdxl = UNet2DConditionModel(**SHAPE, **SDXL)
    with pytest.raises(
        InputError,
        match=r"layers differ in shape \(first down_blocks.*made for another architecture",
    ):
        check_lora(lora, sdxl)
    full = pairs(sdxl, rank=64, device="meta")
    assert check_lora(of_pairs("published", full, 64), sdxl) == (1576, 1576)  # 788 layers


def test_a_file_without_a_suffix_next_to_half_weights(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve.TINY, folder)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        [file] = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert resolve.resolve_model(str(folder)).variant == "fp16"
    (folder / "unet" / "LICENSE").touch()
    with pytest.raises(InputError, match="LICENSE has no suffix"):
        resolve.resolve_model(str(folder))
