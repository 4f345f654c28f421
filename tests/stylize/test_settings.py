"""What a result keeps: as std reads it back, and as other tools read it."""

import re

import pytest
from PIL import Image

from std_cli import InputError, read_settings, stylize_image, stylize_video
from std_cli.cli.commands import run
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.media.write_picture import save_picture
from std_cli.stylize.parameters import parameters_text
from std_cli.stylize.settings import read_record
from std_cli.weights.fingerprints import sha256
from std_cli.weights.resolve import TINY
from tests.micro import micro
from tests.stylize.test_videos import make_clip

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A pair of the last line, as the web UI's own reader finds them."""


def facts(**settings):
    known = {
        "method": "std", "steps": 8, "cfg": 6.0, "seed": 3, "eta": 0.75, "style_scale": 1.0,
        "palette": 0.0, "keep_colors": False, "lora": None, "cfg_steps": None, "cfg_every": 1,
        "prompt": "a cat", "negative_prompt": "blur",
        "model": {"name": "models/a.safetensors", "sha256": "0123456789abcdef"},
        "style": [{"name": "a.png", "weight": 0.5}, {"name": "b, c.png", "weight": 0.5}],
    }  # fmt: skip
    return {"version": "0.1.0", "settings": known | settings}


def test_the_words_of_other_tools():
    lines = parameters_text(facts(), (768, 512)).splitlines()
    assert lines[:2] == ["a cat", "Negative prompt: blur"]
    pairs = dict(PAIR.findall(lines[2]))
    assert pairs == {
        "Steps": "8", "Sampler": "TCD", "CFG scale": "6", "Seed": "3", "Size": "768x512",
        "Model hash": "0123456789", "Model": "a", "Denoising strength": "0.75",
        "Style": '"a.png:0.5, b, c.png:0.5"', "Style scale": "1", "Version": "std 0.1.0",
    }  # fmt: skip
    assert "Negative prompt" not in parameters_text(facts(negative_prompt=" "), (8, 8))
    colors = parameters_text(facts(palette=0.75, keep_colors=True), (8, 8))
    assert "Palette: 0.75, Keep colors: True, Version" in colors
    lora = {"name": "x", "scale": 0.5}
    assert 'Lora: "x:0.5"' in parameters_text(facts(lora=lora), (8, 8))
    for method, name in (("lcm", "LCM"), ("lightning", "Euler"), ("none", "Euler")):
        assert f"Sampler: {name}," in parameters_text(facts(method=method), (8, 8))
    assert parameters_text(facts(prompt="a \udcff"), (8, 8)).startswith("a ?\n")


def test_show_prints_what_a_picture_was_made_with(
    tmp_path, picture, reference, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = {"model": "tiny", "steps": 1, "size": 64, "seed": 5, "lora": "none"}
    stylize_image("in.png", "style.png", "out.jpg", **options)
    record = read_settings("out.jpg")
    assert record["origin"] == {
        "input": "in.png",
        "sha256": sha256(picture)[:16],
        "style": ["style.png"],
        "options": {"model": "tiny", "lora": "none"},
    }
    assert run(["show", "out.jpg"]) == 0
    shown = capsys.readouterr().out
    rows = dict(re.findall(r"^(\S+(?: \S+)*) {2,}(.*\S) *$", shown, re.M))
    assert rows["seed"] == "5" and rows["steps"] == "1" and rows["input sha256"]
    assert rows["model"].startswith("tiny (sha256 ") and rows["style"].startswith(
        "style.png (weight 1"
    )
    with Image.open("out.jpg") as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286].decode()
    assert "Model: tiny" in comment and "Seed: 5" in comment and str(TINY) not in comment


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_their_record(tmp_path, reference, suffix):
    """And all of their frames, for Pillow, which reads both."""
    clip = make_clip(tmp_path / "in.mp4", 3, (64, 48), sound=False)
    out = tmp_path / f"o{suffix}"
    options = {"model": micro(), "steps": 1, "size": 64, "motion": "none", "seed": 9}
    stylize_video(clip, reference, out, **options)
    record = read_record(out)
    assert record["frames"] == 3 and record["settings"]["seed"] == 9
    with Image.open(out) as image:
        assert image.n_frames == 3
        for number in range(3):
            image.seek(number)
            image.load()
    assert len(list(read_frames(open_clip(out)))) == 3


def test_a_folder_of_pictures_keeps_its_record(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    assert read_settings(folder) is None
    for text, record in [('{"std": {"version": "0.1.0"}}', {"version": "0.1.0"}), ("[1]", None)]:
        (folder / "std.json").write_text(text)
        assert read_settings(folder) == record


def test_what_is_not_of_std_is_one_line(tmp_path, picture, reference, capsys):
    with pytest.raises(InputError, match="carries no record of std"):
        read_record(picture)
    nested: list[object] = []
    for _ in range(300):
        nested = [nested]
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "deep.png", {"settings": nested}, False)
    assert run(["show", str(tmp_path / "deep.png")]) == 2
    error = capsys.readouterr().err
    assert "its record is damaged" in error and error.count("\n") == 1
    with pytest.raises(InputError, match="no such file"):
        read_record(tmp_path / "gone.png")
