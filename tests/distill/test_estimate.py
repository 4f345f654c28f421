"""Memory of a training run: the meter against numbers worked out by hand and the allocator's own,
the estimate against the meter, what a dry run reports."""

import numpy as np
import pytest
import torch
from PIL import Image

from std_cli.diffusion.memory import counting, living
from std_cli.distill.dry_run import dry_run
from std_cli.distill.estimate import estimate_bytes
from std_cli.distill.train import distill
from tests.distill.runs import a_config

pytestmark = pytest.mark.long

A = 4 * 10_000  # bytes of 10,000 numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{"i2i": folder of pictures, "v2v": of a clip}."""
    import av

    folders = {task: tmp_path_factory.mktemp(task) for task in ("i2i", "v2v")}
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC)
    for i in range(4):
        picture.rotate(90 * i).save(folders["i2i"] / f"{i}.png")
        (folders["i2i"] / f"{i}.txt").write_text(f"number {i}")
    with av.open(str(folders["v2v"] / "0.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 96, 72, "yuv420p", 1
        for _ in range(8):
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode())
    (folders["v2v"] / "0.txt").write_text("a clip")
    return folders


# --- the meter ---------------------------------------------------------------------------------


def test_what_is_saved_for_the_backward_pass_counts_and_what_the_backward_pass_makes():
    x = torch.zeros(10_000, requires_grad=True)
    with counting() as live:
        loss = x.exp().exp().exp().sum()  # exp keeps its result
        assert live.now == live.peak == 3 * A + 4
        loss.backward()
        # a gradient next to the three results, the loss and its own gradient; each goes when it has
        # been used
        assert live.peak == 4 * A + 8
        assert live.now == A + 4 and x.grad.nbytes == A
        del loss
        x.grad = None
        assert live.now == 0


def test_layers_forward_and_backward():
    """Two linear layers of 100 x 100 over 1000 rows: 400 kB each an input, an output; 40 kB a
    weight."""
    first, second = (torch.nn.Linear(100, 100, bias=False) for _ in range(2))
    x, rows, weight = torch.zeros(1000, 100), 400_000, 40_000
    with counting(held=[x, first.weight, second.weight]) as live:
        held = rows + 2 * weight
        assert live.now == held
        loss = second(torch.relu(first(x))).square().sum()
        # relu's result, and the last layer's output for its square; what relu was given and the
        # square are gone
        assert live.now == held + 2 * rows + 4
        assert live.peak == held + 3 * rows + 4, "the square, too, when its sum was made"
        loss.backward()
        assert live.now == held + 4 + 2 * weight, "gradients of two weights"
        # y to the power of 1, twice that and this times the gradient of 1, with relu's result and y
        assert live.peak == held + 5 * rows + 4 + 4


def test_views_and_work_in_place_are_no_memory_of_their_own():
    own, held = torch.zeros(10_000), torch.zeros(10_000)
    with counting(own=[own], held=[held, held[:5], held.view(100, 100)]) as live:
        assert live.now == A
        own.view(100, 100).t()[3:].mul_(2)
        own.add_(1)
        assert live.now == live.peak == A
        live.part = "made"
        a = torch.zeros(10_000)
        part = a[:1]
        del a
        assert live.now == 2 * A, "a part holds the whole"
        del part, held
        assert live.now == 0 and live.parts_at_peak == {"": A, "made": A}


def test_the_meter_agrees_with_the_allocator():
    layers = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.LayerNorm(256), torch.nn.Linear(256, 64)
    )
    x = torch.zeros(1000, 64)

    def step():
        layers(x).square().mean().backward()
        layers.zero_grad(set_to_none=True)

    step()
    with counting(own=layers.parameters()) as live:
        step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    reported = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    assert live.now == 0
    assert live.peak <= reported == pytest.approx(live.peak, rel=0.02), (
        "kernels take a little for themselves"
    )


def test_living_finds_each_memory_once():
    before = {t.untyped_storage()._cdata for t in living("cpu")}
    layer = torch.nn.Linear(10, 10)
    views = [layer.weight.view(100), layer.weight.detach()]
    new = [t for t in living("cpu") if t.untyped_storage()._cdata not in before]
    assert sorted(t.untyped_storage().nbytes() for t in new) == [40, 400] and len(views) == 2
    assert living("meta") == [] or all(t.device.type == "meta" for t in living("meta"))


# --- the estimate ------------------------------------------------------------------------------


CONFIGURATIONS = {
    "lcm, no average, discriminator": {
        "distill": {"mode": "lcm", "ema": 0},
        "model": {"name": "tiny", "gradient_checkpointing": True},
        "optimizer": {"batch": 2, "accumulation": 1},
    },
    "a clip": {
        "run": {"task": "v2v"},
        "data": {"frames": 4},
        "distill": {"head": "learn"},
        "adversarial": {"features": "none"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_dry_run_estimates_what_it_measures(data, tmp_path, name):
    sections = {"run": {}} | CONFIGURATIONS[name]
    task = sections["run"].get("task", "i2i")
    sections["run"] |= {"max_steps": 500}
    report = dry_run(a_config(data[task], tmp_path / "run", **sections))
    assert (report["pictures"], report["clips"], report["updates"]) == (
        (4, 0, 500) if task == "i2i" else (0, 1, 500)
    )
    assert report["seconds_per_update"] > 0 and not report["cannot_be_read"]
    *parts, total = report["memory_estimate_gib"].values()
    assert total == pytest.approx(sum(parts), abs=0.001)
    assert total == pytest.approx(report["peak_memory_gib"], rel=0.15)
    assert report["peak_resident_gib"] > report["peak_memory_gib"]
    assert (report["memory_estimate_gib"]["vae_decode"] > 0) == ("discriminator" in name)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_counts_what_the_networks_keep(data, tmp_path, checkpointing):
    found = []

    def look(t):
        estimate = estimate_bytes(t)
        trainable = sum(p.numel() for p in t.learning)
        assert estimate["lora"] == 2 * 4 * trainable, "student and average"
        judges = sum(p.numel() for p in t.judge.network.parameters())
        assert estimate["optimizer"] == 3 * 4 * (trainable + judges), "gradient and two moments"
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        [c] = t.conditioner.encode_text(["a"])
        c = {k: torch.stack([v, v]) for k, v in c.items()} | {"time_ids": torch.full((2, 6), 64.0)}
        x = torch.randn(2, 4, 16, 16)
        own = {p.untyped_storage()._cdata for p in t.conditioner.pipe.unet.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = t.roles.student(x, torch.tensor([779, 339]), c)
        del out
        real = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
        found.append((estimate, real))
        assert not [p for p in t.learning if p.grad is not None], "no trace of it"

    config = a_config(
        data["i2i"],
        tmp_path / "run",
        run={"max_steps": 1},
        data={"held_out": 0},
        model={"name": "tiny", "gradient_checkpointing": checkpointing},
        optimizer={"batch": 2, "accumulation": 2},
    )
    distill(config, on_ready=look)
    [(estimate, real)] = found
    assert estimate["activations"] == pytest.approx(real, rel=0.1)
    assert (estimate["activations"] < 4 * 2**20) == checkpointing
    assert estimate["vae_decode"] > 10 * 2**20, "one picture's, decoded with gradients"
