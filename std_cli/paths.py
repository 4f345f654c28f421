"""Paths that users give become `Path` here, and files that are written appear whole or not at
all."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO

from std_cli.errors import InputError, OutputExists, StdError
from std_cli.interruption import at_quit

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_REMEDY = {
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EACCES: "change the permissions of its folder",
    errno.ELOOP: "its symbolic links lead to each other: remove one",
}

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP
}  # fmt: skip
_DRAFT = re.compile(r"\.std-[0-9a-f]{32}\.tmp")


def user_path(given: str | os.PathLike[str], what: str) -> Path:
    """The path that a user gave, `~` and `~name` expanded; nothing needs to be there.

    what: the option, key or parameter that it was given for, as the error names it ("-o",
    "--style", "data.sources"). A name that exists as it is written is not expanded. Raises
    InputError for what cannot be a path here: an empty text, "-", bytes that are not UTF-8, NUL, a
    name that is too long or may not be looked up, an unknown user's folder, a file with a slash
    after its name, a URL.
    """
    try:
        text = os.fspath(given)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InputError(
            f"{what}: a path is expected, not {type(given).__name__}; give a text or a pathlib.Path"
        )
    if not text:  # an unset shell variable; Path("") would mean the current folder
        raise InputError(f"{what} is empty (''); give a path")
    if text == "-":
        raise InputError(
            f"{what} '-': neither standard input nor standard output can be used; give a path"
        )
    if is_url(text):
        raise InputError(
            f"{what} {quoted(text)}: a URL cannot be used here; give a path on this machine"
        )
    path = check_path(Path(text), what)
    if text.startswith("~") and not os.path.lexists(path):
        try:
            path = check_path(path.expanduser(), what)
        except RuntimeError:  # what Path raises without a home folder
            user = path.parts[0]
            raise InputError(
                f"{what} {quoted(text)}: {quoted(user)} is no user's folder; write it out"
            ) from None
    if names_folder(text) and path.exists() and not path.is_dir():
        raise InputError(f"{what} {quoted(text)}: this is a file; leave out the slash at the end")
    return path


def check_path(path: Path, what: str) -> Path:
    """`path`, if the operating system can look it up, whether it is there or not. Raises InputError
    if it cannot.

    For names that are made from what a user gave, too: they are longer.
    """
    try:
        str(path).encode()
        path.lstat()
    except UnicodeEncodeError:
        raise InputError(
            f"{what} {quoted(path)}: the name is not UTF-8 text; rename the file"
        ) from None
    except ValueError:
        raise InputError(
            f"{what} {quoted(path)}: a NUL character cannot be in a path; remove it"
        ) from None
    except OSError as e:
        if e.errno not in _ABSENT:
            remedy = _REMEDY.get(e.errno or 0, "check the disk")
            raise InputError(f"{what} {quoted(path)}: {e.strerror or e}; {remedy}") from None
    return path


_URL = re.compile(r"([a-z][a-z0-9+.-]+)://")


def is_url(given: object) -> bool:
    """Whether a text names a file in a storage, as s3://bucket/name does.

    Only texts that begin with a scheme that fsspec knows do, and no name that exists on this
    machine: a colon makes no URL.
    """
    match = _URL.match(given) if isinstance(given, str) else None
    if match is None or os.path.lexists(str(given)):
        return False
    from fsspec.registry import available_protocols, registry

    return match[1] in available_protocols() or match[1] in registry


def config_folder() -> Path:
    """Where the user's own files for std are, whether it is there or not: $XDG_CONFIG_HOME/std, or
    ~/.config/std."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # the specification of XDG ignores relative paths
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.config")) / "std"


def cache_folder() -> Path:
    """Where std keeps what it can make again: $XDG_CACHE_HOME/std, or ~/.cache/std."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "std"


def names_folder(given: str | os.PathLike[str]) -> bool:
    """Whether a path is written as a folder's, with a slash at the end."""
    return os.fspath(given).endswith(tuple(filter(None, (os.sep, os.altsep))))


