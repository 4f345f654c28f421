"""`python -m tests.bench.gpu` on a CPU: every row of every slice, and what decides whether it works
the first time that it meets a GPU."""

import inspect
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.bench.gpu import __main__ as gpu
from tests.bench.gpu import machine, memory, pictures, work
from tests.bench.gpu.bench import Bench
from tests.bench.gpu.rows import Goal, Row, Rows
from tests.bench.gpu.scale import NARROW, REAL, Clip
from tests.micro import micro
from tests.processes import Command
from tests.weights import sdxl

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
SMALLEST = replace(
    NARROW,
    guided_steps=2,
    few_steps=1,
    pictures=1,
    vae_sides=(64,),
    clips=(Clip("small", (64, 64), 2, 1.0),),
    frames=9,
    batches=(1, 2),
    kills=("SIGTERM",),
    killed_frames=24,
    matrix=64,
    updates=1,
    training_batches=(1,),
    seconds=0.0,
)


def make_bench(out: Path, model: Path, **changes) -> Bench:
    rows = Rows(out, "a card", "narrow", "the first run")
    return Bench(out, model, CPU, replace(SMALLEST, **changes), rows)


def _without_the_compiler():
    """Compilation takes minutes, and torch's own switch is one for each thread."""
    torch.compile = lambda work=None, **options: work


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """With a model of few layers, and without the compiler."""
    bench = make_bench(tmp_path_factory.mktemp("bench"), Path(micro()))
    bench.start, bench.in_process = partial(Command, before=_without_the_compiler), True
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", torch.compile)
        _without_the_compiler()
        yield bench


def measured(bench, name):
    """The rows of a slice by name, which are measured once."""
    gpu.measure(bench, name, list(gpu.slices(bench.scale)[name].rows(bench)), 480)
    return {f["row"]: f for f in bench.rows.all.values() if f["slice"] == name}


# "plain" is for SDXL's blocks, see below
@pytest.mark.parametrize("name", [name for name in gpu.slices(SMALLEST) if name != "plain"])
def test_every_row_of_a_slice_is_measured(bench, name):
    found = measured(bench, name)
    assert found.keys() == {row.name for row in gpu.slices(bench.scale)[name].rows(bench)}
    for row, facts in found.items():
        if "8-bit" in row:  # bitsandbytes works on GPUs alone
            assert "needs bitsandbytes" in facts["error"]
        else:
            assert "error" not in facts, facts
        assert all(facts.get(name, 1) > 0 for name in ("seconds", "fps", "ms", "share", "GiB"))
    lines = bench.rows.file.read_text()
    measured(bench, name)
    assert bench.rows.file.read_text() == lines


def test_a_killed_video_ends_bit_for_bit_as_if_it_was_not(bench):
    found = measured(bench, "resume")
    assert found["uninterrupted, twice"]["equal"] is True
    killed = found["SIGTERM, then the same command"]
    assert killed["equal"] is True and killed["exit code"] == 143
    assert 0 < killed["resumed frames"] < bench.scale.killed_frames


def test_each_saving_is_taken_on_a_small_gpu(bench):
    found = measured(bench, "out-of-memory")
    assert "--batch 1" in found["fewer windows at once"]["notices"][0]
    assert "in tiles of 256" in found["the VAE in tiles"]["notices"][0]
    for mode in ("model", "sequential"):
        facts = found[f"--offload {mode}"]
        assert f"--offload {mode}" in facts["notices"][-1] and facts["equal"] is True


def test_the_narrow_model_runs_in_sdxls_topology(tmp_path):
    bench = make_bench(tmp_path, tmp_path / "model")
    assert gpu.finish(bench, [], 480) == 0
    assert not list(tmp_path.glob(".*"))  # of the model
    assert 0.02 < bench.rows.find("machine", "making the model")["GiB"] < 0.1
    assert bench.picture_needs(64, guided=False).needed("fp32", "none", 1) > 0
    [*_, few] = pictures.plain_rows(bench)
    facts = few.measure()
    assert facts["seconds"] > 0 and facts["TFLOP"] > 0


