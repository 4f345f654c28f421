"""Training runs on the embedded pack: what changes and what does not, exact resume, damage, export,
two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from std_cli import stylize_image
from std_cli.cli.commands import run
from std_cli.diffusion.pipeline import Pipeline
from std_cli.distill import checkpoint
from std_cli.distill import dataset as samples
from std_cli.distill.conditioner import Conditioner
from std_cli.distill.config import make_config, to_toml
from std_cli.distill.roles import TARGET, Roles
from std_cli.distill.spatial_head import SpatialHead
from std_cli.distill.train import distill
from std_cli.errors import InputError, StdError
from std_cli.weights.lora import read_lora
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import TINY, resolve_model

SIZE = 64
TARGETS = ["to_q", "to_out.0", "proj_in", "conv1", "time_emb_proj"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(6):
        small = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    import av

    folder = tmp_path_factory.mktemp("clips")
    for i in range(2):
        wide = np.random.default_rng(i).integers(0, 256, (6, 12, 3), dtype=np.uint8)
        wide = np.asarray(Image.fromarray(wide).resize((144, 72), Image.Resampling.BICUBIC))
        with av.open(str(folder / f"{i}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=12)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 96, 72, "yuv420p", 1
            for k in range(8):
                rgb = np.ascontiguousarray(wide[:, 4 * k : 4 * k + 96])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
            file.mux(stream.encode())
        (folder / f"{i}.txt").write_text(f"clip {i}")
    return folder


def a_config(source, output, **sections):
    given = {
        "run": {"output": str(output), "max_steps": 4, "save_every": 2, "validate_every": 4},
        "model": {"name": "tiny", "device": "cpu"},
        "data": {"sources": [str(source)], "size": [SIZE, SIZE], "workers": 1, "held_out": 1},
        "lora": {"rank": 4, "alpha": 4, "targets": TARGETS},
        "distill": {"w_min": 1, "w_max": 5, "steps": 2, "unconditional_pooled": "empty"},
        "bank": {"length": 2},
        "adversarial": {"features": "random"},
        "optimizer": {
            "lr": 1e-3,
            "scale_lr": False,
            "warmup_steps": 1,
            "batch": 1,
            "accumulation": 2,
        },
    }
    for section, values in sections.items():
        given[section] = given.get(section, {}) | values
    return make_config(given)


def lines(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("memory", "samples_per_second")} for row in rows
    ]


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """An uninterrupted run of 4 updates, its folder and events."""
    folder, events = tmp_path_factory.mktemp("runs") / "whole", []
    reads = []
    with pytest.MonkeyPatch.context() as patch:
        read = samples.read_picture
        patch.setattr(samples, "read_picture", lambda *what: reads.append(what) or read(*what))
        distill(a_config(pictures, folder), on_event=events.append)
    return folder, [*events[:-1], events[-1] | {"reads": len(reads)}]


def test_a_run_leaves_what_it_should(whole):
    folder, events = whole
    assert checkpoint.steps_of(folder) == [2, 4]
    assert [e["step"] for e in events if e.get("stage") == "distill"] == [1, 2, 3, 4]
    start, *rows = lines(folder)
    assert start["step"] == 0 and 0 < start["validation"] < 2
    assert all(
        np.isfinite([r["loss"], r["adversarial"], r["discriminator"], r["norm"]]).all()
        for r in rows
    )
    assert rows[-1]["bank"] > 0 and sum(rows[-1]["bank_histogram"]) == rows[-1]["bank"]
    assert 0 < rows[-1]["validation"] < 2
    with Image.open(folder / "monitor" / "step-000004.png") as seen:
        assert seen.size == (8 * SIZE, SIZE)
    assert "eta = 0.75" in (folder / "config.toml").read_text()
    assert events[-1]["event"] == "result" and Path(events[-1]["output"]).is_file()


def test_a_run_reads_only_what_its_bank_does_not_supply(whole):
    folder, events = whole
    lanes = [
        checkpoint.load_part(folder / "checkpoint-000004", f"lane-0000{i}.pt") for i in range(2)
    ]
    begun = sum(lane["begun"] for lane in lanes)
    assert begun < 8, "samples of 4 updates of 2 lanes"
    # held out: the first validation, the last one and the comparison; and no more than batch + 2 x
    # workers ahead
    assert begun + 3 <= events[-1]["reads"] <= begun + 3 + 3


def test_the_exported_schedule_is_the_one_that_measures_better(whole):
    folder, events = whole
    found = json.loads((folder / "export.json").read_text())
    assert found == {k: events[-1][k] for k in ("weights", "schedule", "compared")}
    assert found["weights"] == "student" and set(found["compared"]) == {"student", "average"}
    student = found["compared"]["student"]
    assert (
        student["aligned"] == lines(folder)[-1]["validation"]
        and student["quickstart"] != student["aligned"]
    )
    assert found["schedule"] == min(student, key=student.get)
    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert (file.metadata()["schedule"], file.metadata()["weights"]) == (
            found["schedule"],
            "student",
        )


def test_a_finished_run_exports_its_average_from_data_that_moved(
    whole, pictures, tmp_path, monkeypatch
):
    folder, data = copy_of(whole[0], tmp_path / "run"), copy_of(pictures, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    distill(a_config("moved", folder, export={"weights": "average"}))
    exported = load_file(folder / "pytorch_lora_weights.safetensors")
    average = checkpoint.load_part(folder / "checkpoint-000004", "training.pt")["average"]
    assert all(torch.equal(v, average[k.removeprefix("unet.")].half()) for k, v in exported.items())
    before, found = (json.loads((f / "export.json").read_text()) for f in (whole[0], folder))
    assert found["weights"] == "average" and found["compared"] == before["compared"], (
        "the same figures"
    )
    assert lines(folder) == lines(whole[0])
    (data / "0.png").write_bytes((data / "1.png").read_bytes() + b"0")
    with pytest.raises(InputError, match="was made with other data"):
        distill(a_config("moved", folder))


def test_stylize_takes_the_lora(whole):
    folder, _ = whole
    path = folder / "pytorch_lora_weights.safetensors"
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    assert (told["task"], told["eta"], told["steps"], told["trained_steps"]) == (
        "i2i",
        "0.75",
        "2",
        "4",
    )
    assert max(v.abs().max() for k, v in load_file(path).items() if "lora_B" in k) > 0
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    how = {"model": "tiny", "size": 64, "device": "cpu"}
    [plain] = stylize_image(photo, photo, lora="none", schedule=told["schedule"], steps=2, **how)
    notices = []
    results = [
        np.asarray(
            stylize_image(photo, photo, lora=str(folder / name), on_event=notices.append, **how)[0],
            np.float32,
        )
        for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors")
    ]
    assert not [e for e in notices if e["event"] == "notice"], "every tensor has its layer"
    assert np.abs(results[0] - results[1]).max() <= 1
    started = [e["settings"] for e in notices if e["event"] == "start"]
    made_for = (0.75, 2, told["schedule"])
    assert [(s["eta"], s["steps"], s["schedule"]) for s in started] == [made_for] * 2
    [other] = stylize_image(
        photo, photo, lora=str(folder / "lora_kohya.safetensors"), eta=0.5, steps=1, **how
    )
    assert np.abs(results[1] - np.asarray(other, np.float32)).max() > 0, (
        "what the user asks for goes first"
    )
    assert np.abs(results[0] - np.asarray(plain, np.float32)).max() > 0


@pytest.mark.parametrize(
    "file",
    [None, "lora_kohya.safetensors", "checkpoint-000004/adapter.safetensors"],
    ids=["folder", "kohya", "checkpoint"],
)
def test_plain_diffusers_takes_the_lora(whole, file):
    """The very call of diffusers' documentation; every layer gets its factors and its scale of
    alpha / rank."""
    folder, _ = whole
    pipe = StableDiffusionXLPipeline.from_pretrained(TINY, dtype=torch.float32)
    if file is None:
        pipe.load_lora_weights(str(folder), adapter_name="std")
    else:
        path = folder / file
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="std")
    layers = {
        name: module for name, module in pipe.unet.named_modules() if hasattr(module, "lora_A")
    }
    adapter = read_lora(folder / "checkpoint-000004" / "adapter.safetensors", "adapter").layers
    assert layers.keys() == adapter.keys()
    for name, layer in layers.items():
        assert layer.scaling["std"] == adapter[name].scale == 1
        for half, part in (("lora_A", "lora_down.weight"), ("lora_B", "lora_up.weight")):
            found = getattr(layer, half)["std"].weight
            torch.testing.assert_close(
                found.float(), adapter[name].tensors[part], rtol=1e-3, atol=1e-6
            )


@pytest.mark.parametrize("stops", [(1,), (2, 3)])
def test_a_resumed_run_is_the_uninterrupted_one(whole, pictures, tmp_path, stops):
    folder, _ = whole
    config = a_config(pictures, tmp_path / "run")

    for stop in stops:

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


# A CPU is slow in fp16: no walk of the teacher before the first update, and no validation.
LITTLE_TEACHER = {"data": {"held_out": 0}, "bank": {"length": 1}}


def test_half_precision_skips_what_overflows(pictures, tmp_path, monkeypatch):
    """Two updates overflow, as the scale starts far too high; the run tells them, and resumes
    between them exactly."""
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        partial(torch.amp.GradScaler, init_scale=2.0**60, backoff_factor=2**-20),
    )
    folder, parts = tmp_path / "whole", tmp_path / "parts"
    how = {
        "model": {"dtype": "fp16"},
        "run": {"max_steps": 3, "save_every": 1},
        "adversarial": {"features": "none"},
    }
    how |= LITTLE_TEACHER
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


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_only_the_adapter_moves(pictures):
    files = resolve_model("tiny")
    pipeline = Pipeline(files, None, torch.device("cpu"), torch.float32)
    conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
    unet = pipeline.pipe.unet
    base = {n: p.clone() for n, p in unet.named_parameters()}
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([779, 339])
    [c] = conditioner.encode_text(["a"])
    c = {k: v[None].expand(2, *v.shape) for k, v in c.items()}
    c["time_ids"] = conditioner.time_ids((64, 64), (0, 0), (64, 64)).expand(2, 6)
    added = {"text_embeds": c["pooled"], "time_ids": c["time_ids"]}
    with torch.no_grad():
        plain = unet(x, t, c["states"], added_cond_kwargs=added).sample
    roles = Roles(unet, rank=4, alpha=4, dropout=0, targets=TARGETS, motion=True, ema=0.5)
    assert torch.equal(roles.teacher(x, t, c), plain)
    with torch.no_grad():
        for p in roles.parameters.values():
            p.normal_(0, 0.05)
    roles.average()
    student, target = roles.student(x, t, c), roles.target(x, t, c)
    assert torch.equal(roles.teacher(x, t, c), plain), (
        "the teacher is the base, whatever the adapter"
    )
    assert (student - plain).abs().max() > 1e-3 and (target - student).abs().max() > 1e-4
    student.square().mean().backward()
    assert all(p.grad is not None for p in roles.parameters.values())
    assert all((p.grad is None) == (".student." not in n) for n, p in unet.named_parameters())
    torch.optim.AdamW(list(roles.parameters.values()), 1e-2).step()
    for name, p in unet.named_parameters():
        plain_name = name.replace(".base_layer", "")
        assert plain_name not in base or torch.equal(p, base[plain_name]), name
    key = next(iter(roles.state_dict(TARGET)))
    assert roles.state_dict().keys() == roles.state_dict(TARGET).keys() and "lora_" in key


def test_clips_train_head_and_motion_layers(clips, tmp_path):
    config = a_config(
        clips,
        tmp_path / "run",
        run={"task": "v2v", "max_steps": 2, "save_every": 1},
        data={"frames": 3, "stride": 2},
        distill={"head": "learn"},
    )
    distill(config)
    first, last = (
        load_file(tmp_path / "run" / f"checkpoint-00000{n}" / "adapter.safetensors") for n in (1, 2)
    )
    moving = [k for k in last if "motion_modules" in k and "lora_B" in k]
    assert moving and any(not torch.equal(first[k], last[k]) for k in moving)
    states = [
        checkpoint.load_part(tmp_path / "run" / f"checkpoint-00000{n}", "training.pt")
        for n in (1, 2)
    ]
    assert not same(states[0]["head"], states[1]["head"])


def test_the_head_is_the_identity_at_first():
    z = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for heavy in (False, True):
        head = SpatialHead(heavy)
        assert torch.equal(head(z), z) and torch.equal(head(z[:, :, 0]), z[:, :, 0])
        head.layers[-1].weight.data.normal_(generator=torch.Generator().manual_seed(1))
        apart = torch.stack([head(z[:, :, i]) for i in range(3)], 2)
        assert torch.allclose(head(z), apart, atol=1e-5), "each frame by itself"
    assert sum(isinstance(m, torch.nn.Conv2d) for m in SpatialHead(False).modules()) == 2
    assert sum(isinstance(m, torch.nn.Conv2d) for m in SpatialHead(True).modules()) == 5


def test_checkpointed_activations_change_nothing():
    files = resolve_model("tiny")
    gradients = []
    for saving in (False, True):
        motion = resolve_motion("auto", files)
        pipeline = Pipeline(files, None, torch.device("cpu"), torch.float32, motion=motion)
        conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
        torch.manual_seed(0)
        roles = Roles(
            pipeline.pipe.unet,
            rank=2,
            alpha=2,
            dropout=0,
            targets=["to_q", "proj_out"],
            motion=True,
            ema=0,
        )
        if saving:
            roles.checkpoint_activations()
        g = torch.Generator().manual_seed(1)
        x = torch.randn(1, 4, 2, 8, 8, generator=g)
        c = {k: v[None] for k, v in conditioner.encode_text(["a"])[0].items()}
        c["time_ids"] = conditioner.time_ids((32, 32), (0, 0), (32, 32))[None]
        roles.student(x, torch.tensor([500]), c).square().mean().backward()
        gradients.append({n: p.grad for n, p in roles.parameters.items()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-6) for n in gradients[0])


def test_dropout_is_the_students_alone():
    pipeline = Pipeline(resolve_model("tiny"), None, torch.device("cpu"), torch.float32)
    conditioner = Conditioner(pipeline, unconditional_pooled="empty", style=False)
    roles = Roles(
        pipeline.pipe.unet, rank=2, alpha=2, dropout=0.5, targets=["to_q"], motion=True, ema=0
    )
    for p in roles.parameters.values():
        p.data.normal_(generator=torch.Generator().manual_seed(0))
    c = {k: v[None] for k, v in conditioner.encode_text(["a"])[0].items()}
    c["time_ids"] = conditioner.time_ids((32, 32), (0, 0), (32, 32))[None]
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    assert not torch.equal(roles.student(x, t, c), roles.student(x, t, c))
    with torch.no_grad():
        assert torch.equal(roles.student(x, t, c), roles.student(x, t, c))


# --- what goes wrong ---------------------------------------------------------------------------


def copy_of(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, pictures, tmp_path):
    folder = copy_of(whole[0], tmp_path / "run")
    damaged = folder / "checkpoint-000004" / "training.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
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
        InputError, match="made on other weights of tiny .model.name.: name another run.output"
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


def test_a_half_written_line_of_metrics_is_cut_off(whole, pictures, tmp_path):
    folder = copy_of(whole[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-000004")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    distill(a_config(pictures, folder))
    assert lines(folder) == lines(whole[0])


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"data": {"sources": ["nowhere"]}}, "nowhere"),
        ({"lora": {"targets": ["no_such_layer"]}}, "lora.targets .*none of them is a layer"),
        ({"adversarial": {"features": "nowhere"}}, "adversarial.features 'nowhere'"),
        ({"style": {"folder": "nowhere"}}, "no such folder of style references"),
        ({"model": {"name": "nowhere"}}, "no model 'nowhere'"),
        ({"run": {"track": "wandb"}}, "run.track wandb: is not installed"),
        ({"optimizer": {"name": "adamw8bit"}}, "needs bitsandbytes: pip install"),
    ],
)
def test_what_cannot_be_used_is_one_line(pictures, tmp_path, sections, problem):
    with pytest.raises(InputError, match=problem) as error:
        distill(a_config(pictures, tmp_path / "run", **sections))
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_before_the_update(pictures, tmp_path):
    config = a_config(
        pictures, tmp_path / "run", optimizer={"lr": 1e30, "clip": 1e30}, run={"save_every": 1}
    )
    with pytest.raises(StdError, match="not finite in update .*no weight was changed"):
        distill(config)
    for step in checkpoint.steps_of(tmp_path / "run"):
        assert checkpoint.read_state(checkpoint.folder_of(tmp_path / "run", step)) is not None


def test_the_command(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("std_cli.cli.commands.hush", lambda: None)  # it changes the whole process
    config = tmp_path / "run.toml"
    config.write_text(
        to_toml(a_config(pictures, tmp_path / "run", adversarial={"features": "none"}))
    )
    assert run(["distill", "--config", str(config), "--max-steps", "1", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events if e["event"] not in ("progress", "notice")] == [
        "start",
        "result",
    ]
    for arguments, code, problem in (
        ([], 2, "--config is missing"),
        (["--config", str(tmp_path / "no.toml")], 2, "cannot be read"),
        (["--config", str(config), "--set", "distill.eta=2"], 2, "distill.eta 2: must be"),
        (["--config", str(config), "--output", str(config / "x")], 2, "run.output"),
    ):
        assert run(["distill", *arguments]) == code
        error = capsys.readouterr().err
        assert problem in error.replace("\n", " ") and "Traceback" not in error


# --- several processes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        # --multi_gpu is accelerate's word for one process each, gloo where the device is a CPU;
        # --cpu starts but one
        [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
        ],
    ],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_are_one_with_twice_the_accumulation(whole, pictures, tmp_path, launcher):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(a_config(pictures, tmp_path / "run", optimizer={"accumulation": 1})))
    if launcher[0].startswith("torch"):  # the first half was made by one process with two lanes
        copy_of(whole[0], tmp_path / "run")
        shutil.rmtree(tmp_path / "run" / "checkpoint-000004")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            "-m",
            "std_cli",
            "distill",
            "--config",
            str(config),
            "-q",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
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
main()
"""


