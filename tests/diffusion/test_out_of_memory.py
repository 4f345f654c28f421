"""When memory runs out: each saving in its order, reported, with the same result.

The errors are torch's own, from modules that are made to run out of memory as a small GPU's would.
"""

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from std_cli import stylize_video
from std_cli.config import image_settings
from std_cli.diffusion.out_of_memory import OUT_OF_MEMORY, check_offload, enable_offload
from std_cli.diffusion.pipeline import ImagePipeline
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.diffusion.windows import Wavefront
from std_cli.errors import InputError, StdError
from std_cli.stylize import video_run
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model
from tests.diffusion.test_windows import run
from tests.micro import micro
from tests.stylize.test_videos import frames_of, make_clip

CPU = torch.device("cpu")
S = image_settings({"model": micro(), "steps": 2, "cfg": 4.0, "style_blocks": "all"})


@pytest.fixture(autouse=True)
def offload_to_the_cpu(monkeypatch):
    """diffusers asks for "cpu:0", which a tensor that is on the CPU never answers to: without the
    number."""
    real = accelerate.cpu_offload
    monkeypatch.setattr(
        accelerate, "cpu_offload", lambda model, device, **o: real(model, torch.device("cpu"), **o)
    )


class Small:
    """Makes a module's forward run out of memory while `short` says so of its first argument."""

    def __init__(self, module, short):
        self.forward, self.short, self.failures = module.forward, short, 0
        module.forward = self

    def __call__(self, *args, **kwargs):
        if self.short(args[0]):
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.forward(*args, **kwargs)


def video_pipeline(size=(64, 64)):
    files = resolve_model(micro())
    pipeline = VideoPipeline(files, None, CPU, torch.float32, motion=resolve_motion("auto", files))
    pipeline.set_style([Image.new("RGB", (64, 64), "red")], [1.0], 1.0, "all")
    return pipeline, pipeline.prepare(S, "quickstart", size)


def latents(count, seed=0):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def denoised(pipeline, conditions, frames, batch=4, halved=lambda now: None):
    predict, step = (partial(f, conditions) for f in (pipeline.predict, pipeline.step))
    wave = Wavefront(8, 4, S.steps, predict, step, batch, halved)
    return torch.stack([f.latent for f in run(wave, frames)])


def test_a_video_continues_with_fewer_windows_and_then_offloaded():
    (pipeline, conditions), frames = video_pipeline(), latents(16)
    whole = denoised(pipeline, conditions, frames)
    said = []
    pipeline.on_notice = said.append
    savings = pipeline.savings
    net = Small(
        pipeline.pipe.unet, lambda x: len(x) > 2 or (said and savings.offload != "sequential")
    )
    saved = denoised(pipeline, conditions, frames, halved=lambda now: said.append(f"batch {now}"))
    assert net.failures == 3  # two windows at once, one, one with --offload model
    assert (
        said[0] == "batch 1"
        and [s.split(":")[0] for s in said[1:]] == ["the GPU is out of memory"] * 2
    )
    assert "--offload model" in said[1] and "--offload sequential" in said[2]
    # a batch of another size rounds otherwise
    torch.testing.assert_close(saved, whole, rtol=0, atol=2e-5)


def test_offloading_changes_no_bit():
    pipeline, conditions = video_pipeline()
    window = latents(8).transpose(0, 1)[None]
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))

    def work():
        latent = pipeline.encode(pixels)
        prediction = pipeline.predict(conditions, window, [0], [range(8)])
        return prediction, latent, torch.from_numpy(pipeline.decode(latent))

    before = work()
    for how in ("model", "sequential"):
        savings, short = pipeline.savings, [True]
        net = Small(pipeline.pipe.unet, lambda x, s=short: bool(s) and bool(s.pop()))
        after = work()
        assert net.failures == 1 and savings.offload == how and savings.tile is None
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        net.short = lambda x: False


