"""Units whose inputs, work folder and output are in a storage, made on several machines."""

import io
import json

import pytest

from std_cli import StdError, Stylizer
from std_cli.spread.finish import finish, left_of
from std_cli.spread.run_unit import UnitWork
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.shards import Shard, join_shards, run_shard
from std_cli.spread.units import find_units
from std_cli.storage.scratch import Scratch
from std_cli.stylize import video_run
from tests.micro import micro
from tests.storage.counted import counted
from tests.stylize.test_videos import make_clip

LOOK = {"model": micro(), "motion": "none", "steps": 1, "size": 64, "cfg": 1, "steady": 0.5}


def nothing(event):
    pass


def test_units_of_two_machines_are_joined_on_a_third(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(video_run, "SEGMENT", 4)
    clip = make_clip(tmp_path / "in.mp4", 10, (64, 48), cut_at=6)
    style = io.BytesIO()
    photo.resize((48, 32)).save(style, "PNG")
    fs = counted({"/box/in.mp4": clip.read_bytes(), "/box/r.png": style.getvalue()})
    files = ("counted://anna:sesame@box/in.mp4", "counted://box/r.png")
    with Stylizer(model=LOOK["model"], motion="none") as stylizer:
        look = {name: LOOK[name] for name in ("steps", "size", "cfg", "steady")}
        [whole] = stylizer.video(*files, "counted://box/whole.mp4", **look)

    saved = SavedRequest.of("video", *files, "counted://box/out.mp4", True, LOOK)
    with Scratch() as scratch:
        [plan] = find_units(saved.prepare("refuse", scratch), 2, saved, nothing)
        assert len(plan.units) == 2 and plan.units[0].input == "counted://box/in.mp4"
    kept = fs.cat("/box/.out.mp4.std/plan.json")
    assert b"sesame" not in kept and b".std-" not in kept.replace(b".out.mp4.std", b"")
    for unit in plan.units:
        worker = UnitWork(saved)
        worker.run(unit, nothing)
        worker.close()
        folder = f"/box/.out.mp4.std/units/{unit.id}"
        names = {path.rpartition("/")[2] for path in fs.find(folder)}
        assert {"done.json", "segment-00000", "state.safetensors"} <= names
        assert list(json.loads(fs.cat(f"{folder}/done.json"))["files"]) == sorted(
            name for name in names if name.startswith("segment")
        )

    with Scratch() as scratch:
        request = saved.prepare("refuse", scratch)
        [plan] = find_units(request, 2, saved, nothing)
        assert left_of(plan) == [], "the records of the units are found"
        result = finish(plan, request, False, False, scratch.events(nothing, False))
    assert result["frames"] == whole["frames"] == 10
    assert fs.cat("/box/out.mp4") == fs.cat("/box/whole.mp4")
    assert sorted(fs.find("/box")) == [
        f"/box/{name}" for name in ("in.mp4", "out.mp4", "r.png", "whole.mp4")
    ]


def test_shards_of_a_storage_are_joined(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(video_run, "SEGMENT", 4)
    clip = make_clip(tmp_path / "in.mp4", 10, (64, 48), cut_at=6)
    style = io.BytesIO()
    photo.resize((48, 32)).save(style, "PNG")
    fs = counted({"/box/in.mp4": clip.read_bytes(), "/box/r.png": style.getvalue()})
    files = ("counted://box/in.mp4", "counted://box/r.png", "counted://box/out.mp4")
    saved = SavedRequest.of("video", *files, True, LOOK)
    run_shard(saved, Shard(0, 2), "refuse", nothing)
    with pytest.raises(StdError, match="counted://box/in.mp4, shot 2.*--shard 1/2"):
        join_shards(files[2], nothing)
    run_shard(saved, Shard(1, 2), "refuse", nothing)
    join_shards(files[2], nothing)
    assert sorted(fs.find("/box")) == ["/box/in.mp4", "/box/out.mp4", "/box/r.png"]
