"""The stages on a GPU that is not here: nothing in the loop waits for the device, and what goes
from one stream to another is waited for by the other."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from PIL import Image

from std_cli import Stylizer
from std_cli.config import ImageSettings
from std_cli.diffusion import streams
from std_cli.diffusion.pipeline import make_scheduler
from std_cli.diffusion.streams import Arriving, Streams, hand_over
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.diffusion.windows import Wavefront
from std_cli.weights.motion import resolve_motion
from std_cli.weights.resolve import resolve_model
from std_cli.weights.zoo import zoo
from tests.micro import micro
from tests.stylize.test_videos import frames_of, make_clip
from tests.weights.test_zoo import spacing

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
@pytest.mark.parametrize(
    ("motion", "methods"),
    # one of every scheduler, with and without noise of its own
    [("auto", ["std"]), ("none", ["std", "tcd", "lcm", "pcm", "lightning"])],
)
def test_nothing_in_the_loop_asks_the_device_for_a_number(motion, methods):
    """The meta device has no numbers: whatever would wait for a GPU (`item`, a comparison, a copy
    to main memory) is an error there. With guidance in a part of the steps."""
    files = resolve_model(micro())
    adapter = resolve_motion(motion, files)
    video = VideoPipeline(files, None, CPU, torch.float32, motion=adapter)
    video.set_style([Image.new("RGB", (64, 64), "teal")], [1.0], 1.0, "all")
    base, unet = dict(video.pipe.scheduler.config), video.pipe.unet
    prepared = {}
    for name in methods:
        method = zoo().methods[name]
        video.method, video.pipe.scheduler = method, make_scheduler(method, base)
        s = ImageSettings(
            model=micro(), prompt="", negative_prompt="", steps=2, cfg=3.0, cfg_steps=1,
            method=name, lora="none",
        )  # fmt: skip
        prepared[name] = video.prepare(s, spacing(name), (64, 64)), video.pipe.scheduler
    unet.to(META)
    shape, frames = ((1, 1), 3) if adapter is None else ((8, 4), 9)
    for name, (conditions, scheduler) in prepared.items():
        video.method, video.pipe.scheduler = zoo().methods[name], scheduler
        tensors = {f.name: getattr(conditions, f.name) for f in fields(conditions)}
        there = {k: t.to(META) for k, t in tensors.items() if isinstance(t, torch.Tensor)}
        conditions = replace(conditions, **there)
        predict, step = (partial(f, conditions) for f in (video.predict, video.step))
        wave = Wavefront(*shape, 2, predict, step, 2)
        done = []
        for _ in range(frames):
            latent = torch.empty(conditions.latent_shape, device=META)
            wave.push(video.add_noise(conditions, latent))
            done += [f for finished in wave.work() for f in finished]
        wave.end()
        done += [f for finished in wave.work() for f in finished]
        assert [f.number for f in done] == list(range(frames)), name
        assert all(f.latent.device == META for f in done)
    with pytest.raises((RuntimeError, NotImplementedError)):  # so the test can fail
        bool(done[0].latent.sum() > 0)


class Recorded:
    """torch's stand-ins of streams and events on a CPU, with what was asked of them."""

    def __init__(self, monkeypatch):
        self.entered, self.waited, self.synchronized = [], 0, 0
        real, event = torch.cpu.stream, torch.cpu.Event

        def stream(chosen):
            self.entered.append(chosen)
            return real(chosen)

        class Event(event):
            def wait(inside, stream=None):
                self.waited += 1

            def synchronize(inside):
                self.synchronized += 1

        monkeypatch.setattr(streams, "has_streams", lambda device: True)
        monkeypatch.setattr(torch.cpu, "stream", stream)
        monkeypatch.setattr(torch.cpu, "Event", Event)


def test_the_stages_have_streams_and_wait_for_each_other(tmp_path, monkeypatch):
    clip = make_clip(tmp_path / "in.mp4", 5, sound=False)
    style = Image.linear_gradient("L").convert("RGB")
    look = {"steps": 1, "size": 64, "codec": "ffv1", "style_blocks": "all"}
    with Stylizer(model=micro(), motion="none", device="cpu") as stylizer:
        stylizer.video(clip, style, tmp_path / "plain.mkv", **look)
        recorded = Recorded(monkeypatch)
        stylizer.video(clip, style, tmp_path / "streams.mkv", **look)
        used = stylizer._loaded.pipeline.streams._by_stage
    made = [
        [p.tobytes() for _, p in frames_of(tmp_path / f"{n}.mkv")] for n in ("plain", "streams")
    ]
    assert made[0] == made[1]
    # a stream for each of two stages; the one that denoises is on the default stream
    assert used.keys() == {"encode", "decode"}
    assert sorted(map(id, recorded.entered)) == sorted(5 * list(map(id, used.values())))
    # each latent twice: before it is denoised, and before it is decoded; the pictures on the host
    assert recorded.waited == 10 and recorded.synchronized == 5


def test_offloaded_weights_move_in_one_stream(monkeypatch):
    recorded = Recorded(monkeypatch)
    video = VideoPipeline(resolve_model(micro()), None, CPU, torch.float32)
    video.savings.offload = "model"
    with video.aside("decode"):
        pass
    assert recorded.entered == [] and video.streams._by_stage == {}


def test_without_streams_there_is_nothing_to_wait_for():
    tensor = torch.arange(6.0)
    assert hand_over(tensor).take() is tensor
    with Streams(CPU).aside("encode"):
        [back] = Arriving(tensor).tensors()
    assert torch.equal(back, tensor)
