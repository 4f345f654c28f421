"""What `std doctor` finds on a good machine, and on machines that lack something."""

import json
import os
import shutil
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from std_cli.cli.commands import run
from std_cli.stylize import doctor
from std_cli.stylize.doctor import examine, self_test, unmet_requirements
from std_cli.weights import resolve
from std_cli.weights.cache import needed


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache of this test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def breaking(found):
    return [p["what"] for p in found["problems"] if p["breaks"]]


def test_a_good_machine(home, capsys):
    assert run(["doctor", "--offline", "--json"]) == 0
    out, err = capsys.readouterr()
    *progress, found = [json.loads(line) for line in out.splitlines()]
    assert (
        err == "" and {e["event"] for e in progress} == {"progress"} and found["event"] == "doctor"
    )
    assert (
        breaking(found) == []
        and found["self_test"]["error"] == ""
        and found["self_test"]["seconds"] > 0
    )
    assert all(
        found["versions"][name] for name in ("std", "python", "torch", "diffusers", "peft", "av")
    )
    assert (
        found["devices"][-1]["device"] == "cpu"
        and 0 < found["devices"][-1]["free"] <= found["devices"][-1]["total"]
    )
    assert found["encoders"]["libx264"] == "" and set(found["encoders"]) >= {
        "libx265",
        "h264_nvenc",
    }
    assert found["cache"]["path"] == str(home) and found["cache"]["models"] == {
        name: name == "tiny" for name in resolve.model_names()
    }
    assert found["hub"]["offline"] and found["hub"]["error"] is None
    assert not home.exists()
    assert all(p["remedy"] for p in found["problems"])


def test_the_hub_answers_or_does_not(monkeypatch, capsys):
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args): ...

    asked = []
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    # whatever the environment says
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert (
        examine(offline=True)["hub"] == {"endpoint": endpoint, "offline": True, "error": None}
        and not asked
    )
    found = examine()
    assert found["hub"]["error"] == "" and len(asked) == 1 and breaking(found) == []
    server.shutdown()
    server.server_close()
    thread.join()
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert endpoint in line and "--model tiny" in line and "HF_ENDPOINT" in line


def test_what_a_run_needs_beside_the_model(home, monkeypatch):
    """A base model alone is not all: its adapter, LoRAs and motion layers are needed, too, and
    named."""
    found = examine(offline=True)
    assert found["cache"]["missing"] == [*needed("image"), *needed("video")[2:]]
    [found_problem] = [p for p in found["problems"] if "not downloaded" in p["what"]]
    assert (
        "sdxl" in found_problem["what"]
        and "std-i2i-0.75" in found_problem["what"]
        and not found_problem["breaks"]
    )
    monkeypatch.setattr(
        doctor, "files_here", lambda source: {} if "hotshot" in source.repo else {"x": home}
    )
    assert examine(offline=True)["cache"]["missing"] == ["hotshot"]


def test_a_full_disk_and_a_cache_that_cannot_be_written(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(20 * 10**9, 17 * 10**9, 3 * 10**9))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found_problem = breaking(examine(offline=True))
    assert (
        len(found_problem) == 2
        and "cannot be written" in found_problem[0]
        and "3.0 GB are free" in found_problem[1]
    )


def test_a_pack_that_is_damaged(tmp_path, monkeypatch):
    shutil.copytree(resolve.TINY, tmp_path / "tiny")
    file = tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    monkeypatch.setattr(resolve, "TINY", tmp_path / "tiny")
    assert str(file) in self_test()["error"] and "copy it again" in self_test()["error"]
    assert any("self-test" in what for what in breaking(examine(offline=True)))


def test_packages_that_are_missing_or_old(monkeypatch):
    assert unmet_requirements() == []
    texts = ["torch>=99", "numpy>=1", "no-such-package", "absent-too; extra == 'test'"]
    monkeypatch.setattr(doctor, "requires", lambda name: texts)
    found_problem = breaking(examine(offline=True))
    assert [t.split()[0] for t in found_problem] == [
        "torch",
        "no-such-package",
    ] and ">=99" in found_problem[0]


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for NVIDIA's tool")
def test_a_gpu_that_torch_cannot_use(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 535.104.05\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    found = examine(offline=True)
    assert found["driver"] == "535.104.05"
    [found_problem] = [p for p in found["problems"] if "NVIDIA" in p["what"]]
    assert "535.104.05" in found_problem["what"] and not found_problem["breaks"]
