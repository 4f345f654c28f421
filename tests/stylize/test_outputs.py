"""Outputs: a name for each input, and none in the place of what a request reads."""

import os
from pathlib import Path

import pytest

from std_cli import InputError
from std_cli.stylize.outputs import check_outputs, distinct_targets, existing_rule


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a.png", "b.png"], ["a", "b"]),
        (["a.png", "a.jpg", "b.png"], ["a_png", "a_jpg", "b"]),
        (["x/a.png", "y/a.png"], ["x_a_png", "y_a_png"]),
        (["x/a.png", "y/a.png", "y/a.jpg"], ["x_a_png", "y_a_png", "a_jpg"]),
        (["u/x/a.png", "v/x/a.png"], ["x_a_png", "x_a_png_2"]),
        (["a.png", "a.jpg", "a_png.gif"], ["a_png", "a_jpg", "a_png_gif"]),
        (["a.b.png", "a.b.jpg"], ["a_b_png", "a_b_jpg"]),
    ],
)
def test_every_input_has_an_output(sources, names):
    notices = []
    found = distinct_targets(
        [Path(source) for source in sources], lambda path, name: Path(f"out/{name}.png"), notices
    )
    assert len(set(found)) == len(found)
    if "a_png.gif" not in sources:  # there any of the two may give way
        assert [path.stem for path in found] == names
    assert bool(notices) == (names != [Path(source).stem for source in sources])
    assert all("\n" not in notice for notice in notices)


def test_only_outputs_that_are_the_same_get_other_names():
    """a.mp4 and a.mov do not: each keeps its kind."""
    sources = [Path("a.mp4"), Path("a.mov"), Path("a.avi")]

    def target(path, name):
        return Path(f"{name}{path.suffix if path.suffix == '.mov' else '.mp4'}")

    assert distinct_targets(sources, target, []) == [
        Path("a_mp4.mp4"), Path("a.mov"), Path("a_avi.mp4")
    ]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "style.png"):
        Path(name).write_bytes(name.encode())
    Path("frames").mkdir()
    Path("frames/1.png").write_bytes(b"1")
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="POSIX links, pipes and devices")
def test_what_is_read_is_never_written(here):
    os.symlink("a.png", "link.png")
    os.link("a.png", "hard.png")
    os.mkfifo("pipe.png")
    read = [Path("a.png"), Path("style.png"), Path("frames/1.png")]
    for target, message in [
        ("a.png", "is an input"),
        ("../" + here.name + "/a.png", "same file as the input 'a.png'"),
        (str(here / "a.png"), "same file"),
        ("link.png", "same file"),
        ("hard.png", "same file"),
        ("style.png", "is an input"),
        ("frames", "a folder that holds the input"),
        (".", "a folder that holds the input"),
        ("pipe.png", "a device, a pipe or a socket"),
        ("/dev/null", "a device, a pipe or a socket"),
    ]:
        with pytest.raises(InputError, match=message):
            check_outputs([Path("new.png"), Path(target)], None, read)
    check_outputs([Path("b.png"), Path("new.png"), Path("no/such/a.png")], here, read)
    with pytest.raises(InputError, match="a device, a pipe or a socket"):
        check_outputs([Path("/dev/null/a.png")], Path("/dev/null"), read)
    assert Path("a.png").read_bytes() == b"a.png"


def test_overwrite_and_skip_existing_contradict_each_other():
    with pytest.raises(InputError, match="--overwrite and --skip-existing"):
        existing_rule(True, True)
    assert existing_rule(True, False) == "replace"
    assert existing_rule(False, True) == "skip"
    assert existing_rule(False, False) == "refuse"
