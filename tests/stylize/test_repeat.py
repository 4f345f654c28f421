"""A result made again from its record: the same bits, changes, and what is not as it was."""

import json

import numpy as np
import pytest
from PIL import Image

from std_cli import InputError, read_settings, stylize_image
from std_cli.cli.commands import run
from std_cli.media.write_picture import save_picture
from std_cli.stylize.repeat import repeat
from tests.micro import micro
from tests.stylize.test_videos import make_clip

FAST = {"model": micro(), "steps": 1, "size": 64}


@pytest.fixture
def made(tmp_path, picture, reference, monkeypatch):
    """out.png, made of in.png and style.png, in the current folder."""
    monkeypatch.chdir(tmp_path)
    stylize_image("in.png", "style.png", "out.png", seed=5, prompt="a cat", **FAST)
    return tmp_path


def again(*arguments, **changes):
    """The notices of a repetition."""
    events = []
    repeat(*arguments, on_event=events.append, **changes)
    return [e["message"] for e in events if e["event"] == "notice"]


def edited(name, change):
    """out.png with another record, as `name`."""
    record = read_settings("out.png")
    change(record)
    with Image.open("out.png") as image:
        save_picture(image, name, record, overwrite=True)


def pixels(name):
    with Image.open(name) as image:
        return np.asarray(image)


def test_the_same_again_and_with_a_change(made, capsys):
    assert run(["repeat", "out.png", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["output"] == "out_again.png"
    assert not [e for e in events if e["event"] == "notice"]
    assert np.array_equal(pixels("out_again.png"), pixels("out.png"))
    assert read_settings("out_again.png") == read_settings("out.png")

    with Image.open("in.png") as source:
        source.rotate(180).save("other.png")
    notices = again("out.png", "other.png", output="new.png", seed=6)
    assert notices == []
    new, old = read_settings("new.png"), read_settings("out.png")
    assert new["input"] == "other.png" and new["settings"] == old["settings"] | {"seed": 6}


def test_what_differs_is_reported(made, reference, monkeypatch):
    def other(record):
        record["version"] = "0.0.1"
        record["settings"]["model"]["sha256"] = "f" * 16
        record["settings"]["device"] = "cuda:0"

    edited("out.png", other)
    Image.new("RGB", (64, 64), "blue").save("style.png")
    with Image.open("in.png") as source:
        source.rotate(180).save("in.png")
    monkeypatch.setattr("std_cli.diffusion.pipeline.has_arithmetic", lambda device, dtype: True)
    notices = again("out.png", output="new.png", dtype="bf16")
    about = {notice.split(" ")[0]: notice for notice in notices}
    assert set(about) == {"out.png", "in.png", "--device", "--model", "--style"}
    assert "0.0.1" in about["out.png"] and "ffffffffffffffff" in about["--model"]


def test_a_picture_s_settings_for_a_video(made):
    make_clip(made / "clip.mp4", 2, (96, 64))
    notices = again("out.png", "clip.mp4", output="clip_out.mp4", motion="none")
    assert notices == []
    kept = read_settings("clip_out.mp4")
    assert kept["frames"] == 2 and kept["settings"]["seed"] == 5
    assert kept["settings"]["prompt"] == "a cat"

    notices = again("clip_out.mp4", output="two.mp4")  # its own record, of a video
    assert notices == [] and read_settings("two.mp4")["settings"] == kept["settings"]
    with pytest.raises(InputError, match="--codec is for videos, and in.png is a picture"):
        again("clip_out.mp4", "in.png", codec="h264")


def test_what_is_missing_is_one_line(made, monkeypatch):
    edited("damaged.png", lambda record: record["settings"].update(steps=[1], seed="x"))
    with pytest.raises(InputError, match="steps"):
        again("damaged.png")
    edited("no_model.png", lambda record: record["settings"].pop("model"))
    with pytest.raises(InputError, match="damaged"):
        again("no_model.png")
    edited("no_style.png", lambda record: record["settings"].pop("style"))
    with pytest.raises(InputError, match="give --style"):
        again("no_style.png")
    save_picture(Image.new("RGB", (8, 8)), "sheet.png", {"version": "0.1.0"}, overwrite=True)
    with pytest.raises(InputError, match="no settings of one result"):
        again("sheet.png")
    record = {"version": "0.1.0", "sheet": {}, "cells": "sheet.cells"}
    save_picture(Image.new("RGB", (8, 8)), "sheet.png", record, overwrite=True)
    with pytest.raises(InputError, match="one of its cells, from 'sheet.cells'"):
        again("sheet.png")
    edited("piped.png", lambda record: record.update(input="-", origin={}))
    with pytest.raises(InputError, match="INPUT of the record, which was not a file"):
        again("piped.png")
    (made / "style.png").rename(made / "elsewhere.png")
    with pytest.raises(InputError, match="--style 'style.png' is neither where it was"):
        again("out.png")
    (made / "in.png").unlink()
    with pytest.raises(InputError, match="INPUT 'in.png' is neither"):
        again("out.png", style="elsewhere.png")
    with pytest.raises(InputError, match="carries no record"):
        again("elsewhere.png")
