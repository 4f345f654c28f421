"""Processes with an HF_HOME and a Hub of the test."""

import importlib
import os
import subprocess
import warnings
from functools import partial
from pathlib import Path

from std_cli import environment
from std_cli.cli import flags, models
from tests.conftest import QUIET
from tests.processes import Command, execute, python


def client(code: str, home: Path, **env: str) -> str:
    """What `code` prints in a process with this HF_HOME; a StdError is printed too."""
    script = f"""
from std_cli import errors
from std_cli.weights import resolve
try:
    {code}
except errors.StdError as error:
    print(type(error).__name__, error)
"""
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = python(script, env=kept | settings | env, before=_strictly)
    # a download would retry for 23 s
    assert run.returncode == 0 and "Retrying" not in run.stderr, run.stderr
    return run.stdout.strip()


def command(
    *arguments: object,
    home: Path,
    url: str = "http://127.0.0.1:9",
    code: str = "",
    work: str | None = None,
    **more: str,
) -> Command:
    """`std ARGUMENTS` as a user's shell starts it, against the Hub at `url`; `code` runs before,
    and `work` in place of `std`."""
    kept = {k: v for k, v in os.environ.items() if k not in QUIET and not k.startswith("HF_")}
    env = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "COLUMNS": "160",
    }
    before = partial(_prepared, code)
    instead = None if work is None else partial(execute, work)
    return Command(*arguments, env=kept | env | more, before=before, work=instead)


def std(*arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    """What such a command ended with."""
    started = command(*arguments, **how)
    out, err = started.communicate()
    return subprocess.CompletedProcess(arguments, started.returncode, out, err)


def read_environment() -> None:
    """What a new process would take from its environment: huggingface_hub reads it when it is
    imported, and the server has imported it."""
    from huggingface_hub import constants

    importlib.reload(constants)


def go_offline() -> None:
    """--offline, where huggingface_hub is imported already."""
    environment.go_offline()
    read_environment()


def _strictly() -> None:
    read_environment()
    warnings.simplefilter("error")


def _prepared(code: str) -> None:
    read_environment()
    flags.go_offline = models.go_offline = go_offline
    execute(code)
