"""Processes that are forked from a server which has imported the libraries: to start Python and to
import them takes seconds."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

LIMIT = 300
"""Seconds after which a command counts as hanging."""


def server() -> Any:
    """The context of `multiprocessing` whose processes are forked from that server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    return context


class Command:
    """`std ARGUMENTS` in such a process, with pipes for its output; used as a `subprocess.Popen`.

    `before` runs in it, before the command line is read; `work` in place of `std`.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        work: Callable[[], None] | None = None,
    ) -> None:
        pipes = [os.pipe() for _ in range(2)]
        given = (
            [str(a) for a in arguments],
            cwd or os.getcwd(),
            dict(os.environ if env is None else env),
            before,
            work,
        )
        ends = [_End(write) for _, write in pipes]
        self._process = server().Process(target=_run, args=(*given, *ends))
        self._process.start()
        for _, write in pipes:
            os.close(write)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in pipes)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int:
        assert self._process.exitcode is not None, "it runs"
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None of one that runs."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """The rest of (stdout, stderr). stderr is short enough for its pipe."""
        texts = [self._rest(stream) for stream in (self.stdout, self.stderr)]
        self._process.join(LIMIT)
        return texts[0], texts[1]

    @staticmethod
    def _rest(stream: IO[str]) -> str:
        with stream:
            return stream.read()


def std(*arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """What `std ARGUMENTS` ended with; as `Command`."""
    command = Command(*arguments, **how)
    out, err = command.communicate()
    return subprocess.CompletedProcess(arguments, command.returncode, out, err)


def python(source: str, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """What a process that runs `source` ended with; as `Command`."""
    return std(*arguments, work=partial(execute, source), **how)


def execute(source: str) -> None:
    """Run `source` as a module of its own."""
    exec(source, {"__name__": "__main__"})


class _End:
    """The writing end of a pipe, given to a process when it starts."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (DupFd(self.descriptor),)


def _inherited(given: Any) -> int:
    descriptor: int = given.detach()
    return descriptor


def _run(
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    before: Callable[[], None] | None,
    work: Callable[[], None] | None,
    out: int,
    err: int,
) -> None:
    from std_cli.__main__ import main

    for number, end in ((1, out), (2, err)):
        os.dup2(end, number)
        os.close(end)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["std", *arguments]
    if before:
        before()
    (work or main)()
