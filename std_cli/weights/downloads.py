"""Fetching from the Hub with what a person wants to see: sizes beforehand, progress, retries, and
hashes checked.

huggingface_hub asks the Hub (it knows HF_TOKEN, HF_ENDPOINT and proxies), and models are kept in
its cache. This module adds what it does not do: room on the disk is checked first, a file must be
what the Hub says, and the download of a large file resumes where an earlier process was stopped
(version 2 of huggingface_hub starts again), for which it is fetched by HTTP, not by Xet.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from std_cli.errors import InputError, NetworkError, StdError
from std_cli.paths import writing
from std_cli.weights.files import file_names, read_header
from std_cli.weights.fingerprints import sha256
from std_cli.weights.hub import (
    HubRepo,
    cached_folder,
    hub_errors,
    if_moved,
    unreachable,
    why_offline,
)
from std_cli.weights.sdxl_files import wanted_files
from std_cli.weights.web_files import WebFile
from std_cli.weights.zoo import corrections_file

T = TypeVar("T")
PARALLEL = 4  # files at once
PAUSES = (0.5, 2, 8)  # seconds, before trying again what the Hub could not answer


@dataclass(frozen=True)
class HubFile:
    """A file on the Hub."""

    source: HubRepo
    name: str
    size: int
    """Bytes."""
    digest: str
    """SHA-256 where it is a large file, else git's SHA-1 of a blob; "" if the Hub does not say."""


def list_files(source: HubRepo) -> list[HubFile]:
    """What is to be downloaded of a repository, by the Hub. Raises InputError if it has not all,
    StdError off-line."""
    from huggingface_hub import HfApi

    if why := why_offline():
        raise unreachable([source], why)
    with hub_errors(source, [source]):
        info = _patiently(
            lambda: HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
        )
    found = {f.rfilename: f for f in info.siblings or ()}
    if absent := [name for name in source.files if name not in found]:
        raise InputError(
            f"{source.repo} on the Hub (revision {source.revision}) lacks "
            f"{', '.join(absent)}{if_moved(source)}"
        )
    names = source.files or wanted_files(set(found))
    return [
        HubFile(source, n, f.size or 0, (f.lfs.sha256 if f.lfs else f.blob_id) or "")
        for n in names
        for f in (found[n],)
    ]


