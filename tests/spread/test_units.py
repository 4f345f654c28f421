"""Units: what is made of them is what one process makes, bit for bit."""

import json
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from std_cli import StdError, Stylizer
from std_cli.diffusion.windows import Wavefront
from std_cli.spread import units
from std_cli.spread.finish import finish
from std_cli.spread.run_unit import run_unit, units_folder
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import Unit, computed, find_units, halo, shared_out
from std_cli.stylize import video_run
from std_cli.stylize.frames import source_frames
from std_cli.stylize.videos import prepare_video, run_videos
from tests.micro import micro
from tests.stylize.test_videos import make_clip

LOOK = {"size": 64, "style_blocks": "all", "cfg": 1, "eta": 1.0, "palette": 0}


def nothing(event):
    pass


@pytest.fixture(scope="module")
def stylizer():
    with Stylizer() as stylizer:
        yield stylizer


def request_for(source, reference, out, layout=None, **options):
    """layout: (frames of a window, overlap) in place of the motion adapter's."""
    options = {"model": micro(), "motion": "auto"} | LOOK | options
    request = prepare_video(source, reference, out, **options)
    return replace(request, window=layout[0], overlap=layout[1]) if layout else request


def in_one_process(request, stylizer):
    [result] = run_videos(
        request, False, True, False, True, nothing, partial(stylizer.use, request)
    )
    return result


def in_units(request, stylizer, parts):
    saved = SavedRequest.of("video", "in.mp4", "style.png", "out.mp4", True, {})
    [plan] = find_units(request, parts, saved, nothing)
    folder = units_folder(plan.job.target.path)
    use = partial(stylizer.use, request)
    resumed = []
    # in the reverse order: none needs another that is not named
    for unit in sorted(reversed(plan.units), key=lambda unit: bool(unit.of)):
        with pytest.raises(Killed):
            run_unit(unit, request, folder / unit.id, use, kill)
        with pytest.raises(StdError, match="are not done|is not done"):
            finish(plan, request, False, False, nothing)
        record = run_unit(unit, request, folder / unit.id, use, nothing)
        resumed.append(record.resumed)
        assert run_unit(unit, request, folder / unit.id, None, nothing) == record  # at once
    assert all(0 < frames < 19 for frames in resumed)
    return plan, finish(plan, request, False, False, nothing)


class Killed(BaseException):
    pass


def kill(event):
    if event.get("stage") == "video" and event["frame"] >= 3:
        raise Killed


def test_pieces_are_the_whole(tmp_path, monkeypatch, stylizer, reference):
    """Each killed once, with filters that run along the shot; tests/bench/scale.py has more
    layouts."""
    monkeypatch.setattr(video_run, "SEGMENT", 6)
    monkeypatch.setattr(video_run, "SAVE_EVERY", 0.0)
    source = make_clip(tmp_path / "in.mp4", 19, vfr=True)
    options = {"steps": 2, "steady": 0.5, "palette": 0.8}
    of = partial(request_for, source, reference, layout=(3, 1), **options)
    whole = in_one_process(of(tmp_path / "whole.mp4"), stylizer)
    plan, result = in_units(of(tmp_path / "pieces.mp4"), stylizer, 3)
    found = [(unit.first, unit.end, unit.before, unit.after, unit.keeps) for unit in plan.units]
    assert found == [
        (0, 6, 0, 3, "latents"),
        (6, 12, 4, 3, "latents"),
        (12, 19, 4, 0, "latents"),
        (0, 19, 0, 0, "frames"),
    ]
    assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    names = ("frames", "seam_ratio", "flicker")
    assert [result[name] for name in names] == [whole[name] for name in names]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "window, stride, steps, expected",
    [(8, 4, 4, 16), (8, 6, 3, 14), (5, 3, 3, 8), (4, 1, 2, 6), (8, 8, 2, 0), (1, 1, 2, 0)],
)
def test_the_halo_is_as_wide_as_the_influence(window, stride, steps, expected):
    """The wavefront with a predictor that lets every influence be seen in all bits of float64."""
    assert halo(window, stride, steps) == expected
    assert (halo(16, 8, 8), halo(8, 6, 8), halo(16, 12, 4)) == (64, 44, 40)
    generator = torch.Generator().manual_seed(0)
    length = 3 * max(expected, window) + 5
    latents = torch.randn(length, 1, 1, 1, generator=generator, dtype=torch.float64)
    whole = wavefront(latents, 0, window, stride, steps)
    third = length // 3
    ends = range(length - window - expected - stride, length, 3)  # near the last window
    for first, end in ((third, 2 * third), (third + 1, 2 * third + 1), *((0, end) for end in ends)):
        begin, stop = computed(first, end, length, window, stride, steps)
        piece = wavefront(latents[begin:stop], begin, window, stride, steps)
        assert torch.equal(piece[first - begin : end - begin], whole[first:end])
    if 0 < expected < third:  # with one window less on the left the first frame is another one
        begin = (third - expected) // stride * stride + stride
        piece = wavefront(latents[begin:], begin, window, stride, steps)
        assert not torch.equal(piece[third - begin :], whole[third:])


