"""Which files folders and patterns stand for, and which command takes a file."""

import json
import os
from pathlib import Path

import av
import pytest
from PIL import Image

from std_cli import InputError
from std_cli.cli.commands import run
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.video.clip import VIDEO_SUFFIXES
from std_cli.media.write_picture import save_picture
from std_cli.stylize.inputs import files_of, kind_of


def make_video(path, comment=None):
    """Two grey frames."""
    with av.open(str(path), "w") as out:
        if comment:
            out.metadata["comment"] = json.dumps(comment)
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        for _ in range(2):
            out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode())
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (8, 8))
    for name in ("a.png", "b.jpg", "style.png"):
        picture.save(name)
    save_picture(picture, "a_stylized.png", {"settings": {}}, overwrite=False)
    return tmp_path


def names(item, references=(), notices=None):
    files = files_of(item, PICTURE_SUFFIXES, "picture", references, notices or [])
    return [file.name for file in files]


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("item", [".", "*"])
def test_references_and_results_are_left_out_of_folders_and_patterns(here, item):
    os.symlink("style.png", "alias.png")
    notices = []
    files = files_of(item, PICTURE_SUFFIXES, "picture", [Path("style.png")], notices)
    assert [file.name for file in files] == ["a.png", "b.jpg"]
    assert len(notices) == 2 and all(notice.startswith(f"{item}: left out: ") for notice in notices)
    assert "alias.png and 1 more, which --style names" in notices[0]
    assert "a_stylized.png, which std wrote" in notices[1]


def test_a_file_that_is_named_is_taken(here):
    assert names("style.png", [Path("style.png")]) == ["style.png"]
    assert names("a_stylized.png") == ["a_stylized.png"]


def test_nothing_left_is_an_error(here):
    with pytest.raises(InputError, match="no pictures are left in 'a_\\*'.*name files"):
        names("a_*")


def test_results_among_videos_are_left_out(here):
    make_video("in.mp4")
    make_video("in_stylized.mp4", {"std": {"version": "1", "settings": {}}})
    make_video("other.mp4", {"by": "another program"})
    notices = []
    files = files_of(".", VIDEO_SUFFIXES, "video", [], notices)
    assert [file.name for file in files] == ["in.mp4", "other.mp4"]
    assert any("in_stylized.mp4, which std wrote" in notice for notice in notices)


def test_a_file_of_the_other_kind_names_the_right_command(here, capsys):
    make_video("in.mp4")
    picture = Image.new("RGB", (8, 8))
    picture.save("still.gif")
    picture.save("moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    for arguments, message in [
        (["stylize", "video", "a.png"], "'a.png' is a picture: use std stylize image"),
        (["stylize", "video", "b.jpg"], "'b.jpg' is a picture: use std stylize image"),
        (["stylize", "video", "still.gif"], "'still.gif' is a picture: use std stylize image"),
        (["stylize", "image", "in.mp4"], "'in.mp4' is a video: use std stylize video"),
    ]:
        assert run([*arguments, "--style", "style.png", "--model", "tiny"]) == 2
        assert capsys.readouterr() == ("", f"error: {message}\n")
    files = files_of("moving.gif", VIDEO_SUFFIXES, "video", [], [])
    assert [file.name for file in files] == ["moving.gif"]


def test_a_file_in_place_of_a_command_is_answered_with_the_command(here, capsys):
    for arguments, command in [
        (["stylize", "a.png", "--style", "style.png"], "std stylize image a.png"),
        (["stylize", "absent.mov"], "std stylize video absent.mov"),
        (["plan", "."], "std plan image ."),
    ]:
        assert run(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.endswith(f"give {command}\n")
    assert run(["stylize", "paint"]) == 2
    assert "paint" in capsys.readouterr().err
    assert kind_of(Path("a.tar")) is None


def test_a_reference_is_no_frame_of_a_folder(here, capsys):
    assert run(["stylize", "video", ".", "--style", "style.png", "--model", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--style style.png: it would be a frame of the video" in err
