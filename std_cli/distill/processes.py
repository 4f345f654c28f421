"""Several processes of one run: an error of one of them is an error of all, and is reported
once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import PartialState

from std_cli.errors import InputError, StdError


@contextmanager
def together(world: PartialState) -> Iterator[None]:
    """Work that may fail in one process, followed by a meeting of all: what fails in one is raised
    in all.

    Otherwise the others would wait for the one that is gone until the launcher ends them. The first
    process's message is raised, by rank; only the main process reports it. No process may wait for
    another inside.
    """
    problem: StdError | None = None
    try:
        yield
    except StdError as e:
        if world.num_processes == 1:
            raise
        problem = e
    if world.num_processes == 1:
        return
    found: list[tuple[bool, str] | None] = [None] * world.num_processes
    dist.all_gather_object(
        found, None if problem is None else (isinstance(problem, InputError), str(problem))
    )
    first = next((f for f in found if f is not None), None)
    if first is not None:
        wrong_request, message = first
        error = InputError(message) if wrong_request else StdError(message)
        error.reported = not world.is_main_process
        raise error from problem
