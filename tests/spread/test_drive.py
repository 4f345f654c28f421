"""Requests made in units by an executor: the same in a storage, after a kill, on other threads."""

import io
import os
from dataclasses import replace

import psutil
import pytest
import torch
from PIL import Image

from std_cli import InputError, StdError, stylize_image
from std_cli.diffusion.threads import GIVEN
from std_cli.diffusion.video_pipeline import VideoPipeline
from std_cli.spread.devices import choose_threads, chosen_threads
from std_cli.spread.drive import PictureDrive, drive_videos
from std_cli.spread.executor import Here
from std_cli.spread.pictures import PictureWork
from std_cli.spread.run_unit import UnitWork, job_of
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import find_units
from tests.micro import micro
from tests.spread.works import Small, SmallWork
from tests.storage.counted import counted
from tests.stylize.test_videos import make_clip

FAST = {"model": micro(), "steps": 1, "size": 64, "cfg": 1}
VIDEO = FAST | {"motion": "none"}


def nothing(event):
    pass


def png(picture, *size):
    data = io.BytesIO()
    picture.resize(size).save(data, "PNG")
    return data.getvalue()


class Killed(BaseException):
    pass


def drive_pictures(saved, existing="refuse", kill_after=99):
    """Make the pictures in this process; returns the events."""
    events = []

    def on_event(event):
        events.append(event)
        if sum(e["event"] == "result" for e in events) == kill_after:
            raise Killed

    drive = PictureDrive(on_event)
    drive.go(saved, Here(PictureWork(saved, existing, False), drive.pass_on), 2, existing, None)
    return events


def results(events):
    return [(e["input"], e["index"], e["total"]) for e in events if e["event"] == "result"]


def test_pictures_in_a_storage_continue_after_a_kill(tmp_path, photo):
    pictures = {f"/box/in/{i}.png": png(photo, 48 + 8 * i, 48) for i in range(4)}
    fs = counted(pictures | {"/box/r.png": png(photo, 48, 32)})
    (tmp_path / "in").mkdir()
    for name, data in pictures.items():
        (tmp_path / "in" / name.rpartition("/")[2]).write_bytes(data)
    (tmp_path / "r.png").write_bytes(fs.cat("/box/r.png"))
    stylize_image(tmp_path / "in", tmp_path / "r.png", f"{tmp_path}/whole/", **FAST)

    given = (["counted://anna:sesame@box/in/"], ["counted://box/r.png"], "counted://box/out/")
    saved = SavedRequest.of("image", *given, False, FAST)
    with pytest.raises(Killed):
        drive_pictures(saved, kill_after=2)
    kept = fs.cat("/box/out/.pictures.std/plan.json")
    assert b"sesame" not in kept and b".std-" not in kept
    made = sorted(fs.glob("/box/out/*.png"))
    assert made == ["/box/out/0_stylized.png", "/box/out/1_stylized.png"]
    with pytest.raises(
        InputError, match="begun with another facts.settings.seed.*or --overwrite to"
    ):
        drive_pictures(SavedRequest.of("image", *given, False, FAST | {"seed": 3}))
    fs.calls.clear()
    events = drive_pictures(saved)
    assert results(events) == [(f"counted://box/in/{i}.png", i + 1, 4) for i in range(4)]
    for i in range(4):
        out, whole = fs.cat(f"/box/out/{i}_stylized.png"), tmp_path / "whole" / f"{i}_stylized.png"
        assert Image.open(io.BytesIO(out)).tobytes() == Image.open(whole).tobytes()
    assert len(fs.find("/box/out")) == 4, "the work folder is removed"
    with pytest.raises(StdError, match="counted://box/out/0_stylized.png' exists"):
        drive_pictures(saved)


def test_a_picture_that_fails_does_not_stop_the_others(tmp_path, photo):
    (tmp_path / "in").mkdir()
    (tmp_path / "r.png").write_bytes(png(photo, 48, 32))
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(photo, 48, 48))
    given = ([str(tmp_path / "in")], [str(tmp_path / "r.png")], f"{tmp_path}/out/")
    saved = SavedRequest.of("image", *given, True, FAST)
    events = []

    def on_event(event):
        events.append(event)
        if event["event"] == "start":
            (tmp_path / "in" / "1.png").write_bytes(b"none")

    drive = PictureDrive(on_event)
    with pytest.raises(StdError, match="1 of 3 pictures failed: .*1.png; the same command"):
        drive.go(saved, Here(PictureWork(saved, "refuse", False), drive.pass_on), 2, "refuse", None)
    assert len(results(events)) == 2
    [error] = [event for event in events if event["event"] == "error"]
    assert "was changed since" in error["message"]
    (tmp_path / "in" / "1.png").write_bytes(png(photo, 48, 48))
    assert len(results(drive_pictures(saved))) == 3 and len(os.listdir(tmp_path / "out")) == 3


