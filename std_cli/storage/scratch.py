"""The files of a storage that a request names, as files of this machine.

A request with URLs works on a scratch folder that mirrors them: s3://bucket/in/a.png is
SCRATCH/s3/bucket/in/a.png. At first such a file is empty, so that names, folders and patterns are
looked up as on any disk, from one listing for each folder; `fetch` fills those that are read. What
the request writes is put to the storage with `put`. Everything said of these files, in events,
messages and records, names their URLs, without user, password and query.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from std_cli.errors import InputError, OutputExists, StdError, redacted
from std_cli.events import Event, OnEvent
from std_cli.paths import check_path, draft, is_url, names_folder, remove, remove_stale_drafts
from std_cli.storage.remote import (
    WEB,
    Stored,
    children,
    kind_of,
    matching,
    open_url,
    remote_errors,
)
from std_cli.storage.transfer import StoredFolder, get_files, put_file, try_write

_LISTED = 16
"""Files of one folder that are named, from which on the folder is listed in place of a look-up of
each."""


class Scratch:
    """The scratch folder of one request; use it as a context manager, which removes it.

    A request without URLs makes none, and every method returns what it is given.
    """

    def __init__(self, on_event: OnEvent = lambda event: None) -> None:
        """on_event: receives the progress of what is copied."""
        self._on_event = on_event
        self._stack = ExitStack()
        self._entered = False
        self._root: Path | None = None
        self._stored: dict[Path, Stored] = {}
        """What files and folders here stand for."""
        self._empty: set[Path] = set()
        """Files whose content was not copied."""
        self._unread: dict[Path, InputError] = {}
        """Files that could not be copied."""
        self._output: tuple[Path, Stored] | None = None
        """What -o names, here and in its storage."""

    def __enter__(self) -> Self:
        self._entered = True
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        if isinstance(error, StdError):
            error.args = (self.in_urls(str(error)),)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Inside, errors name URLs, as they do when the scratch folder is left."""
        try:
            yield
        except StdError as e:
            e.args = (self.in_urls(str(e)),)
            raise

    # --- names ---

    def inputs(self, items: Any) -> Any:
        """The inputs of a request with local names in place of URLs.

        Raises InputError or NetworkError for a storage that cannot be listed.
        """
        if isinstance(items, str):
            return self._input(items) if is_url(items) else items
        if not isinstance(items, list | tuple) or not any(map(is_url, items)):
            return items
        self._list_folders([item for item in items if is_url(item)])
        return [self._input(item) if is_url(item) else item for item in items]

    def style(self, style: Any) -> Any:
        """The references of a request, each with its weight, with local names in place of URLs."""
        if isinstance(style, list):
            return [self._reference(item) for item in style]
        return self._reference(style)

    def output(self, given: Any, try_it: bool) -> Any:
        """An output of a request with a local name in place of a URL. What is there already has an
        empty file or folder here.

        try_it: write an empty file next to it, and remove it. Raises InputError or NetworkError.
        """
        if not isinstance(given, str) or not is_url(given):
            return given
        local, stored = self._stand_in(given, "-o")
        if stored is None:
            return str(local)
        if stored.scheme in WEB:
            raise InputError(
                f"-o {stored.url}: nothing can be written to {stored.scheme}; name a folder, or "
                f"another storage"
            )
        self._output = local, stored
        kind, size = kind_of(stored)
        a_folder = kind == "directory" or names_folder(given)
        if try_it:
            is_folder = a_folder or not local.suffix
            try_write(stored if is_folder else stored.next_to(""))
        local.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file" and not a_folder:
            self._touch(local, stored)
        elif kind == "directory":
            local.mkdir(exist_ok=True)
            for name, size in children(stored).items():
                self._mirror(local / name, stored.child(name, size))
        return f"{local}/" if names_folder(given) else str(local)

    def _input(self, url: str) -> str:
        local, stored = self._stand_in(url, "input")
        if stored is None or local in self._stored:
            return str(local)
        kind, size = kind_of(stored)
        if kind == "file":
            self._touch(local, Stored(stored.fs, stored.path, stored.url, size))
        elif kind == "directory":
            local.mkdir(parents=True, exist_ok=True)
            for name, size in children(stored).items():
                self._mirror(local / name, stored.child(name, size))
        elif set("*?[") & set(stored.path) and stored.scheme not in WEB:
            root, found = matching(stored)
            folder = self._local(root.url)
            for name, size in found.items():
                self._mirror(folder / name, root.child(name, size))
        return str(local)

    def _reference(self, item: Any) -> Any:
        if isinstance(item, tuple) and len(item) == 2 and is_url(item[0]):
            return self._input(item[0]), item[1]
        if not is_url(item):
            return item
        name, _, weight = item.rpartition(":")
        if is_url(name) and _is_number(weight) and not self._is_there(item):
            return self._input(name), float(weight)
        return Path(self._input(item)), 1.0

    def _is_there(self, url: str) -> bool:
        _, stored = self._stand_in(url, "--style")
        return stored is not None and kind_of(stored)[0] == "file"

    def _list_folders(self, urls: Sequence[str]) -> None:
        """List the folders of which many files are named, once each."""
        named: dict[str, list[str]] = {}
        for url in urls:
            if _scheme(url) not in WEB:
                named.setdefault(url.rpartition("/")[0], []).append(url)
        for folder, files in named.items():
            if len(files) < _LISTED or folder.endswith("/"):
                continue
            _, stored = self._stand_in(folder, "input")
            found = children(stored) if stored is not None else {}
            for url in files:
                name = url.rpartition("/")[2]
                if stored is not None and (size := found.get(name)) is not None:
                    self._touch(self._local(url), stored.child(name, size))

    def _stand_in(self, url: str, what: str) -> tuple[Path, Stored | None]:
        """The name here of what a URL names; None for a file of this machine, which needs none."""
        if _scheme(url) in ("file", "local"):
            return Path(url2pathname(urlsplit(url).path)), None
        stored = open_url(url, what)
        local = check_path(self._local(url), what)
        before = self._stored.get(local)
        if before is not None and before.path != stored.path:
            raise InputError(f"{what} {stored.url}: two URLs that differ in their query: give one")
        return local, stored

    def _local(self, url: str) -> Path:
        scheme, _, place = url.partition("://")
        if scheme in WEB:
            place = re.split("[?#]", place)[0]
        server, *names = place.split("/")
        if {".", ".."} & {server, *names}:
            raise InputError(f"{url}: '.' and '..' name no file there; leave them out")
        return self.folder.joinpath(scheme, server.rpartition("@")[2], *filter(None, names))

    @property
    def folder(self) -> Path:
        """The scratch folder itself. Raises InputError where URLs cannot be used."""
        if not self._entered:
            raise InputError("a URL cannot be used here; give paths on this machine")
        if self._root is None:
            place = Path(tempfile.gettempdir())
            remove_stale_drafts(place)
            self._root = self._stack.enter_context(draft(place / "std"))
        return self._root

    def _mirror(self, local: Path, stored: Stored) -> None:
        if stored.size is not None:
            self._touch(local, stored)
        else:
            local.mkdir(parents=True, exist_ok=True)

    def _touch(self, local: Path, stored: Stored) -> None:
        """An empty file in place of what a storage holds."""
        if local in self._stored:
            return
        try:
            if not local.parent.is_dir():
                local.parent.mkdir(parents=True)
            os.close(os.open(local, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as e:
            raise InputError(
                f"{stored.url}: no file of this name can be made here ({e.strerror}); rename it"
            ) from None
        self._stored[local] = stored
        self._empty.add(local)

    # --- content ---

    def is_empty(self, path: Path) -> bool:
        """Whether a file stands for one of a storage, without its content."""
        return path in self._empty

    def fetch(self, paths: Iterable[Path]) -> None:
        """Copy the content of files, and of all files in folders, from where they are stored.

        Raises NetworkError if a storage fails, and StdError if the disk is too small; a file that
        is not there or not allowed is an error in `check`.
        """
        if self._root is None or not self._empty:
            return
        wanted: list[Path] = []
        for path in paths:
            wanted += path.iterdir() if path.is_dir() else [path]
        files = [path for path in dict.fromkeys(wanted) if path in self._empty]
        if not files:
            return
        failed = get_files([(self._stored[path], path) for path in files], self._root, self._report)
        self._unread |= failed
        self._empty -= set(files) - failed.keys()

    def drop(self, paths: Iterable[Path]) -> None:
        """Remove the content of copies, to which nothing is done any more, from this machine."""
        for path in paths:
            if path in self._stored and path.is_file():
                os.truncate(path, 0)
                self._empty.add(path)

    def look(self, path: Path) -> None:
        """Ask the storage whether the file of an output is there now."""
        stored = self._stored_output(path)
        if stored is None:
            return
        kind, size = kind_of(stored)
        self._stored.pop(path, None)
        self._empty.discard(path)
        remove(path)
        if kind == "file":
            self._touch(path, Stored(stored.fs, stored.path, stored.url, size))

    def check(self, path: Path) -> None:
        """Raises InputError for a file that could not be copied."""
        if path in self._unread:
            raise self._unread[path]

    def put(self, path: Path, overwrite: bool) -> None:
        """Put a result, a file or a folder of files, where `output` said; nothing for a result of
        this machine.

        Raises OutputExists for one that was made there meanwhile, and as `put_file` does.
        """
        stored = self._stored_output(path)
        if stored is None:
            return
        if not path.is_dir():
            put_file(path, stored, overwrite)
            return
        there = children(stored)
        if there and not overwrite:
            raise OutputExists.at(stored.url)
        files = [file for file in path.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: (file.name == "std.json", file)):
            put_file(file, stored.child(file.relative_to(path).as_posix()), overwrite=True)
        with remote_errors(stored.url):
            for name in there.keys() - {file.name for file in files}:
                stored.fs.rm(stored.child(name).path, recursive=True)

    def work_folder(self, path: Path) -> StoredFolder | None:
        """The copy of a work folder in the storage of the output; None on this machine."""
        stored = self._stored_output(path)
        return StoredFolder(stored) if stored is not None else None

    def _stored_output(self, path: Path) -> Stored | None:
        if self._output is None:
            return None
        local, stored = self._output
        if path == local:
            return stored
        if path.is_relative_to(local):
            return stored.child(path.relative_to(local).as_posix())
        # what is named after the output
        return stored.next_to(path.relative_to(local.parent).as_posix())

    # --- what is said ---

    def in_urls(self, text: str) -> str:
        """A text in which the files of the scratch folder have the names of their URLs."""
        if self._root is not None:
            start = re.escape(f"{self._root}{os.sep}")
            text = re.sub(rf"{start}([a-z][a-z0-9+.-]+)/", r"\1://", text)
        return redacted(text)

    def local(self, shown: str) -> Path:
        """The file here of a path or URL as `in_urls` gives it."""
        if is_url(shown) and _scheme(shown) not in ("file", "local"):
            return self._local(shown)
        return Path(shown)

    def events(self, on_event: OnEvent, overwrite: bool) -> OnEvent:
        """What receives the events of the run, puts each result where it is to be, and passes the
        events on with URLs."""
        if self._root is None:
            return on_event

        def receive(event: Event) -> None:
            kept: dict[str, Any] = dict(event)
            thumbnail = kept.get("thumbnail")
            results = (
                [Path(kept["output"])] if event["event"] == "result" and kept["output"] else []
            )
            if thumbnail is not None and results:
                results.insert(0, Path(thumbnail))
            for result in results:
                self.put(result, overwrite or str(result) == thumbnail)
            if thumbnail is not None and not results:  # it is not there yet
                del kept["thumbnail"]
            on_event(self.shown(kept))
            if self._output is not None:
                for result in results:
                    remove(result)

        return receive

    def shown(self, value: object) -> Any:
        """What JSON can hold, with URLs in its texts."""
        if isinstance(value, str):
            return self.in_urls(value)
        if isinstance(value, dict):
            return {key: self.shown(inner) for key, inner in value.items()}
        return [self.shown(each) for each in value] if isinstance(value, list | tuple) else value

    def _report(self, done: int, total: int) -> None:
        self._on_event({"event": "progress", "stage": "copy", "done": done, "total": total})


LOCAL_ONLY = Scratch()
"""Of requests that take no URLs."""


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
