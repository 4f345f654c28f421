import re
from pathlib import Path

import pytest

from std_cli.config import ImageSettings, image_settings, parse_size, parse_style, video_settings
from std_cli.errors import InputError, counted


def test_order_of_defaults():
    pack = {"i2i": {"cfg": 3.0, "steps": 4}}
    s = image_settings({"steps": 5, "eta": None}, pack)
    assert (s.steps, s.cfg, s.eta) == (5, 3.0, ImageSettings().eta)


def test_a_model_may_do_without_motion():
    pack = {"i2i": {"eta": 0.6, "cfg": 3.0}, "v2v": {"cfg": 2.0}, "motion": "none"}
    s = video_settings({}, pack)
    assert (s.eta, s.cfg, s.motion) == (0.6, 2.0, "none")
    assert (
        video_settings({"motion": "auto"}, pack).motion == video_settings({}, {}).motion == "auto"
    )
    assert image_settings({}, pack).cfg == 3.0
    with pytest.raises(InputError, match="motion .owner/name."):
        video_settings({}, {"motion": "owner/name"})


def test_a_model_may_have_its_videos_steadied_more():
    pack = {"steady": 0.9}
    assert video_settings({}, pack).steady == 0.9
    assert video_settings({"steady": 0.5}, pack).steady == 0.5
    assert video_settings({}, {}).steady == video_settings({}, {"steady": None}).steady == 0.75
    assert image_settings({}, pack) == image_settings({}, {})
    with pytest.raises(InputError, match="steady 2"):
        video_settings({}, {"steady": 2.0})


def test_every_problem_in_one_line():
    with pytest.raises(InputError) as e:
        image_settings({"eta": 0, "steps": 0, "style_scale": -1, "device": "tpu"})
    message = str(e.value)
    assert "\n" not in message
    for flag in ("--eta 0", "--steps 0", "--style-scale -1", "--device tpu"):
        assert flag in message


@pytest.mark.parametrize("eta", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_eta_outside(eta):
    with pytest.raises(InputError, match="--eta"):
        image_settings({"eta": eta})


@pytest.mark.parametrize("name", ["start", "end", "preview", "max_frames", "overlap"])
@pytest.mark.parametrize("value", ["1e400", "-1e400", "9" * 5000, 10**400, -(10**400), "inf"])
def test_numbers_without_measure(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}") as error:
        video_settings({name: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_wrong_pack_is_named():
    with pytest.raises(InputError, match=r"here/std\.json: cfg -1"):
        image_settings({}, {"i2i": {"cfg": -1}}, "here/std.json")
    with pytest.raises(InputError, match="typo"):
        image_settings({}, {"typo": 1})


@pytest.mark.parametrize(
    ("text", "size"), [("768x512", (768, 512)), ("640", 640), ("64X96", (64, 96))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "10x", "1x2x3", "-5", "1e3", "²"])
def test_no_sizes(text):
    with pytest.raises(InputError, match="--size"):
        image_settings({"size": text})


def test_styles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").touch()
    assert [str(parse_style(t)[0]) for t in ("ref.png:0.5", "a:2", "C:\\ref.png", "ref.png")] == [
        "ref.png",
        "a:2",
        "C:\\ref.png",
        "ref.png",
    ]
    assert [parse_style(t)[1] for t in ("ref.png:0.5", "a:2", "C:\\ref.png", "ref.png")] == [
        0.5,
        1,
        1,
        1,
    ]
    for text in ("ref.png:0", "ref.png:-1", "ref.png:nan"):
        with pytest.raises(InputError, match="weight"):
            parse_style(text)


def test_plural_forms():
    assert [counted(number, "frame") for number in (0, 1, 2, None)] == [
        "0 frames",
        "1 frame",
        "2 frames",
        "unknown frames",
    ]


def test_numbers_in_messages_have_the_form_that_they_need():
    """A noun in the plural follows a number only where that cannot be 1: other messages leave it to
    `counted`."""
    nouns = "frame|layer|tensor|step|update|sample|window|shot|chapter|head|position|block|value"
    found = set()
    for file in (Path(__file__).parents[1] / "std_cli").rglob("*.py"):
        for match in re.findall(rf"\{{([^{{}}]*)\}} (?:{nouns})s\b", file.read_text("utf-8")):
            found.add(f"{file.name}: {match}")
    assert found == {
        "plan.py: COUNTED",
        "decode.py: MAX_DAMAGED",
        "decode.py: self.expected",  # of a video that breaks off
        "fuse.py: total",
        "read.py: len(layers)",  # "in 1 of its 2 layers": not all of them
        "networks.py: len(getattr(self, name))",
        "fit.py: len(wanted)",
        "pipeline.py: total",
        "dataset.py: frames",  # of a caller that asks for none
    }
