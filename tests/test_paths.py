"""Names from options, configuration files and Python: one line for each that cannot be a path,
wherever it is given."""

import os
import threading
from pathlib import Path

import pytest

from std_cli import InputError, stylize_image, stylize_video
from std_cli.cli.commands import run
from std_cli.paths import draft, quoted, remove_stale_drafts, user_path

WRONG = [
    ("", "is empty"),
    ("-", "standard input"),
    ("~no_such_user/x.png", "no user's folder"),
    ("x" * 300 + ".png", "name too long"),
    ("a/" * 3000, "name too long"),
    ("a\0b.png", "NUL character"),
    ("caf\udce9.png", "not UTF-8"),
]


@pytest.mark.parametrize(("name", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_a_path(name, message):
    with pytest.raises(InputError, match=message) as error:
        user_path(name, "-o")
    text = str(error.value)
    assert text.startswith("-o") and text.isprintable() and len(text) < 300


def test_home_folders_and_names_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a.png", "-o") == tmp_path / "a.png"
    (tmp_path / "~no_such_user").write_bytes(b"")
    assert user_path("~no_such_user", "-o") == Path("~no_such_user")  # as a shell passes it
    assert user_path("folder/", "-o") == Path("folder")
    with pytest.raises(InputError, match="is a file; leave out the slash"):
        user_path("~no_such_user/", "input")
    with pytest.raises(InputError, match="path is expected, not int"):
        user_path(3, "style")
    with pytest.raises(InputError, match="not bytes"):
        user_path(b"a.png", "style")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no links without a right to them")
def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("a")
    assert user_path(tmp_path / "a", "-o") == tmp_path / "a"  # the link itself is there
    with pytest.raises(InputError, match="symbolic links"):
        user_path(tmp_path / "a" / "b", "-o")


def test_long_names_are_cut_in_messages():
    assert quoted("a" * 200 + "b.png").endswith("ab.png'") and len(quoted("a" * 200)) < 130
    assert quoted("two\nlines") == "'two\\nlines'"


ODD = ["~no_such_user/x.png", "x" * 300 + ".png", "caf\udce9.png"]


@pytest.mark.parametrize(
    "command",
    [
        "stylize image {} --style REF --model tiny",
        "stylize image IN --style {} --model tiny",
        "stylize image IN --style REF --model tiny -o {}",
        "stylize image IN --style REF --model {}",
        "stylize image IN --style REF --model tiny --lora {}",
        "plan image {} --style REF --model tiny --no-probe",
        "stylize video {} --style REF --model tiny",
        "stylize video CLIP --style REF --model tiny -o {}",
        "stylize video CLIP --style REF --model tiny --cuts {}",
        "stylize video CLIP --style REF --model tiny --motion {}",
        "models inspect {}",
        "models convert REF -o {}",
        "distill --config {}",
        "distill --init {}",
        "distill --config RUN --resume {}",
    ],
)
def test_every_option_takes_paths_through_the_same_door(
    tmp_path, monkeypatch, capsys, picture, reference, command
):
    monkeypatch.chdir(tmp_path)
    picture.rename("IN.png")
    (tmp_path / "RUN").write_text('[data]\nsources = ["."]\n[model]\nname = "tiny"\n')
    before = sorted(os.listdir())
    for name in ODD:
        places = {"{}": name, "REF": str(reference), "IN": "IN.png", "CLIP": "IN.png"}
        code = run([places.get(word, word) for word in command.split()])
        out, err = capsys.readouterr()
        assert code == 2 and out == "", err
        assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 400, err
        assert "unexpected" not in err
        assert sorted(os.listdir()) == before


@pytest.mark.parametrize("name", ODD, ids=["user", "long", "bytes"])
def test_the_configuration_and_python_take_them_through_it_too(tmp_path, name, picture, reference):
    from std_cli.distill.config import make_config
    from std_cli.distill.train import distill

    for section, key in [
        ("data", "sources"),
        ("style", "folder"),
        ("run", "output"),
        ("model", "name"),
    ]:
        value = [name] if key == "sources" else name
        given = {"model": {"name": "tiny"}, "data": {"sources": [str(tmp_path)]}}
        (tmp_path / "in.txt").write_text("a picture")
        (tmp_path / "style.txt").write_text("stripes")
        config = make_config(given | {section: given.get(section, {}) | {key: value}})
        with pytest.raises(InputError) as error:
            distill(config)
        assert f"{section}.{key}" in str(error.value) or key == "name", error.value
    for ask in (
        lambda: stylize_image(name, reference, model="tiny"),
        lambda: stylize_image(picture, Path(name), model="tiny"),
        lambda: stylize_image(picture, (name, 0.5), model="tiny"),
        lambda: stylize_image(picture, reference, Path(name), model="tiny"),
        lambda: stylize_video(Path(name), reference, model="tiny"),
    ):
        with pytest.raises(InputError):
            ask()


def test_a_slash_at_the_end_names_a_folder(tmp_path, monkeypatch, picture, reference):
    monkeypatch.chdir(tmp_path)
    assert run(["stylize", "image", str(picture), "--style", str(reference), "--model", "tiny",
    "--steps", "1",
                "--size", "64", "-o", "new.png/", "-q"]) == 0  # fmt: skip
    assert os.listdir("new.png") == ["in_stylized.png"]


def test_drafts_are_removed_by_their_own_run_while_others_look_for_stale_ones(tmp_path):
    over = threading.Event()

    def look():
        while not over.is_set():
            remove_stale_drafts(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(100):
            with draft(tmp_path / "result") as folder:
                for name in range(20):
                    (folder / str(name)).touch()
    finally:
        over.set()
        looking.join()
    assert not list(tmp_path.iterdir())
