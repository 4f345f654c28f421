"""Several inputs at once: what exists is skipped, what fails does not stop the others, and what
goes through pipes."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from std_cli import InputError, OutputExists, StdError, Stylizer, read_settings, stylize_image
from std_cli.cli.commands import run
from std_cli.stylize.plan import plan_images, plan_video
from tests.micro import micro
from tests.stylize.test_inputs import make_video

LOOK = dict(steps=1, size=64, cfg=1)
FAST = ["--model", micro(), "--size", "64", "--steps", "1", "--cfg", "1"]


@pytest.fixture(scope="module")
def stylizer():
    with Stylizer(model=micro()) as made:
        yield made


@pytest.fixture
def here(tmp_path, monkeypatch, photo, reference):
    """Three pictures, the second of which is cut off."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    for name in "ac":
        photo.resize((64, 64)).save(f"in/{name}.png")
    Path("in/b.png").write_bytes(Path("in/a.png").read_bytes()[:900])
    return tmp_path


def test_one_damaged_picture_does_not_stop_the_others(stylizer, here, reference):
    with pytest.raises(InputError, match="b.png.*--keep-going stylizes the others"):
        list(stylizer.images("in", reference, "out", **LOOK))
    assert not os.path.exists("out")
    events = []
    results = []
    with pytest.raises(StdError, match=r"^1 of 3 pictures failed: in/b.png$"):
        for result in stylizer.images(
            "in", reference, "out", keep_going=True, on_event=events.append, **LOOK
        ):
            results.append(result)
    assert len(results) == 2 and sorted(os.listdir("out")) == ["a_stylized.png", "c_stylized.png"]
    [error] = [e for e in events if e["event"] == "error"]
    assert (error["input"], error["kind"], error["code"]) == ("in/b.png", "request", 2)
    done = [(e["input"], e["index"], e["total"]) for e in events if e["event"] == "result"]
    assert done == [("in/a.png", 1, 3), ("in/c.png", 3, 3)]


def test_a_picture_that_fails_in_the_work_does_not_stop_the_others(stylizer, here, reference):
    shutil.copy("in/a.png", "in/b.png")

    def damage(event):
        if event["event"] == "start":  # all were read once, and are read again one by one
            os.truncate("in/b.png", 900)

    with pytest.raises(StdError, match="1 of 3 pictures failed"):
        list(stylizer.images("in", reference, "out", keep_going=True, on_event=damage, **LOOK))
    assert sorted(os.listdir("out")) == ["a_stylized.png", "c_stylized.png"]


def test_outputs_that_exist_are_skipped(stylizer, here, reference):
    os.remove("in/b.png")
    os.mkdir("out")
    Path("out/a_stylized.png").write_bytes(b"mine")
    with pytest.raises(OutputExists, match="--skip-existing"):
        list(stylizer.images("in", reference, "out", **LOOK))
    events = []
    options = {"skip_existing": True, "on_event": events.append, **LOOK}
    assert len(list(stylizer.images("in", reference, "out", **options))) == 1
    notices = [e["message"] for e in events if e["event"] == "notice"]
    assert notices == ["output 'out/a_stylized.png' exists: skipped"]
    assert Path("out/a_stylized.png").read_bytes() == b"mine"
    events.clear()
    assert list(stylizer.images("in", reference, "out", **options)) == []
    assert [e["event"] for e in events] == ["notice"], "nothing is loaded"
    list(stylizer.images("in", reference, "out", overwrite=True, **LOOK))
    assert read_settings("out/a_stylized.png")["input"] == "a.png"


def test_an_output_that_appears_during_the_run_is_skipped(stylizer, here, reference):
    os.remove("in/b.png")

    def appear(event):
        if event["event"] == "result":
            shutil.copy("in/a.png", "out/c_stylized.png")

    list(stylizer.images("in", reference, "out", skip_existing=True, on_event=appear, **LOOK))
    assert read_settings("out/c_stylized.png") is None


def test_events_name_files_as_they_were_given(stylizer, here, reference):
    events = []
    inputs = ["./in/a.png", str(here / "in" / "c.png"), "in/a.png"]
    list(stylizer.images(inputs, reference, "./out/", on_event=events.append, **LOOK))
    results = [e for e in events if e["event"] == "result"]
    assert [e["input"] for e in results] == inputs[:2]
    assert any("in/a.png is named more than once" in e.get("message", "") for e in events)
    events.clear()
    list(stylizer.images("in/a.png", reference, "./new.png", on_event=events.append, **LOOK))
    assert events[-1]["output"] == "./new.png"


