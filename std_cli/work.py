"""The work folder of a video run, `.OUT.std/` beside the output: what an interrupted run goes on from.

    lock                held by the run that works here
    run.json            what the result follows from: settings, weights, input
    segment-00000...    finished parts of the result, each a media file of its own
    state.safetensors   after the last of them: everything in flight, and how many segments there are
    result.tmp          the result on its way to its place
    result.json         before it is moved there: how to know it again, and what is told of it

Each file is written beside its name, flushed to the disk and renamed, so that it is whole or not there.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from std_cli.errors import InputError, StdError
from std_cli.image import replace_file

if TYPE_CHECKING:
    import torch

_STATE, _RESULT = "state.safetensors", "result.json"


class WorkFolder:
    """Use as a context manager: the lock is held inside. `state` is None in a run that starts from the beginning."""

    def __init__(self, output: Path, run: dict[str, Any], resume: bool) -> None:
        """Raises InputError if the folder is in use, or is of a run that differs from `run`."""
        self.path = _folder_of(output)
        self.output, self.run, self.resume = output, run, resume
        self.state: dict[str, Any] | None = None
        self.tensors: dict[str, torch.Tensor] = {}
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "WorkFolder":
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = (self.path / "lock").open("wb")
        except OSError as e:
            raise InputError(f"the work folder {self.path} cannot be made ({e.strerror}): choose another -o") from None
        if not _try_lock(self._lock):
            self._lock.close()
            raise InputError(f"another run is writing {self.output}: wait for it, or choose another -o")
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        with suppress(OSError):
            if not (self.path / _STATE).exists():  # nothing to go on from, or all is done
                self._empty()
        self._lock.close()
        with suppress(OSError):  # not empty: kept for the next run
            (self.path / "lock").unlink()
            self.path.rmdir()

    def _open(self) -> None:
        before = self.path / "run.json"
        if self.resume and before.exists():
            self._compare(before)
            self._load()
            return
        self._empty()
        replace_file(before, json.dumps(self.run, indent=1).encode())

    def _compare(self, before: Path) -> None:
        try:
            old = json.loads(before.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            old = {}
        # as JSON has it: a tuple is a list
        a, b = _flat(old), _flat(json.loads(json.dumps(self.run)))
        differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise InputError(
                f"{self.output} was begun with another {key}: {a.get(key)!r}, now {b.get(key)!r}{more}: give the same "
                "again to go on, or --no-resume to start over"
            )

    def _load(self) -> None:
        path = self.path / _STATE
        if not path.exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                self.state = json.loads((file.metadata() or {})["std"])
                keys = file.keys()  # it cannot be iterated itself
                self.tensors = {key: file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError, KeyError, ValueError):
            raise InputError(f"{path} is damaged: give --no-resume to start over") from None
        missing = [s for s in self.segments(self.state["segments"]) if not s.exists()]
        if missing:
            raise InputError(f"{missing[0]} is missing: give --no-resume to start over")

    def save(self, state: dict[str, Any], tensors: "dict[str, torch.Tensor]") -> None:
        """Replace the state; `state` is what JSON can hold and has the count of "segments"."""
        from safetensors.torch import save

        contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        replace_file(self.path / _STATE, save(contiguous, {"std": json.dumps(state)}))

    @property
    def draft(self) -> Path:
        """Where the result is made."""
        return self.path / "result.tmp"

    def finish(self, told: dict[str, Any]) -> None:
        """Note that the draft is the whole result, before it is moved; `told`: what a repeated command tells of it."""
        replace_file(self.path / _RESULT, json.dumps({"is": _identity(self.draft), "told": told}).encode())

    def segment(self, number: int) -> Path:
        return self.path / f"segment-{number:05d}"

    def segments(self, count: int) -> list[Path]:
        return [self.segment(i) for i in range(count)]

    def remove(self, keep: bool = False) -> None:
        """The result is in its place: nothing of this is needed any more; `keep`: but for who wants to look at it."""
        (self.path / (_RESULT if keep else _STATE)).unlink(missing_ok=True)

    def _empty(self) -> None:
        for file in sorted(self.path.iterdir(), key=lambda f: f.name == _RESULT):  # that last
            if file.name != "lock":
                shutil.rmtree(file) if file.is_dir() else file.unlink()


def finished(output: Path) -> dict[str, Any] | None:
    """What is told of an output that is the finished result of the run whose work folder is still beside it."""
    try:
        kept = json.loads((_folder_of(output) / _RESULT).read_text(encoding="utf-8"))
        return dict(kept["told"]) if kept["is"] == _identity(output) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(path: Path) -> list[int]:
    """Of a file or folder, and no other: it stays when it is renamed, and changes when it is written to."""
    at = path.stat()
    return [at.st_ino, at.st_size, at.st_mtime_ns]


def _folder_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.std")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed, or its process ends however; False if another process holds it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # what Windows says
        return False
    except OSError as e:
        raise StdError(f"{file.name} cannot be locked ({e.strerror}): choose an output on another disk") from None
    return True