def test_an_error_of_two_processes_is_reported_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FAILS_IN_ONE)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            str(script),
            "distill",
            "--config",
            str(tmp_path / "no.toml"),
        ],
        capture_output=True,
        text=True,
    )
    assert sorted(line for line in done.stdout.splitlines() if "problem" in line) == [
        "0 InputError: only the second has this problem, reported elsewhere: False",
        "1 InputError: only the second has this problem, reported elsewhere: True",
    ]
    assert done.returncode and done.stderr.count("error: --config") == 1, done.stderr[-2000:]


OVERFLOWS_IN_ONE = """
import os, torch
from std_cli.cli.commands import main

class Scaler(torch.amp.GradScaler):
    calls = 0

    def scale(self, loss):
        Scaler.calls += 1
        wrong = os.environ["RANK"] == "1" and Scaler.calls == 1
        return super().scale(loss) * (float("inf") if wrong else 1)

torch.amp.GradScaler = Scaler
main()
"""


def test_an_overflow_in_one_process_skips_the_update_in_all(pictures, tmp_path):
    config, script = tmp_path / "run.toml", tmp_path / "script.py"
    script.write_text(OVERFLOWS_IN_ONE)
    how = {"model": {"dtype": "fp16"}, "optimizer": {"accumulation": 1}, "run": {"max_steps": 2}}
    how |= {"adversarial": {"features": "none"}} | LITTLE_TEACHER
    config.write_text(to_toml(a_config(pictures, tmp_path / "run", **how)))
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), "distill", "--config", str(config), "-q"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    norms = [row["norm"] for row in lines(tmp_path / "run")]
    assert norms[0] is None and 0 < norms[1] < 10
    lora = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert all(torch.isfinite(v).all() for v in lora.values())
