"""Cells on several devices, of this machine or of a cluster: `std compare --devices, --cluster`."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from std_cli.comparison.cells import Cell
from std_cli.comparison.config import CompareConfig
from std_cli.comparison.make import CellMaker, in_order, loaded_for
from std_cli.diffusion.threads import torch_threads
from std_cli.errors import Cancelled, InputError, StdError
from std_cli.events import Event, OnEvent
from std_cli.spread.devices import Devices, gpus_here
from std_cli.spread.executor import Record, given_at_once
from std_cli.spread.facts import worker_facts
from std_cli.spread.on_ray import check_unnumbered, cluster_pool, local_pool
from std_cli.spread.ray_executor import RayExecutor
from std_cli.stylize.request import failure
from std_cli.weights.hub import without_downloads

MOST_OF_A_BATCH = 16
"""Cells."""


@dataclass(frozen=True)
class Batch:
    """Cells of the same weights, which one worker makes one after another."""

    id: str
    cells: tuple[Cell, ...]

    @property
    def input(self) -> str:
        """Each batch is an input of its own: where one fails, the others are made."""
        return self.id

    @property
    def frames(self) -> int:
        """How much work it is."""
        return len(self.cells)


def batches_of(cells: Sequence[Cell], workers: int) -> list[Batch]:
    """All cells in batches for so many workers, in the order in which one process makes them."""
    most = given_at_once(len(cells), workers, MOST_OF_A_BATCH)
    batches: list[Batch] = []
    for _, group in groupby(in_order(cells), key=loaded_for):
        alike = list(group)
        for first in range(0, len(alike), most):
            part = tuple(alike[first : first + most])
            batches.append(Batch(f"cells{len(batches) + 1:05d}", part))
    return batches


class CellWork:
    """What a worker does with batches. It is sent to another process, and holds the loaded model
    there."""

    def __init__(self, settings: Mapping[str, Any], verbose: bool) -> None:
        """settings: those that all cells have in common."""
        import torch

        from std_cli.diffusion.devices import choose_device

        self._folder = os.getcwd()
        self._device = str(settings.get("device", "auto"))
        self._dtype = str(settings.get("dtype", "auto"))
        self._verbose = verbose
        self._named_by = self.facts()
        on_cpu = choose_device(self._device).type == "cpu"
        self._threads = torch.get_num_threads() if on_cpu else None
        self._maker: CellMaker | None = None

    def facts(self) -> Mapping[str, str]:
        """The versions and the kind of device, which must be the same at all workers."""
        return worker_facts(self._device, self._dtype)

    def run(self, batch: Batch, on_event: OnEvent) -> Record:
        """Make the cells of a batch that are not there; one that fails is reported, and does not
        stop the others."""
        self._check()
        begin = time.monotonic()
        self._maker = self._maker or CellMaker(self._verbose)
        resumed = 0
        for cell in batch.cells:
            if cell.is_made():
                resumed += 1
                continue
            place = _Place(cell.path.name, on_event)
            try:
                with torch_threads(self._threads), without_downloads():
                    self._maker.make(cell, place)
            except Cancelled:
                raise
            except StdError as e:
                on_event(failure(cell.path.name, e))
        seconds = round(time.monotonic() - begin, 3)
        return {"frames": len(batch.cells), "resumed": resumed, "seconds": seconds}

    def _check(self) -> None:
        """Raises StdError where this machine lacks the folder of the comparison, or would make
        other results than the machine that has named the cells."""
        try:
            os.chdir(self._folder)  # relative paths start there
        except OSError as e:
            raise StdError(
                f"{self._folder} is not on the machine {socket.gethostname()} ({e.strerror}): give "
                f"the command in a folder that all machines of the cluster have"
            ) from None
        facts = self.facts()
        for name, value in self._named_by.items():
            if facts.get(name) != value:
                raise StdError(
                    f"the machine {socket.gethostname()} has {name} {facts.get(name)}, and that of "
                    f"the command {value}: give the command on a machine like those that make the "
                    f"cells"
                )


@dataclass
class _Place:
    """Passes on what is said while a cell is made; of its progress only that there is some."""

    name: str
    on_event: OnEvent

    def __call__(self, event: Event) -> None:
        if event["event"] == "progress":
            self.on_event({"event": "progress", "stage": "check", "what": self.name})
        else:
            self.on_event(event)


def make_on_devices(
    missing: Sequence[Cell],
    on_event: OnEvent,
    wanted: Devices,
    address: str | None,
    settings: Mapping[str, Any],
    verbose: bool,
) -> None:
    """Make cells on several devices, of the cluster at `address` or of this machine. One that fails
    keeps the reason, and the others are made; what a worker that died has made is kept, and another
    one makes the rest.

    Raises StdError if no worker is left.
    """
    failures: dict[str, str] = {}

    def pass_on(event: Event) -> None:
        if event["event"] == "error" and "input" in event:
            failures[event["input"]] = event["message"]
            message = f"{event['input']}: failed: {event['message']}"
            on_event({"event": "notice", "message": message})
        elif event["event"] != "unit":
            on_event(event)

    with (
        local_pool(wanted) if address is None else cluster_pool(wanted, address) as pool,
        RayExecutor[Batch](pool, CellWork(settings, verbose), pass_on) as executor,
    ):
        batches = batches_of(missing, executor.parts)
        reasons = executor.run(batches).failed
        left = [cell for batch in batches if batch.id in reasons for cell in batch.cells]
        # what a batch died of is one of its cells: each is tried alone
        alone = [Batch(cell.path.name, (cell,)) for cell in left if not cell.is_made()]
        if alone:
            reasons = executor.run(alone).failed
    for cell in missing:
        if not cell.is_made():
            unknown = reasons.get(cell.path.name, "its worker did not report it")
            cell.failure = failures.get(cell.path.name, unknown)


def on_devices(config: CompareConfig, wanted: Devices, address: str | None) -> CompareConfig:
    """The comparison with the device that the workers have. Raises InputError where the settings
    name another one, and where devices are not there."""
    import torch

    device = "cpu" if wanted.cpu else "cuda"
    for options in (config.settings, *config.contenders.values()):
        if (given := options.get("device", "auto")) not in ("auto", device):
            raise InputError(
                f"--device {given}: each worker has the one that --devices {wanted.given} gives "
                f"it: leave out one of them"
            )
    if address is not None:
        check_unnumbered(wanted)
    if not wanted.cpu and address is None:
        gpus_here(wanted)
    elif not wanted.cpu and not torch.cuda.is_available():
        raise InputError(
            f"--cluster {address}: cells are named by the device that makes them, and this machine "
            f"has no GPU: give the command on a machine of the cluster that has one, or --devices "
            f"cpu:8 for eight workers on its processors"
        )
    if wanted.cpu and torch.cuda.is_available():  # which "auto" would take
        settings = {**config.settings, "device": device}
        return config.model_copy(update={"settings": settings})
    return config
