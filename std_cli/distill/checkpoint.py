"""Checkpoints: folders that are whole or not there, and known to be damaged when they are.

checkpoint-000500/
    adapter.safetensors     the student's LoRA, as `std stylize --lora` takes it
    training.pt             averages, discriminator, head, optimizers, scaler (tensors and plain
    data only) lane-00000.pt ...       each lane's trajectory bank
    state.json              step, configuration, and every file's SHA-256
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from std_cli.errors import InputError, StdError
from std_cli.paths import FULL_DISK, writing

FORMAT = 2
"""Of what the files hold; a checkpoint of another one cannot be resumed."""
ADAPTER, TRAINING = "adapter.safetensors", "training.pt"
_NAME = re.compile(r"checkpoint-(\d{6,})")


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


def write_part(draft: Path, name: str, content: Any) -> None:
    """One file of a draft: bytes as they are, all else by torch.save. Raises StdError if the disk
    refuses."""
    noting: _Noting | None = None
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with (draft / name).open("wb") as file:
            noting = _Noting(file)
            if isinstance(content, bytes):
                noting.write(content)
            else:
                torch.save(content, cast(BinaryIO, noting))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as e:
        shutil.rmtree(draft, ignore_errors=True)
        cause = e if isinstance(e, OSError) else (noting and noting.error) or e
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        full = isinstance(cause, OSError) and cause.errno in FULL_DISK
        raise StdError(
            f"{'disk full while writing' if full else 'cannot write'} a checkpoint to "
            f"{draft.parent} ({reason}): free "
            "some space and run again; the last checkpoint is intact"
        ) from e


def finish(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Turn a draft into a checkpoint."""
    draft, folder = draft_of(run, step), folder_of(run, step)
    state = {"format": FORMAT} | state
    files = {f.name: _sha256(f) for f in sorted(draft.iterdir()) if f.name != "state.json"}
    write_part(
        draft, "state.json", json.dumps(state | {"step": step, "files": files}, indent=1).encode()
    )
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    return folder


def remove_drafts(run: Path) -> None:
    """Remove what a killed run left of checkpoints that it was writing."""
    for draft in run.glob(".checkpoint-*.part"):
        shutil.rmtree(draft, ignore_errors=True)


def steps_of(run: Path) -> list[int]:
    """The steps that there are checkpoints of, ascending."""
    found = (_NAME.fullmatch(f.name) for f in run.iterdir() if f.is_dir()) if run.is_dir() else ()
    return sorted(int(m[1]) for m in found if m)


def prune(run: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the newest and those whose step is a multiple of `keep_every`."""
    for step in steps_of(run)[:-keep_last]:
        if not keep_every or step % keep_every:
            shutil.rmtree(folder_of(run, step), ignore_errors=True)


def newest(run: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """(folder, its state, None if it is damaged), the newest first."""
    for step in reversed(steps_of(run)):
        folder = folder_of(run, step)
        yield folder, read_state(folder)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What state.json says, if it names every file of a checkpoint and each is there as it was
    written; else None."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files: dict[str, str] = state["files"]
        complete = {ADAPTER, TRAINING, *map(lane_name, range(state["lanes"]))} <= files.keys()
        good = complete and all(_sha256(folder / name) == digest for name, digest in files.items())
        return (
            state
            if good and isinstance(state["step"], int) and isinstance(state["config"], dict)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def load_part(folder: Path, name: str) -> Any:
    """A file that `write_part` wrote; nothing in it is run."""
    try:
        return torch.load(folder / name, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as e:
        raise InputError(f"{folder / name} is damaged: resume from another checkpoint") from e


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
