"""Defaults of one's own: the order in which they count, what is checked, and what they may name."""

import json
import os
import shlex
from fractions import Fraction
from pathlib import Path

import pytest
from safetensors.torch import save_file

from std_cli import read_defaults
from std_cli.cli.commands import run
from std_cli.config import ImageSettings, VideoSettings, image_settings
from std_cli.errors import InputError
from std_cli.stylize.defaults import (
    LARGEST_FILE,
    Origin,
    join,
    resolved,
    show_defaults,
    user_file,
)
from std_cli.stylize.model_choice import follow_lora
from std_cli.stylize.pictures import prepare_images
from std_cli.weights.lora import LoraFile
from std_cli.weights.resolve import TINY


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder, and a folder for the user's file."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home" / "std").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "work"


def write(here, folder="", user=""):
    (here / "std.toml").write_text(folder)
    user_file().write_text(user)


def test_flag_environment_folder_user_model_built_in(here, monkeypatch):
    for name in ("eta", "steps", "cfg", "seed"):
        monkeypatch.setenv(f"STD_{name.upper()}", "")  # counts as not set
    write(here, "eta = 0.2\nsteps = 2\ncfg = 2", "eta = 0.1\nsteps = 1\ncfg = 1\nseed = 1")
    monkeypatch.setenv("STD_ETA", "0.3")
    monkeypatch.setenv("STD_STEPS", "3")
    given = join(ImageSettings, {"eta": "0.4", "style": ["a.png"], "size": None})
    assert given.values == {"eta": 0.4, "steps": 3, "cfg": 2.0, "seed": 1}
    assert given.style == ["a.png"]
    pack = {"i2i": {"cfg": 5.0, "prompt": "of the model"}}
    settings = image_settings(given.values, pack)
    found = resolved(settings, given.values, given.origins, pack, "m/std.json")
    shown = {
        name: (found[name]["value"], found[name]["source"], found[name]["where"])
        for name in ("eta", "steps", "cfg", "seed", "prompt", "style_scale")
    }
    assert shown == {
        "eta": (0.4, "flag", "--eta"),
        "steps": (3, "environment", "STD_STEPS"),
        "cfg": (2.0, "folder", "std.toml"),
        "seed": (1, "user file", str(user_file())),
        "prompt": ("of the model", "model", "m/std.json"),
        "style_scale": (1.0, "built in", ""),
    }
    assert sorted(given.notices) == sorted(
        ["STD_STEPS sets steps", f"{user_file()} sets seed", "std.toml sets cfg"]
    )
    assert join(ImageSettings, {"eta": "0.4"}, own=False).values == {"eta": 0.4}


def test_a_baseline_brings_its_own_steps_and_guidance(here):
    write(here, "steps = 6\ncfg = 7")
    given = join(ImageSettings, {"method": "lcm"})
    settings = image_settings(given.values)
    assert (settings.steps, settings.cfg) == (4, 1)
    found = resolved(settings, given.values, given.origins, {}, "")
    assert found["steps"] == {"value": 4, "source": "method", "where": "lcm"}
    assert join(ImageSettings, {"method": "std"}).values["steps"] == 6
    write(here, 'method = "lcm"\nsteps = 6')
    assert image_settings(join(ImageSettings, {}).values).steps == 6


def test_what_a_lora_is_made_for_is_said_to_be_its():
    settings = image_settings({"lora": "mine.safetensors"}).model_copy(update={"eta": 0.65})
    found = resolved(settings, {"lora": "mine.safetensors"}, {}, {}, "")
    assert found["eta"] == {"value": 0.65, "source": "LoRA", "where": "mine.safetensors"}
    assert found["lora"]["source"] == "given" and found["steps"]["source"] == "built in"


def lora_of(**metadata: str) -> LoraFile:
    return LoraFile("mine.safetensors", Path("mine.safetensors"), 1.0, 0.65, metadata, None)


@pytest.mark.parametrize(
    ("given", "metadata", "expected"),
    [
        ({}, {"steps": "4", "cfg": "1"}, (0.75, 4, 1)),  # auto was chosen by eta
        ({"lora": "mine.safetensors"}, {"steps": "4", "cfg": "1.5"}, (0.65, 4, 1.5)),
        ({"steps": 6, "cfg": 2.0}, {"steps": "4", "cfg": "1.5"}, (0.75, 6, 2)),
        ({}, {}, (0.75, 8, 6)),
        ({}, {"steps": "0", "cfg": "nan"}, (0.75, 8, 6)),
        ({}, {"steps": "51", "cfg": "-1"}, (0.75, 8, 6)),
        ({}, {"steps": "four", "cfg": "1e9"}, (0.75, 8, 6)),
    ],
)
def test_what_a_lora_was_made_for_is_taken_where_nothing_is_given(given, metadata, expected):
    settings, lora = follow_lora(image_settings(given), lora_of(**metadata), given)
    assert (settings.eta, settings.steps, settings.cfg) == expected
    assert lora.notice is None


