"""Training runs on the embedded pack: what a run leaves, and what is refused in one line."""

import json
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
from std_cli.distill import checkpoint
from std_cli.distill.config import to_toml
from std_cli.distill.monitor import COLUMNS
from std_cli.distill.train import distill
from std_cli.errors import Busy, InputError, StdError
from std_cli.media.sheets import GAP
from std_cli.paths import try_lock
from std_cli.weights.lora import read_lora
from std_cli.weights.resolve import TINY
from tests.distill.runs import SIZE, a_config, copy_of, lines, same
from tests.micro import micro

pytestmark = pytest.mark.long


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
        assert len(COLUMNS) == 8 and seen.width == 8 * (SIZE + GAP) - GAP
        assert np.asarray(seen.convert("L"))[:-SIZE].min() < 128  # labels
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
        metadata = file.metadata()
    assert (metadata["task"], metadata["eta"], metadata["steps"], metadata["trained_steps"]) == (
        "i2i",
        "0.75",
        "2",
        "4",
    )
    assert max(v.abs().max() for k, v in load_file(path).items() if "lora_B" in k) > 0
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    how = {"model": micro(), "size": 64, "device": "cpu"}
    schedule = metadata["schedule"]
    [plain] = stylize_image(photo, photo, lora="none", schedule=schedule, steps=2, **how)
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
    made_for = (0.75, 2, schedule)
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
    pipe = StableDiffusionXLPipeline.from_pretrained(micro(), dtype=torch.float32)
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
    refused(a_config(pictures, tmp_path / "new" / "run", **sections), problem)


def test_what_does_not_suit_the_model_is_one_line(pictures, clips, tmp_path):
    blind = {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
    model = with_scheduler(tmp_path / "model", blind)
    start = {"model": {"name": str(model)}, "distill": {"points": 50, "eta": 0.99}}
    problem = "distill.eta 0.99: training begins at the last timestep, where model.name"
    refused(a_config(pictures, tmp_path / "new" / "run", **start), problem)
    # the motion adapter has positions for 24 frames
    long = {"run": {"task": "v2v"}, "data": {"frames": 25}}
    problem = "data.frames 25: the motion adapter .* takes at most 24: lower it"
    refused(a_config(clips, tmp_path / "new" / "run", **long), problem)
    still = {"run": {"task": "v2v"}, "model": {"name": "tiny"}}
    problem = "model.motion auto: tiny has no motion adapter, and task v2v needs one: name a folder"
    refused(a_config(clips, tmp_path / "new" / "run", **still), problem)


def test_a_folder_that_another_run_writes_is_not_touched(pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "lock").open("ab") as other:
        assert try_lock(other)
        with pytest.raises(Busy, match="another run is writing it: wait for it"):
            distill(a_config(pictures, folder))
    assert [path.name for path in folder.iterdir()] == ["lock"]


def refused(config, problem):
    """A run is refused in one line, and leaves nothing."""
    folder = Path(config.run.output)
    with pytest.raises(InputError, match=problem) as error:
        distill(config)
    assert "\n" not in str(error.value)
    assert not folder.parent.exists()


def with_scheduler(folder, changes):
    """The embedded pack with another scheduler_config.json."""
    folder.mkdir()
    for path in TINY.iterdir():
        if path.name != "scheduler":
            (folder / path.name).symlink_to(path)
    (folder / "scheduler").mkdir()
    name = Path("scheduler") / "scheduler_config.json"
    settings = json.loads((TINY / name).read_text()) | changes
    (folder / name).write_text(json.dumps(settings))
    return folder


def test_a_loss_that_is_not_finite_stops_before_the_update(pictures, tmp_path):
    config = a_config(
        pictures,
        tmp_path / "run",
        optimizer={"lr": 1e9, "clip": 1e9},
        run={"save_every": 1},
        data={"held_out": 0},
    )
    with pytest.raises(StdError, match="not finite in update .*no weight was changed"):
        distill(config)
    for step in checkpoint.steps_of(tmp_path / "run"):
        assert checkpoint.read_state(checkpoint.folder_of(tmp_path / "run", step)) is not None


def test_the_command(pictures, tmp_path, capsys, monkeypatch):
    # it changes the whole process
    monkeypatch.setattr("std_cli.cli.commands.silence_libraries", lambda: None)
    config = tmp_path / "run.toml"
    config.write_text(
        to_toml(
            a_config(
                pictures, tmp_path / "run", adversarial={"features": "none"}, data={"held_out": 0}
            )
        )
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
