"""How many threads of a processor the networks take in a video.

The stages of a video work at the same time. torch gives each as many threads as there are cores:
together they wait for each other where the network is small, whose operations are too short to be
shared out. Measured on 2 cores with the embedded model: 1.2 to 1.3 times the frames per second with
one thread for each stage. A large network keeps all cores: its UNet takes most of the time, so that
with fewer threads the others would be idle.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from std_cli.diffusion.memory import count_parameters
from std_cli.weights.resolve import ModelFiles, weight_files

SMALL = 100_000_000
"""Parameters of a UNet, at most, that is small. That of `tiny` has 8 million, SDXL's 2567; no other
was measured."""
GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
"""Variables by which the user chooses the number of threads."""


def threads_of_a_stage(files: ModelFiles) -> int | None:
    """Threads of each stage of a video on a CPU: half of the cores, as two stages have most of the
    work, and one at least. None: torch's number stays, as the user chose it or the network is
    large."""
    if _is_given() or count_parameters(*weight_files(files)["unet"]) > SMALL:
        return None
    return max(1, _default_threads() // 2)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Inside, torch takes `count` threads in this thread and in those that are started inside;
    None: as many as before."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _is_given() -> bool:
    """Whether a variable, or a caller of torch.set_num_threads, has chosen the number."""
    import torch

    return any(os.environ.get(name) for name in GIVEN) or (
        torch.get_num_threads() not in {_default_threads(), _processors()}
    )


def _default_threads() -> int:
    """Those that torch takes by itself: one for each core that the process may use."""
    import psutil

    return min(psutil.cpu_count(logical=False) or _processors(), _processors())


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
