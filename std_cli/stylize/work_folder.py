"""The work folder of a video run, `.OUT.std/` next to the output: what an interrupted run resumes
from.

    lock                held by the run that works here
    run.json            the run file: what the result follows from (settings, weights, input); once
                        the result is finished also its identity, and what is reported of it
    segment-00000...    finished parts of the result, each a media file
    frames.raw          the finished frames of the part at hand: RGB or RGBA, 8 bits, one after
                        another; those that the state counts are on the disk
    state.safetensors   everything in flight, the number of segments, the times of those frames
    result.tmp          the result before it is moved to its place

Where the result is made in units (`spread`), each unit has such a folder in `units/`, and the
folder next to the output holds no segments, but:

    plan.json           the units
    units/ID/           a unit's folder; `done.json` in it is written when all else is
    attempts/           for each run of units which were done, and which failed and why

Each file but frames.raw is written next to its name, flushed to the disk and renamed, so that it is
whole or not there. A folder belongs to std only if its run file says so; another one, or one that
holds anything else, is refused and not touched. The run file is removed last: as long as anything
is left, a repeated command can see whether the result is finished.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from std_cli.errors import Busy, InputError, StdError
from std_cli.events import VideoFigures
from std_cli.interruption import at_quit
from std_cli.paths import check_path, remove, replace_file, try_lock
from std_cli.storage.transfer import StoredFolder

if TYPE_CHECKING:
    import torch

_LOCK, _RUN, _STATE, _PLAN = "lock", "run.json", "state.safetensors", "plan.json"
_MARK = {"std": "work folder"}
_OURS = re.compile(
    r"lock|run\.json|state\.safetensors|frames\.raw|result\.tmp|segment-\d{5,}(\.part)?"
    r"|plan\.json|done\.json|units|attempts"
    r"|\.std-[0-9a-f]{32}\.tmp"
)


class WorkFolder:
    """Use it as a context manager: the lock is held inside. `state` is None in a run that starts
    from the beginning."""

    def __init__(
        self,
        output: Path,
        run: dict[str, Any],
        resume: bool,
        stored: StoredFolder | None = None,
        *,
        unit: Path | None = None,
        of_units: bool = False,
    ) -> None:
        """stored: a copy of the folder that another machine can resume from. unit: the folder of a
        unit, in place of the one next to the output. of_units: the result is made of units, which
        the folder next to the output has.

        Raises Busy if the folder is in use, InputError if it does not belong to std, or is of a
        run that differs from `run`."""
        self.path = unit or folder_of(output)
        self._stays = unit is not None or of_units
        self._of_units = of_units
        # as JSON has it
        self.output, self.run, self.resume = output, json.loads(json.dumps(run)), resume
        self.stored = stored
        self.state: dict[str, Any] | None = None
        self._tensors: dict[str, torch.Tensor] = {}
        self._stack = ExitStack()
        self._opened = False

    def __enter__(self) -> "WorkFolder":
        with ExitStack() as stack:
            lock = self._get_lock()
            stack.enter_context(at_quit(lambda: self._leave(lock)))
            self._open()
            self._opened = True
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _get_lock(self) -> IO[bytes]:
        while True:
            check_folder(self.path)
            try:
                self.path.mkdir(exist_ok=True)
                lock = open(self.path / _LOCK, "ab")  # noqa: SIM115  # closed by _leave
            except OSError as e:
                if isinstance(e, FileNotFoundError) and self.path.parent.is_dir():
                    continue  # a run that ended meanwhile removed it
                raise InputError(
                    f"the work folder {self.path} cannot be made ({e.strerror}): choose another -o"
                ) from None
            try:
                if not try_lock(lock):
                    raise Busy(
                        f"another run is writing {self.output}: wait for it, or choose another -o"
                    )
                if _is_at(lock, self.path / _LOCK):  # not removed by a run that ended meanwhile
                    return lock
            except BaseException:
                lock.close()
                raise
            lock.close()

    def _leave(self, lock: IO[bytes]) -> None:
        """Give the folder up, and remove it if there is nothing to resume from, or all is done."""
        if lock.closed:
            return
        try:
            if self._opened and not self._stays and not (self.path / _STATE).exists():
                self._empty()
                remove(self.path / _RUN)
                if os.name == "nt":  # an open file cannot be removed there
                    lock.close()
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        except OSError:  # it stays for the next run
            pass
        finally:
            lock.close()

    def _open(self) -> None:
        if self.stored is not None and self.resume:
            self.stored.pull(self.path)
        check_folder(self.path)  # again, with the lock: no other run changes it now
        before = _read_run(self.path)
        if self._of_units:
            self._compare(before or {"run": self.run})
            self._write_run({})
            return
        if self.resume and (self.path / _PLAN).exists():
            raise InputError(
                f"{self.output} was begun in units, as of --shard or --devices: give the same "
                f"command again, std join {self.output} when all are done, or --no-resume to "
                f"start over"
            )
        if (
            self.resume
            and before is not None
            and ((self.path / _STATE).exists() or "result" in before)
        ):
            self._compare(before)
            self._load()
            return
        self._empty()
        if self.stored is not None:
            self.stored.remove()
        self._write_run({})

    def _compare(self, before: dict[str, Any]) -> None:
        check_same(self.output, before["run"], self.run)

    def _load(self) -> None:
        path = self.path / _STATE
        if not path.exists():
            return
        try:
            self.state, self._tensors = _read_state(path)
        except ValueError:
            raise InputError(f"{path} is damaged: give --no-resume to start over") from None
        missing = [s for s in self.segments(self.state["written"]["segments"]) if not s.exists()]
        if missing:
            raise InputError(f"{missing[0]} is missing: give --no-resume to start over")

    def save(
        self,
        state: dict[str, Any],
        tensors: "dict[str, dict[str, torch.Tensor]]",
        arrays: dict[str, dict[str, NDArray[np.generic]]],
        store: bool = True,
    ) -> None:
        """Replace the state. `state` is what JSON can hold; its "written" has the count of
        "segments". Tensors and arrays are grouped by the part of the run that they belong to.

        store: also in the folder's copy.
        """
        import torch
        from safetensors.torch import save

        flat = {
            f"{part}.{name}": tensor.cpu().contiguous()
            for part, group in tensors.items()
            for name, tensor in group.items()
        }
        for part, group in arrays.items():
            for name, array in group.items():
                flat[f"{part}.{name}"] = torch.from_numpy(array.copy(order="C"))
        replace_file(self.path / _STATE, save(flat, {"std": json.dumps(state)}))
        if self.stored is not None and store:
            segments = self.segments(state["written"]["segments"])
            frames = [self.frames] if state["written"]["part"] else []
            files = [self.path / _RUN, *segments, *frames, self.path / _STATE]
            self.stored.push(self.path, [file.name for file in files])

    def tensors_of(self, part: str) -> "dict[str, torch.Tensor]":
        """The saved tensors of a part of the run; none in a run that starts from the beginning."""
        return _part_of(self._tensors, part)

    def arrays(self, part: str) -> dict[str, NDArray[np.generic]]:
        """The saved arrays of a part of the run; none in a run that starts from the beginning."""
        return {name: tensor.numpy() for name, tensor in self.tensors_of(part).items()}

    @property
    def done(self) -> Path:
        """What the folder of a unit holds when all is done."""
        return self.path / "done.json"

    @property
    def draft(self) -> Path:
        """Where the result is made."""
        return self.path / "result.tmp"

    @property
    def frames(self) -> Path:
        """Where the frames of the part at hand are kept."""
        return self.path / "frames.raw"

    def finish(self, report: VideoFigures) -> None:
        """Note that the draft is the whole result, before it is moved; `report` is what a repeated
        command says of it."""
        self._write_run({"result": {"is": _identity(self.draft), "report": report}})

    def segment(self, number: int) -> Path:
        return self.path / f"segment-{number:05d}"

    def segments(self, count: int) -> list[Path]:
        return [self.segment(i) for i in range(count)]

    def remove(self, keep: bool = False) -> None:
        """Note that the result is in its place, so that leaving removes the folder; `keep` leaves
        it."""
        if keep:
            self._write_run({})
        else:
            (self.path / _STATE).unlink(missing_ok=True)
            self._stays = False

    def _write_run(self, more: Mapping[str, object]) -> None:
        write_run(self.path, self.run, more)

    def _empty(self) -> None:
        """Remove all but the lock and the run file; the state first, as it needs the others."""
        remove(self.path / _STATE)
        for file in list(self.path.iterdir()):
            if _OURS.fullmatch(file.name) and file.name not in (_LOCK, _RUN):
                remove(file)


def stored_arrays(folder: Path, part: str) -> dict[str, NDArray[np.generic]]:
    """The saved arrays of a part of a run, out of its folder, which no run works in. Raises
    StdError if they cannot be read."""
    try:
        _, tensors = _read_state(folder / _STATE)
    except ValueError:
        raise StdError(
            f"{folder / _STATE} is damaged: remove {folder} and run the same command again"
        ) from None
    return {name: tensor.numpy() for name, tensor in _part_of(tensors, part).items()}


def _read_state(path: Path) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """(what JSON holds, the tensors by name). Raises ValueError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["std"])
            keys = file.keys()  # it cannot be iterated itself
            return state, {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, KeyError) as e:
        raise ValueError from e


