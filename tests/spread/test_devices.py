"""`--devices`."""

import pytest

from std_cli import InputError
from std_cli.spread.devices import (
    Devices,
    crowded,
    gpus_here,
    parse_devices,
    processors_of_each,
    visible,
)


@pytest.mark.parametrize(
    "given, devices",
    [
        ("all", Devices("all")),
        ("8", Devices("8", count=8)),
        ("cuda:0,cuda:2", Devices("cuda:0,cuda:2", count=2, gpus=(0, 2))),
        ("cpu:2", Devices("cpu:2", cpu=True, count=2)),
    ],
)
def test_every_form_is_read(given, devices):
    assert parse_devices(given) == devices


@pytest.mark.parametrize("given", ["", "0", "cpu", "cpu:0", "cuda", "cuda:0,cpu:1", "all,cuda:0"])
def test_another_form_is_refused(given):
    with pytest.raises(InputError, match=r"give all, a number of GPUs, cuda:0,cuda:1 or cpu:2"):
        parse_devices(given)


def test_a_gpu_is_named_once():
    with pytest.raises(InputError, match="twice"):
        parse_devices("cuda:1,cuda:1")


@pytest.mark.parametrize(
    "there, given, gpus",
    [(4, "all", [0, 1, 2, 3]), (4, "2", [0, 1]), (4, "cuda:3,cuda:1", [3, 1])],
)
def test_the_gpus_of_this_machine(monkeypatch, there, given, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    assert gpus_here(parse_devices(given)) == gpus


@pytest.mark.parametrize(
    "there, given, message",
    [(0, "all", "no GPU.*cpu:2"), (2, "3", "2 GPUs, cuda:0 to cuda:1"), (1, "cuda:1", "1 GPU, ")],
)
def test_gpus_that_are_not_there_are_named(monkeypatch, there, given, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    with pytest.raises(InputError, match=message):
        gpus_here(parse_devices(given))


def test_what_workers_see_is_counted_from_what_this_process_sees():
    assert visible([0, 2], None) == "0,2"
    assert visible([0, 2], "4,5,GPU-abc") == "4,GPU-abc"


def test_the_processors_are_shared():
    assert [processors_of_each(workers, 8) for workers in (1, 3, 8, 20)] == [8, 2, 1, 1]


@pytest.mark.parametrize(
    "workers, threads, cores, remedy",
    [
        (2, 1, 2, None),
        (2, 4, None, None),
        (2, None, 2, None),
        (2, 2, 2, "OMP_NUM_THREADS=1 makes them faster"),
        (4, 8, 8, "OMP_NUM_THREADS=2 makes them faster"),
        (3, 1, 2, "--devices cpu:2 is as fast, with less memory"),
    ],
)
def test_more_threads_than_cores_are_reported(workers, threads, cores, remedy):
    message = crowded(workers, threads, cores)
    assert message == remedy or message.endswith(f"and wait for each other: {remedy}")