def test_the_vae_continues_in_tiles_first():
    pipeline, _ = video_pipeline((320, 640))
    said = []
    pipeline.on_notice = said.append
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (640, 320, 3), np.uint8).repeat(1, 0)
    )
    picture = picture.resize((32, 64)).resize((320, 640))  # something smooth, as pictures are
    latent = pipeline.encode(picture)
    whole = pipeline.decode(latent)
    part = Small(
        pipeline.pipe.vae.decoder, lambda z: max(z.shape) * pipeline.pipe.vae_scale_factor > 256
    )
    tiled = pipeline.decode(latent)
    assert (
        part.failures == 2 and pipeline.savings.tile == 256 and pipeline.savings.offload == "none"
    )
    assert [
        t
        for s in said
        for t in ("512", "256")
        if f"tiles of {t} pixels, which changes colours" in s
    ] == [
        "512",
        "256",
    ]
    assert tiled.shape == whole.shape and 0 < np.abs(tiled.astype(float) - whole).mean() < 8
    part.short = lambda z: pipeline.savings.offload != "sequential"
    assert np.array_equal(pipeline.decode(latent), tiled)
    assert pipeline.savings.offload == "sequential"
    assert pipeline.encode(picture).shape == latent.shape


def test_the_vae_continues_with_one_frame_at_a_time_before_tiles():
    (pipeline, _), frames, said = video_pipeline(), latents(3), []
    pipeline.on_notice, pipeline.savings.frames = said.append, 2
    together = [pipeline.levels(each) for each in pipeline.begin_decoding(list(frames))]
    part = Small(pipeline.pipe.vae.decoder, lambda z: len(z) > 1)
    alone = [pipeline.levels(each) for each in pipeline.begin_decoding(list(frames))]
    assert part.failures == 1 and pipeline.savings.state() == {
        "frames": 1,
        "tile": None,
        "offload": "none",
        "compiled": False,
    }
    assert said == ["the GPU is out of memory: continuing with one frame at a time in the VAE"]
    assert all(np.abs(a - b).max() < 0.01 for a, b in zip(together, alone, strict=True))


def test_a_picture_starts_again_and_is_the_same():
    pipeline = ImagePipeline(resolve_model(micro()), None, CPU, torch.float32)
    said, steps = [], []
    pipeline.on_notice = said.append
    pipeline.set_style([Image.new("RGB", (64, 64), "red")], [1.0], 1.0, "all")
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    whole = pipeline.stylize(picture, S, "quickstart", steps.append)
    calls = []
    Small(pipeline.pipe.unet, lambda x: calls.append(1) or len(calls) == 2)  # at the second step
    again = pipeline.stylize(picture, S, "quickstart", steps.append)
    assert np.array_equal(again, whole)
    assert steps == [1, 2, 1, 1, 2] and pipeline.savings.tile is None
    assert len(said) == 1 and "--offload model" in said[0]


@pytest.mark.parametrize("kind", [ImagePipeline, VideoPipeline])
def test_nothing_left_to_save_is_one_line(kind):
    pipeline = kind(resolve_model(micro()), None, CPU, torch.float32)
    pipeline.set_style([Image.new("RGB", (64, 64), "red")], [1.0], 1.0, "all")
    Small(pipeline.pipe.unet, lambda x: True)
    with pytest.raises(StdError) as raised:
        if kind is ImagePipeline:
            pipeline.stylize(Image.new("RGB", (64, 64)), S, "quickstart", lambda step: None)
        else:
            conditions = pipeline.prepare(S, "quickstart", (64, 64))
            pipeline.predict(conditions, latents(1).transpose(0, 1)[None], [0], [range(1)])
    assert str(raised.value) == OUT_OF_MEMORY
    assert len(pipeline.notices) == 2


def test_a_resumed_video_continues_in_tiles(tmp_path, monkeypatch):
    """What the first run took when memory ran out, the second has from the start: the same
    frames."""
    source = make_clip(tmp_path / "in.mp4", 6, (320, 64), sound=False)
    style = Image.linear_gradient("L").convert("RGB")
    request = {
        "model": micro(),
        "steps": 1,
        "size": 320,
        "motion": "none",
        "codec": "ffv1",
        "device": "cpu",
    }
    prepare, pipelines = VideoPipeline.prepare, []

    def stylized(name, short, on_event=lambda event: None):
        def prepared(pipeline, *arguments):
            conditions = prepare(pipeline, *arguments)
            pipelines.append(pipeline)
            if short:
                Small(pipeline.pipe.vae.encoder, lambda x: max(x.shape) > 256)  # at the first frame
            return conditions

        monkeypatch.setattr(VideoPipeline, "prepare", prepared)
        stylize_video(source, style, tmp_path / f"{name}.mkv", on_event=on_event, **request)
        return [pixels for _, pixels in frames_of(tmp_path / f"{name}.mkv")]

    def stop(event):
        if event.get("stage") == "video" and event["frame"] >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(video_run, "SEGMENT", 2)
    whole, roomy = stylized("whole", True), stylized("roomy", False)
    with pytest.raises(KeyboardInterrupt):
        stylized("stopped", True, stop)
    resumed = stylized("stopped", False)
    assert [p.savings.tile for p in pipelines] == [256, None, 256, 256]
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not np.array_equal(whole[-1], roomy[-1])


