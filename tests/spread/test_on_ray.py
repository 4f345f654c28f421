"""`--devices` and `--cluster`: what is refused before anything is started."""

import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from std_cli.cli.commands import run
from std_cli.spread import ray_start
from std_cli.spread.ray_executor import Pool, refusal
from std_cli.spread.ray_worker import Joined


@pytest.fixture
def std(picture, reference, tmp_path, capsys, monkeypatch):
    """Runs `std stylize image` with more flags, which does not import Ray; (exit code, stderr)."""

    def std(*flags):
        given = ["stylize", "image", str(picture), "-s", str(reference), "-o", f"{tmp_path}/out/"]
        with monkeypatch.context() as as_before:
            if sys.modules.get("ray") is not None:  # of another test
                as_before.delitem(sys.modules, "ray")
            code = run([*given, "--model", "tiny", *flags])
            assert sys.modules.get("ray") is None
        return code, capsys.readouterr().err

    return std


def test_without_ray_one_line_says_how_it_is_installed(std, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    line = "Ray is not installed, on which --devices and --cluster run: pip install 'std-cli[ray]'"
    for flags in (["--devices", "cpu:2"], ["--cluster", "auto"]):
        assert std(*flags) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--devices", "gpu"], "--devices gpu: give all, a number of GPUs, cuda:0,cuda:1 or cpu:2"),
        (["--devices", "cpu:2", "--detach"], "--detach needs --cluster"),
        (["--detach"], "--detach needs --cluster"),
        (["--devices", "cpu:2", "--device", "cuda:1"], "--device cuda:1: each worker has the one"),
        (["--cluster", "auto", "--devices", "cuda:0,cuda:1"], "give --devices 2"),
        (["--devices", "cpu:2", "--steps", "0"], "--steps 0"),
    ],
)
def test_what_contradicts_is_refused_before_ray_is_started(std, flags, message):
    code, said = std(*flags)
    assert code == 2 and message in said and said.count("\n") == 1


def test_a_cluster_that_does_not_answer_is_one_line_at_once(std):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    for given in (address, "127.0.0.1:70000"):
        code, said = std("--cluster", given, "--devices", "cpu:2")
        assert code == 1 and said.count("\n") == 1
        assert said.startswith(f"error: --cluster {given}: no Ray cluster answers there (")


def test_a_token_that_is_there_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert not ray_start._has_token()
    with monkeypatch.context() as given:
        given.setenv("RAY_AUTH_TOKEN", "secret")
        assert ray_start._has_token()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    assert ray_start._has_token()


def test_a_worker_that_would_compute_otherwise_is_refused_with_what_to_do():
    def joined(**facts):
        return Joined("host:1", "node", {"torch": "2", "dtype": "bf16", "device": "a"} | facts)

    pool, first = Pool(2, gpu=False), joined()
    assert refusal(joined(), first, pool) is None
    for facts, remedy in (
        ({"torch": "3"}, "torch 3, where host:1 has 2: install the same on both"),
        ({"device": "b"}, "device b, where host:1 has a: give --mixed-gpus to accept both"),
        ({"device": "b", "dtype": "fp32"}, "dtype fp32, where host:1 has bf16: give --dtype"),
    ):
        name, message = refusal(joined(**facts), first, pool)
        assert name in facts and remedy in message
    assert refusal(joined(device="b"), first, replace(pool, mixed=True)) is None
    planned = replace(pool, dtype="fp32")  # where the run is led the processor is another one
    [_, message] = refusal(joined(), first, planned)
    assert message.endswith("dtype bf16, where the plan has fp32: give --dtype")
    assert refusal(joined(dtype="fp32"), joined(dtype="fp32"), planned) is None