def test_a_second_guidance_is_said():
    given = {"cfg": 3.0}
    _, lora = follow_lora(image_settings(given), lora_of(cfg="1"), given)
    assert "--cfg 3 guides a second time" in lora.notice and "--lora none" in lora.notice
    given = {"cfg": 0.5}
    assert follow_lora(image_settings(given), lora_of(cfg="1"), given)[1].notice is None


def test_defaults_of_a_pack_are_those_of_its_lora(here, tmp_path):
    (tmp_path / "std.json").write_text(
        json.dumps(
            {
                "i2i": {"steps": 8, "cfg": 3.0},
                "v2v": {"eta": 0.6},
                "motion": "none",
                "loras": [{"file": "l.safetensors", "task": "i2i", "eta": 0.75}],
            }
        )
    )
    save_file({}, tmp_path / "l.safetensors", {"steps": "4", "cfg": "1", "eta": "0.75"})
    shown = show_defaults(ImageSettings, {"model": str(tmp_path)}, own=False)["settings"]
    assert shown["steps"] == {"value": 4, "source": "LoRA", "where": "auto"}
    assert shown["cfg"]["value"] == 1 and shown["eta"]["value"] == 0.75
    shown = show_defaults(flags={"model": str(tmp_path), "cfg": 2.0}, own=False)["settings"]
    assert [shown[name]["value"] for name in ("eta", "steps", "cfg")] == [0.6, 4, 2]
    flags = {"model": str(tmp_path), "lora": "none"}
    shown = show_defaults(ImageSettings, flags, own=False)["settings"]
    assert shown["steps"] == {"value": 8, "source": "model", "where": str(tmp_path / "std.json")}


def test_looks(here, tmp_path):
    for folder in (here / "refs", user_file().parent):
        folder.mkdir(exist_ok=True)
        (folder / "w.png").touch()
    write(
        here,
        'cfg = 2\n[look.water]\nstyle = "refs/w.png"\neta = 0.5\n[look.both]\neta = 0.1',
        '[look.both]\neta = 0.2\ncfg = 1\n[look.oil]\nstyle = ["w.png:2", "~/x.png"]',
    )
    given = join(ImageSettings, {"look": "water", "eta": "0.6"})
    assert given.style == ["refs/w.png"] and given.values == {"eta": 0.6, "cfg": 2.0}
    assert given.origins["style"] == Origin("look", "std.toml [look.water]")
    assert join(ImageSettings, {"look": "water", "style": ["b.png"]}).style == ["b.png"]
    assert join(ImageSettings, {"look": "both"}).values == {"eta": 0.1, "cfg": 2.0}
    with pytest.raises(InputError, match="oil.*style '~/x.png': no such file"):
        join(ImageSettings, {"look": "oil"})
    write(here, "", '[look.oil]\nstyle = "w.png:2"\nstart = "0:02"\n')
    assert join(ImageSettings, {"look": "oil"}).style == [f"{user_file().parent}/w.png:2"]
    assert join(ImageSettings, {"look": "oil"}).values == {}
    assert join(VideoSettings, {"look": "oil"}).values == {"start": Fraction(2)}
    with pytest.raises(InputError, match="--look water: no such look; there are: oil"):
        join(ImageSettings, {"look": "water"})


