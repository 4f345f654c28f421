"""The command line: exit codes, one-line errors, what goes to stdout, and that nothing is left
behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from std_cli.cli.commands import run
from tests import processes
from tests.conftest import QUIET
from tests.micro import micro
from tests.processes import Command

FAST = ["--model", micro(), "--steps", "1", "--size", "64", "--output-size", "model"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def std(*arguments, env=(), **options):
    """As a user's shell starts it: nothing in the environment quiets the libraries."""
    command = [sys.executable, "-m", "std_cli", *map(str, arguments)]
    env = {k: v for k, v in os.environ.items() if k not in QUIET} | dict(env)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, **options)


def one_error(capsys, *arguments, code=2):
    """Run a command line that must fail as wrong input, or with another code; its one line."""
    before = set(os.listdir())
    assert run([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert set(os.listdir()) == before
    return err


def test_a_picture_in_a_pipe(here, picture, reference):
    tiny = ["--model", "tiny", "--dtype", "fp32", *FAST[2:]]
    done = std("stylize", "image", picture, "--style", reference, *tiny, cwd=here)
    assert (done.returncode, done.stderr) == (
        0,
        "tiny + std_tiny_i2i_eta0.25.safetensors on cpu in fp32\n",
    )
    assert done.stdout.startswith("in_stylized.png  64 x 4") and done.stdout.count("\n") == 1
    assert "\x1b" not in done.stdout + done.stderr
    with Image.open(here / "in_stylized.png") as out:
        out.load()
        assert out.format == "PNG"


def test_an_output_that_exists_is_kept(here, picture, reference, capsys):
    (here / "in_stylized.png").write_bytes(b"theirs")
    error = one_error(capsys, "stylize", "image", picture, "--style", reference, *FAST, code=3)
    assert "--overwrite" in error
    assert (here / "in_stylized.png").read_bytes() == b"theirs"


def test_json_is_all_that_stdout_carries(here, picture, reference, capsys):
    assert (
        run(
            [
                "stylize",
                "image",
                str(picture),
                "--style",
                str(reference),
                *FAST,
                "--json",
                "-o",
                "a.webp",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert {e["event"] for e in events} == {"start", "progress", "result"}
    assert events[-1]["output"] == "a.webp" and events[-1]["width"] == 64
    assert run(["stylize", "image", "missing.png", "--style", str(reference), "--json"]) == 2
    [error] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (error["event"], error["kind"], error["code"]) == ("error", "request", 2)
    assert "missing.png" in error["message"]


def test_quiet(here, picture, reference, capsys):
    assert run(["stylize", "image", str(picture), "--style", str(reference), *FAST, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_wrong_requests(here, picture, reference, capsys):
    image, style = ["stylize", "image", picture], ["--style", reference]
    (here / "text.png").write_text("no picture")
    (here / "cut.png").write_bytes(picture.read_bytes()[:900])
    (here / "half").mkdir()
    (here / "half" / "model_index.json").write_text("{}")
    for arguments, message in [
        ([*image], "--style is missing"),
        ([*image, "--style", "gone.png"], "gone.png"),
        ([*image, "--style", "text.png"], "text.png"),
        (["stylize", "image", "text.png", *style, *FAST], "text.png"),
        (["stylize", "image", "cut.png", *style, *FAST], "cut.png"),
        ([*image, *style, "--eta", "0"], "--eta"),
        ([*image, *style, "--eta", "1.5"], "--eta"),
        ([*image, *style, "--steps", "0"], "--steps"),
        ([*image, *style, "--steps", "many"], "--steps"),
        ([*image, *style, "--size", "big"], "--size"),
        ([*image, *style, "--model", "nonsense"], "nonsense"),
        ([*image, *style, "--model", "half"], "unet"),
        ([*image, *style, *FAST, "--lora", "gone.safetensors"], "gone.safetensors"),
        ([*image, *style, *FAST, "-o", "no/such/folder/a.png"], "no/such/folder"),
        ([*image, *style, *FAST, "-o", "a.tiff"], ".tiff"),
        ([*image, *style, "--colour", "red"], "--colour"),
        (["paint"], "paint"),
    ]:
        assert message in one_error(capsys, *arguments), arguments


def test_a_lora_that_matches_nothing(here, picture, reference, capsys):
    import torch
    from safetensors.torch import save_file

    save_file(
        {
            "unet.other.lora_A.weight": torch.ones(4, 8),
            "unet.other.lora_B.weight": torch.ones(8, 4),
        },
        here / "l.safetensors",
    )
    error = one_error(
        capsys,
        "stylize",
        "image",
        picture,
        "--style",
        reference,
        *FAST,
        "--lora",
        "l.safetensors",
        "-q",
    )
    assert "0 of 2 tensors match" in error


def test_a_missing_model_without_network(here, picture, reference):
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "hub")}
    done = std(
        "stylize", "image", picture, "--style", reference, "--model", "sdxl", cwd=here, env=env
    )
    assert done.returncode == 5 and done.stderr.count("\n") == 1
    assert "run std models pull sdxl ip-adapter-plus" in done.stderr
    assert "--model tiny" in done.stderr and len(done.stderr) < 200


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_is_finished(here, photo, reference):
    for name in "abcdefgh":
        photo.resize((128, 128)).save(here / f"{name}.png")
    settings = ["--model", "tiny", "--size", "128", "--steps", "12", "-o", "out", "--json"]
    process = Command("stylize", "image", "*.png", "--style", reference, *settings, cwd=here)
    for line in process.stdout:
        if json.loads(line)["event"] == "result":
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            break
    rest, err = process.communicate()
    assert process.returncode == 130, err
    assert json.loads(rest.splitlines()[-1]) == {
        "event": "error",
        "message": "interrupted",
        "kind": "interrupted",
        "code": 130,
    }
    assert err == ""
    files = sorted((here / "out").iterdir())
    assert 1 <= len(files) < 8 and not any(f.name.startswith(".") for f in files)
    for f in files:
        with Image.open(f) as out:
            out.load()


def small_files():
    """No file may grow beyond 500 bytes: the system refuses the rest as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


def test_full_disk(here, picture, reference):
    request = ["stylize", "image", picture, "--style", reference, *FAST, "-q"]
    done = processes.std(*request, cwd=here, before=small_files)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and "disk" in done.stderr
    assert [p.name for p in here.iterdir() if "stylized" in p.name] == []


def test_debug_shows_the_traceback(here, reference):
    done = std(
        "stylize", "image", "gone.png", "--style", reference, env={"STD_DEBUG": "1"}, cwd=here
    )
    assert "Traceback" in done.stderr and done.returncode == 1