def download(files: list[HubFile], on_bytes: Callable[[int, int], None]) -> None:
    """Bring files into the cache, several at once; `on_bytes` gets (bytes done, bytes in all), from
    any thread.

    Raises StdError if there is no room, if the Hub fails again and again, or if a file is not what
    the Hub says.
    """
    total = sum(f.size for f in files)
    done = 0
    lock = threading.Lock()
    check_room(total - sum(_part_of(f).stat().st_size for f in files if _part_of(f).is_file()))
    stopped = threading.Event()

    def count(more: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise KeyboardInterrupt  # ends the thread: it would download on otherwise
        with lock:
            done = min(done + more, total)
            on_bytes(done, total)

    with ThreadPoolExecutor(PARALLEL) as pool:
        running = [pool.submit(_download, file, count) for file in files]
        try:
            for each in running:
                each.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def check_room(size: int, place: Path | None = None) -> None:
    """Raises StdError unless `size` bytes and a little more fit where the cache is, or in
    `place`."""
    from huggingface_hub import constants

    variable = "XDG_CACHE_HOME" if place else "HF_HOME"
    place = place or Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size * 1.02 > free:
        raise StdError(
            f"the download takes {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left: "
            f"free some, or set {variable}"
        )


def _download(file: HubFile, count: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_download

    source, bar = file.source, _bar(count)
    with hub_errors(source, [source]):
        if len(file.digest) == 64:
            _bring(file, count, bar)
        path = Path(
            _patiently(
                lambda: hf_hub_download(
                    source.repo, file.name, revision=source.revision, tqdm_class=bar
                )
            )
        )
    if len(file.digest) == 40 and not _is(path, file.digest):
        discard(path)
        raise _damaged(file)


def _bar(count: Callable[[int], None]) -> Any:
    """A progress bar of huggingface_hub's that only counts: nothing is drawn."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Count(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            count(int(n or 0))
            return None

    return Count


def _bring(file: HubFile, count: Callable[[int], None], bar: Any) -> None:
    """Put what a large file links to into the cache, where huggingface_hub finds it; only what is
    missing is asked for.

    Raises StdError if it is not what the Hub says; then nothing of it is kept.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    part = _part_of(file)
    blob = part.with_name(file.digest)
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / part.parts[-3]
    for folder in (part.parent, lock):
        folder.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(file.source.repo, file.name, revision=file.source.revision)

    def get() -> None:
        with part.open("ab") as target:
            if target.tell() > file.size:
                target.truncate(0)
            http_get(
                url,
                target,
                resume_size=target.tell(),
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=file.size,
                tqdm_class=bar,
            )
            target.flush()
            os.fsync(target.fileno())

    with WeakFileLock(lock / f"{file.digest}.lock"):
        if blob.exists():
            return
        count(part.stat().st_size if part.exists() else 0)
        _patiently(get)
        if not _is(part, file.digest):
            part.unlink()
            raise _damaged(file)
        part.rename(blob)


def _part_of(file: HubFile) -> Path:
    """Where the cache keeps what is here of a large file."""
    from huggingface_hub import constants

    repo = f"models--{file.source.repo.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / repo / "blobs" / f"{file.digest}.incomplete"


def _damaged(file: HubFile) -> NetworkError:
    return NetworkError(
        f"{file.source.repo}: {file.name} arrived damaged (its hash is not the Hub's): run the "
        f"command again"
    )


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again, after a pause, what the Hub could not answer (5xx)."""
    from huggingface_hub.errors import HfHubHTTPError

    for pause in PAUSES:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            time.sleep(pause)
    return ask()


# --- files that are not on the Hub -------------------------------------------------------------


def download_web_file(file: WebFile, on_bytes: Callable[[int, int], None]) -> None:
    """Bring a file to its place; `on_bytes` gets (bytes done, bytes in all). What an earlier try
    brought is kept, where the server can send the rest.

    Raises NotDownloaded off-line; StdError if the server fails, or if the file is not the one that
    the table knows by its hash. Then nothing of it is kept.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    if why := why_offline():
        raise file.unreachable(why)
    part = file.path.with_name(f"{file.name}.incomplete")
    with writing(file.path):
        part.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(part.with_name(".lock")):
            if file.path.is_file():
                return
            with _web_errors(file):
                _get_web_file(file, part, on_bytes)
            if not _is(part, file.sha256):
                part.unlink()
                raise NetworkError(
                    f"{file.url} arrived damaged, or is another file now (its hash is not the "
                    f"table's): run the command again"
                )
            part.rename(file.path)


def _get_web_file(file: WebFile, part: Path, on_bytes: Callable[[int, int], None]) -> None:
    from huggingface_hub import get_session
    from huggingface_hub.file_download import http_get

    head = get_session().head(file.url, follow_redirects=True, timeout=10)
    total = int(head.headers.get("Content-Length", 0)) if head.is_success else 0
    done = part.stat().st_size if part.exists() else 0
    if total:
        check_room(total - done, part.parent)

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_bytes(done, max(done, total))

    def get() -> None:
        with part.open("ab") as target:
            http_get(file.url, target, resume_size=target.tell(), tqdm_class=_bar(count))
            target.flush()
            os.fsync(target.fileno())

    if not total or done != total:
        _patiently(get)


@contextmanager
def _web_errors(file: WebFile) -> Iterator[None]:
    """Say what an exception of huggingface_hub means for a file that is elsewhere."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise NetworkError(
            f"the server of {file.model} answered {error.response.status_code} about {file.url}: "
            f"try again later; if the file has moved, correct [models.{file.model}] in "
            f"{corrections_file()}"
        ) from error
    except (errors.HTTPError, ConnectionError) as error:  # type: ignore[attr-defined]  # httpx's
        raise file.unreachable("its server cannot be reached") from error


# --- what is in the cache ----------------------------------------------------------------------


def files_here(source: HubRepo) -> dict[str, Path]:
    """{name: path} of a repository's files in the cache, if all that is needed is there, else
    {}."""
    folder = cached_folder(source)
    if folder is None:
        return {}
    names = source.files or tuple(sorted(file_names(folder, depth=3)))
    return {name: folder / name for name in names}


def problems(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of every file that is not what was downloaded, or whose safetensors
    header is damaged."""
    for name, path in files.items():
        # the Hub's cache names files by their hash, and links to them; ours names their folders
        digest = next(
            (n for n in (path.resolve().name, path.parent.name) if len(n) in (40, 64)), ""
        )
        if len(digest) in (40, 64) and not _is(path, digest):
            yield name, "its hash is wrong"
        elif path.suffix == ".safetensors":
            try:
                read_header(path)
            except InputError:
                yield name, "its header is damaged"


def discard(path: Path) -> int:
    """Delete a file of the cache, and what it links to; bytes freed."""
    blob = path.resolve()
    size = blob.stat().st_size if blob.exists() else 0
    path.unlink(missing_ok=True)
    if blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)
    return size


def tidy(folder: Path) -> None:
    """Delete the folders of a snapshot that are empty, and the repository's own if nothing is left
    in it."""
    repo = folder.parents[1]  # models--owner--name/snapshots/COMMIT
    for inside in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        with suppress(OSError):
            inside.rmdir()
    with suppress(OSError):
        folder.rmdir()
    if (
        repo.name.startswith("models--")
        and repo.is_dir()
        and not any((repo / "snapshots").iterdir())
    ):
        shutil.rmtree(repo)


def _is(path: Path, digest: str) -> bool:
    """Whether a file has this SHA-256 (64 digits), or this SHA-1 as git takes it of a blob (40)."""
    if len(digest) == 64:
        return sha256(path) == digest
    with path.open("rb") as file:
        hashed = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        while block := file.read(2**20):
            hashed.update(block)
        return hashed.hexdigest() == digest
