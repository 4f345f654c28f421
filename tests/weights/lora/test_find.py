"""Which LoRA file a request names: of the pack, on disk, on the Hub."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from std_cli.errors import InputError
from std_cli.weights.hub import source
from std_cli.weights.lora import LoraFile, find, resolve_lora
from std_cli.weights.resolve import resolve_model
from tests.hub import Hub
from tests.weights.files import model, small_lora, tensors, truncate
from tests.weights.processes import client


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


def test_a_file_is_read_again_only_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "a.safetensors", []
    small_lora(path)
    real = find.read_lora

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(find, "read_lora", counted)
    for expected in (1, 1):
        resolve_lora(str(path), model=resolve_model("tiny"), task="i2i", eta=0.75)
        assert len(reads) == expected
    os.utime(path, ns=(0, 10**9))
    resolve_lora(str(path), model=resolve_model("tiny"), task="i2i", eta=0.75)
    assert len(reads) == 2
