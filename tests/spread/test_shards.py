"""Shards: what they make together is what one process makes; what is missing is named."""

import json

import pytest
from PIL import Image

from std_cli import InputError, StdError, stylize_image, stylize_video
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.shards import Shard, join_shards, parse_shard, run_shard
from tests.micro import micro
from tests.stylize.test_videos import make_clip

FAST = {"model": micro(), "steps": 1, "size": 64, "cfg": 1}


@pytest.mark.parametrize(
    "text, variables, expected",
    [
        ("3/16", {}, (3, 16)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8)),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "1",
                "SLURM_ARRAY_TASK_COUNT": "8",
                "SLURM_ARRAY_TASK_MIN": "1",
            },
            (0, 8),
        ),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "1"}, (4, 8)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "2"}, (2, 5)),
    ],
)
def test_the_number_of_a_shard(text, variables, expected):
    shard = parse_shard(text, variables)
    assert (shard.number, shard.of) == expected


@pytest.mark.parametrize(
    "text, variables, message",
    [
        ("3/3", {}, "number 3 of 3"),
        ("3", {}, "give I/N"),
        ("0/0", {}, "number 0 of 0"),
        ("auto", {}, "are not set"),
        ("auto", {"JOB_COMPLETION_INDEX": "2"}, "give --shard auto/N"),
        ("-1/3", {}, "give I/N"),
    ],
)
def test_a_wrong_number_of_a_shard(text, variables, message):
    with pytest.raises(InputError, match=message):
        parse_shard(text, variables)


def test_videos_in_shards(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", 14, cut_at=8, vfr=True)
    options = FAST | {"motion": "none", "start": "0.04"}
    stylize_video("in.mp4", str(reference), "whole.mp4", **options)
    saved = SavedRequest.of("video", ["in.mp4"], [str(reference)], "out.mp4", True, options)
    assert SavedRequest.from_json(json.loads(json.dumps(saved.json()))) == saved
    said = []

    def on_event(event):
        if event["event"] in ("notice", "unit"):
            said.append(event.get("message") or event["unit"])

    run_shard(saved, Shard(1, 2), "refuse", on_event)
    assert said[-1] == (
        "shard 1/2 is done; 1 unit of others left: when they are done, give std join out.mp4"
    )
    with pytest.raises(StdError, match="shot 1, frames 0 to 6.*with --shard 0/2,"):
        join_shards("out.mp4", on_event)
    with pytest.raises(InputError, match="was begun in units"):
        stylize_video("in.mp4", str(reference), "out.mp4", **options)
    changed = SavedRequest.of(
        "video", "in.mp4", str(reference), "out.mp4", True, options | {"seed": 3}
    )
    with pytest.raises(InputError, match="seed"):
        run_shard(changed, Shard(0, 2), "refuse", on_event)
    run_shard(saved, Shard(0, 2), "refuse", on_event)
    assert len(list(tmp_path.glob(".out.mp4.std/attempts/*.json"))) == 2
    join_shards("out.mp4", on_event)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputError, match="no shard has made anything"):
        join_shards("out.mp4", on_event)


def test_pictures_in_shards(tmp_path, monkeypatch, photo, reference):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(5):
        photo.resize((48 + 8 * i, 48)).save(tmp_path / "photos" / f"{i}.png")
    stylize_image("photos", str(reference), "whole/", **FAST)
    saved = SavedRequest.of("image", ["photos"], [str(reference)], "out/", False, FAST)
    made = []

    def on_event(event):
        if event["event"] == "result":
            made.append(event["input"])

    run_shard(saved, Shard(0, 2), "refuse", on_event)
    assert len(made) == 3
    with pytest.raises(StdError, match="2 of 5 pictures are not made, of shard 1/2"):
        join_shards("out", on_event)
    (tmp_path / "out" / "2_stylized.png").unlink()  # a kill before it was written
    written = (tmp_path / "out" / "0_stylized.png").stat().st_mtime_ns
    run_shard(saved, Shard(0, 2), "refuse", on_event)
    assert made[3:] == ["photos/0.png", "photos/2.png", "photos/4.png"], "all are reported"
    assert (tmp_path / "out" / "0_stylized.png").stat().st_mtime_ns == written
    photo.save(tmp_path / "out" / "3_stylized.png")  # of another origin
    with pytest.raises(InputError, match="exists; pass --overwrite"):
        run_shard(saved, Shard(1, 2), "refuse", on_event)
    run_shard(saved, Shard(1, 2), "replace", on_event)
    assert made[6:] == ["photos/1.png", "photos/3.png"]
    join_shards("out", on_event)
    for file in (tmp_path / "whole").iterdir():
        pixels = [Image.open(tmp_path / name / file.name).tobytes() for name in ("whole", "out")]
        assert pixels[0] == pixels[1]
    assert len(list((tmp_path / "out").iterdir())) == 5
