"""The processes of a run on Ray: workers, which are warm for the whole run, and the mailbox through
which they report. Only small records pass between them; frames and weights never do."""

import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal

from std_cli.environment import go_offline, rest_waiting_threads, silence_libraries
from std_cli.errors import Cancelled, Kind, StdError
from std_cli.events import Event
from std_cli.interruption import install, stoppable
from std_cli.spread.devices import choose_threads, processors
from std_cli.spread.executor import Record, T_contra, Work

LAST_POST = 10.0
"""Seconds that a worker waits until its last report has arrived."""
POST_EVERY = 1.0
"""Seconds between two reports of progress of a worker."""


@dataclass(frozen=True)
class Joined:
    """A worker, as it introduces itself."""

    name: str
    """Its machine and its process."""
    node: str
    """Ray's id of the machine."""
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a unit ended at a worker that lives."""

    how: Literal["done", "failed", "stopped", "leaving"]
    """stopped: because the run ends; leaving: because the worker does."""
    record: Record | None = None
    """Of a unit that is done."""
    message: str = ""
    kind: Kind = "failed"


class Worker(Generic[T_contra]):
    """Does one unit after the other. Its calls run in the main thread of its process, where a
    signal can interrupt them."""

    def __init__(
        self,
        number: int,
        mailbox: Any,
        work: Work[T_contra],
        threads: dict[str, str] | None,
        offline: bool,
    ) -> None:
        """mailbox: the handle of a `Mailbox`. threads: the variables of `chosen_threads`; None on a
        GPU: a share of the machine's threads, by its GPUs."""
        # in place of Ray's handler, which ends the process with its work undone
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        install()
        silence_libraries()
        rest_waiting_threads()
        if offline:
            go_offline()
        share = {"OMP_NUM_THREADS": str(_share_by_gpus())} if threads is None else threads
        choose_threads(share)
        self._number, self._mailbox, self._work = number, mailbox, work
        self._posted = 0.0
        self._reply: Any = None
        self._last: Any = None

    def join(self) -> Joined:
        """Introduce this worker."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Joined(f"{socket.gethostname()}:{os.getpid()}", node, dict(self._work.facts()))

    def run(self, unit: T_contra) -> Outcome:
        """Do a unit. Raises what is a bug."""
        import ray

        try:
            with stoppable():
                record = self._work.run(unit, self._on_event)
            if self._last is not None:  # what is reported is there before the unit is
                ray.wait([self._last], timeout=LAST_POST)
            return Outcome("done", record)
        except KeyboardInterrupt:
            return Outcome("leaving")
        except Cancelled:
            return Outcome("stopped")
        except StdError as e:
            return Outcome("failed", message=str(e), kind=e.kind)

    def _on_event(self, event: Event) -> None:
        """Report an event, progress now and then. Raises Cancelled where the run is to end."""
        import ray

        progress = event["event"] == "progress"
        if progress and time.monotonic() - self._posted < POST_EVERY:
            return
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            stop = ray.get(self._reply)
            self._reply = None
            if stop and progress:
                raise Cancelled("the run is to end")
        self._last = self._mailbox.post.remote(self._number, event)
        if progress:
            self._posted, self._reply = time.monotonic(), self._last


class Mailbox:
    """What workers report, until it is taken; and whether they are to stop."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []
        self._stop = False

    def post(self, worker: int, event: Event) -> bool:
        """Returns whether the run is to end."""
        self._events.append((worker, event))
        return self._stop

    def take(self, stop: bool) -> list[tuple[int, Event]]:
        """What has come since the last call. stop: whether the workers are to end."""
        events, self._events, self._stop = self._events, [], stop
        return events


def _share_by_gpus() -> int:
    """The processors of this machine for each of its GPUs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    gpus = next((n["Resources"].get("GPU", 1) for n in ray.nodes() if n["NodeID"] == here), 1)
    return max(1, processors() // max(1, int(gpus)))
