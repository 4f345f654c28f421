"""Threads of a processor: how many a stage of a video takes, and that a resumed run has those of
the interrupted one."""

import os

import psutil
import pytest
import torch
from PIL import Image

from std_cli import Stylizer
from std_cli.diffusion import threads
from std_cli.diffusion.threads import GIVEN, threads_of_a_stage, torch_threads
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.weights.resolve import resolve_model
from tests.micro import micro
from tests.stylize.test_videos import frames_of, make_clip


@pytest.fixture
def cores(monkeypatch):
    """Makes a machine of so many cores, each with two processors, on which nothing is chosen."""
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()

    def machine(count, processors=None):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: count)
        usable = set(range(processors or 2 * count))
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: usable, raising=False)
        torch.set_num_threads(min(count, len(usable)))

    yield machine
    torch.set_num_threads(before)


def test_a_small_network_takes_half_of_the_cores_for_each_stage(cores, monkeypatch):
    files = resolve_model("tiny")
    for count, each in ((1, 1), (2, 1), (3, 1), (4, 2), (8, 4)):
        cores(count)
        assert threads_of_a_stage(files) == each
    cores(8, processors=2)  # a container, or taskset
    assert threads_of_a_stage(files) == 1
    cores(8)
    torch.set_num_threads(3)  # by the caller of the Python functions
    assert threads_of_a_stage(files) is None
    cores(8)
    monkeypatch.setattr(threads, "SMALL", 7_955_683)  # the UNet has one parameter more
    assert threads_of_a_stage(files) is None
    monkeypatch.undo()


@pytest.mark.parametrize("name", GIVEN)
def test_the_user_s_number_stays(cores, monkeypatch, name):
    cores(8)
    monkeypatch.setenv(name, "2")
    assert threads_of_a_stage(resolve_model("tiny")) is None


def test_the_number_is_put_back(cores):
    cores(2)
    with pytest.raises(ZeroDivisionError), torch_threads(1):
        assert torch.get_num_threads() == 1
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 2
    with torch_threads(None):
        assert torch.get_num_threads() == 2


def test_a_resumed_video_has_the_threads_and_bits_of_the_interrupted_one(
    tmp_path, cores, monkeypatch
):
    """On 2 cores a run takes 1 thread; where the user chose 2 it keeps them when it is resumed,
    whatever is chosen then."""
    clip = make_clip(tmp_path / "in.mp4", 6, sound=False)
    style = Image.linear_gradient("L").convert("RGB")
    seen = []
    decode = VideoPipeline.begin_decoding

    def counting(*arguments):
        seen.append(torch.get_num_threads())
        return decode(*arguments)

    monkeypatch.setattr(VideoPipeline, "begin_decoding", counting)
    look = {"steps": 1, "size": 64, "codec": "ffv1", "style_blocks": "all"}

    def run(name, **more):
        """The threads of its networks, and its frames; the caller's number is put back."""
        seen.clear()
        before = torch.get_num_threads()
        with Stylizer(model=micro(), motion="none", device="cpu") as stylizer:
            try:
                stylizer.video(clip, style, tmp_path / name, **look, **more)
            except KeyboardInterrupt:
                return set(seen), None
            finally:
                assert torch.get_num_threads() == before
        return set(seen), [pixels.tobytes() for _, pixels in frames_of(tmp_path / name)]

    def stop(event):
        if event.get("stage") == "video" and event["frame"] >= 2:
            raise KeyboardInterrupt

    cores(2)
    assert run("whole.mkv")[0] == {1}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    used, whole = run("two.mkv")
    assert used == {2}
    assert run("stopped.mkv", on_event=stop) == ({2}, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    assert run("stopped.mkv") == ({2}, whole)
