"""Contact sheets: which cells there are, that they are results of the same command, and that they
are kept."""

import json

import numpy as np
import pytest
from PIL import Image

from std_cli import InputError, read_settings, stylize_image
from std_cli.cli.commands import run
from std_cli.stylize.sheet import MOST_CELLS, Axis, Value, _draw, make_sheet, parse_vary
from tests.micro import micro
from tests.stylize.test_videos import make_clip

FAST = {"model": micro(), "steps": 1, "size": 64}


def test_a_sheet_of_a_product_and_its_cells(tmp_path, picture, reference, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "blue").save("b.png")
    base = ["sheet", "in.png", "-s", "style.png", "-s", "b.png", "--vary", "style-scale=0.5,1"]
    base += ["--model", micro(), "--steps", "1", "--size", "64", "--side", "64", "--json"]

    assert run([*base, "--vary", "eta=0.6"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = events[-1]
    assert (result["output"], result["cells"], result["cached"]) == ("sheet.png", 4, 0)
    last = [e for e in events if e.get("stage") == "picture"][-1]
    assert (last["index"], last["total"]) == (4, 4)
    assert [e["event"] for e in events].count("result") == 1
    cells = {
        (kept["style"][0]["name"], kept["style_scale"]): path
        for path in (tmp_path / "sheet.cells").iterdir()
        for kept in [read_settings(path)["settings"]]
    }
    assert set(cells) == {(name, scale) for name in ("style.png", "b.png") for scale in (0.5, 1)}
    [alone] = stylize_image("in.png", "b.png", eta=0.6, style_scale=0.5, **FAST)
    with Image.open(cells["b.png", 0.5]) as cell:
        assert np.array_equal(np.asarray(cell), np.asarray(alone))
    before = (tmp_path / "sheet.png").read_bytes()

    cells["b.png", 0.5].unlink()  # as if interrupted before it
    cells["style.png", 1].write_bytes(b"damaged")
    times = {path: path.stat().st_mtime_ns for path in cells.values() if path.exists()}
    assert run([*base, "--vary", "eta=0.6", "-y"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["cells"], result["cached"]) == (4, 2)
    assert (tmp_path / "sheet.png").read_bytes() == before
    kept = [path for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == 2
    assert "sheet" in read_settings("sheet.png")


def test_frames_of_a_video(tmp_path, reference, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", 20, (96, 64), sound=False)
    events = []
    make_sheet(
        ["in.mp4"],
        ["style.png"],
        "sheet.png",
        vary={},
        frames=["0.2", "0:00.6"],
        on_event=events.append,
        motion="none",
        **FAST,
    )
    assert events[-1]["cells"] == 2 and not [e for e in events if e["event"] == "notice"]
    paths = sorted((tmp_path / "sheet.cells").iterdir())
    assert [path.suffix for path in paths] == [".png", ".png"]
    kept = read_settings(paths[0])
    assert kept["frames"] == 1 and kept["origin"]["input"] == "in.mp4"
    assert "start" not in kept["settings"] and "codec" not in kept["settings"]


def test_the_last_that_varies_is_across():
    """Axes of 2 inputs and 3 values: 2 rows of an input and 3 cells under their labels."""
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    axes = [
        Axis("input", [Value("a", 0, red), Value("b", 1, blue)]),
        Axis("style", [Value("s", 2, red)]),
        Axis("eta", [Value(f"eta {i}", i) for i in range(3)]),
    ]
    cells = [Image.new("RGB", (32, 32), (0, 40 * i, 0)) for i in range(6)]
    sheet = np.asarray(_draw(axes, cells, 32))
    found = [
        (x, y)
        for y in range(2)
        for x in range(5)
        for block in [sheet[-68 + 36 * y :][:32, sheet.shape[1] - 176 + 36 * x :][:, :32]]
        if (block == block[0, 0]).all()
    ]
    assert len(found) == 10
    corner = sheet[-68:, -176:]
    assert corner[0, 0].tolist() == [255, 0, 0] and corner[36, 0].tolist() == [0, 0, 255]
    assert corner[0, 36].tolist() == [255, 0, 0] and corner[36, 36].tolist() == [255, 255, 255]
    assert [int(corner[36 * (i // 3), 72 + 36 * (i % 3), 1]) for i in range(6)] == [
        40 * i for i in range(6)
    ]


def test_vary():
    assert parse_vary(["eta=0.55, 0.65,0.55", "style-scale=1"]) == {
        "eta": ["0.55", "0.65"],
        "style_scale": ["1"],
    }
    assert parse_vary(["prompt=a cat, sitting|a dog"]) == {"prompt": ["a cat, sitting", "a dog"]}
    for wrong in (["eta"], ["=1"], ["eta="], ["eta=1,,2"], ["eta=1", "eta=2"]):
        with pytest.raises(InputError, match="--vary"):
            parse_vary(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ["in.mp4"]}, "is a video: say which frames"),
        ({"inputs": ["gone.png"]}, "gone.png"),
        ({"frames": ["x"]}, "--frame x"),
        ({"vary": {"colour": ["1"]}}, "--vary 'colour': cannot be varied"),
        ({"vary": {"crf": ["1"]}}, "cannot be varied"),
        ({"vary": {"eta": ["0.5", "2"]}}, "--eta 2"),
        ({"vary": {"eta": ["0.5"]}, "eta": "0.6"}, "--eta is varied, too"),
        ({"vary": {"seed": [str(i) for i in range(MOST_CELLS + 1)]}}, "vary less"),
        ({"compare": "side"}, "--compare"),
        ({"output": "sheet.gif"}, ".gif"),
        ({"output": "style.png"}, "exists"),
        ({"output": "style.png", "overwrite": True}, "'style.png' is an input"),
    ],
)
def test_wrong_requests_leave_nothing(tmp_path, picture, reference, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "in.mp4", 2, (96, 64), sound=False)
    request = {"inputs": ["in.png"], "styles": ["style.png"], "output": "sheet.png", "vary": {}}
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        make_sheet(**request | FAST | changes)
    assert {path.name for path in tmp_path.iterdir()} == before