def test_bytes_and_streams(stylizer, here, reference):
    data = Path("in/a.png").read_bytes()
    stream = io.BytesIO()
    [result] = stylizer.images(data, reference, stream, **LOOK)
    stream.seek(0)
    with Image.open(stream) as written:
        assert written.format == "PNG" and written.tobytes() == result.tobytes()
    with pytest.raises(InputError, match="one file for 2 pictures"):
        list(stylizer.images(["in/a.png", "in/c.png"], reference, io.BytesIO(), **LOOK))
    with pytest.raises(InputError, match="a stream of text"):
        list(stylizer.images("in/a.png", reference, io.StringIO(), **LOOK))
    with pytest.raises(InputError, match="picture"):
        stylize_image(b"text", reference, model=micro())


def test_a_plan_where_outputs_exist(here, reference):
    os.remove("in/b.png")
    os.mkdir("out")
    Path("out/a_stylized.png").touch()
    plan = plan_images("in", reference, "out", model=micro(), probe=False, **LOOK)
    assert len(plan["inputs"]) == 2
    assert any("out/a_stylized.png' exists: the run needs --overwrite" in n for n in plan["notes"])
    plan = plan_images(
        "in", reference, "out", model=micro(), probe=False, skip_existing=True, **LOOK
    )
    assert [each["input"] for each in plan["inputs"]] == ["in/c.png"]
    Path("out/c_stylized.png").touch()
    with pytest.raises(OutputExists, match="nothing is left"):
        plan_images("in", reference, "out", model=micro(), skip_existing=True, **LOOK)
    make_video("clip.mp4")
    Path("out/clip_stylized.mp4").touch()
    plan = plan_video("clip.mp4", reference, "out", model=micro(), probe=False, **LOOK)
    assert any("clip_stylized.mp4' exists" in note for note in plan["notes"])


def test_videos_that_exist_are_skipped_and_others_go_on(stylizer, here, reference):
    for name in "abc":
        make_video(f"in/{name}.mp4")
    os.truncate("in/b.mp4", 200)
    for name in "abc":
        os.remove(f"in/{name}.png")
    os.mkdir("out")
    Path("out/a_stylized.mp4").write_bytes(b"mine")
    events = []
    with pytest.raises(StdError, match="^1 of 2 videos failed: in/b.mp4$"):
        stylizer.video("in", reference, "out", skip_existing=True, on_event=events.append, **LOOK)
    assert Path("out/a_stylized.mp4").read_bytes() == b"mine"
    assert [e["input"] for e in events if e["event"] == "result"] == ["in/c.mp4"]
    assert any(e.get("message") == "output 'out/a_stylized.mp4' exists: skipped" for e in events)
    with pytest.raises(InputError, match="b.mp4"):
        stylizer.video("in", reference, "new", keep_going=False, **LOOK)
    with pytest.raises(InputError, match="is an input"):
        stylizer.video("in/a.mp4", reference, "in/a.mp4", overwrite=True, **LOOK)


# --- the command line --------------------------------------------------------------------------


def test_failures_are_a_table_and_a_list(here, reference, capsys):
    command = ["stylize", "image", "in", "--style", str(reference), *FAST, "-o", "out/"]
    failed = ["--keep-going", "--failed", "failed.txt"]
    assert run([*command, *failed]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and "in/b.png  failed" in err
    assert err.endswith("error: 1 of 3 pictures failed: in/b.png\n")
    assert Path("failed.txt").read_text() == "in/b.png\n"
    shutil.copy("in/a.png", "in/b.png")
    assert run([*command, *failed, "--skip-existing", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["input"] for e in events if e["event"] == "result"] == ["in/b.png"]
    assert Path("failed.txt").read_text() == ""
    assert run([*command, "--skip-existing", "--failed", "in/a.png"]) == 2
    assert "in/a.png: this is not a text file" in capsys.readouterr().err
    assert run([*command, "--skip-existing", "--overwrite"]) == 2


def test_a_picture_through_pipes(here, reference, capsysbinary, monkeypatch):
    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    data = Path("in/a.png").read_bytes()
    give(data)
    command = ["stylize", "image", "-", "--style", str(reference), *FAST, "-o", "-"]
    assert run(command) == 0
    out, err = capsysbinary.readouterr()
    assert b"-  64 x 64" in err
    with Image.open(io.BytesIO(out)) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.size == (64, 64)
    for given, more, message in [
        (b"", [], b"standard input is empty"),
        (b"text", [], b"'-'"),
        (data, ["-"], b"'-' is given twice"),
        (data, ["in/a.png"], b"one file for 2 pictures"),
    ]:
        give(given)
        assert run([*command, *more]) == 2
        out, err = capsysbinary.readouterr()
        assert out == b"" and message in err and err.count(b"\n") == 1, err
    assert run([*command, "--json"]) == 2
    assert b"with --json standard output holds events" in capsysbinary.readouterr().out
    make_video("in/a.mp4")
    for arguments in (["-"], ["in/a.mp4", "-o", "-"]):
        assert run(["stylize", "video", *arguments, "--style", str(reference), *FAST]) == 2
        assert b"standard" in capsysbinary.readouterr().err
    assert not os.path.exists("-")
