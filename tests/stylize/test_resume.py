"""A stopped video: what was finished is not computed again, and the result is the same bit for
bit."""

import os
import signal
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from std_cli import InputError, Stylizer
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.media.video.write import SegmentWriter
from std_cli.stylize import video_run
from std_cli.stylize.part import Part
from std_cli.stylize.work_folder import WorkFolder
from tests.media.video.test_write import PTS, a_clip, pictures, target_for
from tests.micro import micro
from tests.stylize.test_videos import make_clip

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
]
LOOK = {"steps": 2, "size": 64, "style_blocks": "all", "palette": 0.8}


@pytest.fixture(scope="module")
def stylizer():
    with Stylizer(model=micro(), motion="auto") as stylizer:
        yield stylizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """28 frames, fewer than a part has, in two shots."""
    return make_clip(tmp_path_factory.mktemp("clip") / "in.mp4", 28, cut_at=17)


@pytest.fixture
def calls(monkeypatch):
    """How often each network was called; `calls.stop_at` is called with each (name, count)."""
    counted = Counter()

    def counting(name):
        real = getattr(VideoPipeline, name)

        def call(*arguments):
            counted[name] += 1
            counted.stop_at(name, counted[name])
            return real(*arguments)

        monkeypatch.setattr(VideoPipeline, name, call)

    counted.stop_at = lambda name, count: None
    for name in ("encode", "_predict", "begin_decoding"):
        counting(name)
    return counted


def test_no_finished_work_is_done_twice(tmp_path, monkeypatch, stylizer, clip, reference, calls):
    """Stopped by signals in the middle of a part and of rounds of windows."""
    whole, stopped = tmp_path / "whole.mp4", tmp_path / "stopped.mp4"
    stylizer.video(clip, reference, whole, **LOOK)
    expected = dict(calls)
    assert (expected["encode"], expected["begin_decoding"]) == (28, 28)
    calls.clear()
    # a signal each time when so many windows are begun in all: the last ones when all are pushed
    moments, sent = iter([1, 4, 7, 9, expected["_predict"] - 1]), []

    def stop_at(name, count):
        if name == "_predict" and count == calls.next:
            sent.append(count)
            os.kill(os.getpid(), signal.SIGINT)

    calls.stop_at = stop_at
    results, notices = [], []

    def on_event(event):
        if event["event"] == "notice":
            notices.append(event["message"])

    for calls.next in [*moments, None]:
        try:
            results += stylizer.video(clip, reference, stopped, on_event=on_event, **LOOK)
        except KeyboardInterrupt:
            assert not stopped.exists()
    [result] = results
    assert len(sent) == 5 and result["frames"] == 28 and 0 < result["resumed"] < 28
    # each stop may abandon a call of the network that is at work
    assert expected["_predict"] <= calls["_predict"] <= expected["_predict"] + 5
    # and a frame at work and those in the queues, never one that was written
    assert calls["begin_decoding"] <= 28 + 5 * 3 and calls["encode"] <= 28 + 5 * 10
    assert whole.read_bytes() == stopped.read_bytes()
    ends = [message for message in notices if message.startswith("stopped after")]
    begins = [message for message in notices if message.startswith("resuming after")]
    assert len(ends) == len(begins) == 5
    for end, begin in zip(ends, begins, strict=True):
        assert end.split(";")[0].split()[2] == begin.split()[2]


def test_what_is_saved_costs_a_kill_nothing(tmp_path, monkeypatch, stylizer, clip, reference):
    """The work folder of a run that wrote its state just now, and then was no more."""
    monkeypatch.setattr(video_run, "SAVE_EVERY", 0.0)
    whole, killed = tmp_path / "whole.mp4", tmp_path / "killed.mp4"
    stylizer.video(clip, reference, whole, **LOOK)

    class Killed(BaseException):
        pass

    def kill(event):
        if event.get("stage") == "video" and event["frame"] >= 5:
            raise Killed

    with pytest.raises(Killed):
        stylizer.video(clip, reference, killed, on_event=kill, **LOOK)
    # what an unlucky moment left behind the state: it does not count
    with (tmp_path / ".killed.mp4.std" / "frames.raw").open("ab") as kept:
        kept.write(b"half a frame")
    [result] = stylizer.video(clip, reference, killed, **LOOK)
    assert 5 <= result["resumed"] < 28
    assert whole.read_bytes() == killed.read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("options", [{}, {"codec": "ffv1", "alpha": True}], ids=["rgb", "rgba"])
def test_a_part_is_continued_with_the_same_bits(tmp_path, options):
    alpha = options.pop("alpha", False)
    frames = pictures(12)
    covers = [
        np.full(f.shape[:2], 20 * i, np.uint8) if alpha else None for i, f in enumerate(frames)
    ]
    out = tmp_path / ("out.mkv" if alpha else "out.mp4")
    target = target_for(out, a_clip(alpha=alpha), alpha=alpha, **options)
    with SegmentWriter(tmp_path / "whole", target) as whole:
        for frame, pts, cover in zip(frames, PTS, covers, strict=True):
            whole.write(frame, pts, cover)
    with WorkFolder(out, {}, True) as folder:
        part = Part(folder, target, 3, [])
        for i in range(7):
            part.write(frames[i], PTS[i], covers[i])
            if i == 4:
                part.sync()
        part.leave()  # two frames more than were synced
        assert not folder.segment(3).exists()
        part = Part(folder, target, 3, PTS[:5])
        assert part.times == PTS[:5]
        for i in range(5, 12):
            part.write(frames[i], PTS[i], covers[i])
        part.close()
        assert folder.segment(3).read_bytes() == (tmp_path / "whole").read_bytes()
        with pytest.raises(InputError, match="--no-resume"):
            Part(folder, target, 4, [Fraction(0)] * 13)


def test_ctrl_c_waits_for_the_end_of_what_is_unbroken():
    """As in a notebook, where Python's handler is in force."""
    from std_cli.interruption import stoppable, unbroken

    done = []
    with pytest.raises(KeyboardInterrupt), stoppable():
        with unbroken():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("unbroken")
        done.append("after")
    assert done == ["unbroken"]
    with pytest.raises(KeyboardInterrupt), stoppable(), unbroken():
        for _ in range(2):  # the second is in earnest
            os.kill(os.getpid(), signal.SIGINT)
        done.append("after")
    assert done == ["unbroken"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
