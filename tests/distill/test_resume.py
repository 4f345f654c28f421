"""A run that was stopped, damaged or moved: it resumes bit for bit, or is refused."""

import json
import os
import shutil
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from std_cli.distill import checkpoint
from std_cli.distill.train import distill
from std_cli.errors import InputError, StdError
from tests.distill.runs import IN_HALF_PRECISION, a_config, copy_of, lines, same

pytestmark = pytest.mark.long


def test_a_resumed_run_is_the_uninterrupted_one(whole, pictures, tmp_path):
    folder, _ = whole
    config = a_config(pictures, tmp_path / "run")

    for stop in (1, 3):

        def on_event(event, stop=stop):
            if event.get("stage") == "distill" and event["step"] == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt):
            distill(config, on_event=on_event)
    distill(config)
    assert lines(tmp_path / "run") == lines(folder)
    for name in ("pytorch_lora_weights.safetensors", "checkpoint-000004/adapter.safetensors"):
        a, b = load_file(folder / name), load_file(tmp_path / "run" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for name in ("training.pt", "lane-00000.pt", "lane-00001.pt"):
        a, b = (
            checkpoint.load_part(f / "checkpoint-000004", name) for f in (folder, tmp_path / "run")
        )
        assert same(a, b), name


def test_half_precision_skips_what_overflows(pictures, tmp_path, monkeypatch):
    """Two updates overflow, as the scale starts far too high; the run logs them, and resumes
    between them exactly."""
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        partial(torch.amp.GradScaler, init_scale=2.0**60, backoff_factor=2**-20),
    )
    folder, parts = tmp_path / "whole", tmp_path / "parts"
    how = IN_HALF_PRECISION | {"run": {"max_steps": 3, "save_every": 1}}
    distill(a_config(pictures, folder, **how))
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    norms = [row["norm"] for row in lines(folder)]
    assert norms[:2] == [None, None] and 0 < norms[2] < 10
    adapters = [load_file(folder / f"checkpoint-00000{n}" / "adapter.safetensors") for n in (2, 3)]
    changed = [any(v.abs().max() > 0 for k, v in a.items() if "lora_B" in k) for a in adapters]
    assert changed == [False, True]
    with pytest.raises(KeyboardInterrupt):
        distill(
            a_config(pictures, parts, **how),
            on_event=lambda e: os.kill(os.getpid(), signal.SIGTERM) if e.get("step") == 1 else None,
        )
    distill(a_config(pictures, parts, **how))
    assert lines(parts) == lines(folder)
    a, b = (load_file(f / "pytorch_lora_weights.safetensors") for f in (folder, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_a_kill_leaves_gives_way_to_the_checkpoint_before(whole, pictures, tmp_path):
    folder = copy_of(whole[0], tmp_path / "run")
    damaged = folder / "checkpoint-000004" / "training.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    events = []
    distill(a_config(pictures, folder), on_event=events.append)
    assert "checkpoint-000004 is damaged" in next(
        e["message"] for e in events if e["event"] == "notice"
    )
    assert [e["step"] for e in events if e.get("stage") == "distill"] == [3, 4]
    assert lines(folder) == lines(whole[0])


@pytest.mark.parametrize(
    ("sections", "how", "problem"),
    [
        ({"distill": {"eta": 0.65}}, "auto", "another distill.eta .distill.eta: 0.75, now 0.65."),
        (
            {"optimizer": {"accumulation": 3}},
            "auto",
            "has 2 lanes, now 3: processes x optimizer.acc",
        ),
        ({}, "none", "has checkpoints of a run"),
        ({}, "nowhere", "is damaged or no checkpoint"),
    ],
)
def test_a_run_that_differs_is_refused(whole, pictures, tmp_path, sections, how, problem):
    folder = copy_of(whole[0], tmp_path / "run")
    before = sorted(p.name for p in folder.rglob("*"))
    with pytest.raises(InputError, match=problem):
        distill(a_config(pictures, folder, **sections), resume=how)
    assert sorted(p.name for p in folder.rglob("*")) == before


def test_other_data_are_refused(whole, pictures, tmp_path):
    folder = copy_of(whole[0], tmp_path / "run")
    more = copy_of(pictures, tmp_path / "data")
    (more / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "another"}\n')
    with pytest.raises(InputError, match="was made with other data"):
        distill(a_config(more, folder))
    with pytest.raises(InputError, match="was made with other style references"):
        distill(a_config(pictures, folder, style={"folder": str(pictures)}))
    both = (pictures / "metadata.jsonl").read_text()
    try:
        (pictures / "metadata.jsonl").write_text(both.replace("number 3", "number three"))
        with pytest.raises(InputError, match="was made with other data"):
            distill(a_config(pictures, folder))
    finally:
        (pictures / "metadata.jsonl").write_text(both)


def test_other_weights_of_the_same_name_are_refused(whole, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("std_cli.distill.build.fingerprint", lambda base: "0" * 64)
    with pytest.raises(
        InputError, match="made on other weights of .*micro .model.name.: name another run.output"
    ):
        distill(a_config(pictures, copy_of(whole[0], tmp_path / "run")))


@pytest.mark.parametrize("files", [{}, {"adapter.safetensors": "0"}, None])
def test_a_state_that_lists_no_files_is_no_checkpoint(whole, tmp_path, files):
    folder = copy_of(whole[0] / "checkpoint-000004", tmp_path / "checkpoint-000004")
    state = json.loads((folder / "state.json").read_text())
    assert checkpoint.read_state(folder) == state
    (folder / "state.json").write_text(json.dumps(state | {"files": files}))
    assert checkpoint.read_state(folder) is None


@pytest.mark.parametrize("what", ["captions", "checkpoint", "metrics", "export"])
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(whole, pictures, tmp_path, what):
    """Files may not grow beyond a limit, which needs no disk of its own; the system's error is
    EFBIG."""
    import resource

    folder = copy_of(whole[0], tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if what == "captions":
        [kept] = folder.glob("captions-*.npy")
        kept.unlink()
    elif what != "export":
        shutil.rmtree(folder / "checkpoint-000004")
    size = {
        "captions": 5000,
        "checkpoint": 9000,
        "metrics": (folder / "metrics.jsonl").stat().st_size // 2,
    }.get(what)

    def limit(event):
        if event["event"] == "start":
            small = size or 9000
            resource.setrlimit(resource.RLIMIT_FSIZE, (small, limits[1]))

    try:
        if what == "captions":
            limit({"event": "start"})
        with pytest.raises(StdError, match="disk full while writing") as error:
            distill(
                a_config(pictures, folder, run={"validate_every": 100, "save_every": 3}),
                on_event=limit,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    [*_, last] = checkpoint.steps_of(folder)
    assert last == (2 if what in ("checkpoint", "metrics") else 4)
    assert checkpoint.read_state(checkpoint.folder_of(folder, last)) is not None
