"""Files copied from and to a storage: whole or not at all."""

import hashlib
import shutil
from collections import namedtuple

import pytest

from std_cli.errors import InputError, OutputExists, StdError
from std_cli.storage.remote import open_url
from std_cli.storage.transfer import StoredFolder, get_files, put_file
from tests.storage.counted import counted


def at(url, size=None):
    stored = open_url(f"counted://{url}", "input")
    return type(stored)(stored.fs, stored.path, stored.url, size)


def ignore(done, total):
    pass


def test_the_disk_is_looked_at_before_the_first_copy(tmp_path, monkeypatch):
    fs = counted({"/box/a": b"12345"})
    usage = namedtuple("usage", "total used free")(10**9, 0, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StdError, match="0.00 GB are free in .*: set TMPDIR"):
        get_files([(at("box/a", 5), tmp_path / "a")], tmp_path, ignore)
    assert not fs.calls["open rb"] and not list(tmp_path.iterdir())


def test_files_arrive_whole_or_not_at_all(tmp_path):
    counted({"/box/a": b"12345", "/box/b": b"678"})
    pairs = [(at("box/a", 5), tmp_path / "a"), (at("box/no", 1), tmp_path / "no")]
    reports = []
    failed = get_files(pairs, tmp_path, lambda *report: reports.append(report))
    assert (tmp_path / "a").read_bytes() == b"12345" and reports[-1] == (6, 6)
    assert list(failed) == [tmp_path / "no"] and isinstance(failed[tmp_path / "no"], InputError)
    with pytest.raises(StdError, match="box/b has 7 bytes, and 3 arrived"):
        get_files([(at("box/b", 7), tmp_path / "b")], tmp_path, ignore)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path):
    fs = counted({"/box/out": b"old"})
    file = tmp_path / "new"
    file.write_bytes(b"new")
    with pytest.raises(OutputExists, match="'counted://box/out' exists"):
        put_file(file, at("box/out"), overwrite=False)
    assert fs.cat("/box/out") == b"old"
    assert put_file(file, at("box/out"), overwrite=True) == hashlib.sha256(b"new").hexdigest()
    assert fs.find("/box") == ["/box/out"] and fs.cat("/box/out") == b"new"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", [Killed, OSError])
def test_half_an_upload_has_no_name(tmp_path, kind):
    fs = counted({})
    file = tmp_path / "out"
    file.write_bytes(b"12345678")

    def half(local, path):
        fs.pipe_file(path, b"1234")
        raise kind("broken pipe")

    target = at("box/out")
    target.fs.put_file = half
    with pytest.raises((Killed, StdError)):
        put_file(file, target, overwrite=True)
    assert not fs.exists("/box/out")


def test_what_arrived_is_compared_with_what_was_sent(tmp_path):
    fs = counted({})
    file = tmp_path / "out"
    file.write_bytes(b"12345678")
    target = at("box/out")
    target.fs.put_file = lambda local, path: fs.pipe_file(path, b"12345679")
    with pytest.raises(StdError, match="box/out: what the storage holds differs"):
        put_file(file, target, overwrite=True)
    assert not fs.find("/box")


def test_a_folder_is_continued_from_its_copy(tmp_path):
    fs = counted({})
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    names = ["run.json", "segment-00000", "state.safetensors"]
    for name in names:
        (here / name).write_text(name)
    stored = StoredFolder(at("box/work"))
    stored.push(here, names)
    (here / "segment-00001").write_text("next")
    before = fs.calls["open rb"]
    stored.push(here, ["segment-00000", "segment-00001"])
    assert fs.calls["open rb"] == before + 1, "the first segment is not sent again"

    other = StoredFolder(at("box/work"))
    other.pull(there)
    assert {file.name: file.read_text() for file in there.iterdir()} == {
        name: "next" if name == "segment-00001" else name for name in [*names, "segment-00001"]
    }
    other.remove()
    assert not fs.find("/box")