def test_savings_are_restored():
    (first, _), (second, _) = video_pipeline(), video_pipeline()
    taken = {"frames": 2, "tile": 256, "offload": "model", "compiled": False}
    first.savings.restore(taken)
    assert first.savings.state() == taken
    # what is in force stays so
    first.savings.restore({"frames": 2, "tile": None, "offload": "none", "compiled": True})
    first.savings.restore(taken | {"tile": 512, "offload": "sequential"})
    assert first.savings.state() == taken | {"offload": "sequential"}
    latent = latents(1)[0]
    first.savings.frames = 1
    # a frame that is smaller than a tile
    assert np.array_equal(first.decode(latent), second.decode(latent))


def test_threads_work_together_until_weights_move():
    """Two threads at once, which meet in the middle of their work; one at a time when offloaded. An
    error of one that another has remedied meanwhile takes no second saving."""
    pipeline = ImagePipeline(resolve_model(micro()), None, CPU, torch.float32)
    savings, said = pipeline.savings, []
    pipeline.on_notice = said.append
    meeting, short = threading.Barrier(2, timeout=30), {"tiles": 2}
    inside, most = [], []

    def together():
        meeting.wait()
        if savings.tile is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        short["tiles"] -= 1
        return savings.tile

    def apart():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(savings.attempt, together, lambda: 512) for _ in range(2)]
        assert [each.result() for each in both] == [256, 256]
        assert len(said) == 1 and short["tiles"] == 0
        savings.offload = "group"
        for each in [pool.submit(savings.attempt, apart) for _ in range(6)]:
            each.result()
    assert most == [1] * 6


@pytest.mark.parametrize("motion", ["auto", "none"])
def test_group_offloading_changes_no_bit_and_keeps_style_and_lora(motion):
    """On a CPU, where there are no streams. A fused LoRA is the weights."""
    files = resolve_model(micro())
    pipeline = VideoPipeline(files, None, CPU, torch.float32, motion=resolve_motion(motion, files))
    with torch.no_grad():
        for parameter in pipeline.pipe.unet.parameters():
            parameter.add_(0.001)
    frames = range(1 if motion == "none" else 8)
    window = latents(len(frames)).transpose(0, 1)[None]

    def work():
        found = []
        for color in ("red", "blue"):
            pipeline.set_style([Image.new("RGB", (64, 64), color)], [1.0], 1.0, "all")
            conditions = pipeline.prepare(S, "quickstart", (64, 64))
            found.append(pipeline.predict(conditions, window, [0], [frames]))
        latent = pipeline.encode(Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
        return [*found, latent, torch.from_numpy(pipeline.decode(latent))]

    before = work()
    pipeline.savings.offload = "group"
    enable_offload(pipeline.pipe, "group", CPU)
    pipeline._prompts.clear()
    after = work()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(after[0], after[1])
    assert pipeline.pipe._execution_device == CPU


def test_group_offloading_is_asked_of_diffusers_with_streams():
    """On a GPU, which is not here: streams, and nothing that waits after each layer."""
    asked = {}
    pipe = SimpleNamespace(enable_group_offload=lambda **options: asked.update(options))
    enable_offload(pipe, "group", torch.device("cuda", 1))
    known = inspect.signature(DiffusionPipeline.enable_group_offload).parameters
    assert asked.keys() <= known.keys()
    assert asked["use_stream"] and asked["record_stream"] and asked["exclude_modules"] == "vae"
    assert asked["onload_device"] == torch.device("cuda", 1)
    for device, remedy in (("cpu", "leave it out"), ("mps", "use --offload sequential")):
        with pytest.raises(InputError, match=remedy):
            check_offload("group", torch.device(device))
