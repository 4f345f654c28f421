"""The list of inputs that failed, as `--failed FILE` asks for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from std_cli.errors import InputError
from std_cli.events import Event, OnEvent
from std_cli.paths import replace_file, try_file, user_path


@contextmanager
def list_failures(given: str | None, report: OnEvent) -> Iterator[OnEvent]:
    """Pass events on to `report`, and keep the inputs that failed in a file, one a line, as they
    were given.

    given: the file, or None for no list. It is replaced if it holds text, such as the list of an
    earlier run; it is empty where nothing failed. Raises InputError if it cannot be written.
    """
    if given is None:
        yield report
        return
    path = user_path(given, "--failed")
    _check(path)
    names: list[str] = []

    def write() -> None:
        replace_file(path, b"".join(os.fsencode(name) + b"\n" for name in names))

    def on_event(event: Event) -> None:
        report(event)
        if event["event"] == "error" and "input" in event:
            names.append(event["input"])
            write()
        elif event["event"] == "start":
            write()

    yield on_event
    write()  # also where nothing was left to do


def _check(path: Path) -> None:
    """Raises InputError for what the list cannot, or must not, replace."""
    try_file(path, overwrite=True)
    if path.exists() and (not path.is_file() or b"\0" in path.read_bytes()):
        raise InputError(f"--failed {path}: this is not a text file: name another file")
