"""What `std models` calls: list, download, verify and remove the models of the table."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from std_cli.errors import InputError, StdError
from std_cli.events import Model, OnEvent, Pulled, Removed, Verified
from std_cli.weights import downloads
from std_cli.weights.hub import source
from std_cli.weights.resolve import TINY
from std_cli.weights.web_files import web_file
from std_cli.weights.zoo import ModelEntry, TaskName, find_entry, std_lora, zoo


def list_models() -> list[Model]:
    """A `model` event of each, the embedded one first."""
    return [_embedded(), *(_describe(entry) for entry in zoo().models.values())]


def _embedded() -> Model:
    size = sum(file.stat().st_size for file in files_of("tiny").values())
    return {
        "event": "model",
        "name": "tiny",
        "title": "the embedded miniature model",
        "kind": "base",
        "repo": "",
        "revision": "",
        "gb": round(size / 1e9, 3),
        "licence": "apache-2.0",
        "checked": True,
        "note": "part of the package",
        "here": True,
        "path": str(TINY),
        "needed_by": [],
    }


def _describe(entry: ModelEntry) -> Model:
    here = files_here(entry.name)
    tasks = [task for task, names in zoo().tasks.items() if entry.name in names]
    if entry.method == "std":
        tasks.append("image" if entry.task == "i2i" else "video")
    return {
        "event": "model",
        "name": entry.name,
        "title": entry.title,
        "kind": entry.kind,
        "repo": entry.repo,
        "revision": entry.revision,
        "gb": entry.gb,
        "licence": entry.licence,
        "checked": entry.checked,
        "note": entry.note,
        "here": bool(here),
        "path": _place(here) if here else None,
        "needed_by": tasks,
    }


def needed(task: TaskName, eta: float = 0.75) -> list[str]:
    """The names of what a task needs; for pictures and videos with the STD LoRA nearest to
    `eta`."""
    loras = {"image": ("i2i",), "video": ("v2v",)}.get(task, ())
    return [*zoo().tasks[task], *(std_lora(kind, eta).name for kind in loras)]  # type: ignore[arg-type]


def pull(names: Sequence[str], *, on_event: OnEvent = lambda event: None) -> list[Pulled]:
    """Bring models into the cache, those that are not there; returns the `pulled` events.

    Raises InputError for an unknown name; StdError if the Hub, another server or the disk fails.
    """
    names = list(dict.fromkeys(names))
    of_web = {name: file for name in names if name != "tiny" and (file := web_file(name))}
    of_hub = {name: source(name) for name in names if name != "tiny" and name not in of_web}
    missing = {
        name: downloads.list_files(s) for name, s in of_hub.items() if not downloads.files_here(s)
    }
    sizes = {name: sum(f.size for f in files) for name, files in missing.items()}
    files = list(
        {
            (f.source.repo, f.source.revision, f.name): f for fs in missing.values() for f in fs
        }.values()
    )
    reported = 0.0

    def on_bytes(done: int, total: int) -> None:
        nonlocal reported
        if done == total or time.monotonic() - reported > 0.2:
            reported = time.monotonic()
            on_event({"event": "progress", "stage": "pull", "done": done, "total": total})

    if files:
        downloads.download(files, on_bytes)
    for name, file in of_web.items():
        if not file.path.is_file():
            downloads.download_web_file(file, on_bytes)
            sizes[name] = file.path.stat().st_size
    results: list[Pulled] = []
    for name in names:
        here = {name: TINY} if name == "tiny" else files_here(name)
        if not here:
            raise StdError(
                f"{name} is not whole in the cache although it was downloaded: run std models "
                f"verify {name}"
            )
        place = str(TINY) if name == "tiny" else _place(here)
        pulled: Pulled = {
            "event": "pulled",
            "name": name,
            "path": place,
            "bytes": sizes.get(name, 0),
        }
        results.append(pulled)
        on_event(pulled)
    return results


def path_of(name: str) -> str:
    """Where a model is: its file, or the folder of several. Raises InputError if it is not here."""
    return str(TINY) if name == "tiny" else _place(files_of(name))


def verify(
    names: Sequence[str] = (), *, repair: bool = False, on_event: OnEvent = lambda event: None
) -> list[Verified]:
    """Check the hashes and headers of models, of all that are here if none is named; returns the
    `verified` events.

    `repair` fetches again what is damaged. Raises StdError if something is damaged and stays so.
    """
    wanted = list(names) or [name for name in zoo().models if files_here(name)]
    if not wanted:
        message = "nothing to verify: no downloaded model is here (std models pull gets some)"
        on_event({"event": "notice", "message": message})
    results: list[Verified] = []
    damaged: dict[str, list[Path]] = {}
    for name in wanted:
        here = files_of(name)
        wrong = dict(downloads.problems(here))
        results.append(
            {
                "event": "verified",
                "name": name,
                "files": len(here),
                "problems": [f"{f}: {w}" for f, w in wrong.items()],
            }
        )
        on_event(results[-1])
        if wrong:
            damaged[name] = [here[file] for file in wrong]
    if "tiny" in damaged:
        raise StdError("tiny is damaged, and it is part of the package: install std again")
    if damaged and repair:
        for name in damaged:
            if web_file(name) is None:  # the Hub must have them, before anything is deleted
                downloads.list_files(source(name))
        for path in {path for paths in damaged.values() for path in paths}:
            downloads.discard(path)
        pull(list(damaged), on_event=on_event)
    elif damaged:
        raise StdError(
            f"{', '.join(damaged)}: damaged: std models verify --repair {' '.join(damaged)} "
            f"fetches it again"
        )
    return results


def remove(names: Sequence[str], *, on_event: OnEvent = lambda event: None) -> list[Removed]:
    """Delete models from the cache, but for files that another one that is here needs, too; the
    `removed` events.

    Raises InputError if one of them is not here; then none is deleted.
    """
    if "tiny" in names:
        raise InputError("tiny is part of the package: it cannot be removed")
    found = {name: files_of(name, "there is nothing to remove") for name in names}
    results = []
    for name, here in found.items():
        others = [
            e
            for e in zoo().models.values()
            if e.repo == find_entry(name).repo and e.name not in names
        ]
        kept = {path for e in others for path in files_here(e.name).values()}
        freed = sum(downloads.discard(path) for path in here.values() if path not in kept)
        if web_file(name) is None:
            downloads.tidy(_folder(here))
        else:
            shutil.rmtree(_folder(here), ignore_errors=True)
        removed: Removed = {"event": "removed", "name": name, "bytes": freed}
        results.append(removed)
        on_event(removed)
    return results


def files_of(name: str, remedy: str = "") -> dict[str, Path]:
    """{file name: path} of a model that is here. Raises InputError, with the remedy, if it is
    not."""
    if name == "tiny":
        return {f.relative_to(TINY).as_posix(): f for f in sorted(TINY.rglob("*")) if f.is_file()}
    here = files_here(name)
    if not here:
        raise InputError(f"{name} is not here: {remedy or f'run std models pull {name}'}")
    return here


def files_here(name: str) -> dict[str, Path]:
    """{file name: path} of a model of the table if all of it is here, else {}."""
    file = web_file(name)
    if file is None:
        return downloads.files_here(source(name))
    return {file.name: file.path} if file.path.is_file() else {}


def _folder(here: dict[str, Path]) -> Path:
    """The snapshot that the files of a model are in."""
    first = next(iter(here))
    return here[first].parents[first.count("/")]


def _place(here: dict[str, Path]) -> str:
    """A model's only file, or the folder of several."""
    return str(next(iter(here.values())) if len(here) == 1 else _folder(here))
