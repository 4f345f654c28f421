"""Progress in plain lines, where there is no terminal to draw a bar on: in a log, a pipe, a CI."""

import threading
import time
from collections.abc import Callable

from std_cli.cli.tables import duration

EVERY = 60.0
"""Seconds after which there is a line, though less than a tenth of the work was done."""


class ProgressLines:
    """Writes a line after each minute and each tenth of the work."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._what = self._amount = ""
        self._done, self._first = 0.0, -1.0
        self._total: float | None = None
        self._left: float | None = None
        self._begin = self._written = time.monotonic()
        self._tenth = 0

    def restart(self) -> None:
        """What is reported next is of other work, which begins now."""
        with self._lock:
            self._begin, self._first, self._tenth = time.monotonic(), -1.0, 0

    def update(
        self, what: str, done: float, total: float | None, amount: str, left: float | None
    ) -> None:
        """Note where the work is: `done` of `total` (None: not known), `amount` in words; `left`
        seconds, None: as the work so far lets expect."""
        with self._lock:
            if self._first < 0:
                self._first = done
                self._tenth = int(10 * done / total) if total else 0
            self._what, self._done, self._total, self._amount = what, done, total, amount
            self._left = left
            tenth = int(10 * done / total) if total else 0
            if self._tenth < tenth < 10:  # of all there is the result
                self._tenth = tenth
                self._line()
        if self._thread is None:
            self._thread = threading.Thread(target=self._each_minute, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """There are no more lines."""
        self._stop.set()

    def _each_minute(self) -> None:
        while not self._stop.wait(max(0.0, self._written + EVERY - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._written >= EVERY and not self._stop.is_set():
                    self._line()

    def _line(self) -> None:
        now = time.monotonic()
        parts = [self._amount] if self._amount else []
        left = self._left
        if self._total:
            parts.append(f"{100 * self._done / self._total:.0f}%")
            rate = (self._done - self._first) / max(now - self._begin, 1e-3)
            if left is None and rate > 0:
                left = (self._total - self._done) / rate
        parts.append(duration(now - self._begin))
        if left is not None:
            parts.append(f"about {duration(left)} left")
        self._write(f"{self._what}: {', '.join(parts)}")
        self._written = now
