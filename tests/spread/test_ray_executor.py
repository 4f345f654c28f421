"""Units on Ray: what becomes of them when workers die, are asked to end, or fail. Whole videos are
in test_spread_video.py."""

import os
import re

import pytest

from std_cli.errors import Cancelled
from std_cli.spread import ray_start
from std_cli.spread.ray_executor import Pool, RayExecutor
from tests.spread.works import Small, SmallWork

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TWO = Pool(2, gpu=False)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    # its nodes are children of this process: with a token of the user's here, they need it, too
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": ray_start.OBJECT_STORE,
        },
    )
    with ray_start.cluster(cluster.address):
        yield cluster
    cluster.shutdown()
    del os.environ["RAY_AUTH_MODE"]


@pytest.fixture
def run(cluster, tmp_path):
    """Runs units; `run.events` are what was reported, `run.begun` the units that were begun."""

    def run(units, pool=TWO, work=None, on_event=None, **more):
        given = work or SmallWork(tmp_path), on_event or run.events.append
        with RayExecutor(pool, *given, **more) as executor:
            ledger = executor.run(units)
        run.begun, run.workers = read(tmp_path / "begun"), read(tmp_path / "workers")
        return ledger

    run.events = []
    return run


def said(run):
    return [event["message"] for event in run.events if event["event"] == "notice"]


def test_units_run_longest_first_and_their_progress_is_reported(run):
    ledger = run([Small("a", frames=2), Small("b", frames=9), Small("c", frames=5)])
    assert {unit.id for unit in ledger.finished} == {"a", "b", "c"} and not ledger.failed
    assert run.begun[2] == "a"


def test_a_unit_whose_worker_dies_continues_elsewhere_where_it_was(run, tmp_path):
    ledger = run([Small("a", how="kills_once"), Small("b", how="waits")])
    assert len(ledger.finished) == 2 and (ledger.lost, ledger.retried) == (1, 1)
    assert run.begun.count("a") == 2 and run.begun.count("b") == 1
    assert (tmp_path / "a.steps").read_text() == "..."  # none was done twice
    assert "worker 1 died: its process ended unexpectedly; a goes to another worker" in said(run)


def test_a_unit_that_kills_its_workers_is_set_aside_and_the_others_finish(run):
    ledger = run([Small("a", how="kills", frames=5), *(Small(f"b{i}") for i in range(6))])
    assert len(ledger.finished) == 6 and ledger.lost == 3
    assert list(ledger.failed) == ["a"] and run.begun.count("a") == 3
    assert ledger.failed["a"].startswith("3 workers died with it")


def test_what_raises_is_not_tried_again(run):
    bug, full = Small("a", "one", 9, "raises"), Small("b", "two", 9, "fails")
    ledger = run([bug, full, Small("c", "one"), Small("d", "two", 0), Small("e", "three")])
    assert {unit.id for unit in ledger.finished} == {"c", "e"}
    assert run.begun.count("a") == run.begun.count("b") == 1 and ledger.lost == 0
    assert ledger.failed == {
        "a": "KeyError: 'a bug' (this is a bug of std: please report it)",
        "b": "the disk is full",
        "d": "the disk is full",
    }


def test_a_worker_that_is_asked_to_end_leaves_its_unit_to_another(run, tmp_path):
    ledger = run([Small("a", how="asked_to_end"), Small("b", how="waits")])
    assert len(ledger.finished) == 2 and (ledger.lost, ledger.retried) == (0, 0)
    assert (tmp_path / "a.steps").read_text() == "..." and run.begun.count("a") == 2


def test_a_worker_that_would_make_other_results_is_refused(run, tmp_path):
    # long enough for the second worker to join
    units = [Small(name, frames=100) for name in "abc"]
    ledger = run(units, work=SmallWork(tmp_path, others_differ=True))
    assert len(ledger.finished) == 3 and len(set(run.workers)) == 1
    [refused] = [message for message in said(run) if "refused" in message]
    assert re.fullmatch(
        r"the worker \S+:\d+ is refused: torch 1, where \S+:\d+ has 2: install the same on both",
        refused,
    )


def test_a_run_that_is_stopped_keeps_what_is_done(run, tmp_path):
    def stop():
        return len(marks(tmp_path)) > 3

    units = [Small(name, frames=300) for name in "ab"]
    with pytest.raises(Cancelled):
        run(units, stop=stop)
    done = len(marks(tmp_path))
    assert 3 < done < 600
    assert len(run(units).finished) == 2 and len(marks(tmp_path)) == 600  # none was done twice


def test_a_machine_that_is_lost_is_replaced_by_one_that_joins(run, cluster, tmp_path):
    """It has the only room for the third worker."""
    how = {"num_cpus": 1, "object_store_memory": ray_start.OBJECT_STORE}
    lost = [cluster.add_node(**how)]

    def on_event(event):
        run.events.append(event)
        if lost and len(read(tmp_path / "begun")) == 3:
            cluster.remove_node(lost.pop(), allow_graceful=False)
        if event["event"] == "notice" and "goes to" in event["message"]:
            cluster.add_node(**how)

    units, three = [Small(name, frames=150) for name in "abc"], Pool(3, gpu=False)
    ledger = run(units, three, on_event=on_event)
    assert len(ledger.finished) == 3 and (ledger.lost, ledger.retried) == (1, 1), said(run)
    assert len(marks(tmp_path)) == 450
    [died] = [message for message in said(run) if "died" in message]
    assert re.match(
        "worker . died: its machine is gone, or cannot be reached; . goes to another worker", died
    )


def marks(folder):
    return "".join(file.read_text() for file in folder.glob("*.steps"))


def read(file):
    return file.read_text().split() if file.exists() else []
