"""What a TAB offers, and what it costs."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from std_cli.cli.completion import answer
from std_cli.config import VideoSettings
from std_cli.media.video.target import ENCODERS
from std_cli.weights.zoo import names_of, zoo


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder for the description of the commands, which takes a second to make."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tab(tmp_path, cache, monkeypatch, capsys):
    """What is offered after the words, the last of which is being typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def offered(*words):
        monkeypatch.setenv("COMP_WORDS", "\n".join(("std", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert answer("complete_bash")
        return capsys.readouterr().out.split()

    return offered


def test_commands_and_options(tab):
    assert tab("")[:4] == ["stylize", "plan", "models", "distill"]
    assert tab("pl") == ["plan"] and tab("plan", "") == ["image", "video"]
    assert tab("help", "models", "p") == ["pull", "path"]
    flags = {f"--{name.replace('_', '-')}" for name in VideoSettings.model_fields}
    flags |= {"--style", "--look", "--overwrite", "--no-compile", "--help", "--no-probe"}
    assert flags <= set(tab("plan", "video", "a.mp4", "--")) & set(tab("stylize", "video", "--"))
    assert tab("stylize", "image", "a.png", "--eta", "0.5", "--et") == []  # it is given
    assert tab("stylize", "image", "--style", "a.png", "--style", "b") == []  # the shell's files
    assert "--style" in tab("stylize", "image", "--style", "a.png", "--st")
    assert tab("nonsense", "") and tab("stylize", "image", "--colour", "x", "") == []


def test_values(tab, tmp_path):
    assert tab("stylize", "image", "--model", "") == ["tiny", *names_of("base")]
    assert tab("stylize", "image", "a.png", "-m", "t") == ["tiny"]
    assert tab("stylize", "image", "--model", "=", "t") == ["tiny"]  # bash's words of --model=t
    assert tab("config", "show", "--model", "ti") == ["tiny"]
    assert set(tab("stylize", "video", "--codec", "")) == {
        *ENCODERS, *(encoder.codec for encoder in ENCODERS.values()), "gif", "webp"
    }  # fmt: skip
    assert tab("plan", "video", "--motion", "") == ["auto", "none", *names_of("motion")]
    assert tab("plan", "video", "--cuts", "") == ["auto", "off"]
    assert tab("stylize", "image", "--method", "l") == ["lcm", "lightning"]
    assert tab("models", "pull", "lightn") == ["lightning-2", "lightning-4", "lightning-8"]
    assert tab("distill", "--task", "") == ["i2i", "v2v"]
    assert tab("models", "pull", "--for", "") == ["image", "video", "distill", "compare"]
    assert set(tab("models", "pull", "")) == {n for n, e in zoo().models.items() if e.repo}
    (tmp_path / "mine.safetensors").touch()
    assert tab("stylize", "image", "--lora", "") == ["auto", "none", "mine.safetensors"]


def test_looks(tab, tmp_path):
    assert tab("stylize", "image", "--look", "") == []
    (tmp_path / "std.toml").write_text("[look.oil]\neta = 0.5\n[look.ink]\n")
    (tmp_path / "std").mkdir()
    (tmp_path / "std" / "config.toml").write_text("[look.water]\n")
    assert tab("stylize", "image", "--look", "") == ["oil", "ink", "water"]
    (tmp_path / "std.toml").write_text("no TOML")
    assert tab("config", "show", "--look", "w") == ["water"]


def test_what_is_in_the_cache(tab, tmp_path):
    assert tab("models", "rm", "") == []
    entry = zoo().models["sdxl"]
    for repo, commit, file in (
        (entry.repo, entry.revision, "model_index.json"),
        ("owner/model", "c1", "model_index.json"),
        ("owner/lora", "c2", "lora.safetensors"),
    ):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        folder.mkdir(parents=True)
        (folder / file).touch()
    assert tab("models", "rm", "") == ["sdxl"] == tab("models", "verify", "sd")
    assert "owner/model" in tab("stylize", "image", "--model", "")
    assert tab("stylize", "image", "--lora", "o") == ["owner/lora"]


def test_other_shells(tab, monkeypatch, capsys):
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "std plan v")
    for shell, expected in (
        ("zsh", '_arguments \'*: :(("video":"'),
        ("fish", "video\tEstimate"),
        ("powershell", "video:::Estimate"),
    ):
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        assert answer(f"complete_{shell}")
        assert capsys.readouterr().out.startswith(expected)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "is-args")
    for line, code in (("std plan v", 0), ("std stylize image --style ", 1)):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        with pytest.raises(SystemExit) as end:
            answer("complete_fish")
        assert end.value.code == code
    assert not answer("source_bash") and not answer("complete_tcsh")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash_without_heavy_imports(tab, tmp_path):
    """Typer's script, in a real shell; nothing that takes time is imported once the commands are
    described."""
    tab("")
    std = tmp_path / "std"
    std.write_text(f'#!/bin/sh\nexec "{sys.executable}" -X importtime -m std_cli "$@"\n')
    std.chmod(0o755)
    script = f"""
        source <({sys.executable} -m std_cli --show-completion bash)
        COMP_WORDS=(std stylize image a.png --model t); COMP_CWORD=5
        _std_completion {std}; echo "${{COMPREPLY[@]}}"
    """
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.stdout == "tiny\n", done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "std_cli.cli.completion" in loaded
    assert not loaded & {"typer", "pydantic", "rich", "importlib.metadata", "torch"}


def test_the_description_follows_the_modules(tab, cache):
    tab("")
    file = cache / "std" / "completion.json"
    tree = json.loads(file.read_text())
    tree["root"]["commands"] = {}
    file.write_text(json.dumps(tree))
    assert tab("pl") == []  # as it is in the cache
    file.write_text(json.dumps(tree | {"made_from": []}))
    assert tab("pl") == ["plan"]
    file.write_text("damaged")
    assert tab("pl") == ["plan"]
