"""`--devices`: which workers a run has, and what of the machine each of them gets."""

import os
import re
from dataclasses import dataclass

from std_cli.diffusion.threads import GIVEN
from std_cli.errors import InputError, counted

FORMS = "all, a number of GPUs, cuda:0,cuda:1 or cpu:2"


@dataclass(frozen=True)
class Devices:
    """What the user asked for."""

    given: str
    cpu: bool = False
    """Workers on processors, `count` of them; else on GPUs."""
    count: int | None = None
    """None: all GPUs."""
    gpus: tuple[int, ...] = ()
    """The numbers of certain GPUs of this machine."""


def parse_devices(given: str) -> Devices:
    """Raises InputError for what is none of `FORMS`."""
    if given == "all":
        return Devices(given)
    if re.fullmatch(r"[1-9]\d{0,4}", given):
        return Devices(given, count=int(given))
    if re.fullmatch(r"cpu:[1-9]\d{0,4}", given):
        return Devices(given, cpu=True, count=int(given[4:]))
    if re.fullmatch(r"cuda:\d{1,3}(,cuda:\d{1,3})*", given):
        gpus = tuple(int(name[5:]) for name in given.split(","))
        if len(set(gpus)) == len(gpus):
            return Devices(given, count=len(gpus), gpus=gpus)
        raise InputError(f"--devices {given}: a GPU is named twice: name each once")
    raise InputError(f"--devices {given}: give {FORMS}")


def gpus_here(devices: Devices) -> list[int]:
    """The numbers of the GPUs of this machine that were asked for.

    Raises InputError if it has not got them.
    """
    import torch

    there = torch.cuda.device_count()
    if not there:
        raise InputError(
            f"--devices {devices.given}: this machine has no GPU that torch can use: give "
            f"--devices cpu:2 for two workers on its processor"
        )
    wanted = list(devices.gpus or range(devices.count or there))
    if max(wanted) >= there:
        raise InputError(
            f"--devices {devices.given}: this machine has {counted(there, 'GPU')}, "
            f"cuda:0 to cuda:{there - 1}: give --devices all, or fewer"
        )
    return wanted


def visible(gpus: list[int], now: str | None) -> str:
    """CUDA_VISIBLE_DEVICES with which a process sees these GPUs alone; `now`: its value here."""
    if not now:
        return ",".join(map(str, gpus))
    names = now.split(",")
    return ",".join(names[gpu] for gpu in gpus)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processors_of_each(workers: int, processors: int) -> int:
    """The processors that a cluster counts for a CPU worker, so that all workers together have
    them all."""
    return max(1, processors // workers)


def crowded(workers: int, threads: int | None, cores: int | None) -> str | None:
    """What is said where the threads of all workers are more than the cores that they share.

    threads: of each worker, as one process takes; None on a GPU. cores: None where they are on
    several machines.
    """
    if threads is None or cores is None or workers * threads <= cores:
        return None
    each = max(1, cores // workers)
    remedy = (
        f"OMP_NUM_THREADS={each} makes them faster"
        if each < threads
        else f"--devices cpu:{cores} is as fast, with less memory"
    )
    return (
        f"{workers} workers with {counted(threads, 'thread')} each, as one process takes, share "
        f"{counted(cores, 'core')} and wait for each other: {remedy}"
    )


def chosen_threads() -> dict[str, str]:
    """The variables by which the user has chosen a number of threads, with their values."""
    return {name: os.environ[name] for name in GIVEN if os.environ.get(name)}


def choose_threads(chosen: dict[str, str]) -> None:
    """Set these variables as another process has them, before the libraries read them. Ray itself
    sets one in its processes, which is no choice of the user."""
    for name in GIVEN:
        os.environ.pop(name, None)
    os.environ.update(chosen)
