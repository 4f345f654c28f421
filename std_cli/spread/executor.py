"""Who runs units: one interface, and the executor of this process."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from std_cli.errors import Cancelled, StdError
from std_cli.events import OnEvent
from std_cli.spread.run_unit import UnitWork
from std_cli.spread.units import Unit


class Outcome(Protocol):
    """What became of units."""

    @property
    def finished(self) -> Sequence[Unit]:
        """Those that are done, in an earlier run or in this one."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Why, by id, of those that are not: one line each."""


class Executor(Protocol):
    """Runs units that wait for no other one, in whatever order and wherever."""

    def run(self, units: Iterable[Unit]) -> Outcome:
        """Returns when each is finished or has failed, so that one that fails does not stop the
        others. Raises KeyboardInterrupt or Cancelled where the run is stopped."""


@dataclass
class Done:
    """An `Outcome`."""

    finished: list[Unit] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Here:
    """The executor of this process: one unit after the other, with one loaded model."""

    def __init__(self, work: UnitWork, on_event: OnEvent) -> None:
        self._work, self._on_event = work, on_event

    def run(self, units: Iterable[Unit]) -> Done:
        """As `Executor.run`; each unit is reported."""
        units, done = list(units), Done()
        for number, unit in enumerate(units, 1):
            try:
                record = self._work.run(unit, self._on_event)
            except Cancelled:
                raise
            except StdError as e:
                done.failed[unit.id] = str(e)
                self._on_event({"event": "notice", "message": f"{unit.id} failed: {e}"})
                continue
            done.finished.append(unit)
            self._on_event(
                {
                    "event": "unit",
                    "unit": unit.id,
                    "input": unit.input,
                    "number": number,
                    "total": len(units),
                    "frames": record["frames"],
                    "resumed": record["resumed"],
                    "seconds": record["seconds"],
                }
            )
        return done
