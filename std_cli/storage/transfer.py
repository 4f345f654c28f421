"""Files copied from a storage and to it: whole or not at all, and verified."""

import base64
import hashlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from std_cli.errors import InputError, OutputExists, StdError
from std_cli.paths import hidden_next_to
from std_cli.storage.remote import Stored, children, remote_errors

AT_ONCE = 8
"""Files that are copied at the same time."""
_BLOCK = 2**20
_TICK = 0.5
"""Seconds between two reports of a transfer."""

OnCopied = Callable[[int, int], None]
"""Receives (bytes done, bytes in all)."""


def get_files(
    files: Sequence[tuple[Stored, Path]], folder: Path, on_copied: OnCopied
) -> dict[Path, InputError]:
    """Copy files from a storage to paths on this machine, each whole or not at all.

    folder: on the disk of the paths. Returns the errors of files that are not there or not allowed.
    Raises StdError, before the first is copied, if the disk has no room for all.
    """
    total = sum(stored.size or 0 for stored, _ in files)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise StdError(
            f"{total / 1e9:.2f} GB are to be copied, and {free / 1e9:.2f} GB are free in "
            f"{str(folder.parent)!r}: set TMPDIR to a folder on a larger disk, or give fewer inputs"
        )
    done = 0
    failed: dict[Path, InputError] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running: dict[Future[None], tuple[Stored, Path]] = {
            pool.submit(_get, *pair): pair for pair in files
        }
        while running:
            finished, _ = wait(running, _TICK, FIRST_EXCEPTION)
            for future in finished:
                stored, path = running.pop(future)
                try:
                    future.result()
                except InputError as e:
                    failed[path] = e
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                done += stored.size or 0
            on_copied(done, total)
    return failed


def _get(stored: Stored, path: Path) -> None:
    draft = hidden_next_to(path)
    try:
        with remote_errors(stored.url):
            stored.fs.get_file(stored.path, str(draft))
            size = draft.stat().st_size
        if stored.size not in (None, size):
            raise StdError(
                f"{stored.url} has {stored.size} bytes, and {size} arrived: it was changed "
                f"meanwhile, or the connection broke; try again"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def put_file(path: Path, to: Stored, overwrite: bool) -> str:
    """Copy a file to a storage so that it appears whole under its name, or not at all; what arrived
    is compared with what was sent. Returns its SHA-256 in hex.

    Raises OutputExists if something has the name and is not to be replaced.
    """
    with remote_errors(to.url):
        to.fs.invalidate_cache(to.path)
        there = to.fs.exists(to.path)
    if there and not overwrite:
        raise OutputExists.at(to.url)
    # a file server shows a file while it grows, an object store shows it when it is complete
    first = to if to.is_object else to.next_to(f".std-{uuid.uuid4().hex}.tmp")
    try:
        with remote_errors(to.url):
            first.fs.put_file(str(path), first.path)
        sha256 = _verify(path, first, to.url)
        if first is not to:
            with remote_errors(to.url):
                if there:
                    to.fs.rm_file(to.path)
                to.fs.mv(first.path, to.path)
                to.fs.invalidate_cache(to.path)
    except BaseException:
        if first is not to:
            with suppress(Exception):  # the error that is raised says what is wrong
                first.fs.rm_file(first.path)
        raise
    return sha256


def _verify(path: Path, stored: Stored, url: str) -> str:
    """The SHA-256 of a file. Raises StdError, and removes the copy, if the storage holds anything
    else.

    A storage that states the MD5 of its content is believed; from others the copy is read back.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            md5.update(block)
    with remote_errors(url):
        stored.fs.invalidate_cache(stored.path)
        stated = stored.fs.info(stored.path)
        known = {str(stated.get("ETag", "")).strip('"'), stated.get("md5Hash")}
        if known & {md5.hexdigest(), base64.b64encode(md5.digest()).decode()}:
            return sha256.hexdigest()
        arrived = hashlib.sha256()
        with stored.fs.open(stored.path, "rb") as copy:
            while block := copy.read(_BLOCK):
                arrived.update(block)
    if arrived.digest() != sha256.digest():
        with suppress(Exception):
            stored.fs.rm_file(stored.path)
        raise StdError(
            f"{url}: what the storage holds differs from what was sent to it; it was removed: try "
            f"again"
        )
    return sha256.hexdigest()


def put_bytes(data: bytes, to: Stored) -> None:
    """Replace a small file in a storage, whole or not at all."""
    with remote_errors(to.url):
        if to.is_object:
            to.fs.pipe_file(to.path, data)
            return
        draft = to.next_to(f".std-{uuid.uuid4().hex}.tmp")
        draft.fs.pipe_file(draft.path, data)
        if to.fs.exists(to.path):
            to.fs.rm_file(to.path)
        to.fs.mv(draft.path, to.path)


def read_bytes(stored: Stored) -> bytes | None:
    """The content of a small file; None if it is not there."""
    with remote_errors(stored.url):
        stored.fs.invalidate_cache(stored.path)
        try:
            content: bytes = stored.fs.cat_file(stored.path)
        except FileNotFoundError:
            return None
    return content


def try_write(folder: Stored) -> None:
    """Try, before any work, whether files can be written to a folder and removed from it. Raises
    InputError or NetworkError."""
    probe = folder.child(f".std-{uuid.uuid4().hex}.tmp")
    with remote_errors(folder.url):
        if not folder.is_object:
            folder.fs.makedirs(folder.path, exist_ok=True)
        probe.fs.pipe_file(probe.path, b"")
        probe.fs.rm_file(probe.path)


class StoredFolder:
    """A small folder of this machine, and its copy in a storage, which another machine can continue
    from."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._there: set[str] = set()
        """Names of files that are in the storage and never change."""

    def pull(self, folder: Path, on_copied: OnCopied = lambda done, total: None) -> None:
        """Copy all files of the storage's folder to this machine's, in place of those."""
        found = children(self.stored)
        files = {name: size for name, size in found.items() if size is not None}
        left = files.keys() - {n for n in self._there if (folder / n).exists()}
        pairs = [(self.stored.child(name, files[name]), folder / name) for name in sorted(left)]
        for error in get_files(pairs, folder, on_copied).values():
            raise error
        self._there = {name for name in files if name.startswith("segment-")}

    def push(self, folder: Path, names: Sequence[str]) -> None:
        """Copy files of this machine's folder to the storage, in this order; segments, which never
        change, once."""
        for name in names:
            if name not in self._there:
                put_file(folder / name, self.stored.child(name), overwrite=True)
            if name.startswith("segment-"):
                self._there.add(name)

    def remove(self) -> None:
        """Remove the storage's folder: the state first, as it needs the others."""
        found = children(self.stored)
        self._there = set()
        with remote_errors(self.stored.url):
            for name in sorted(found, key=lambda name: (name == "run.json", "state" not in name)):
                self.stored.fs.rm(self.stored.child(name).path, recursive=found[name] is None)
            if not self.stored.is_object and found:
                self.stored.fs.rmdir(self.stored.path)
