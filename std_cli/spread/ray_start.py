"""Ray started on this machine, or a cluster of it joined; silently, and with errors in one line."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from std_cli.errors import InputError, StdError
from std_cli.interruption import at_quit

OBJECT_STORE = 80 * 2**20
"""Bytes; the least that Ray takes: no frame passes through it."""
_MISSING = "Ray is not installed, on which --devices and --cluster run: pip install 'std-cli[ray]'"


def check_installed() -> None:
    """Raises InputError if Ray is not there. It is imported nowhere before."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise InputError(_MISSING)


@contextmanager
def local_ray(processors: int, gpus: int) -> Iterator[None]:
    """A Ray of this machine alone, for as long as the run takes, with so many processors and GPUs
    to give to workers. Raises StdError if it cannot be started."""
    how: dict[str, Any] = {"address": "local", "num_cpus": processors, "num_gpus": gpus}
    how |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    with _authentication(), _connection(how):
        yield


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connected to a cluster that runs; "auto": the one of this machine, or of RAY_ADDRESS.

    Raises StdError if it cannot be reached.
    """
    _check_answers(address)
    # Ray itself sends the token that is there to the clusters alone that it finds on this machine
    try:
        with _authentication("token" if _has_token() else None), _connection({"address": address}):
            yield
    except ConnectionError as e:
        raise _no_cluster(address, _first_line(e)) from None


def _check_answers(address: str) -> None:
    """Raises StdError if nothing answers at HOST:PORT, for which Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else _first_line(e)
        raise _no_cluster(address, reason) from None


def _no_cluster(address: str, reason: str) -> StdError:
    return StdError(
        f"--cluster {address}: no Ray cluster answers there ({reason}): start one with ray start, "
        f"or give its address"
    )


def _has_token() -> bool:
    """Whether the user has a token for clusters, in one of the places where Ray looks for it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def _authentication(mode: str | None = None) -> Iterator[None]:
    """Inside, Ray asks for tokens as RAY_AUTH_MODE says, or as `mode` where that is not set.

    Ray reads variable and token once in a process, and sets the variable to "token" where it starts
    a cluster of this machine: the process would then refuse the next cluster if that has no tokens.
    """
    check_installed()
    # read when Ray is imported: it would report its use over the network, and warn
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    raylet: Any = ray._raylet

    def read_again() -> None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    if ray.is_initialized():  # by the caller, whose it stays
        yield
        return
    before = os.environ.get("RAY_AUTH_MODE")
    if mode is not None:
        os.environ.setdefault("RAY_AUTH_MODE", mode)
    read_again()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_AUTH_MODE", None)
        read_again()


@contextmanager
def _connection(how: dict[str, Any]) -> Iterator[None]:
    import ray

    if ray.is_initialized():  # by the caller, whose it stays
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    with at_quit(ray.shutdown):
        _connect(how)
        yield


def _connect(how: dict[str, Any], again: bool = True) -> None:
    """Start or join; once more where the start timed out, as it does on slow machines."""
    import ray
    import ray._private.worker
    from ray.exceptions import AuthenticationError

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**how, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except AuthenticationError as e:
        raise StdError(
            f"Ray: {_first_line(e)}: set RAY_AUTH_TOKEN to the cluster's token (on its head: ray "
            f"get-auth-token)"
        ) from None
    except Exception as e:  # of many kinds, some of them plain ones
        ray.shutdown()
        if isinstance(e, ConnectionError):
            raise
        if again and "timed out" in str(e):
            return _connect(how, again=False)
        raise StdError(f"Ray cannot be started: {_first_line(e)}") from e
    finally:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, before)
    # Ray prints the deaths of workers to stdout, which is for results; there is no setting
    ray._private.worker._worker_logs_enabled = False


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