def test_work_is_that_of_sdxl(tmp_path):
    """Against the figures of a count by hand of the published configs: 6.76 TFLOP of the UNet, 4.88
    and 10.47 of the VAE at 1024 x 1024."""
    for part, config in (("unet", sdxl.UNET), ("vae", sdxl.VAE)):
        sdxl.write_json(tmp_path / part / "config.json", config)
    size = (1024, 1024)
    assert work.unet_flop(tmp_path, size) == pytest.approx(6.761e12, rel=1e-3)
    encoding, decoding = work.vae_flop(tmp_path, size)
    assert (encoding, decoding) == pytest.approx((4.879e12, 10.470e12), rel=1e-3)


# --- rows --------------------------------------------------------------------------------------


def test_rows_are_kept_one_by_one_and_failed_ones_are_measured_again(tmp_path, capsys):
    rows = Rows(tmp_path, "a card", "sdxl", "the first run")
    rows.add("slice", "good", {"seconds": 1.5, "met": True})
    rows.fail("slice", "bad", ValueError("of two\nlines"))
    with rows.file.open("a") as file:
        file.write('{"card": "a card", "sha')  # a process that was killed here
    assert rows.has("slice", "good") and rows.has("slice", "bad")
    later = Rows(tmp_path, "a card", "sdxl", "another run")
    assert later.has("slice", "good") and not later.has("slice", "bad")
    assert not Rows(tmp_path, "another card", "sdxl", "another run").has("slice", "good")
    assert "| bad |  |  | ValueError: of two lines |" in later.tables()
    assert "| good | 1.5 | yes |  |" in later.tables()
    assert "ValueError: of two" in rows.errors.read_text()


def test_a_row_is_added_after_one_that_was_left_unfinished(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"card": "a card", "sha')
    rows = Rows(tmp_path, "a card", "sdxl", "a run")
    rows.add("slice", "row", {"ms": 1.0})
    assert Rows(tmp_path, "a card", "sdxl", "a run").has("slice", "row")


def test_goals():
    assert Goal("seconds", 0.35).met({"seconds": 0.3}) is True
    assert Goal("fps", 40, at_least=True).met({"fps": 39.9}) is False
    assert Goal("fps", 40, at_least=True).met({"error": "none"}) is None
    assert str(Goal("fps", 2.5, at_least=True)) == "fps >= 2.5"


def test_all_rows_have_names_of_their_own(tmp_path):
    for scale in (REAL, NARROW):
        bench = Bench(tmp_path, tmp_path, CPU, scale, Rows(tmp_path, "a card", "sdxl", "a run"))
        for name, each in gpu.slices(scale).items():
            rows = [row.name for row in each.rows(bench)]
            assert len(rows) == len(set(rows)) > 0, name


def test_a_row_that_fails_or_takes_too_long_does_not_stop_the_next(tmp_path):
    bench = make_bench(tmp_path, tmp_path)

    def endless():
        while True:
            time.sleep(0.01)

    rows = [Row("fails", lambda: {}["nothing"]), Row("works", lambda: {"ms": 1.0})]
    rows += [Row("takes too long", endless), Row("never begun", lambda: {"ms": 1.0})]
    gpu.measure(bench, "slice", rows, 0.5)
    assert "KeyError" in bench.rows.find("slice", "fails")["error"]
    assert bench.rows.find("slice", "works")["ms"] == 1.0
    assert "cut short" in bench.rows.find("slice", "takes too long")["error"]
    assert not bench.rows.has("slice", "never begun")


def test_a_process_that_cannot_use_its_gpu_any_more_is_followed_by_another(tmp_path, monkeypatch):
    """As after an illegal access to memory: the row failed, and the new process has the same run,
    which does not measure it again."""
    bench = make_bench(tmp_path, tmp_path)
    rows = [Row("first", lambda: {}["nothing"]), Row("second", lambda: {"ms": 1.0})]
    monkeypatch.setattr(gpu, "slices", lambda scale: {"slice": gpu.Slice("", lambda b: iter(rows))})
    monkeypatch.setattr(machine, "usable", lambda device: False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "tests.bench.gpu", "out"])
    started = []
    monkeypatch.setattr(gpu.os, "execv", lambda program, arguments: started.append(arguments))
    gpu.finish(bench, ["slice"], 480)
    again = [sys.executable, "-m", "tests.bench.gpu", "out", "--run", "the first run"]
    assert started == [again]
    assert bench.rows.has("slice", "first") and not bench.rows.has("slice", "second")
    assert gpu.parse(again[3:]).run == "the first run"


