"""The work folder of units in a storage: what is copied there and from there.

A bucket has no locks. The plan file is written by whoever finds the units, each time the same; a
unit's folder is written by its worker alone, its record last of all. Nothing is done for outputs of
this machine.
"""

from pathlib import Path

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


def pull_unit(folder: Path, scratch: Scratch) -> None:
    """Copy all files of a unit to this machine."""
    stored = scratch.work_folder(folder)
    if stored is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stored.pull(folder)


def remove_all(output: Path, scratch: Scratch) -> None:
    """Remove the work folder of an output from its storage."""
    stored = scratch.work_folder(folder_of(output))
    if stored is not None:
        stored.remove()
