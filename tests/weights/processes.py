"""Processes of their own, as a user's shell starts them, with an HF_HOME and a Hub of the test."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import QUIET


def client(code: str, home: Path, **env: str) -> str:
    """What `code` prints in a process of its own with this HF_HOME; a StdError is printed too."""
    script = f"""
import sys
from std_cli import errors
from std_cli.weights import resolve
try:
    {code}
except errors.StdError as error:
    print(type(error).__name__, error)
assert "diffusers" not in sys.modules
assert "torch" not in sys.modules or "resolve_lora" in globals()
"""
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "*",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=kept | settings | env,
        capture_output=True,
        text=True,
    )
    # a download would retry for 23 s
    assert run.returncode == 0 and "Retrying" not in run.stderr, run.stderr
    return run.stdout.strip()


ROOT = Path(__file__).parents[2]


def command_of(*arguments, home, url="http://127.0.0.1:9", code=None, **more):
    """(command, how to run it) as a user's shell starts it, against the Hub at `url`; `code` runs
    before."""
    script = (
        f"{code or ''}\nimport sys; from std_cli.cli.commands import run; "
        f"sys.exit(run(sys.argv[1:]))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in QUIET and not k.startswith("HF_")}
    env = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "COLUMNS": "160",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [sys.executable, "-c", script, *arguments], {
        "env": kept | env | more,
        "cwd": ROOT,
        **pipes,
    }


def std(*arguments, **how):
    command, how_to_run = command_of(*arguments, **how)
    return subprocess.run(command, timeout=120, **how_to_run)
