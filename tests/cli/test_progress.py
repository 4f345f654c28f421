"""Progress without a terminal, and how durations are written."""

import re
import time

import pytest

from std_cli.cli import progress_lines
from std_cli.cli.console import Reporter
from std_cli.cli.progress_lines import ProgressLines
from std_cli.cli.tables import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.34, "8.3 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 0 s"),
        (68, "1 min 8 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (3720, "1 h 2 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def video(frame, progress, frames=40, index=1, total=1, name="a.mp4"):
    return {
        "event": "progress", "stage": "video", "input": name, "index": index, "total": total,
        "frame": frame, "frames": frames, "progress": progress, "fps": 0.5, "eta": 68.0, "shot": 1,
        "step": 1, "steps": 4,
    }  # fmt: skip


def test_a_line_for_each_tenth(capsys):
    with Reporter() as report:
        report({"event": "progress", "stage": "load", "model": "tiny"})
        for i in range(81):
            report(video(i // 2, i / 2))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 9
    pattern = r"a\.mp4: (\d+)/40, (\d+)%, 0\.\d s, about 1 min 8 s left"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [(int(m[1]), int(m[2])) for m in found] == [(4 * i, 10 * i) for i in range(1, 10)]


def test_pictures_are_one_work_and_videos_one_each(capsys):
    def picture(index, step):
        about = {"input": f"{index}.png", "index": index, "total": 5, "step": step, "steps": 4}
        return {"event": "progress", "stage": "picture", **about}

    with Reporter() as report:
        for index in range(1, 6):
            for step in range(5):
                report(picture(index, step))
        for name, index in (("a.mp4", 1), ("b.mp4", 2)):
            report(video(2, 2, index=index, total=2, name=name))
            report(video(21, 21, index=index, total=2, name=name))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["a.mp4 1/2", "b.mp4 2/2"]
    assert [line.split(", ")[1] for line in lines[:-2]] == [f"{i}0%" for i in range(1, 10)]
    assert lines[0].startswith("1.png 1/5: 2/20, 10%, ")


def test_a_line_each_minute_though_nothing_comes(monkeypatch):
    monkeypatch.setattr(progress_lines, "EVERY", 0.1)
    lines = []
    progress = ProgressLines(lines.append)
    progress.update("loading sdxl", 0.0, None, "", None)
    until = time.monotonic() + 10
    while len(lines) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    progress.stop()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"loading sdxl: \d\.\d s", line) for line in lines)


def test_quiet_and_json_have_no_lines(capsys):
    for options in ({"quiet": True}, {"as_json": True}):
        with Reporter(**options) as report:
            for i in range(40):
                report(video(i, i))
    assert capsys.readouterr().err == ""
