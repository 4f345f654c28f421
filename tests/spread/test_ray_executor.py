"""Units on Ray: what becomes of them when workers die, are asked to end, or fail."""

import pytest

from std_cli.spread.ray_executor import Pool, RayExecutor
from tests.spread.works import Small, SmallWork

ray = pytest.importorskip("ray")
TWO = Pool(2, gpu=False, threads=1)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    from std_cli.spread import ray_start

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


@pytest.fixture
def run(cluster, tmp_path):
    """Runs units; `run.events` are what was reported, `run.begun` the units that were begun."""

    def run(units, pool=TWO, **more):
        executor = RayExecutor(pool, SmallWork(tmp_path), run.events.append, **more)
        ledger = executor.run(units)
        run.begun = (tmp_path / "begun").read_text().split()
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
