"""Units on Ray: one warm worker for each GPU, or for a share of the processors; what dies is done
again elsewhere, what fails is not."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from std_cli.errors import Cancelled, StdError, counted, printable
from std_cli.events import Event, OnEvent, SpreadProgress
from std_cli.interruption import at_quit, deferred
from std_cli.spread.devices import chosen_threads
from std_cli.spread.executor import Work, bug, unit_result
from std_cli.spread.ledger import Ledger, Task
from std_cli.spread.ray_worker import Joined, Mailbox, Outcome, Worker

T = TypeVar("T", bound=Task)
DEVICE = "device"
"""The fact of a worker that may differ with `Pool.mixed`."""
LOOK_EVERY = 0.5
"""Seconds between two looks at what the workers report."""
COUNT_EVERY = 2.0
"""Seconds between two looks at how many machines the cluster has."""
WAIT_FOR_WORKERS = 30.0
"""Seconds without any worker after which it is said what is waited for."""


@dataclass(frozen=True)
class Pool:
    """The workers that a run may have."""

    count: int | None
    """None: one for each GPU of the cluster, also of those that join it later."""
    gpu: bool
    cpus: int = 1
    """Processors that Ray counts for each worker without a GPU."""
    mixed: bool = False
    """Whether GPUs of several kinds are accepted, whose results differ in their last bits."""
    dtype: str | None = None
    """The precision that the records of the results have; None on a GPU."""


def refusal(joined: Joined, first: Joined, pool: Pool) -> tuple[str, str] | None:
    """(the fact that differs, what is said) of a worker that would make other results than the
    first one, or than the records say; None of one that would not."""
    planned = {} if pool.dtype is None else {"dtype": pool.dtype}
    wanted = {**first.facts, **planned}
    differing = [name for name, value in joined.facts.items() if wanted.get(name) != value]
    if pool.mixed:
        differing = [name for name in differing if name != DEVICE]
    if not differing:
        return None
    # a processor of another kind may be why the precision differs, which then can be chosen
    name = "dtype" if "dtype" in differing else differing[0]
    remedy = "install the same on both"
    if name == "dtype":
        remedy = "give --dtype"
    elif differing == [DEVICE]:
        remedy = "give --mixed-gpus to accept both, whose results differ in their last bits"
    other = "the plan" if name in planned else first.name
    return name, (
        f"the worker {joined.name} is refused: {name} {joined.facts[name]}, where {other} has "
        f"{wanted.get(name)}: {remedy}"
    )


@dataclass
class _Slot(Generic[T]):
    """The place of a worker: the process in it may be replaced."""

    number: int
    actor: Any
    ref: Any
    """What the worker is at: joining, or a unit. None: nothing."""
    joined: Joined | None = None
    unit: T | None = None
    frames: float = 0.0
    """Of the unit at hand that are done."""
    out: bool = False
    """Dropped or refused: nothing replaces it."""
    reason: str = ""
    """Why it is out, or why its last process died."""


class RayExecutor(Generic[T]):
    """Runs units on the Ray that this process is connected to. Use it as a context manager: the
    workers end with it, and are warm until then."""

    def __init__(
        self,
        pool: Pool,
        work: Work[T],
        on_event: OnEvent,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """stop: whether the run is to end, which is asked again and again."""
        self._pool, self._work, self._stop = pool, work, stop
        self._on_event = on_event
        self._slots: list[_Slot[T]] = []
        self._reference: Joined | None = None
        self._counted = (-COUNT_EVERY, 0)
        self._said: set[str] = set()
        self._nodes: set[str] = set()
        self._reported = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._mailbox = _make_mailbox()
        self._stack.enter_context(at_quit(self._end))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def parts(self) -> int:
        """How many workers there may be as far as is known: so many units are wanted at least."""
        return max(1, self._count())

    def run(self, units: Iterable[T]) -> Ledger[T]:
        """Run all units; returns which are finished and which failed.

        Raises KeyboardInterrupt or Cancelled if the run is stopped, after the workers have saved
        what they have; StdError if no worker is left.
        """
        self._ledger = Ledger(units)
        self._units = len(self._ledger.waiting)
        self._total = sum(unit.frames for unit in self._ledger.waiting)
        self._finished_frames = 0.0
        self._begin = self._alone_since = time.monotonic()
        with deferred() as interrupted:
            try:
                while self._ledger.waiting or self._busy:
                    if interrupted() or self._stop():
                        raise Cancelled("the run was stopped")
                    self._round()
                self._report()
            except Cancelled:
                self._let_workers_stop()
                if not interrupted():
                    raise
        if interrupted():
            raise KeyboardInterrupt
        return self._ledger

    # --- one round ---

    def _round(self) -> None:
        self._open_slots()
        self._assign()
        self._wait()
        self._report()

    @property
    def _busy(self) -> list[_Slot[T]]:
        return [slot for slot in self._slots if slot.unit is not None]

    @property
    def _live(self) -> list[_Slot[T]]:
        """Workers that have joined."""
        return [slot for slot in self._slots if slot.joined is not None and not slot.out]

    def _open_slots(self) -> None:
        """Start workers, as many as may be and as there is work for."""
        places = [slot for slot in self._slots if not slot.out]
        work = len(self._ledger.waiting) + len(self._busy)
        room = self._count() - sum(self._takes_room(slot) for slot in self._slots)
        for _ in range(min(room, work - len(places))):
            number = len(self._slots) + 1
            self._slots.append(_Slot(number, *self._start(number)))
        if not places and room <= 0:
            out = [slot for slot in self._slots if slot.out]
            if out:
                raise StdError(
                    f"no worker is left for {counted(work, 'unit')}: {out[-1].reason}: the same "
                    f"command continues"
                )

    def _takes_room(self, slot: _Slot[T]) -> bool:
        """Whether a slot counts among those that there may be: one that is out does as long as its
        machine is there, which would take the next worker too."""
        return not slot.out or slot.joined is None or slot.joined.node in self._nodes

    def _count(self) -> int:
        """How many workers there may be now."""
        import ray

        since, count = self._counted
        if time.monotonic() - since >= COUNT_EVERY:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self._nodes = {node["NodeID"] for node in nodes}
            count = self._pool.count or sum(int(n["Resources"].get("GPU", 0)) for n in nodes)
            self._counted = time.monotonic(), count
        return count

    def _start(self, number: int) -> tuple[Any, Any]:
        """(a new worker, what it introduces itself with)."""
        import ray

        needs = {"num_gpus": 1} if self._pool.gpu else {"num_cpus": self._pool.cpus}
        kind: Any = ray.remote(Worker)
        actor = kind.options(max_restarts=0, max_task_retries=0, **needs).remote(
            number,
            self._mailbox,
            self._work,
            None if self._pool.gpu else chosen_threads(),
            os.environ.get("HF_HUB_OFFLINE") == "1",
        )
        return actor, actor.join.remote()

    def _assign(self) -> None:
        """Give every idle worker a unit."""
        live = self._live
        for slot in live:
            if slot.ref is None:
                unit = self._ledger.take(slot.number, others=len(live) > 1)
                if unit is not None:
                    slot.unit, slot.frames = unit, 0.0
                    slot.ref = slot.actor.run.remote(unit)

    def _wait(self) -> None:
        """Wait a moment for what workers finish, and take all of it."""
        import ray

        at_work = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        if not at_work:
            time.sleep(LOOK_EVERY)
            return
        if ray.wait(list(at_work), timeout=LOOK_EVERY)[0]:
            for ref in ray.wait(list(at_work), num_returns=len(at_work), timeout=0)[0]:
                self._take(at_work[ref])

    def _take(self, slot: _Slot[T]) -> None:
        """Take what a worker has returned, or died of."""
        import ray
        from ray.exceptions import RayTaskError

        ref, unit = slot.ref, slot.unit
        slot.ref = slot.unit = None
        try:
            value = ray.get(ref)
        except RayTaskError as e:  # raised by the work: nothing that another worker does better
            cause = e.cause or e
            if unit is None:
                what = printable(f"{type(cause).__name__}: {cause}", 300)
                self._put_out(slot, f"a worker cannot start: {what}")
            else:
                self._fail(unit, bug(cause))
            return
        except deaths() as e:
            self._bury(slot, unit, _cause(e))
            return
        if isinstance(value, Joined):
            self._welcome(slot, value)
        else:
            assert unit is not None
            self._note(slot, unit, value)

    def _note(self, slot: _Slot[T], unit: T, outcome: Outcome) -> None:
        """A unit has ended at a worker that lives."""
        if outcome.how == "done":
            assert outcome.record is not None
            self._ledger.finish(slot.number, unit)
            self._finished_frames += unit.frames
            done = len(self._ledger.finished)
            self._on_event(unit_result(unit, outcome.record, done, self._units))
        elif outcome.how == "failed":
            if outcome.kind == "busy" and self._ledger.wait_for_other(unit):
                time.sleep(LOOK_EVERY)  # a process that was lost may still be about to end
            else:
                self._fail(unit, outcome.message, others_too=True)
        else:
            self._ledger.give_back(unit)
        if outcome.how == "leaving":
            self._say(f"worker {slot.number} was asked to end: another one continues its unit")
            self._replace(slot)

    def _fail(self, unit: T, reason: str, others_too: bool = False) -> None:
        with_it = self._ledger.fail(unit, reason, others_too)
        more = f"; {counted(len(with_it), 'more unit')} of it left out" if with_it else ""
        self._say(f"{unit.id} failed: {reason}{more}")

    # --- workers that come and go ---

    def _welcome(self, slot: _Slot[T], joined: Joined) -> None:
        """Take a worker in, unless it would make other results than the first one."""
        first = self._reference or joined
        slot.joined = joined
        if why := refusal(joined, first, self._pool):
            name, message = why
            self._put_out(slot, message, once=f"{joined.node} {name}")
        else:
            self._reference = first

    def _bury(self, slot: _Slot[T], unit: T | None, reason: str) -> None:
        """A worker has died."""
        self._ledger.die(slot.number, unit, reason)
        slot.reason = reason
        if unit is not None and unit.id in self._ledger.failed:
            self._say(f"{unit.id} is set aside: {self._ledger.failed[unit.id]}")
        else:
            then = f"; {unit.id} goes to another worker" if unit else ""
            self._say(f"worker {slot.number} died: {reason}{then}")
        if self._ledger.to_be_dropped(slot.number):
            self._put_out(slot, f"worker {slot.number} died too often, and is dropped: {reason}")
        else:
            self._replace(slot)

    def _replace(self, slot: _Slot[T]) -> None:
        """Start a new process in the place of one that ended, where the cluster has room."""
        self._kill(slot)
        self._counted = (-COUNT_EVERY, 0)
        places = sum(self._takes_room(other) for other in self._slots)
        if places > self._count():  # its machine is gone
            self._slots.remove(slot)
            return
        slot.joined = None
        slot.actor, slot.ref = self._start(slot.number)

    def _put_out(self, slot: _Slot[T], reason: str, once: str = "") -> None:
        slot.out, slot.reason = True, reason
        self._kill(slot)
        if once not in self._said or not once:
            self._said.add(once)
            self._say(reason)

    def _kill(self, slot: _Slot[T]) -> None:
        """End the process of a worker, which may still be there though it cannot be reached."""
        import ray

        with suppress(Exception):
            ray.kill(slot.actor)
        slot.ref = None

    # --- the end ---

    def _let_workers_stop(self) -> None:
        """Wait until every worker has saved what it has of its unit."""
        for slot in self._slots:
            if slot.unit is None:
                self._kill(slot)
        while self._busy:
            self._letters(stop=True)
            self._wait()

    def _end(self) -> None:
        import ray

        for slot in self._slots:
            self._kill(slot)
        with suppress(Exception):
            ray.kill(self._mailbox)

    # --- reports ---

    def _say(self, message: str) -> None:
        self._on_event({"event": "notice", "message": message})

    def _letters(self, stop: bool) -> list[tuple[int, Event]]:
        """What the workers have reported; `stop` asks them to end."""
        import ray

        with suppress(*deaths()):  # it is started again, and what was in it is lost
            letters: list[tuple[int, Event]] = ray.get(self._mailbox.take.remote(stop))
            return letters
        return []

    def _report(self) -> None:
        """Pass on what the workers report, and how far the run is."""
        for number, event in self._letters(stop=False):
            if event["event"] != "progress":
                self._on_event(event)
            if event["event"] == "result" or event.get("stage") == "video":
                self._advance(number, event)
        now = time.monotonic()
        if self._live:
            self._alone_since = now
        elif now - self._alone_since > WAIT_FOR_WORKERS:
            self._alone_since = now
            self._say(
                "no worker is ready yet: they are starting, or Ray looks for a machine that has "
                "room for one"
            )
        if now - self._reported >= LOOK_EVERY:
            self._reported = now
            self._on_event(self._progress())

    def _advance(self, number: int, event: Any) -> None:
        """Note how far a worker is with its unit."""
        for slot in self._busy:
            if slot.number == number and event["event"] == "result":  # one picture of a chunk
                slot.frames += 1
            elif slot.number == number:
                slot.frames = event["progress"]

    def _progress(self) -> SpreadProgress:
        frames = self._finished_frames + sum(slot.frames for slot in self._busy)
        rate = frames / (time.monotonic() - self._begin)
        return {
            "event": "progress",
            "stage": "spread",
            "unit": len(self._ledger.finished),
            "units": self._units,
            "workers": len(self._live),
            "frame": round(frames, 1),
            "frames": self._total,
            "fps": round(rate, 3),
            "eta": round(max(0.0, self._total - frames) / rate, 1) if rate else None,
            "lost": self._ledger.lost,
            "retried": self._ledger.retried,
        }


def deaths() -> tuple[type[Exception], ...]:
    """What Ray raises where a worker, or its machine, has died: only then is a unit done again."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.ActorDiedError,
        exceptions.ActorUnavailableError,
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
    )


def _cause(error: Exception) -> str:
    """Why a worker died, in a few words out of Ray's many."""
    from ray import exceptions

    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "memory usage threshold" in text:
        return "the machine was out of memory"
    gone = isinstance(error, exceptions.NodeDiedError | exceptions.ActorUnavailableError)
    if gone or "node has died" in text.lower():
        return "its machine is gone, or cannot be reached"
    return "its process ended unexpectedly"


def _make_mailbox() -> Any:
    """A mailbox on this machine, which is as long there as the run is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(Mailbox)
    return kind.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
