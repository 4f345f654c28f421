"""Cells made by workers: the same as those of one process, whatever dies or fails."""

import json
import os
import threading
import time

import psutil
import pytest

import std_cli
from std_cli import InputError, StdError
from std_cli.comparison.config import CompareConfig
from std_cli.comparison.run import prepared
from std_cli.comparison.workers import CellWork, batches_of
from tests.comparison.pictures import FAST, draw, without_costs

MANY = {"vary": {"cfg": (1, 4)}, "seeds": 2}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path))
    return tmp_path


def asked(output, **changes):
    return CompareConfig(
        content=("photos",), style=("styles",), output=output, settings=FAST, **MANY | changes
    )


def test_batches_have_cells_of_the_same_weights_and_all_of_them(here):
    with prepared(asked("r", contenders={"half": {"dtype": "bf16"}, "full": {}})) as request:
        batches = batches_of(request.cells, 2)
        many = batches_of(request.cells * 40, 2)
    assert [len(batch.cells) for batch in batches] == [2] * 16
    assert sorted(cell.key for batch in batches for cell in batch.cells) == sorted(
        cell.key for cell in request.cells
    )
    assert {len({str(cell.loaded_by) for cell in batch.cells}) for batch in batches} == {1}
    assert len({batch.id for batch in batches}) == 16
    assert max(len(batch.cells) for batch in many) == 16


def test_a_worker_makes_what_is_not_there_and_reports_what_fails(here):
    """Of three cells one is there, and the content of one is gone."""
    with prepared(asked("r", vary={}, seeds=3)) as request:
        one, two, three = [c for c in request.cells if c.content.name == "coffee"][:3]
        work, events = CellWork(FAST, verbose=False), []
        [first, *_] = batches_of([one], 1)
        assert work.run(first, events.append)["resumed"] == 0 and one.is_made()
        at = one.path.stat().st_mtime_ns
        whole = batches_of([one, two, three], 1)
        (here / "photos" / "coffee.png").unlink()
        done = [work.run(batch, events.append) for batch in whole]
        assert sum(each["resumed"] for each in done) == 1 and one.path.stat().st_mtime_ns == at
    errors = [event for event in events if event["event"] == "error"]
    assert [error["input"] for error in errors] == [two.path.name, three.path.name]
    assert all("coffee.png" in error["message"] for error in errors)


def test_a_machine_that_would_make_something_else_makes_nothing(here, monkeypatch):
    """It has another version, or lacks the folder in which the command runs."""
    with prepared(asked("r", vary={}, seeds=1)) as request:
        [batch, *_] = batches_of(request.cells[:1], 1)
        work = CellWork(FAST, verbose=False)
        facts = work.facts()
        monkeypatch.setattr(work, "facts", lambda: facts | {"torch": "1.0"})
        with pytest.raises(StdError, match=r"has torch 1\.0, and that of the command 2"):
            work.run(batch, print)
        monkeypatch.undo()
        monkeypatch.setattr(work, "_folder", str(here / "gone"))
        with pytest.raises(
            StdError, match=r"gone is not on the machine .*all machines of the clus"
        ):
            work.run(batch, print)
        assert not request.cells[0].is_made()


@pytest.mark.parametrize(
    ("devices", "more", "message"),
    [
        ("all", {"cluster": "10.0.0.1:6379"}, "cluster 10.0.0.1:6379: .*this machine has no GPU"),
        ("cuda:1", {"cluster": "auto"}, "devices cuda:1: GPUs of a cluster have no numbers"),
        ("gpu", {}, "devices gpu: give all"),
        ("cpu:2", {"device": "cuda"}, "each worker has the one that"),
    ],
)
def test_wrong_devices_are_refused_at_once(here, devices, more, message):
    with pytest.raises(InputError, match=message):
        std_cli.compare("photos", "styles", "r", devices=devices, **FAST | more)
    assert not (here / "r").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_workers_make_the_report_of_one_process_though_one_is_killed(here):
    """Of two workers the one that made the first cell is killed while cells are missing."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    request = MANY | FAST | {"content": "photos", "style": "styles"}
    std_cli.compare(output="whole", **request)
    events, killed = [], []

    def kill():
        while not list((here / "spread" / "cells").glob("*.json")):
            time.sleep(0.05)
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.cmdline()[:1] == ["ray::Worker.run"]
        ]
        workers[0].kill()
        killed.append(workers[0].pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    std_cli.compare(output="spread", devices="cpu:2", on_event=events.append, **request)
    killer.join(10)
    del os.environ["RAY_AUTH_MODE"]
    assert killed
    said = [event["message"] for event in events if event["event"] == "notice"]
    assert any("died" in message and "goes to another worker" in message for message in said)
    whole, spread = (
        json.loads((here / name / "report.json").read_text().replace(f'"{name}', '"r'))
        for name in ("whole", "spread")
    )
    for report in (whole, spread):
        without_costs(report)
        del report["command"], report["config"]
    assert spread == whole
