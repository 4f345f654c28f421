"""The files of a storage as files of this machine."""

import resource
from pathlib import Path

import pytest

from std_cli.errors import InputError, StdError
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.storage.scratch import LOCAL_ONLY, Scratch
from std_cli.stylize.inputs import files_of
from std_cli.stylize.pictures import _jobs, _sources, _to_do
from tests.storage.counted import counted


def seconds():
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


@pytest.mark.parametrize("several", [False, True], ids=["folder", "files"])
def test_many_pictures_are_named_from_one_listing_for_each_folder(several):
    count = 2_000
    names = [f"{i:06d}.jpg" for i in range(count)]
    done = {f"/box/out/{i:06d}_stylized.png": b"" for i in range(0, count, 2)}
    fs = counted({f"/box/in/{name}": b"" for name in names} | done)
    begin = seconds()
    inputs = [f"counted://box/in/{name}" for name in names] if several else "counted://box/in/"
    with Scratch() as scratch:
        output = scratch.output("counted://box/out/", try_it=False)
        sources, notices = _sources(scratch.inputs(inputs), [], True, scratch)
        jobs, _, _ = _jobs(sources, output, notices)
        assert len(jobs) == count
        assert len(_to_do(jobs, "skip", notices)) == count // 2
    assert fs.calls["ls"] == 2 and fs.calls["info"] + fs.calls["exists"] < 10, fs.calls
    assert not fs.calls["open rb"]
    assert seconds() - begin < 5


def test_results_of_std_are_known_by_their_names():
    counted({f"/box/{name}": b"" for name in ("a.png", "a_stylized.png", "b_stylized.png")})
    notices = []
    with Scratch() as scratch:
        item = scratch.inputs("counted://box/*.png")
        found = files_of(item, PICTURE_SUFFIXES, "picture", [], notices, scratch)
        assert [path.name for path in found] == ["a.png", "b_stylized.png"]
        assert "a_stylized.png, which std wrote" in scratch.in_urls(notices[0])
        assert scratch.in_urls(notices[0]).startswith("counted://box/*.png: left out")


def test_content_is_copied_when_it_is_asked_for():
    fs = counted({"/box/in/a.png": b"one", "/box/in/b.png": b"two", "/box/c[1].png": b"three"})
    with Scratch() as scratch:
        folder = scratch._input("counted://box/in")
        a, b = sorted(Path(folder).iterdir())
        c = Path(scratch._input("counted://box/c[1].png"))
        scratch.fetch([a, c])
        assert a.read_bytes() == b"one" and c.read_bytes() == b"three"
        assert scratch.is_empty(b) and not scratch.is_empty(a)
        scratch.fetch([a.parent])
        assert b.read_bytes() == b"two" and fs.calls["open rb"] == 3
        root = scratch._root
    assert not root.exists()


@pytest.mark.parametrize("given", ["counted://box/r.png", ("counted://box/r.png", 1.0)])
def test_weights_of_references(given):
    counted({"/box/r.png": b"", "/box/r.png:3": b""})
    with Scratch() as scratch:
        path, weight = scratch.style(given)
        assert str(path).endswith("/counted/box/r.png") and weight == 1.0
        if isinstance(given, str):
            [(path, weight)] = scratch.style([f"{given}:0.5"])
            assert str(path).endswith("/r.png") and weight == 0.5
            path, weight = scratch.style(f"{given}:3")  # a real file wins
            assert str(path).endswith("/r.png:3") and weight == 1.0


def test_user_and_password_are_in_no_name_here():
    counted({"/box/a.png": b""})
    with Scratch() as scratch:
        local = scratch.inputs(["counted://anna:secret@box/a.png"])[0]
        assert "secret" not in local and scratch.in_urls(local) == "counted://box/a.png"
        with pytest.raises(StdError, match="'counted://box/a.png'"):
            raise_in(scratch, local)


def raise_in(scratch, local):
    with scratch:
        raise StdError(f"cannot read {local!r}")


def test_local_names_stay_as_they_are(tmp_path):
    with Scratch() as scratch:
        given = ["a:b.png", tmp_path, b"bytes", ("x.png", 2.0)]
        assert scratch.inputs(given) == given and scratch.inputs(tmp_path) is tmp_path
        assert scratch.output("out/", try_it=True) == "out/" and scratch.output(None, True) is None
        assert scratch.inputs(f"file://{tmp_path}/a%20b.png") == f"{tmp_path}/a b.png"
        assert scratch._root is None
    with pytest.raises(InputError, match="a URL cannot be used here"):
        LOCAL_ONLY.inputs("memory://a.png")


def test_nothing_is_written_to_a_web_server():
    with Scratch() as scratch, pytest.raises(InputError, match="nothing can be written to https"):
        scratch.output("https://h.org/out/", try_it=True)