def test_videos_of_a_storage_are_put_there_and_only_what_is_needed_is_copied(tmp_path, photo):
    clips = {
        f"/box/in/{name}.mp4": make_clip(
            tmp_path / f"{name}.mp4", frames, (64, 48), cut_at=3, sound=False
        ).read_bytes()
        for name, frames in (("a", 6), ("b", 7))
    }
    fs = counted(clips | {"/box/r.png": png(photo, 48, 32)})
    given = (["counted://box/in/"], ["counted://box/r.png"], "counted://box/out/")
    saved = SavedRequest.of("video", *given, True, VIDEO)
    events, opened = [], []
    work = UnitWork(saved)
    work.facts()
    fs.calls.clear()
    open_file = type(fs)._open

    def counting(self, path, mode="rb", **options):
        if mode == "rb":
            opened.append(path)
        return open_file(self, path, mode, **options)

    class Once(Here):
        """One unit of one video, then all."""

        def run(self, units):
            units = list(units)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(fs), "_open", counting)
                work.run(
                    next(unit for unit in units if unit.output.endswith("a_stylized.mp4")), nothing
                )
            return super().run(units)

    try:
        drive_videos(saved, Once(work, events.append), 2, events.append)
    finally:
        work.close()
    assert "/box/in/a.mp4" in opened and "/box/in/b.mp4" not in opened
    assert sorted(fs.find("/box/out")) == [f"/box/out/{name}_stylized.mp4" for name in "ab"]
    said = [e["output"] for e in events if e["event"] == "result"]
    assert said == [f"counted://box/out/{name}_stylized.mp4" for name in "ab"]
    assert not any(".std-" in str(event) for event in events)


def test_units_are_of_the_video_that_they_were_planned_for(tmp_path, photo):
    """Although the numbers of the videos differ where an output is skipped."""
    (tmp_path / "r.png").write_bytes(png(photo, 48, 32))
    for name in "ab":
        make_clip(tmp_path / f"{name}.mp4", 6, (64, 48), sound=False)
    (tmp_path / "a_stylized.mp4").touch()
    files = [str(tmp_path / f"{name}.mp4") for name in "ab"]
    saved = SavedRequest.of("video", files, str(tmp_path / "r.png"), str(tmp_path), True, VIDEO)
    [plan] = find_units(saved.prepare("skip"), 1, None, nothing)
    work = UnitWork(saved)
    [unit] = plan.units
    assert job_of(unit, work._request(unit.output)).source.name == "b.mp4"
    work.close()


@pytest.fixture
def four_cores(monkeypatch):
    """A machine of four cores, on which nothing is chosen."""
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield monkeypatch
    torch.set_num_threads(before)


def test_units_take_the_threads_of_one_process_wherever_they_are_made(tmp_path, photo, four_cores):
    (tmp_path / "r.png").write_bytes(png(photo, 48, 32))
    clip = make_clip(tmp_path / "in.mp4", 6, (64, 48), sound=False)
    given = (str(clip), str(tmp_path / "r.png"), str(tmp_path / "out.mp4"))
    saved = SavedRequest.of("video", *given, True, VIDEO)
    [plan] = find_units(saved.prepare("refuse"), 1, saved, nothing)
    assert [unit.threads for unit in plan.units] == [2], "half of the cores: the network is small"
    seen = []
    decode = VideoPipeline.begin_decoding

    def counting(*arguments):
        seen.append(torch.get_num_threads())
        return decode(*arguments)

    four_cores.setattr(VideoPipeline, "begin_decoding", counting)
    torch.set_num_threads(1)  # another machine
    work = UnitWork(saved)
    work.run(plan.units[0], nothing)
    work.close()
    assert set(seen) == {2}
    assert replace(plan.units[0], threads=8).identity() == plan.units[0].identity()


def test_the_user_s_number_of_threads_is_taken_over_and_that_of_ray_is_not(monkeypatch):
    for name in GIVEN:
        monkeypatch.delenv(name, raising=False)
    assert chosen_threads() == {}
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    chosen = chosen_threads()
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it
    choose_threads(chosen)
    assert chosen_threads() == {"MKL_NUM_THREADS": "3"} and "OMP_NUM_THREADS" not in os.environ


def test_what_raises_does_not_stop_the_others(tmp_path):
    events = []
    units = [Small("a", how="raises"), Small("b", how="fails"), Small("c", frames=1)]
    done = Here(SmallWork(tmp_path), events.append).run(units)
    assert [unit.id for unit in done.finished] == ["c"]
    assert done.failed == {
        "a": "KeyError: 'a bug' (this is a bug of std: please report it)",
        "b": "the disk is full",
    }
    failed = [event["message"] for event in events if event["event"] == "notice"]
    assert failed == [f"{id} failed: {why}" for id, why in done.failed.items()]


def test_workers_that_wait_for_each_other_are_reported(tmp_path, photo, four_cores):
    (tmp_path / "r.png").write_bytes(png(photo, 48, 32))
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(photo, 48, 48))
    given = (str(tmp_path / "in"), str(tmp_path / "r.png"), f"{tmp_path}/out/")
    saved, events = SavedRequest.of("image", *given, True, FAST), []
    drive = PictureDrive(events.append)
    here = Here(PictureWork(saved, "refuse", False), drive.pass_on)
    drive.go(saved, here, 2, "refuse", None, cores=4)
    notices = [event["message"] for event in events if event["event"] == "notice"]
    assert notices == [
        "2 workers with 4 threads each, as one process takes, share 4 cores and wait for each "
        "other: OMP_NUM_THREADS=2 makes them faster"
    ]
