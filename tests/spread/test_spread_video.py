"""Videos on several workers of this machine, through Ray: one worker is killed, and one unit raises
each time. What becomes of units otherwise is in test_ray_executor.py."""

import json
import threading
from contextlib import contextmanager

import psutil
import pytest
from safetensors.numpy import save_file

from std_cli import StdError, stylize_video
from std_cli.spread.on_ray import Where, spread_video
from std_cli.spread.run_unit import units_folder
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import find_units
from std_cli.stylize.video_run import SEGMENT
from tests.micro import micro
from tests.stylize.test_videos import make_clip

pytestmark = [pytest.mark.ray, pytest.mark.long]
LOOK = {"model": micro(), "motion": "auto", "steps": 2, "size": 64, "device": "cpu"}
LOOK |= {"style_blocks": "all", "cfg": 1, "steady": 0.5}


def test_frames_are_those_of_one_process_though_a_worker_is_killed_and_a_unit_raises(
    tmp_path, reference
):
    whole = make_clip(tmp_path / "whole.mp4", 24 + SEGMENT + 24, vfr=True)
    raises = make_clip(tmp_path / "raises.mp4", 16, sound=False)
    (tmp_path / "cuts.txt").write_text("0.32\n0.64\n0.96\n")  # shots of 8 frames, then the rest
    options = LOOK | {"cuts": str(tmp_path / "cuts.txt")}
    request = ([str(whole), str(raises)], str(reference), f"{tmp_path}/out/")
    (tmp_path / "out").mkdir()
    raising = damaged_unit(request, options)
    stylize_video(whole, reference, tmp_path / "one.mp4", **options)

    events = []
    with (
        killing_one(units_folder(tmp_path / "out" / "whole_stylized.mp4")) as killed,
        pytest.raises(StdError, match=r"1 of 2 videos failed: \S+raises.mp4"),
    ):
        spread_video(*request, Where("cpu:2"), on_event=events.append, **options)
    assert (tmp_path / "one.mp4").read_bytes() == (
        tmp_path / "out" / "whole_stylized.mp4"
    ).read_bytes()
    done = {event["unit"]: event["resumed"] for event in events if event["event"] == "unit"}
    assert len(done) == 5 and raising not in done
    # of the killed worker's unit at most the segment at hand was made twice, of the others nothing
    assert {unit: frames for unit, frames in done.items() if frames} == {killed[0]: SEGMENT}
    [error] = [event for event in events if event["event"] == "error"]
    assert error["input"] == str(raises)
    what = "KeyError: 'written' (this is a bug of std: please report it)"
    assert error["message"] == f"1 of 2 units of {raises} failed: {what}"
    assert sum("died: its process ended" in event.get("message", "") for event in events) == 1


def damaged_unit(request, options):
    """Plan the units, and give the first of the second video a state that no version of std writes:
    its worker raises each time. Returns its id."""
    saved = SavedRequest.of("video", *request, True, options)
    plan = find_units(saved.prepare("refuse"), 2, saved, lambda event: None)[1]
    folder = units_folder(plan.job.target.path) / plan.units[0].id
    folder.mkdir(parents=True)
    run = plan.record | {"unit": plan.units[0].identity()}
    (folder / "run.json").write_text(json.dumps({"std": "work folder", "run": run}))
    save_file({}, folder / "state.safetensors", {"std": "{}"})
    return plan.units[0].id


@contextmanager
def killing_one(units):
    """Kill the worker that makes the last shot, once, when its first segment is finished, which is
    watched all the time: on a fast machine no event comes in between. Yields a list that gets the
    unit's name then."""
    killed, end = [], threading.Event()

    def watch():
        while not killed and not end.wait(0.005):
            for unit in units.glob("shot00004-*"):
                # saved after the segment, and then when half a minute is over
                begun = (unit / "state.safetensors").exists() and not (unit / "done.json").exists()
                if begun and (worker := worker_at(unit)) is not None:
                    worker.kill()
                    killed.append(unit.name)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield killed
    finally:
        end.set()
        watching.join()


def worker_at(unit):
    """The worker that has the lock of a unit."""
    for process in psutil.process_iter(["cmdline"]):
        is_worker = (process.info["cmdline"] or [""])[0].startswith("ray::Worker")
        if is_worker and str(unit / "lock") in [file.path for file in process.open_files()]:
            return process
    return None
