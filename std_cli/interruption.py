"""Ctrl-C and SIGTERM: a run ends at any moment and however often it is asked, and leaves nothing
half done.

The command line calls `install` first. From then on a signal ends the process at once, after what
is registered with `at_quit` was called and one line was written; nothing else of the interpreter
runs, so no thread of a library can abort the process. Where a run has more to say or to save,
`stoppable` and `deferred` take the first signal; a second one ends the process as described.
Without `install`, in a notebook, Python's own handlers stay.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from std_cli.errors import EXIT_CODES, Kind

if TYPE_CHECKING:
    from std_cli.events import Error

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KINDS: dict[int, Kind] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_cleanups: list[Callable[[], None]] = []
_depth = 0
"""Of `stoppable`: above 0 the first signal raises KeyboardInterrupt."""
_received: int | None = None


def install() -> None:
    """Take SIGINT and SIGTERM, unless they are ignored, as nohup has it. Once, in the main
    thread."""
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _handle)
    sys.unraisablehook = _unraisable


def event() -> "Error":
    """What is reported of a run that a signal ended."""
    kind = _KINDS[signal.Signals(_received or signal.SIGINT)]
    return {"event": "error", "message": kind, "kind": kind, "code": EXIT_CODES[kind]}


def quit_now() -> None:
    """Call what is registered, newest first, write the one line, and end the process without
    anything else."""
    for cleanup in reversed(_cleanups):
        with suppress(Exception):
            cleanup()
    text = f"error: {event()['message']}"
    fd = 2
    if "--json" in sys.argv:
        text, fd = json.dumps(event()), 1
    with suppress(OSError):
        if os.isatty(2):
            # the line of the progress bar, and the cursor that it hides
            os.write(2, b"\r\x1b[2K\x1b[?25h")
        os.write(fd, f"{text}\n".encode())
    os._exit(event()["code"])


@contextmanager
def at_quit(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call `cleanup` at the end of the `with`, or before a signal ends the process inside. It may
    be called twice."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        cleanup()
        _cleanups.remove(cleanup)


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first signal raises KeyboardInterrupt in the main thread, which must not be deep
    in a library."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM is only remembered: the function returns whether one
    came.

    Outside of the main thread signals are left as they are.
    """
    global _received
    asked = False
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        global _received
        _received = number
        if not asked:
            asked = True
        elif before.get(number) is _handle:
            quit_now()
        else:
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, remember) for number in taken}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    first, _received = _received is None, number
    if first and _depth:
        raise KeyboardInterrupt
    quit_now()


def _unraisable(caught: "sys.UnraisableHookArgs") -> None:
    """A KeyboardInterrupt that was raised where Python cannot pass it on, such as in `__del__`,
    must not be lost."""
    if issubclass(caught.exc_type, KeyboardInterrupt) and _received is not None:
        quit_now()
    sys.__unraisablehook__(caught)
