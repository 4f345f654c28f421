"""Which unit a worker runs next, and what deaths of workers mean: the decisions of a run that is
spread, without the engine that carries them out."""

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

DEATHS_OF_A_UNIT = 3
"""Workers that may die with a unit before it is set aside."""
DEATHS_IN_A_ROW = 4
"""Deaths of a worker, with nothing finished in between, before it is dropped."""

BUSY_TIMES = 20
"""How often a unit is tried that another process is at work on."""


class Task(Protocol):
    """A unit of work."""

    @property
    def id(self) -> str: ...
    @property
    def input(self) -> str:
        """The input that it is a part of."""

    @property
    def frames(self) -> int:
        """How much work it is."""


T = TypeVar("T", bound=Task)


class Ledger(Generic[T]):
    """The units of a run: waiting, finished, or failed. Workers are numbers; one that died and was
    replaced keeps its number.

    A unit that comes back is given to a worker that has not died with it, as long as there is one:
    so that a unit that kills its workers is not taken for a worker that dies with every unit.
    """

    def __init__(self, units: Iterable[T]) -> None:
        self.waiting = sorted(units, key=lambda unit: -unit.frames)
        """Longest first: what is begun last ends last."""
        self.finished: list[T] = []
        self.failed: dict[str, str] = {}
        """{id: reason} of the units that are not tried again in this run."""
        self.lost = 0
        """Deaths of workers."""
        self.retried = 0
        """Units that were given to another worker after a death."""
        self._died_with: dict[str, list[int]] = {}
        self._busy: dict[str, int] = {}
        self._row: dict[int, list[str | None]] = {}
        """What each worker died with since it last finished something; None: with nothing."""

    def take(self, worker: int, others: bool) -> T | None:
        """The next unit for a worker; None if there is none for it.

        others: there are other workers, which can take what this one died with.
        """
        for i, unit in enumerate(self.waiting):
            if not others or worker not in self._died_with.get(unit.id, ()):
                return self.waiting.pop(i)
        return None

    def finish(self, worker: int, unit: T) -> None:
        self._row.pop(worker, None)
        self.finished.append(unit)

    def give_back(self, unit: T) -> None:
        """A worker was asked to end, and left a unit for another one."""
        self.waiting.insert(0, unit)

    def wait_for_other(self, unit: T) -> bool:
        """Another process is at work on a unit: it waits again, unless that has been so for
        long."""
        times = self._busy[unit.id] = self._busy.get(unit.id, 0) + 1
        if times <= BUSY_TIMES:
            self.waiting.append(unit)
        return times <= BUSY_TIMES

    def die(self, worker: int, unit: T | None, reason: str) -> None:
        """A worker has died, with or without a unit, which waits again or is set aside."""
        self.lost += 1
        self._row.setdefault(worker, []).append(unit.id if unit else None)
        if unit is None:
            return
        deaths = self._died_with.setdefault(unit.id, [])
        deaths.append(worker)
        if len(deaths) < DEATHS_OF_A_UNIT:
            self.retried += 1
            self.waiting.insert(0, unit)
            return
        self.failed[unit.id] = f"{len(deaths)} workers died with it; the last: {reason}"
        for worker, row in self._row.items():  # the unit's doing, not theirs
            self._row[worker] = [other for other in row if other != unit.id]

    def fail(self, unit: T, reason: str, others_too: bool = False) -> list[T]:
        """A unit cannot be done. others_too: nor can the rest of its input. Returns the units that
        are left out with it."""
        self.failed[unit.id] = reason
        left_out = [o for o in self.waiting if others_too and o.input == unit.input]
        self.waiting = [o for o in self.waiting if o not in left_out]
        self.failed |= dict.fromkeys((o.id for o in left_out), reason)
        return left_out

    def to_be_dropped(self, worker: int) -> bool:
        """Whether a worker has died too often to be replaced."""
        return len(self._row.get(worker, ())) >= DEATHS_IN_A_ROW
