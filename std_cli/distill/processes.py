"""Several processes of one run: an error of one of them is an error of all, and is reported
once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from std_cli.errors import StdError


def leave() -> None:
    """End the connection of several processes, so that their threads do not outlive the work: torch
    may abort a process that ends with them."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
    found: list[tuple[type[StdError], str] | None] = [None] * world.num_processes
    dist.all_gather_object(found, None if problem is None else (type(problem), str(problem)))
    first = next((f for f in found if f is not None), None)
    if first is not None:
        kind, message = first
        error = kind(message)
        error.reported = not world.is_main_process
        raise error from problem


def sum_gradients(world: PartialState, parameters: list[Tensor]) -> None:
    """Sum the gradients over processes, in one message; each lane's is already divided by the
    number of lanes."""
    if world.num_processes == 1:
        return
    flat = torch.cat(
        [
            p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten()
            for p in parameters
        ]
    )
    dist.all_reduce(flat)
    for p in parameters:
        p.grad = flat[: p.numel()].view_as(p).clone()
        flat = flat[p.numel() :]


def mean_figures(
    world: PartialState, figures: list[dict[str, float]], lane_count: int, device: torch.device
) -> dict[str, float]:
    """The means of figures over the lanes of all processes, of which `figures` are this one's."""
    names = list(figures[0])
    total = torch.tensor([sum(f[name] for f in figures) for name in names], dtype=torch.float64)
    if world.num_processes > 1:
        total = total.float().to(device)
        dist.all_reduce(total)
    return {name: value / lane_count for name, value in zip(names, total.tolist(), strict=True)}


def sum_and_most(
    world: PartialState, counts: Tensor, size: int, device: torch.device
) -> tuple[list[int], int]:
    """The sum of int64 `counts` (K,) over processes, and the largest `size` of one."""
    most = torch.tensor(size)
    if world.num_processes > 1:
        counts = counts.to(device)
        most = most.to(device)
        dist.all_reduce(counts)
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return counts.tolist(), int(most)


def any_process(world: PartialState, flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    if world.num_processes == 1:
        return flag
    found = torch.tensor([float(flag)], device=device)
    dist.all_reduce(found)
    return bool(found.item())