def quoted(text: str | os.PathLike[str], limit: int = 120) -> str:
    """A name for a message: in quotes, on one line, cut in the middle where it is longer than
    `limit` characters."""
    name = os.fspath(text)
    if len(name) > limit:
        half = (limit - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return repr(name)


def replace_file(path: Path, data: bytes, overwrite: bool = True) -> None:
    """Write a file so that it appears whole, and is on the disk, or not at all. Errors as of
    `save_picture`."""
    with writing(path), draft(path, data) as temporary:
        move(temporary, path, overwrite)


def try_file(path: Path, overwrite: bool) -> None:
    """Try, before any work, whether a file could be written with `replace_file`; raises its errors.
    Leaves nothing behind."""
    if os.path.isdir(path):
        raise InputError(f"output {str(path)!r} is a folder; name a file inside it")
    with writing(path):
        with suppress(FileNotFoundError):
            os.lstat(path)  # refuses a name that is too long
            if not overwrite:
                raise FileExistsError
        with draft(path, b""):
            pass


def write_stream(stream: BinaryIO, data: bytes) -> None:
    """Write all of `data` to a pipe or the like. Raises StdError if it cannot be written, and
    BrokenPipeError if its reader has gone."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as err:
        raise StdError(
            f"the result cannot be written to the stream ({err.strerror}): check where it leads"
        ) from err


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the operating system's errors while `path` is written."""
    name = repr(str(path))
    try:
        yield
    except FileExistsError as err:
        raise OutputExists.at(path) from err
    except OSError as err:
        if err.errno in FULL_DISK:
            raise StdError(
                f"disk full while writing {name} ({err.strerror}); free some space and run again"
            ) from err
        if err.errno in _UNWRITABLE:
            raise InputError(
                f"cannot write {name}: {err.strerror}; use a folder that exists and is writable"
            ) from err
        raise StdError(f"cannot write {name}: {err.strerror or err}; check the disk") from err


@contextmanager
def draft(path: Path, data: bytes | None = None) -> Iterator[Path]:
    """A hidden name next to `path` for what will be moved there; whatever has it at the end is
    removed.

    data: what the file holds, on the disk; None: it is an empty folder. Its lock shows that its run
    is alive, see `remove_stale_drafts`; it is held until the draft is removed, which another run
    would do at the same time otherwise. Raises OSError.
    """
    with ExitStack() as locks, ExitStack() as stack:
        while True:
            temporary = hidden_next_to(path)
            stack.enter_context(at_quit(partial(remove, temporary)))
            if data is None:
                temporary.mkdir()
            else:
                temporary.open("xb").close()
            if _hold(temporary, locks) is not False:
                break
        if data is not None:
            with temporary.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        yield temporary


def remove_stale_drafts(folder: Path) -> None:
    """Remove the drafts in a folder that runs left when they were killed: nobody holds their locks
    any more."""
    with suppress(OSError):
        for file in folder.iterdir():
            if _DRAFT.fullmatch(file.name) and not file.is_symlink():
                with suppress(OSError), ExitStack() as stack:
                    if _hold(file, stack):
                        remove(file)


def move(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file or folder its name; without `overwrite` only if nothing has it. Raises
    OSError."""
    if temporary.is_dir():
        old = hidden_next_to(path)
        if overwrite and path.exists():
            os.replace(path, old)
        os.rename(temporary, path)  # never onto a folder that has something in it
        remove(old)
    elif overwrite:
        os.replace(temporary, path)
    else:
        _move_to_new(temporary, path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hidden_next_to(path: Path) -> Path:
    # Not named after `path`, whose name may already be as long as the file system allows.
    return path.with_name(f".std-{uuid.uuid4().hex}.tmp")


def try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or its process ends; False if another process holds it.

    Raises StdError where the file system has no locks.
    """
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # on Windows
        return False
    except OSError as e:
        raise StdError(
            f"{file.name} cannot be locked ({e.strerror}): choose an output on another disk"
        ) from None
    return True


def _hold(file: Path, stack: ExitStack) -> bool | None:
    """Lock a draft until `stack` is left: False if another run has it or removed it, None where
    there are no locks.

    A run that makes a draft and another one that looks for stale ones cannot both get True.
    """
    if os.name == "nt":  # an open file cannot be moved there
        return None
    import fcntl

    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), file.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # some network folders
        return None


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a finished file its name only if no file has that name. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    # no hard links here (FAT, some network folders): claim the name with an empty file
    except OSError:
        path.open("xb").close()
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise
