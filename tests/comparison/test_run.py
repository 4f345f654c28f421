"""The cells of a comparison: which there are, that they are results of the same settings, that they
are kept, and that a killed comparison ends as one that was not."""

import csv
import json
import math
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import std_cli
from std_cli import InputError, StdError, read_settings, stylize_image
from std_cli.cli.commands import run
from std_cli.comparison.cells import Skipped
from std_cli.comparison.config import CompareConfig, contenders_of, read_config
from std_cli.comparison.make import in_order
from std_cli.comparison.measures.plain import Edges
from std_cli.comparison.plan import plan_comparison
from std_cli.comparison.run import _what_is_skipped, prepared, to_toml
from std_cli.comparison.samples import Frames, joints_of, sample_of
from std_cli.stylize import stylizer
from tests.comparison.pictures import FAST, draw, peer, without_costs
from tests.processes import Command
from tests.stylize.test_videos import make_clip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path))
    return tmp_path


def compared(**changes):
    request = {"content": "photos", "style": "styles", "output": "r", "seeds": 1}
    return std_cli.compare(**request | FAST | changes)


def test_the_product_of_all_that_varies(here, monkeypatch):
    loads = []
    load = stylizer.load_pipeline
    monkeypatch.setattr(stylizer, "load_pipeline", lambda *a: loads.append(1) or load(*a))
    peer(here / "other", here)
    events = []
    given = {
        "methods": ["std"], "contenders": {"weak": {"style_scale": 0.5, "cfg": 1.0}},
        "vary": {"cfg": [1, 4]}, "seeds": 2, "against": {"peer": "other"},
        "on_event": events.append,
    }  # fmt: skip
    table = compared(**given)
    assert len(loads) == 1
    # 2 contents x 2 styles x (2 of std + 1 of weak) x 2 seeds, and 4 of the peer
    assert (events[-1]["cells"], events[-1]["cached"], events[-1]["failed"]) == (28, 0, 0)
    rows = [(row.variant.label, row.cells, row.costs["evaluations"]) for row in table.rows]
    assert rows == [("std, cfg 1", 8, 1), ("std, cfg 4", 8, 2), ("weak", 8, 1), ("peer", 4, None)]
    ones = [cell for cell in table.cells if not cell.of_peer]
    assert all(cell.record["cost"]["seconds"] > 0 for cell in ones)
    assert all(cell.record["cost"]["memory"] > 2**27 for cell in ones)
    cell = next(c for c in ones if c.variant.label == "std, cfg 4" and c.seed == 1)
    kept = read_settings(cell.path)["settings"]
    assert (kept["cfg"], kept["seed"], kept["style"][0]["name"]) == (4, 1, cell.style.path.name)
    [alone] = stylize_image(
        cell.content.path, cell.style.path, cfg=4, seed=1, output_size="model", **FAST
    )
    with Image.open(cell.path) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(alone))
    # the difference is the mean of the paired ones, to the row with the same CFG
    figures = {
        (c.variant.label, c.sample, c.seed): c.record["figures"]["edges"]["value"] for c in ones
    }
    pairs = [
        figures["weak", sample, seed] - figures["std, cfg 1", sample, seed]
        for label, sample, seed in figures
        if label == "weak"
    ]
    weak = table.row("weak").entries["edges"].difference
    assert weak.mean == pytest.approx(np.mean(pairs)) and weak.over_samples.count == 4
    assert table.row("std", cfg=4).entries["edges"].difference is None
    assert table.row("peer").entries["edges"].estimate.over_seeds.count == 1

    lines = list(csv.DictReader((here / "r" / "cells.csv").open(newline="")))
    assert len(lines) == 28 and {line["compared"] for line in lines} == {"std", "weak", "peer"}
    assert len(list(csv.DictReader((here / "r" / "table.csv").open(newline="")))) == 4
    before = json.loads((here / "r" / "report.json").read_text())
    assert before["command"] == "std compare --config r/comparison.toml"

    # one that is damaged and one without its record are made again; the rest is kept
    ones[0].path.write_bytes(b"damaged")
    ones[1].record_path.unlink()
    times = {c.path: c.path.stat().st_mtime_ns for c in ones[2:]}
    assert run(["compare", "--config", "r/comparison.toml", "--json"]) == 0
    assert [path for path, at in times.items() if path.stat().st_mtime_ns != at] == []
    after = json.loads((here / "r" / "report.json").read_text())
    assert without_costs(after) == without_costs(before)


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (signal.SIGKILL, ""),
        (signal.SIGINT, "error: interrupted: what is made is kept: give the command again to "
                        "resume\n"),
    ],
)  # fmt: skip
def test_killed_and_given_again_it_ends_the_same(here, capsys, sign, said):
    command = ["compare", "photos", "-s", "styles", "--model", FAST["model"], "--size", "64",
               "--steps", "1", "--seeds", "1", "--method", "std", "-o"]  # fmt: skip
    assert run([*command, "whole", "-q"]) == 0
    killed = Command(*command, "r", "-q", cwd=here)
    while len(list((here / "r" / "cells").glob("*.json"))) < 1:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(sign)
    assert killed.communicate()[1] == said
    assert not (here / "r" / "report.html").exists()
    assert run([*command, "r", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["cells"] == 4 and 1 <= result["cached"] < 4
    whole, again = (
        without_costs(json.loads((here / name / "report.json").read_text()))
        for name in ("whole", "r")
    )
    assert again.pop("command") == whole.pop("command").replace("whole", "r")
    assert again.pop("config") == whole.pop("config").replace("whole", "r")
    assert again == whole
    assert not [p for p in (here / "r").rglob(".std-*")]


def test_a_clip_with_windows_and_its_peer(here):
    make_clip(here / "in.mp4", 12, (96, 64), sound=False, cut_at=6)
    (here / "other").mkdir()
    (here / "other" / "in.mp4").write_bytes((here / "in.mp4").read_bytes())
    table = compared(
        content="in.mp4", style="styles/blue.png", motion="none", against={"same": "other"}
    )
    std, same = table.cells
    assert (std.content.kind, std.path.suffix, std.record["cost"]["evaluations"]) == (
        "clip",
        ".mkv",
        24,
    )
    sample = sample_of(std)
    assert len(sample.content) == len(sample.result) == 12 and sample.domain == "clip"
    assert sample.shots == [1] * 6 + [2] * 6
    assert np.array_equal(sample.content[3], sample_of(same).content[3])
    assert table.row("same").entries["flicker"].estimate.mean < 1.5
    # frames are read again in any order
    assert isinstance(sample.content, Frames)
    first, last = sample.content[0], sample.content[-1]
    assert np.array_equal(first, sample.content[0]) and not np.array_equal(first, last)
    with pytest.raises(StdError, match="12 frame"):
        compared(
            content="in.mp4", style="styles/blue.png", motion="none", max_frames=6,
            against={"same": "other"},
        )  # fmt: skip


def test_the_frames_at_which_windows_join():
    """Shots of 6 and of 3 frames, windows of 4 that begin every 2: at 0, 2 of the first."""
    assert joints_of([1] * 6 + [2] * 3, 4, 2) == {0, 2, 4, 6}
    assert joints_of([1] * 4, 4, 2) == set()


def test_cells_of_the_same_weights_are_made_after_each_other(here):
    config = CompareConfig(
        content=("photos",), style=("styles",), output="r", seeds=2, method=("std",),
        settings=FAST, vary={"eta": [0.5, 0.7]}, contenders={"fp32": {"dtype": "fp32"}},
    )  # fmt: skip
    with prepared(config) as request:
        ordered = in_order(request.cells)
    assert sorted(map(id, ordered)) == sorted(map(id, request.cells))
    loaded = [(str(cell.loaded_by), cell.style.name) for cell in ordered]
    assert len([a for a, b in pairwise(loaded) if a != b]) == 3
    assert not (here / "r").exists()


def test_styles_in_the_folder_of_contents_are_no_contents(here):
    """They are where they are named."""
    for name in ("photos", "styles"):
        for picture in (here / name).iterdir():
            (here / "all" / picture.name).parent.mkdir(exist_ok=True)
            picture.rename(here / "all" / picture.name)
    style = ("all/blue.png",)
    config = CompareConfig(content=("all",), style=style, settings=FAST)
    with prepared(config) as request:
        names = [content.name for content in request.contents]
        assert names == ["astronaut", "coffee", "stripes"]
        assert request.notices == ["all: left out: 1 picture that --style names"]
    with prepared(config.model_copy(update={"content": style})) as request:
        assert [content.name for content in request.contents] == ["blue"]


def test_loras_of_one_file_name_are_named_by_their_folders():
    """As std distill writes them: pytorch_lora_weights.safetensors, whatever the training was."""

    def names(*loras):
        config = CompareConfig(content=("a",), style=("b",), lora=loras)
        return [contender.name for contender in contenders_of(config)]

    file = "pytorch_lora_weights.safetensors"
    assert names(f"out/lcm/0/{file}", f"out/std/0/{file}") == ["lcm/0", "std/0"]
    assert names(f"a/{file}", f"b/{file}", "b/mine.safetensors") == ["a", "b", "mine"]
    assert names(f"{file}:0.5", f"{file}") == ["pytorch_lora_weights 0.5", "pytorch_lora_weights"]
    assert names(f"{file}", f"x/{file}") == ["pytorch_lora_weights", "x"]
    assert names(f"x/{file}", f"y/x/{file}:0.8") == ["x", "y/x 0.8"]
    with pytest.raises(InputError, match="two that are compared are named 'mine'"):
        names("mine.safetensors", "mine.safetensors")


def test_what_is_skipped_for_one_reason_is_one_line(here):
    config = CompareConfig(
        content=("photos",), style=("styles",), settings=FAST, vary={"cfg": [1, 4]},
        contenders={"small": {}, "large": {"model": "sdxl"}}, measures=("edges",),
    )  # fmt: skip
    with prepared(config) as request:
        [one] = request.skipped
    assert one.name == "large" and "std models pull sdxl" in one.reason


def test_a_figure_that_is_no_number_is_left_out_and_said(here, monkeypatch):
    monkeypatch.setattr(Edges, "of", lambda *_: math.nan)
    events = []
    table = compared(content="photos/coffee.png", style="styles/blue.png", on_event=events.append)
    [cell] = table.cells
    said = f"{cell.path.name}: edges is left out: it came out as nan"
    assert [e["message"] for e in events if e.get("message", "").endswith("nan")] == [said]
    assert table.rows[0].entries["edges"].estimate is None and not cell.failure
    kept = json.loads((here / "r" / "report.json").read_text())["cells"][0]
    assert kept["figures"]["edges"] is None and kept["lacks"]["edges"] == "it came out as nan"
    assert table.rows[0].entries["colour"].estimate.mean > 0


def test_measures_without_weights_are_one_notice():
    lacking = [Skipped("csd", "it is", ("csd",)), Skipped("clip", "it is", ("clip-l",))]
    said = _what_is_skipped([Skipped("seams", "it is of clips"), *lacking])
    assert said == [
        "seams is skipped: it is of clips",
        "csd, clip are skipped: their weights are not downloaded: run std models pull csd clip-l",
    ]
    assert _what_is_skipped(lacking[:1]) == ["csd is skipped: it is"]


def test_a_plan_makes_nothing(here, capsys):
    command = ["compare", "photos", "-s", "styles", "--model", FAST["model"], "--size", "64",
               "--vary", "steps=1,3", "--seeds", "2", "--cfg", "1", "--dry-run"]  # fmt: skip
    assert run([*command, "--no-probe", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (plan["cells"], plan["cached"], plan["compared"]) == (16, 0, {"std": 16})
    assert (plan["evaluations"], plan["seconds"]) == (8 * 1 + 8 * 3, None)
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "16 cells, 0 of them" in out and "time" in out and "without measuring" in out
    assert not (here / "comparison").exists()


def test_what_is_as_dear_as_another_is_planned_and_timed_once(here):
    """Two contenders at two numbers of steps: one model is loaded; of another size another one."""
    config = CompareConfig(
        content=("photos",), style=("styles",), seeds=1, method=("std",),
        settings={"model": FAST["model"], "size": 64, "cfg": 3}, vary={"steps": [2, 4]},
        contenders={"far": {"eta": 0.9}, "fewer": {"cfg_every": 2}},
    )  # fmt: skip
    events = []
    plan = plan_comparison(config, on_event=events.append)
    assert [event["stage"] for event in events if event["event"] == "progress"] == ["load"]
    assert plan["cells"] == 4 * 2 * 3
    assert plan["evaluations"] == 4 * (2 * (4 + 8) + (3 + 6)) and plan["seconds"] > 0
    more = config.model_copy(
        update={"settings": {"model": FAST["model"]}, "contenders": {"small": {"size": "32"}}}
    )
    events.clear()
    assert plan_comparison(more, probe=False, on_event=events.append)["seconds"] is None
    assert len([event for event in events if event["event"] == "progress"]) == 2


def test_progress_counts_evaluations(here):
    """Of one step without guidance and of three with it: 1 and 6 of 7."""
    events = []
    compared(
        content="photos/coffee.png", style="styles/blue.png", on_event=events.append, steps=None,
        contenders={"quick": {"steps": 1, "cfg": 1}, "slow": {"steps": 3, "cfg": 2}},
    )  # fmt: skip
    shares = [event["share"] for event in events if event.get("stage") == "picture"]
    assert shares == pytest.approx([0, 1 / 7, 1 / 7, 3 / 7, 5 / 7, 1])


def test_the_file_that_a_comparison_leaves_is_the_same_comparison(here):
    config = CompareConfig(
        content=("photos",), style=("a \"b\".png", "c\x7f.png"), seeds=5, vary={"cfg": [1, 2.5]},
        contenders={"a.b c": {"lora": "none", "keep_colors": True}}, against={"peer": "x"},
        settings={"prompt": "é\n'"},
    )  # fmt: skip
    (here / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_config("c.toml", {}) == config
    assert read_config("c.toml", {"seeds": 2}).seeds == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"content": "gone.png"}, "gone.png"),
        ({"content": "text.png"}, "text.png"),
        ({"content": "text.txt"}, "'text.txt' is no picture or video that std reads"),
        ({"content": "text.cr2"}, "'text.cr2' is no .* reads: develop to tiff or jpeg first"),
        ({"vary": {"seed": [1, 2]}}, "--vary seed: give --seeds N"),
        ({"style": "text.png"}, "--style: .*text.png"),
        ({"content": "empty"}, "no pictures or videos in folder"),
        ({"content": ["photos", "twice"]}, "two contents are named 'coffee'"),
        ({"measures": ["colours"]}, "--measures colours: did you mean colour"),
        ({"vary": {"colour": [1]}}, "--vary 'colour': cannot be varied"),
        ({"vary": {"cfg": [1, -1]}}, "--cfg -1"),
        ({"vary": {"eta": [0.5]}, "eta": 0.6}, "--eta is varied, too"),
        ({"baseline": "pcm"}, "--baseline pcm: it is not compared"),
        ({"methods": ["std", "std"]}, "two that are compared are named 'std'"),
        ({"contenders": {"a": {"stepz": 1}}}, "contenders.a.stepz: no such setting"),
        ({"contenders": {"a": {"labels": True}}}, "contenders.a.labels: a comparison sets this"),
        ({"methods": ["tcd"]}, "tcd: --method tcd: its LoRA is made for SDXL"),
        ({"against": {"peer": "empty"}}, "--against empty=peer: no pictures"),
        ({"against": {"peer": "photos"}}, "4 results missing: astronaut--blue"),
        ({"against": {"peer": "gone"}}, "--against gone=peer: no such folder"),
        ({"vary": {"method": ["best"]}}, "--vary method: everything that is compared has its own"),
        ({"methods": ["best"]}, "--method 'best': must be"),
        ({"measures": ["flicker"]}, "--measures flicker: nothing is left to be measured"),
        ({"seeds": 0}, "--seeds 0"),
        ({"output": "photos"}, "holds astronaut.png, which is compared"),
        ({"output": "twice"}, "holds other files, and no comparison"),
        ({"output": "text.png"}, "is a file"),
        ({"model": "sdxl"}, "std models pull|hf download"),
    ],
)  # fmt: skip
def test_wrong_requests_leave_nothing(here, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for suffix in ("png", "txt", "cr2"):
        (here / f"text.{suffix}").write_text("no picture")
    (here / "empty").mkdir()
    (here / "twice").mkdir()
    (here / "twice" / "coffee.jpg").write_bytes((here / "photos" / "coffee.png").read_bytes())
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    with pytest.raises(InputError, match=message) as raised:
        compared(**changes)
    assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_keys_of_a_file_that_are_wrong_are_named(here, capsys):
    for text, message in [
        ('content = ["a"]\nstyle = ["b"]\nseed = "x"', "c.toml: seed 'x': must be a whole number"),
        ('content = ["a"]\nstyle = ["b"]\nsteps = 4', "c.toml: steps: no such key"),
        ('content = ["a"]', "c.toml: style: is missing"),
        ('content = ["a"]\nstyle = ["b"]\n[vary]\ncfg = 3', "vary.cfg 3: must be a list"),
        ("content = [", "c.toml: it cannot be read"),
    ]:
        (here / "c.toml").write_text(text)
        assert run(["compare", "--config", "c.toml"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    for arguments, message in [
        (["compare"], "CONTENT is missing"),
        (["compare", "photos"], "--style is missing"),
        (["compare", "photos", "-s", "styles", "--against", "x"], "give FOLDER=NAME"),
        (["compare", "photos", "-s", "styles", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["compare", "photos", "-s", "styles", "--measures", ","], "--measures ,: no names"),
    ]:
        assert run(arguments) == 2 and message in capsys.readouterr().err
