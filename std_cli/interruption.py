"""Ctrl-C and SIGTERM: a run ends at any moment and however often it is asked, and leaves nothing
half done.

The command line calls `install` first. From then on a signal ends the process at once, after what
is registered with `at_quit` was called and one line was written; nothing else of the interpreter
runs, so no thread of a library can abort the process. Where a run has more to say or to save,
`stoppable` and `deferred` take the first signal, and a line says at once that it came; a second one
ends the process as described. Without `install`, in a notebook, Python's own handlers stay.

Python calls a handler in the main thread, between two instructions. While that thread is in a long
call of a library, such as one layer of a network on a slow CPU, a thread of this module does in its
place what cannot wait.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from std_cli.errors import EXIT_CODES, Kind

if TYPE_CHECKING:
    from std_cli.events import Error

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KINDS: dict[int, Kind] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_PATIENCE = 0.3
"""Seconds that the main thread has to come to its handler."""

_cleanups: list[Callable[[], None]] = []
_remedies: list[str] = []
_installed = False
_stoppable = 0
"""How many `stoppable` there are around what the main thread does: above 0 the first signal raises
KeyboardInterrupt there; so are the next two."""
_deferred = 0
_unbroken = 0
_held = False
"""A signal came inside `unbroken`: KeyboardInterrupt is raised at its end."""
_received: int | None = None
_handled = 0
"""Signals that have come to the handler."""
_said = False
_quitting = threading.RLock()


def install() -> None:
    """Take SIGINT and SIGTERM, unless they are ignored, as nohup has it. Once, in the main
    thread."""
    global _installed
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _handle)
    sys.unraisablehook = _unraisable
    if not _installed and os.name != "nt":
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=_watch, args=(read,), daemon=True).start()
    _installed = True


def ending() -> bool:
    """Whether a signal came that ends this process: what runs in threads is not waited for."""
    return _installed and _received is not None


def event() -> "Error":
    """What is reported of a run that a signal ended."""
    kind = _KINDS[signal.Signals(_received or signal.SIGINT)]
    message = ": ".join((kind, *_remedies[-1:]))
    return {"event": "error", "message": message, "kind": kind, "code": EXIT_CODES[kind]}


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Inside, the line about a signal says what becomes of the work."""
    _remedies.append(remedy)
    try:
        yield
    finally:
        _remedies.pop()


def quit_now() -> None:
    """Call what is registered, newest first, write the one line, and end the process without
    anything else."""
    if not _quitting.acquire(blocking=False):  # another thread is at it
        threading.Event().wait()
    for cleanup in reversed(_cleanups):
        with suppress(Exception):
            cleanup()
    error = event()
    if "--json" in sys.argv:
        with suppress(OSError):
            os.write(1, f"{json.dumps(error)}\n".encode())
    _show("" if "--json" in sys.argv else f"error: {error['message']}")
    os._exit(error["code"])


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
    in a library; inside of `unbroken` it waits for its end."""
    global _stoppable
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # in a notebook
        signal.signal(signal.SIGINT, _raise)
    _stoppable += 1
    try:
        yield
    finally:
        _stoppable -= 1
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, nothing is interrupted by the first signal: KeyboardInterrupt is raised at the end.
    It has an effect inside of `stoppable` only."""
    global _unbroken, _held
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _unbroken += 1
    try:
        yield
    finally:
        _unbroken -= 1
        if _held and not _unbroken:
            _held = False
            raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM is only remembered: the function returns whether one
    came.

    Outside of the main thread signals are left as they are.
    """
    global _received, _deferred
    asked = False
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        global _received, _handled
        _received = number
        _handled += 1
        again, asked = asked, True
        if before.get(number) is not _handle:
            if again:
                raise KeyboardInterrupt
        elif again:
            quit_now()
        else:
            _say()

    if threading.current_thread() is threading.main_thread():
        taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, remember) for number in taken}
    _deferred += 1
    try:
        yield lambda: asked
    finally:
        _deferred -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received, _handled
    first, _received = _received is None, number
    _handled += 1
    if first and _stoppable:
        _say()
        _raise(number, frame)
    else:
        quit_now()


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, now or at the end of `unbroken`; a second time at once."""
    global _held
    if _unbroken and not _held:
        _held = True
        return
    _held = False
    raise KeyboardInterrupt


def _watch(signals: int) -> None:
    """Read the signals as they come, and act where the main thread does not."""
    seen = 0
    while True:
        for number in os.read(signals, 16):
            if number not in _SIGNALS:
                continue
            seen += 1
            until = time.monotonic() + _PATIENCE
            while _handled < seen and time.monotonic() < until:
                time.sleep(0.01)
            if _handled < seen:
                _act(number, first=seen == 1)


def _act(number: int, first: bool) -> None:
    """What the handler will do, done before the main thread comes to it."""
    global _received
    if first and (_stoppable or _deferred):
        _say()
    else:
        _received = number
        quit_now()


def _say() -> None:
    """The line that shows that the first signal has come."""
    global _said
    if not _said and not {"--json", "-q", "--quiet"} & set(sys.argv):
        _said = True
        _show("stopping (once more ends at once)")


def _show(line: str) -> None:
    with suppress(OSError):
        if os.isatty(2):
            # the line of the progress bar, and the cursor that it hides
            os.write(2, b"\r\x1b[2K\x1b[?25h")
        if line:
            os.write(2, f"{line}\n".encode())


def _unraisable(caught: "sys.UnraisableHookArgs") -> None:
    """A KeyboardInterrupt that was raised where Python cannot pass it on, such as in `__del__`,
    must not be lost."""
    if issubclass(caught.exc_type, KeyboardInterrupt) and _received is not None:
        quit_now()
    sys.__unraisablehook__(caught)
