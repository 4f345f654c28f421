"""Several processes of one run, as torchrun and accelerate start them."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from std_cli.cli.commands import run
from std_cli.distill.config import to_toml
from tests.distill.runs import IN_HALF_PRECISION, a_config, copy_of, lines
from tests.processes import Command

pytestmark = pytest.mark.long

# --multi_gpu is accelerate's word for one process each, gloo where the device is a CPU; --cpu
# starts but one
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--main_process_port", "0"]


def launched(*arguments, before=None):
    """Two processes of `std`, with what torchrun sets for each; what they ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        Command(
            *arguments, env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}, before=before
        )
        for rank in ("0", "1")
    ]
    for process in started:
        _, err = process.communicate()
        assert process.returncode == 0, err


def test_two_processes_finish_what_one_with_twice_the_accumulation_began(whole, pictures, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(a_config(pictures, tmp_path / "run", optimizer={"accumulation": 1})))
    # the first half was made by one process with two lanes
    copy_of(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-000004")
    launched("distill", "--config", config, "-q")
    a, b = (load_file(f / "pytorch_lora_weights.safetensors") for f in (whole[0], tmp_path / "run"))
    # Sums in another order, which Adam makes more of where a gradient is next to nothing.
    apart = torch.cat([(a[k].float() - b[k].float()).abs().flatten() for k in a])
    # they moved by up to 4e-3
    assert apart.mean() < 1e-6 and apart.max() < 1e-3, (apart.mean(), apart.max())
    for x, y in zip(lines(whole[0])[1:], lines(tmp_path / "run")[1:], strict=True):
        assert x["n"] == y["n"], "the same samples"
        assert x["bank_histogram"] == y["bank_histogram"] and x["bank"] == y["bank"], (
            "of all processes"
        )
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)


FAILS_IN_ONE = """
import sys
import time
from accelerate import PartialState
from std_cli.cli.commands import main
from std_cli.distill.processes import together
from std_cli.errors import InputError, StdError

world = PartialState(cpu=True)
with together(world):
    pass
try:
    with together(world):
        if world.process_index == 1:
            raise InputError("only the second has this problem")
except StdError as e:
    line = f"{world.process_index} {type(e).__name__}: {e}, reported elsewhere: {e.reported}\\n"
    print(line, end="", flush=True)
if world.process_index == 0:
    time.sleep(1)  # the launcher ends the others as soon as one has ended
main()
"""


def test_an_error_of_two_processes_is_reported_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FAILS_IN_ONE)
    command = [sys.executable, "-m", *ACCELERATE, str(script)]
    command += ["distill", "--config", str(tmp_path / "no.toml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert sorted(line for line in done.stdout.splitlines() if "problem" in line) == [
        "0 InputError: only the second has this problem, reported elsewhere: False",
        "1 InputError: only the second has this problem, reported elsewhere: True",
    ]
    assert done.returncode and done.stderr.count("error: --config") == 1, done.stderr[-2000:]


def _overflow_in_one():
    class Scaler(torch.amp.GradScaler):
        calls = 0

        def scale(self, loss):
            Scaler.calls += 1
            wrong = os.environ["RANK"] == "1" and Scaler.calls == 1
            return super().scale(loss) * (float("inf") if wrong else 1)

    torch.amp.GradScaler = Scaler


def test_an_overflow_in_one_process_skips_the_update_in_all(pictures, tmp_path):
    config = tmp_path / "run.toml"
    how = IN_HALF_PRECISION | {"run": {"max_steps": 2}}
    config.write_text(to_toml(a_config(pictures, tmp_path / "run", **how)))
    launched("distill", "--config", config, "-q", before=_overflow_in_one)
    norms = [row["norm"] for row in lines(tmp_path / "run")]
    assert norms[0] is None and 0 < norms[1] < 10
    lora = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert all(torch.isfinite(v).all() for v in lora.values())


def test_a_dry_run_is_of_one_process_and_is_refused_once(pictures, tmp_path, capsys, monkeypatch):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(a_config(pictures, tmp_path / "run")))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets them
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run(["distill", "--config", str(config), "--dry-run", "--verbose"]) == 2
        error = " ".join(capsys.readouterr().err.split())
        message = "error: --dry-run: runs in one process: start it without torchrun or accelerate"
        assert error.startswith(message) if rank == "0" else not error
    assert not (tmp_path / "run").exists()