def test_files_next_to_the_users_file_are_found_from_anywhere(here):
    for name in ("my.safetensors", "cuts.txt"):
        (user_file().parent / name).touch()
    write(here, "", 'lora = "my.safetensors:0.5"\ncuts = "cuts.txt"\nmodel = "tiny"')
    values = join(VideoSettings, {}).values
    assert values["lora"] == f"{user_file().parent}/my.safetensors:0.5"
    assert values["cuts"] == f"{user_file().parent}/cuts.txt" and values["model"] == "tiny"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eta = 5", r"std\.toml: eta 5: must be at most 1$"),
        (
            "eta = 'x'\nsteps = 0",
            r"std\.toml: eta 'x': must be a number; steps 0: must be at least 1",
        ),
        ("steps = true", "steps 'true': must be a whole number"),
        ("compile = 'maybe'", "compile 'maybe': must be true or false"),
        ("style-scale = 1", "'style-scale' is no setting: did you mean style_scale"),
        ("output = 'x'", "'output' is no setting"),
        ("overwrite = true", "'overwrite' is no setting"),
        ("[other]", "'other' is no setting: std config show"),
        ("eta = {a = 1}", "eta .*: must be a number"),
        ("size = 'big'", "size 'big': give WIDTHxHEIGHT"),
        ("[look.a]\neta = 2", r"std\.toml \[look\.a\]: eta 2"),
        ("[look.a]\nlook = 'b'", r"\[look\.a\]: 'look' is no setting"),
        ("look = 'a'", r"write each look as a table \[look\.NAME\]"),
        ("style = 'gone.png'", r"std\.toml: style 'gone\.png': no such file"),
        ("style = 3", "style 3: give a file"),
        ("style = []", "style .*: give a file"),
        ("eta = ", "is not TOML that can be read"),
        ("seed = " + "9" * 5000, "is not TOML that can be read|seed"),
        ("#" * (LARGEST_FILE + 1), "larger than 1 MiB"),
    ],
)
def test_what_is_wrong_names_file_and_key_in_one_line(here, text, message):
    (here / "std.toml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_defaults()
    assert "\n" not in str(error.value)


def test_what_is_no_file(here):
    (here / "std.toml").mkdir()
    with pytest.raises(InputError, match="is not a file"):
        read_defaults()
    (here / "std.toml").rmdir()
    os.mkfifo(here / "std.toml")
    with pytest.raises(InputError, match="is not a file"):
        read_defaults()
    os.remove(here / "std.toml")
    (here / "std.toml").write_bytes(b"prompt = '\xff'")
    with pytest.raises(InputError, match="is not TOML"):
        read_defaults()


def test_variables(here, monkeypatch):
    monkeypatch.setenv("STD_COMPILE", "1")
    monkeypatch.setenv("STD_STYLE", "a.png")
    monkeypatch.setenv("STD_MODLE", "tiny")
    monkeypatch.setenv("STD_DEBUG", "1")
    given = join(ImageSettings, {})
    assert given.values == {"compile": True} and given.style == ["a.png"]
    assert "STD_MODLE is no setting: did you mean STD_MODEL?" in given.notices
    assert not any("DEBUG" in notice for notice in given.notices)
    assert join(ImageSettings, {"compile": False}).values == {"compile": False}
    monkeypatch.setenv("STD_ETA", "high")
    with pytest.raises(InputError, match="^STD_ETA high: must be a number$"):
        join(ImageSettings, {})
    monkeypatch.setenv("STD_ETA", "")
    monkeypatch.setenv("STD_LOOK", "oil")
    with pytest.raises(InputError, match="^STD_LOOK oil: no such look; there are: none"):
        join(ImageSettings, {})


def test_python_reads_them_only_where_asked(here, picture, reference):
    write(here, 'steps = 3\nmodel = "tiny"')
    assert prepare_images(picture, reference, model="tiny").s.steps != 3
    assert prepare_images(picture, reference, **read_defaults()).s.steps == 3
    assert "motion" not in read_defaults("image")


def test_on_the_command_line(here, picture, reference, capsys):
    write(here, f'model = "tiny"\nsize = 64\n[look.red]\nstyle = "{reference}"\neta = 0.5')
    command = ["stylize", "image", str(picture), "--look", "red", "--dry-run", "--no-probe"]
    assert run([*command, "--json", "--seed", "3"]) == 0
    *before, plan = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notices = [event["message"] for event in before if event["event"] == "notice"]
    assert notices == ["std.toml sets model, size", "std.toml [look.red] sets eta, style"]
    settings = plan["settings"]
    assert settings["eta"] == {"value": 0.5, "source": "look", "where": "std.toml [look.red]"}
    assert settings["seed"] == {"value": 3, "source": "flag", "where": "--seed"}
    assert settings["cfg"]["source"] == "LoRA" and settings["dtype"]["source"] == "built in"
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "std.toml [look.red]" in out and "built in" in out

    assert run(["config", "show", "--json", "--look", "red"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: shown["settings"][name] for name in ("eta", "model")} == {
        name: settings[name] for name in ("eta", "model")
    }
    assert shown["looks"] == {"red": "std.toml"} and shown["settings"]["style"]["value"]
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{user_file()}\n"
    assert run([*command, "--no-config"]) == 2
    assert "--look red: no such look" in capsys.readouterr().err


def test_help_shows_the_defaults_of_the_model_asked_for(here, capsys):
    def help_of(line):
        assert run([*shlex.split(line), "--help"]) == 0
        return " ".join(capsys.readouterr().out.split())

    palette = json.loads((TINY / "std.json").read_text())["i2i"]["palette"]
    assert "[default: 6.0]" in help_of("stylize image")
    shown = help_of("stylize image --model tiny")
    assert "Defaults are those with --model tiny." in shown
    assert f"[default: {palette}, model]" in shown and "[default: 2, LoRA auto]" in shown
    assert "[default: sdxl]" in shown
    assert "[default: 4, method lcm]" in help_of("plan video --method lcm")
    write(here, "steps = 3")
    assert "[default: 3, std.toml]" in help_of("stylize video a.mp4")
    assert "[default: 8]" in help_of("stylize video a.mp4 --no-config")
    write(here, "steps = 99")
    assert "Defaults are those that are built in: std.toml: steps 99" in help_of("stylize image")
