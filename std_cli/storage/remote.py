"""Files and folders that URLs name, through fsspec: opened, listed, and their errors in one line.

Credentials come from where the library of each storage looks for them: environment variables, its
own files, and those of fsspec (FSSPEC_S3_..., ~/.config/fsspec). They are never read here.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from std_cli.errors import InputError, NetworkError, StdError, printable, redacted
from std_cli.paths import FULL_DISK

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
"""The extra of std-cli that reads URLs of a scheme."""
WEB = ("http", "https")
"""Schemes that name one file each, and that nothing can be written to."""
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "oss", "tos"}
"""Schemes of stores without folders, in which an object appears whole or not at all."""
_NO_ACCESS = ("credential", "forbidden", "denied", "accesskey", "unauthorized", "signature", "403")
"""Words in the messages of libraries by which one about access is known."""
_ABSENT = ("nosuchbucket", "bucket does not exist", "404")
_UNREACHABLE = ("connect", "resolve", "timeout", "timed out", "unreachable", "network")


@dataclass(frozen=True)
class Stored:
    """A file or folder in a storage; nothing needs to be there."""

    fs: "AbstractFileSystem"
    path: str
    """As the file system names it."""
    url: str
    """As it is shown: without what may be secret."""
    size: int | None = None
    """Bytes of a file, where a listing gave them."""

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def is_object(self) -> bool:
        """Whether it appears whole or not at all when it is written under its own name."""
        return self.scheme in _OBJECT_STORES

    def child(self, name: str, size: int | None = None) -> "Stored":
        """What has this name inside the folder."""
        folder, url = self.path.rstrip("/"), self.url.rstrip("/")
        return Stored(self.fs, f"{folder}/{name}", f"{url}/{name}", size)

    def next_to(self, name: str) -> "Stored":
        """What has this name in the same folder."""
        folder, url = self.path.rpartition("/")[0], self.url.rpartition("/")[0]
        return Stored(self.fs, f"{folder}/{name}", f"{url}/{name}")


def open_url(url: str, what: str) -> Stored:
    """What a URL names, whether it is there or not.

    what: the option that it was given for, as errors name it. Raises InputError for a chain of
    URLs, and for a scheme whose library is not installed.
    """
    scheme, _, place = url.partition("://")
    server, slash, path = place.partition("/")
    shown = f"{scheme}://{server.rpartition('@')[2]}{slash}{path}"
    if scheme in WEB:
        shown = redacted(shown)
    if "::" in url:
        raise InputError(f"{what} {shown!r}: a chain of URLs cannot be used; give one URL")
    if not server and scheme != "memory":
        raise InputError(f"{what} {shown!r}: names no bucket or server; write it after the //")
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
    except ImportError as e:
        extra = _EXTRAS.get(scheme)
        remedy = f"pip install 'std-cli[{extra}]'" if extra else f"install its library ({e})"
        raise InputError(
            f"{what} {shown!r}: URLs of {scheme}:// need a library: {remedy}"
        ) from None
    except Exception as e:  # whatever the constructor of a file system raises
        raise _as_one_line(e, shown) from None
    return Stored(fs, path, shown)


def kind_of(stored: Stored) -> tuple[str | None, int | None]:
    """("file", its size), ("directory", None), or (None, None) if nothing is there."""
    with remote_errors(stored.url):
        stored.fs.invalidate_cache(stored.path)
        try:
            found = stored.fs.info(stored.path)
        except (FileNotFoundError, NotADirectoryError) as e:
            # fsspec calls every failure of a web server so
            if e.__cause__ is not None and getattr(e.__cause__, "status", None) not in (404, 410):
                raise _as_one_line(e.__cause__, stored.url) from None
            return None, None
    return str(found["type"]), found.get("size") if found["type"] == "file" else None


def children(folder: Stored) -> dict[str, int | None]:
    """The names directly inside a folder, from one listing: the size of a file, None of a folder;
    none if it is not there."""
    with remote_errors(folder.url):
        folder.fs.invalidate_cache(folder.path)
        try:
            found = folder.fs.ls(folder.path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
    return _below(folder, found)


def matching(pattern: Stored) -> tuple[Stored, dict[str, int | None]]:
    """(the folder that a glob pattern starts from, the files that match, by their names in it with
    their sizes)."""
    parts = pattern.path.split("/")
    depth = next(i for i, part in enumerate(parts) if set(part) & set("*?["))
    up = "/".join(pattern.url.split("/")[: depth - len(parts)])
    root = Stored(pattern.fs, "/".join(parts[:depth]), up)
    with remote_errors(pattern.url):
        pattern.fs.invalidate_cache()  # of a path it forgets the folder, and not those inside
        found = pattern.fs.glob(pattern.path, detail=True)
    files = [entry for entry in found.values() if entry["type"] == "file"]
    return root, _below(root, files)


def _below(folder: Stored, found: list[dict[str, Any]]) -> dict[str, int | None]:
    """Entries of a listing by their names in the folder. A name that would lead elsewhere on a disk
    is an error."""
    start = folder.path.strip("/")
    names: dict[str, int | None] = {}
    for entry in found:
        full = entry["name"].strip("/")
        name = full.removeprefix(start).strip("/")
        if not name:  # the object that stands for the folder itself
            continue
        if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            raise InputError(
                f"{folder.url} holds {name!r}, which cannot be a file's name here: rename it"
            )
        names[name] = entry.get("size") if entry["type"] == "file" else None
    return names


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Translate what the libraries of storages raise; `url`: as it is shown.

    InputError for what is not there or not allowed, NetworkError for a storage that cannot be
    reached, StdError for a full disk.
    """
    try:
        yield
    except StdError:
        raise
    except Exception as e:  # each library has errors of its own, and some raise plain ones
        raise _as_one_line(e, url) from None


def _as_one_line(error: BaseException, url: str) -> StdError:
    said = printable(redacted(" ".join(str(error).split()) or type(error).__name__), 200)
    words = f"{type(error).__name__} {said}".lower()
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return StdError(f"disk full while copying {url} ({error.strerror}); free some space")
    if isinstance(error, FileNotFoundError) or any(word in words for word in _ABSENT):
        return InputError(f"{url}: no such file, folder or bucket ({said}); check the URL")
    if isinstance(error, PermissionError) or any(word in words for word in _NO_ACCESS):
        return InputError(
            f"{url}: no access ({said}); check the credentials, which the storage's own library "
            f"reads from the environment and its files"
        )
    if isinstance(error, ConnectionError | TimeoutError) or any(w in words for w in _UNREACHABLE):
        return NetworkError(f"{url}: the storage cannot be reached ({said}); check the network")
    if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EISDIR, errno.ENOTDIR):
        return InputError(f"{url}: cannot be used ({said}); check the URL")
    if isinstance(error, NotImplementedError):
        return InputError(f"{url}: this storage cannot do that; use another one")
    return NetworkError(f"{url}: the storage failed ({said}); try again")
