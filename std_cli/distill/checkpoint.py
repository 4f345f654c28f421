"""Checkpoints: folders that are whole or not there, and known to be damaged when they are.

checkpoint-000500/
    adapter.safetensors     the student's LoRA, as `std stylize --lora` takes it
    training.pt             averages, discriminator, head, optimizers, scaler
                            (tensors and plain data only)
    lane-00000.pt ...       each lane's trajectory bank
    state.json              step, configuration, and every file's SHA-256
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, cast

import torch

from std_cli.errors import InputError, StdError
from std_cli.paths import FULL_DISK, writing
from std_cli.weights.fingerprints import sha256

FORMAT = 2
"""The version of what the files hold; a checkpoint of another one cannot be resumed."""
ADAPTER = "adapter.safetensors"
TRAINING = "training.pt"
_NAME = re.compile(r"checkpoint-(\d{6,})")


class CheckpointState(TypedDict):
    """state.json."""

    format: int
    version: str
    """The version of std that wrote it."""
    config: dict[str, Any]
    """{section: {key: value}}, resolved."""
    lanes: int
    """The number of lanes of all processes."""
    samples: dict[str, str]
    """Fingerprints of the data and of the style references."""
    steps: int
    """Updates of the whole run."""
    weights: dict[str, str]
    """{key of the configuration: fingerprint of the weights that it names}."""
    step: int
    """Updates done."""
    files: dict[str, str]
    """{name: SHA-256} of every other file of the checkpoint."""


def lane_name(lane: int) -> str:
    return f"lane-{lane:05d}.pt"


def folder_of(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:06d}"


def draft_of(run: Path, step: int) -> Path:
    """Where a checkpoint's files are written before it is finished."""
    return run / f".checkpoint-{step:06d}.part"


class _Noting:
    """A file to write to that remembers the system's error: torch.save raises another in its
    place."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as e:
            self.error = e
            raise

    def flush(self) -> None:
        self.file.flush()


def write_part(draft: Path, name: str, content: object) -> None:
    """One file of a draft, by torch.save: tensors and plain data, which `load_part` reads. Raises
    StdError if the disk refuses."""
    _write(draft, name, lambda file: torch.save(content, cast(BinaryIO, file)))


def write_bytes(draft: Path, name: str, content: bytes) -> None:
    """One file of a draft, as it is. Raises StdError if the disk refuses."""
    _write(draft, name, lambda file: file.write(content))


def _write(draft: Path, name: str, write: Callable[[_Noting], object]) -> None:
    noting: _Noting | None = None
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with (draft / name).open("wb") as file:
            noting = _Noting(file)
            write(noting)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as e:
        shutil.rmtree(draft, ignore_errors=True)
        cause = e if isinstance(e, OSError) else (noting and noting.error) or e
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        full = isinstance(cause, OSError) and cause.errno in FULL_DISK
        raise StdError(
            f"{'disk full while writing' if full else 'cannot write'} a checkpoint to "
            f"{draft.parent} ({reason}): free some space and run again; the last checkpoint is "
            "intact"
        ) from e


def finish(run: Path, state: CheckpointState) -> Path:
    """Turn the draft of state["step"] into a checkpoint; its "files" are filled in here."""
    draft = draft_of(run, state["step"])
    folder = folder_of(run, state["step"])
    files = {f.name: sha256(f) for f in sorted(draft.iterdir()) if f.name != "state.json"}
    whole: CheckpointState = {**state, "files": files}
    write_bytes(draft, "state.json", json.dumps(whole, indent=1).encode())
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    return folder


def remove_drafts(run: Path) -> None:
    """Remove unfinished checkpoints, which a killed run left."""
    for draft in run.glob(".checkpoint-*.part"):
        shutil.rmtree(draft, ignore_errors=True)


def steps_of(run: Path) -> list[int]:
    """The steps of all checkpoints in a run's folder, ascending."""
    found = (_NAME.fullmatch(f.name) for f in run.iterdir() if f.is_dir()) if run.is_dir() else ()
    return sorted(int(m[1]) for m in found if m)


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest and those whose step is a multiple of `keep_every`."""
    for step in steps_of(run)[:-keep_last]:
        if not keep_every or step % keep_every:
            shutil.rmtree(folder_of(run, step), ignore_errors=True)


def newest(run: Path) -> Iterator[tuple[Path, CheckpointState | None]]:
    """(folder, its state, or None if it is damaged) of every checkpoint, the newest first."""
    for step in reversed(steps_of(run)):
        folder = folder_of(run, step)
        yield folder, read_state(folder)


def read_state(folder: Path) -> CheckpointState | None:
    """What state.json says, if it names every file of a checkpoint and each is there as it was
    written; else None."""
    try:
        state: CheckpointState = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = state["files"]
        complete = {ADAPTER, TRAINING, *map(lane_name, range(state["lanes"]))} <= files.keys()
        good = complete and all(sha256(folder / name) == digest for name, digest in files.items())
        typed = isinstance(state["step"], int) and isinstance(state["config"], dict)
        return state if good and typed else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def load_part(folder: Path, name: str) -> Any:
    """A file that `write_part` wrote; nothing in it is run."""
    try:
        return torch.load(folder / name, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as e:
        raise InputError(f"{folder / name} is damaged: resume from another checkpoint") from e
