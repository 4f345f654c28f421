"""The work folder of units in a storage: what is copied there and from there.

A bucket has no locks. The plan file is written by whoever finds the units, each time the same; a
unit's folder is written by its worker alone, its record last of all. Nothing is done for outputs of
this machine.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from std_cli.paths import replace_file
from std_cli.storage.remote import matching
from std_cli.storage.scratch import Scratch
from std_cli.storage.transfer import get_files
from std_cli.stylize.work_folder import folder_of, plan_of

RECORD = "done.json"


def pull_plan(output: Path, scratch: Scratch) -> None:
    """Copy the plan file of an output, and the records of its units, to this machine."""
    folder = folder_of(output)
    stored = scratch.work_folder(folder)
    if stored is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stored.pull(folder)
    pull_records(output, scratch)


def push_plan(output: Path, scratch: Scratch, resume: bool) -> None:
    """Copy the plan file of an output to its storage; not `resume`: in place of all that is
    there."""
    folder = folder_of(output)
    stored = scratch.work_folder(folder)
    if stored is None:
        return
    if not resume:
        stored.remove()
    stored.push(folder, ["run.json", plan_of(output).name])


def pull_records(output: Path, scratch: Scratch) -> None:
    """Copy the records of all units that are done to this machine, from one listing."""
    folder = folder_of(output) / "units"
    stored = scratch.work_folder(folder)
    if stored is None:
        return
    root, found = matching(stored.stored.child(f"*/{RECORD}"))
    pairs = [(root.child(name, size), folder / name) for name, size in found.items()]
    pairs = [(record, path) for record, path in pairs if not path.exists()]
    for _, path in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
    for error in get_files(pairs, scratch.folder, lambda done, total: None).values():
        raise error


def pull_folder(folder: Path, scratch: Scratch) -> None:
    """Copy all files of a folder to this machine."""
    stored = scratch.work_folder(folder)
    if stored is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stored.pull(folder)


def push_files(folder: Path, names: Sequence[str], scratch: Scratch) -> None:
    """Copy files of a folder to its storage, in this order."""
    stored = scratch.work_folder(folder)
    if stored is not None:
        stored.push(folder, names)


def remove_stored(folder: Path, scratch: Scratch) -> None:
    """Remove a work folder from its storage."""
    stored = scratch.work_folder(folder)
    if stored is not None:
        stored.remove()


def keep_manifest(
    folder: Path,
    who: Mapping[str, object],
    units: Sequence[str],
    failed: Mapping[str, str],
    scratch: Scratch,
) -> None:
    """Write what became of units in an attempt, a file for each attempt in the work folder
    `folder`. who: what made them."""
    attempts = folder / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    kept = {**who, "units": list(units), "failed": dict(failed)}
    name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
    replace_file(attempts / name, json.dumps(kept, indent=1).encode())
    push_files(attempts, [name], scratch)
