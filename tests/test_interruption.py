"""Signals to real processes, work folders of others, drafts of killed runs, several processes at
once."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from std_cli import InputError, StdError
from std_cli.cli.console import Reporter
from std_cli.errors import at_work
from std_cli.paths import draft, remove_stale_drafts, replace_file
from std_cli.stylize.work_folder import WorkFolder, check_folder, finished, folder_of
from tests.micro import micro
from tests.stylize.test_videos import make_clip

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals, locks and links")


def wait_for_handlers(pid):
    """Until the process takes SIGTERM: before that it is Python alone that starts."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(2)
        return
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & 1 << (
        signal.SIGTERM - 1
    ):
        time.sleep(0.005)


@posix
@pytest.mark.parametrize(
    ("sent", "code", "moments"),
    [
        ((signal.SIGINT, signal.SIGINT, signal.SIGINT), 130, ["at once", '"picture"']),
        ((signal.SIGTERM,), 143, ['"load"']),
    ],
)
def test_signals_end_a_run_at_any_moment_with_one_line(
    tmp_path, picture, reference, sent, code, moments
):
    """Before the libraries are imported, while they are, and in the work; nothing new is left."""
    before = sorted(os.listdir(tmp_path))
    command = [
        sys.executable,
        "-m",
        "std_cli",
        "stylize",
        "image",
        str(picture),
        "--style",
        str(reference),
        "--json",
    ]
    command += ["--model", "tiny", "--steps", "50", "--size", "64", "-o", str(tmp_path / "new")]
    for moment in moments:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if moment == "at once":
            wait_for_handlers(child.pid)
        else:
            assert any(moment in line for line in child.stdout)
        for number in sent:
            child.send_signal(number)
        out, err = child.communicate(timeout=120)
        assert child.returncode == code, (out, err)
        assert err == "" and json.loads(out.splitlines()[-1])["code"] == code, (out, err)
        assert sorted(os.listdir(tmp_path)) == before


def answers(fd, pattern, limit=60):
    """(seconds until the output of a terminal has the pattern, that output)."""
    begin, text = time.monotonic(), b""
    while time.monotonic() - begin < limit:
        if select.select([fd], [], [], 0.02)[0]:
            try:
                text += os.read(fd, 65536)
            except OSError:  # the other end is closed
                break
        if re.search(pattern, text):
            return time.monotonic() - begin, text
    raise AssertionError(text[-500:])


@posix
@pytest.mark.parametrize("moment", ["imports", "work"])
def test_ctrl_c_at_a_terminal_is_answered_at_once(tmp_path, reference, moment):
    """A line, and the end within two seconds; the frames of a part are kept."""
    import pty

    make_clip(tmp_path / "in.mp4", 300, sound=False)
    command = ["stylize", "video", "in.mp4", "--style", str(reference), "--model", str(micro())]
    command += ["--motion", "none", "--steps", "8", "--size", "64"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "std_cli", *command])
    if moment == "imports":
        wait_for_handlers(child)
    else:
        answers(terminal, rb" [1-9]\d*/300")
    os.write(terminal, b"\x03")
    begin = time.monotonic()
    first, text = answers(terminal, rb"stopping|interrupted")
    if moment == "work":
        if b"interrupted" not in text:  # both may come at once
            text += answers(terminal, rb"interrupted")[1]
        assert re.search(rb"stopped after \d+ finished frames?; the same command resumes", text)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begin
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    # while torch's libraries are loaded, which is one call of the system's, no Python code can run
    slow = 2 if moment == "imports" else 0
    assert first < 1 + slow and seconds < 2 + slow, (first, seconds)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"in.mp4", "style.png"} | (
        {".in_stylized.mp4.std"} if moment == "work" else set()
    )