def test_ctrl_c_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    bench = make_bench(tmp_path, tmp_path)

    def interrupted():
        raise KeyboardInterrupt

    def rows(bench):
        return iter([Row("first", lambda: {"ms": 1.0}), Row("second", interrupted)])

    monkeypatch.setattr(gpu, "slices", lambda scale: {"slice": gpu.Slice("", rows)})
    assert gpu.finish(bench, ["slice"], 480) == 130
    assert "| first | 1 |" in (tmp_path / "table.md").read_text()
    assert not bench.rows.has("slice", "second")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name the folder"),
        (["out", "--slice", "vea"], "--slice vea: there is no such slice"),
        (["out", "--device", "cuda:99"], "--device cuda:99: this machine has"),
        (["out", "--device", "gpu"], "--device gpu"),
    ],
)
def test_wrong_arguments_are_one_line(given, message, capsys):
    assert gpu.main(given) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_slices_are_listed(capsys):
    assert gpu.main(["--list"]) == 0
    assert "out-of-memory" in capsys.readouterr().out


# --- what only a GPU runs ----------------------------------------------------------------------


def test_what_is_asked_of_torch_cuda_exists():
    """Names and arguments of torch.cuda's functions, as the bench calls them."""
    sources = "".join(p.read_text() for p in Path(gpu.__file__).parent.glob("*.py"))
    names = set(re.findall(r"torch\.cuda\.(\w+)", sources))
    assert {"synchronize", "set_per_process_memory_fraction"} <= names
    for name in names:
        assert hasattr(torch.cuda, name), name
    device = torch.device("cuda", 0)
    for name in ("max_memory_allocated", "max_memory_reserved", "reset_peak_memory_stats"):
        inspect.signature(getattr(torch.cuda, name)).bind(device)
    inspect.signature(torch.cuda.set_per_process_memory_fraction).bind(0.5, device)
    assert machine.with_index(device) == device and machine.with_index(CPU) == CPU


def test_nvidia_smi_is_read():
    line = "NVIDIA H100 80GB HBM3, 550.54.15, 700.00 W, 1980 MHz, [N/A], 2619 MHz, 31"
    facts = machine.smi_facts(line)
    assert facts["power.limit"] == "700.00 W" and facts["temperature.gpu"] == "31"
    assert "clocks.max.sm" not in facts
    assert machine.smi_facts("No devices were found") == {} == machine.smi_facts("")


def test_limits_of_a_small_gpu_lie_between_what_the_networks_need():
    """SDXL in fp16 with its VAE in fp32, at 1024 x 1024."""
    weights = {"unet": 5_135, "vae": 335, "text_encoder": 246, "text_encoder_2": 1_389}
    found = memory.limits(weights, {"unet": 300, "vae_encode": 2_000, "vae_decode": 4_000})
    whole = sum(weights.values())
    assert whole + 300 < found["tiles"] < whole + 4_000
    assert found["sequential"] < weights["unet"] < found["model"] < whole
    assert machine.fraction(8, 80) == 0.1 and machine.fraction(90, 80) == 1.0


def test_half_precision_is_compared_in_decibels():
    one = Image.new("RGB", (8, 8), (100, 100, 100))
    other = Image.new("RGB", (8, 8), (110, 100, 100))
    # 20 log10(255) - 10 log10(100 / 3)
    assert memory.difference(one, other) == {"most levels": 10, "equal": False, "PSNR dB": 32.9}
    assert memory.difference(one, one) == {"most levels": 0, "equal": True}


def test_the_peak_of_memory_is_that_of_the_block():
    with machine.Peak(CPU) as peak:
        held = np.ones(200 * 2**20, np.uint8)
        time.sleep(0.05)
        del held
    assert 150 * 2**20 < peak.most - peak.base < 400 * 2**20
    assert peak.facts(2**30) == {"GiB": round(peak.most / 2**30, 3), "plan GiB": 1.0}


def test_a_rate_is_that_of_the_product():
    rate = machine.matmul_rate(256, "fp32", CPU, 0.01)
    assert 1e8 < rate < 1e13
    assert machine.usable(CPU)
