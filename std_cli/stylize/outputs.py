"""Where results go: a name for each input, never onto what the request reads."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from std_cli.errors import InputError, OutputExists
from std_cli.paths import check_path

Existing = Literal["refuse", "replace", "skip", "note"]
"""What becomes of an output that exists: an error, replaced, its input is skipped, or, in a plan, a
note."""


def existing_rule(overwrite: bool, skip_existing: bool) -> Existing:
    """What the options say of outputs that exist. Raises InputError if both are given."""
    if overwrite and skip_existing:
        raise InputError("--overwrite and --skip-existing contradict each other: give one of them")
    return "replace" if overwrite else "skip" if skip_existing else "refuse"


def exists_already(target: Path) -> OutputExists:
    """The error for an output that exists."""
    return OutputExists(
        f"output {str(target)!r} exists; pass --overwrite to replace it, --skip-existing to leave "
        f"it, or name another"
    )


def existing_notice(there: Sequence[Path], existing: Existing) -> str:
    """What is said of outputs that exist where they are skipped, or of a plan."""
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    then = "skipped" if existing == "skip" else "the run needs --overwrite or --skip-existing"
    verb = "exists" if len(there) == 1 else "exist"
    return f"output {str(there[0])!r}{more} {verb}: {then}"


def distinct_targets(
    sources: Sequence[Path], target_of: Callable[[Path, str], Path], notices: list[str]
) -> list[Path]:
    """An output for each source, all different. Raises InputError for a name that is too long.

    target_of: the output of a source, by the name that its result is called after. It is the
    source's name without its suffix. Where several sources would share an output, it is the name
    with the suffix, then with the folder's name as well, then with a number; `notices` says so. A
    name does not depend on which other outputs exist.
    """
    names = [path.stem for path in sources]

    def targets() -> list[Path]:
        return [target_of(path, name) for path, name in zip(sources, names, strict=True)]

    plain = targets()
    for longer in (_with_suffix, _with_folder):
        found = targets()
        counts = Counter(found)
        names = [
            longer(path) if counts[target] > 1 else name
            for path, name, target in zip(sources, names, found, strict=True)
        ]
    taken: set[Path] = set()
    for i, target in enumerate(targets()):
        name, number = names[i], 1
        while target in taken:
            number += 1
            names[i] = f"{name}_{number}"
            target = target_of(sources[i], names[i])
        taken.add(target)
    found = [check_path(target, "-o") for target in targets()]
    _report(sources, plain, found, notices)
    return found


def _with_suffix(path: Path) -> str:
    return path.name.replace(".", "_")


def _with_folder(path: Path) -> str:
    return f"{path.absolute().parent.name}_{_with_suffix(path)}"


def _report(
    sources: Sequence[Path], plain: list[Path], found: list[Path], notices: list[str]
) -> None:
    renamed = [i for i, target in enumerate(found) if target != plain[i]]
    if renamed:
        shown = " and ".join(f"{sources[i].name} to {found[i].name}" for i in renamed[:2])
        more = f" (and {len(renamed) - 2} more)" if len(renamed) > 2 else ""
        notices.append(
            f"inputs of one name are written to outputs of different names: {shown}{more}"
        )


def check_outputs(targets: Iterable[Path], folder: Path | None, read: Iterable[Path]) -> None:
    """Refuse outputs that must not be replaced, whatever --overwrite says. Raises InputError.

    They are what the request reads (inputs, style references and the like), by whichever name or
    link; a folder that holds any of that; and what is neither a file nor a folder.
    folder: that the targets are in, where it was named.
    """
    if folder is not None and folder.exists():
        _check_kind(folder)
    sources = {identity(path): path for path in read if path.exists()}
    folders = {folder for path in sources.values() for folder in path.resolve().parents}
    for target in targets:
        name = repr(str(target))
        if not target.exists():  # nothing that could be replaced
            continue
        _check_kind(target)
        if source := sources.get(identity(target)):
            raise InputError(f"output {name} is {_what(source, target)}: name another file")
        if target.is_dir() and target.resolve() in folders:
            inside = next(p for p in sources.values() if target.resolve() in p.resolve().parents)
            raise InputError(f"output {name} is a folder that holds the input {str(inside)!r}")


def _check_kind(path: Path) -> None:
    if not path.is_file() and not path.is_dir():
        raise InputError(
            f"output {str(path)!r} is a device, a pipe or a socket: name a file, or -o - for a "
            f"picture on standard output"
        )


def _what(source: Path, target: Path) -> str:
    return (
        "an input" if str(source) == str(target) else f"the same file as the input {str(source)!r}"
    )


def identity(path: Path) -> tuple[int, int]:
    """What all names of a file or folder have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