BUSY = """
import hashlib, sys, threading
from std_cli import interruption
interruption.install()
sys.setswitchinterval(1000)  # another thread runs only where this one lets it
at_work = threading.Lock()
def say():
    with at_work:
        print("begun", flush=True)
with interruption.{block}():
    with at_work:
        threading.Thread(target=say, daemon=True).start()
    # as a library at work: one call, which lets other threads run, and no signal in
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@posix
@pytest.mark.parametrize("block", ["stoppable", "unbroken"])
def test_a_signal_is_answered_while_a_library_is_in_a_long_call(block):
    """Where work must not be cut a line says that it came, and a second one ends the process;
    elsewhere the first does."""
    script = BUSY.format(block=block)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as child:
        assert child.stdout.readline() == "begun\n"
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        if block == "stoppable":
            assert child.stderr.readline() == "stopping (once more ends at once)\n"
            child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "error: interrupted\n"
        # the call itself takes about six minutes; a machine may stand still for two
        assert child.wait() == 130 and time.monotonic() - begin < 240


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.mp4"


RUN = {"settings": {"seed": 0}}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@posix
@pytest.mark.parametrize(
    "what", ["file", "link", "photos", "run file", "linked run file", "one more", "linked lock"]
)
def test_a_work_folder_of_another_is_refused_and_not_touched(tmp_path, output, what):
    theirs, work = tmp_path / "theirs", folder_of(output)
    theirs.mkdir()
    (theirs / "photo.png").write_bytes(b"photo")
    ours = json.dumps({"std": "work folder", "run": {}})
    if what == "file":
        work.write_bytes(b"mine")
    elif what == "link":
        work.symlink_to(theirs)
    else:
        work.mkdir()
    if what == "photos":
        (work / "photo.png").write_bytes(b"photo")
    elif what == "run file":
        (work / "run.json").write_text('{"laps": 5}')
    elif what == "linked run file":
        (theirs / "run.json").write_text(ours)
        (work / "run.json").symlink_to(theirs / "run.json")
    elif what == "one more":
        (work / "run.json").write_text(ours)
        (work / "notes.txt").write_text("notes")
    elif what == "linked lock":
        (work / "lock").symlink_to(theirs / "photo.png")
    before = contents(tmp_path)
    for resume in (True, False):
        with (
            pytest.raises(InputError, match="move (it|the folder) away") as error,
            WorkFolder(output, RUN, resume),
        ):
            pass
        assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_a_run_that_was_killed_at_once_left_only_a_lock(output):
    folder_of(output).mkdir()
    (folder_of(output) / "lock").touch()
    with WorkFolder(output, RUN, True) as work:
        assert work.state is None
    assert not folder_of(output).exists()


def test_wherever_its_removal_stops_a_finished_result_is_known(output, monkeypatch):
    """The run file goes last, and what it says of the result holds until then."""
    import std_cli.stylize.work_folder

    removed = []

    class Killed(BaseException):
        pass

    def remove_some(path):
        if len(removed) == limit:
            raise Killed
        removed.append(path.name)
        real(path)

    real = std_cli.stylize.work_folder.remove
    for limit in range(3):  # noqa: B007  # it is used by remove_some
        removed.clear()
        monkeypatch.setattr(std_cli.stylize.work_folder, "remove", real)
        with pytest.raises(Killed), WorkFolder(output, RUN, True) as work:
            work.segment(0).write_bytes(b"a part")
            work.save({"segments": 1}, {}, {})
            work.draft.write_bytes(b"the result")
            work.finish({"frames": 7})
            work.draft.rename(output)
            work.remove()
            monkeypatch.setattr(std_cli.stylize.work_folder, "remove", remove_some)
        assert finished(output) == {"frames": 7}
        monkeypatch.setattr(std_cli.stylize.work_folder, "remove", real)
        with (
            pytest.raises(InputError, match="begun with another"),
            WorkFolder(output, {"settings": {"seed": 1}}, True),
        ):
            pass
        with WorkFolder(output, RUN, True):
            assert finished(output) == {"frames": 7}
        assert not folder_of(output).exists()
        output.unlink()


def test_one_more_file_that_came_meanwhile_stays(output):
    with WorkFolder(output, RUN, True) as work:
        (work.path / "notes.txt").write_text("notes")
    assert os.listdir(work.path) == ["lock", "notes.txt"] or os.listdir(work.path) == ["notes.txt"]
    with pytest.raises(InputError, match=r"notes\.txt"):
        check_folder(work.path)


@posix
def test_drafts_of_dead_runs_are_removed_and_those_of_live_ones_stay(tmp_path):
    with draft(tmp_path / "a", b"live") as live, draft(tmp_path / "b") as live_folder:
        stale = tmp_path / f".std-{0:032x}.tmp"
        stale.write_bytes(b"dead")
        (tmp_path / f".std-{1:032x}.tmp").mkdir()
        (tmp_path / f".std-{2:032x}.tmp").symlink_to(tmp_path)
        (tmp_path / ".std-mine.tmp").write_bytes(b"another's")
        remove_stale_drafts(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {
            live.name, live_folder.name, f".std-{2:032x}.tmp", ".std-mine.tmp"
        }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {f".std-{2:032x}.tmp", ".std-mine.tmp"}
    replace_file(tmp_path / "c", b"data")
    assert (tmp_path / "c").read_bytes() == b"data"


def test_the_exit_code_2_is_of_requests_only():
    with pytest.raises(StdError) as error, at_work():
        raise InputError("gone")
    assert error.value.exit_code == 1 and str(error.value) == "gone"


@posix
def test_json_lines_of_several_processes_do_not_mix(tmp_path):
    script = (
        "from std_cli.cli.console import Reporter; r = Reporter(as_json=True)\n"
        "for i in range(200): r({'event': 'notice', 'message': 'é' * 1500 + str(i)})"
    )
    with (tmp_path / "log").open("ab") as log:
        children = [subprocess.Popen([sys.executable, "-c", script], stdout=log) for _ in range(2)]
        assert [child.wait(120) for child in children] == [0, 0]
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert len(lines) == 400 and all(json.loads(line)["event"] == "notice" for line in lines)


def test_json_lines_hold_names_that_are_no_text(capsys):
    Reporter(as_json=True)({"event": "notice", "message": "caf\udce9"})
    assert json.loads(capsys.readouterr().out)["message"] == "caf\udce9"