def wavefront(latents, first, window, stride, steps):
    weights = torch.linspace(0.3, 1.7, window, dtype=torch.float64)

    def predict(x, ks, frames):  # (B, 1, F, 1, 1)
        total = (x * weights[: x.shape[2]].view(1, 1, -1, 1, 1)).sum(2, keepdim=True)
        k = torch.tensor(ks, dtype=torch.float64).view(-1, 1, 1, 1, 1)
        return torch.sin(900 * x + 700 * total + k)

    def step(predictions, latents, k):
        return torch.sin(500 * predictions + 300 * latents)

    wave = Wavefront(window, stride, steps, predict, step, 64, first=first)
    out = []
    for latent in latents:
        wave.push(latent)
        out += [frame for group in wave.work() for frame in group]
    wave.end()
    out += [frame for group in wave.work() for frame in group]
    assert [frame.number for frame in out] == list(range(first, first + len(latents)))
    return torch.stack([frame.latent for frame in out]).flatten()


def test_units_are_shared_out_by_their_work():
    def unit(name, frames):
        return Unit(name, "in.mp4", "out.mp4", end=frames)

    units = [unit("a", 10), unit("b", 90), unit("c", 40), unit("d", 45), unit("e", 10)]
    shares = shared_out(units, 2)
    assert [[each.id for each in share] for share in shares] == [["b", "e"], ["d", "c", "a"]]
    assert sorted(u.id for share in shared_out(units, 7) for u in share) == list("abcde")
    assert Unit.from_json(json.loads(json.dumps(units[0].json()))) == units[0]


def test_videos_are_read_at_the_same_time_as_each_alone(tmp_path, reference, monkeypatch):
    clips = [
        make_clip(tmp_path / f"{i}.mp4", 20 + i, (64, 48), cut_at=9 + i, sound=False)
        for i in range(3)
    ]
    together = threading.Barrier(3, timeout=30)

    def frames(*given, **options):
        together.wait()
        return source_frames(*given, **options)

    options = {"steps": 1, "cfg": 1}
    (tmp_path / "out").mkdir()
    alone = [request_for(c, reference, tmp_path / "out" / c.name, **options) for c in clips]
    plans = [find_units(request, 1, None, nothing)[0] for request in alone]
    monkeypatch.setattr(units, "processors", lambda: 3)
    monkeypatch.setattr(units, "source_frames", frames)
    found = find_units(
        request_for(clips, reference, f"{tmp_path}/out/", **options), 1, None, nothing
    )
    assert [[u.first for u in plan.units] for plan in found] == [[0, 9], [0, 10], [0, 11]]
    for plan, other in zip(plans, found, strict=True):
        same = {"id": "", "output": "", "input": ""}
        assert [replace(u, **same) for u in plan.units] == [replace(u, **same) for u in other.units]


def test_a_video_that_cannot_be_read_ends_the_reading_of_the_others(
    tmp_path, reference, monkeypatch
):
    clips = [make_clip(tmp_path / f"{i}.mp4", 20, (64, 48), sound=False) for i in range(2)]
    read = []

    def frames(clip, *given, **options):
        if clip.path == clips[0]:
            raise StdError("the disk is gone")
        for _ in range(10**4):
            read.append(1)
            time.sleep(0.01)
            yield next(source_frames(clip, *given, **options))

    monkeypatch.setattr(units, "processors", lambda: 2)
    monkeypatch.setattr(units, "source_frames", frames)
    request = request_for(clips, reference, f"{tmp_path}/out/")
    with pytest.raises(StdError, match="the disk is gone"):
        find_units(request, 1, None, nothing)
    assert len(read) < 1000