def _part_of(tensors: "dict[str, torch.Tensor]", part: str) -> "dict[str, torch.Tensor]":
    start = f"{part}."
    return {
        key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)
    }


def check_same(
    output: Path,
    before: Mapping[str, object],
    now: Mapping[str, object],
    remedy: str = "--no-resume",
) -> None:
    """Raises InputError if a run was begun with something else. remedy: the flag that starts
    over."""
    a, b = _flat(before), _flat(now)
    differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    if differing:
        key = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"{output} was begun with another {key}: {a.get(key)!r}, now "
            f"{b.get(key)!r}{more}: give the same "
            f"again to resume, or {remedy} to start over"
        )


def write_run(folder: Path, run: Mapping[str, object], more: Mapping[str, object]) -> None:
    """Write the run file: the folder belongs to std. Raises StdError if it cannot be written."""
    replace_file(folder / _RUN, json.dumps({**_MARK, "run": run, **more}, indent=1).encode())


def plan_of(output: Path) -> Path:
    """The plan file of an output that is made in units."""
    return folder_of(output) / _PLAN


def folder_of(output: Path) -> Path:
    """The work folder of an output. Raises InputError if its name cannot be used."""
    return check_path(output.with_name(f".{output.name}.std"), "-o")


def check_folder(path: Path) -> None:
    """Raises InputError if something has the name of a work folder and is none, links included."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise InputError(
            f"{path} is in the way of a work folder and is none: move it away, or choose another -o"
        )
    names = {file.name for file in path.iterdir()}
    foreign = sorted(
        name for name in names if not _OURS.fullmatch(name) or (path / name).is_symlink()
    )
    unclaimed = sorted(name for name in names - {_LOCK} if not name.startswith(".std-"))
    # a run that was killed at once has its lock only
    if not foreign and unclaimed and _read_run(path) is None:
        foreign = unclaimed
    if foreign:
        raise InputError(
            f"the folder {path} holds {foreign[0]!r}, which is not of a run that writes this "
            f"output: move the folder "
            "away, or choose another -o"
        )


def finished(output: Path) -> VideoFigures | None:
    """What is reported of an output that is the finished result of the run whose work folder is
    still next to it; None of any other."""
    kept = _read_run(folder_of(output))
    try:
        if kept is None or kept["result"]["is"] != _identity(output):
            return None
        report: VideoFigures = kept["result"]["report"]
        return report
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _read_run(folder: Path) -> dict[str, Any] | None:
    """The run file of a work folder; None if there is none, or if it does not say that the folder
    belongs to std."""
    path = folder / _RUN
    try:
        if folder.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = (
        isinstance(kept, dict)
        and kept.get("std") == _MARK["std"]
        and isinstance(kept.get("run"), dict)
    )
    return kept if ours else None


def _identity(path: Path) -> list[int]:
    """Numbers that no other file or folder has: they stay when it is renamed, and change when it
    is written to."""
    at = path.stat()
    return [at.st_ino, at.st_size, at.st_mtime_ns]


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(value, dict):
        return {name: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in _flat(inner, f"{name}.{key}" if name else key).items()
    }
