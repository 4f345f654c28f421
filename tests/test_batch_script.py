"""examples/batch.sh: what is done is skipped, and only what may pass is tried again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUIET

SCRIPT = Path(__file__).parents[1] / "examples" / "batch.sh"
pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("jq") is None, reason="needs bash and jq"
)
FAST = ["--model", "tiny", "--size", "64", "--steps", "1"]


@pytest.fixture
def here(tmp_path, photo, reference):
    """Two pictures, one of them cut off, and `std` as a shell finds it, which counts its calls."""
    (tmp_path / "in").mkdir()
    photo.resize((64, 64)).save(tmp_path / "in" / "a.png")
    data = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(data[:900])
    (tmp_path / "bin").mkdir()
    std = tmp_path / "bin" / "std"
    std.write_text(f'#!/bin/sh\necho >> {tmp_path}/calls\nexec {sys.executable} -m std_cli "$@"\n')
    std.chmod(0o755)
    return tmp_path


def batch(here, *options, **env):
    kept = {k: v for k, v in os.environ.items() if k not in QUIET}
    path = f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}"
    (here / "calls").unlink(missing_ok=True)
    done = subprocess.run(
        [str(SCRIPT), "in", "style.png", "out", *options],
        cwd=here,
        env=kept | {"PATH": path, "PAUSE": "0"} | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, len((here / "calls").read_text().splitlines())


def test_a_damaged_picture_is_not_tried_again_and_the_rest_is_done_once(here):
    done, calls = batch(here, *FAST)
    assert (done.returncode, calls) == (1, 1), done.stderr
    summary, *errors = done.stdout.splitlines()
    assert summary.startswith("1 stylized in ") and any("in/b.png" in line for line in errors)
    assert (here / "out.failed").read_text() == "in/b.png\n"
    first = (here / "out" / "a_stylized.png").stat().st_mtime_ns
    shutil.copy(here / "in" / "a.png", here / "in" / "b.png")
    done, calls = batch(here, *FAST)
    assert (done.returncode, calls) == (0, 1), done.stderr
    assert (here / "out" / "a_stylized.png").stat().st_mtime_ns == first
    assert (here / "out" / "b_stylized.png").exists()
    assert done.stdout.startswith("1 stylized in ") and done.stdout.count("\n") == 1
    assert (here / "out.failed").read_text() == ""


def test_what_needs_the_network_is_tried_again(here):
    (here / "in" / "b.png").unlink()
    done, calls = batch(here, HF_HUB_OFFLINE="1", HF_HOME=str(here / "hub"))
    assert (done.returncode, calls) == (5, 5)
    assert "network: sdxl and ip-adapter-plus are not downloaded" in done.stdout
    assert done.stderr.count("again in a while") == 5
