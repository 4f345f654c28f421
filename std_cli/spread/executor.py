"""Who runs units: one interface, and the executor of this process."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypedDict, TypeVar

from std_cli.errors import Cancelled, StdError, printable
from std_cli.events import OnEvent, UnitResult
from std_cli.spread.ledger import Task

SHARES = 8
"""How often each part is given work, at least, where there is enough of it."""
T = TypeVar("T", bound=Task)
T_co = TypeVar("T_co", bound=Task, covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Record(TypedDict):
    """What is reported of a unit that is done."""

    frames: int
    """Frames, or pictures, that it has."""
    resumed: int
    """Of these, how many an earlier attempt had finished."""
    seconds: float


class Work(Protocol[T_contra]):
    """What is done with units. It can be sent to another process, and lives there as long as the
    run takes."""

    def facts(self) -> Mapping[str, str]:
        """What results follow from and must be the same at all workers: versions, the kind of
        device."""

    def run(self, unit: T_contra, on_event: OnEvent) -> Record:
        """Do a unit, or what is left of it. What it leaves when it is interrupted, another worker
        continues.

        Raises StdError for what fails whoever does it. `on_event` may raise Cancelled.
        """


class Outcome(Protocol[T_co]):
    """What became of units."""

    @property
    def finished(self) -> Sequence[T_co]:
        """Those that are done, in an earlier run or in this one."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Why, by id, of those that are not: one line each."""


class Executor(Protocol[T]):
    """Runs units that wait for no other one, in whatever order and wherever."""

    def run(self, units: Iterable[T]) -> Outcome[T]:
        """Returns when each is finished or has failed, so that one that fails does not stop the
        others. Raises KeyboardInterrupt or Cancelled where the run is stopped."""


@dataclass
class Done(Generic[T]):
    """An `Outcome`."""

    finished: list[T] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Here(Generic[T]):
    """The executor of this process: one unit after the other, with one loaded model."""

    def __init__(self, work: Work[T], on_event: OnEvent) -> None:
        self._work, self._on_event = work, on_event

    def run(self, units: Iterable[T]) -> Done[T]:
        """As `Executor.run`; each unit is reported."""
        units, done = list(units), Done[T]()
        for number, unit in enumerate(units, 1):
            try:
                record = self._work.run(unit, self._on_event)
            except Cancelled:
                raise
            except Exception as e:  # one that raises each time must not stop the others
                reason = str(e) if isinstance(e, StdError) else bug(e)
                done.failed[unit.id] = reason
                self._on_event({"event": "notice", "message": f"{unit.id} failed: {reason}"})
                continue
            done.finished.append(unit)
            self._on_event(unit_result(unit, record, number, len(units)))
        return done


def unit_result(unit: Task, record: Record, number: int, total: int) -> UnitResult:
    """The event of a unit that is done, the `number`-th of `total`."""
    return {
        "event": "unit",
        "unit": unit.id,
        "input": unit.input,
        "number": number,
        "total": total,
        "frames": record["frames"],
        "resumed": record["resumed"],
        "seconds": record["seconds"],
    }


def bug(error: BaseException) -> str:
    """What is said of an exception that no input of a user should raise."""
    what = printable(f"{type(error).__name__}: {error}", 300)
    return f"{what} (this is a bug of std: please report it)"


def given_at_once(count: int, parts: int, most: int) -> int:
    """Of `count` small pieces of work, how many one of `parts` workers or shards is given at once:
    so few that all end at about the same time."""
    return max(1, min(most, count // (parts * SHARES)))
