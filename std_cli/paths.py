"""Every path that a user gives, by option, configuration file or Python parameter, becomes a `Path` here."""

import errno
import os
from pathlib import Path

from std_cli.errors import InputError

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_REMEDY = {
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EACCES: "change the permissions of its folder",
    errno.ELOOP: "its symbolic links lead to each other: remove one",
}


def user_path(given: str | os.PathLike[str], what: str) -> Path:
    """The path that a user gave, `~` and `~name` expanded; nothing needs to be there.

    what: the option, key or parameter that it was given for, as the error names it ("-o", "--style", "data.sources").
    A name that exists as it is written is not expanded. Raises InputError for what cannot be a path here: an empty
    text, "-", bytes that are not UTF-8, NUL, a name that is too long or may not be looked up, an unknown user's folder,
    a file with a slash after its name.
    """
    try:
        text = os.fspath(given)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InputError(f"{what}: a path is expected, not {type(given).__name__}; give a text or a pathlib.Path")
    if not text:  # an unset shell variable; Path("") would mean the current folder
        raise InputError(f"{what} is empty (''); give a path")
    if text == "-":
        raise InputError(f"{what} '-': neither standard input nor standard output can be used; give a path")
    path = check_path(Path(text), what)
    if text.startswith("~") and not os.path.lexists(path):
        try:
            path = check_path(path.expanduser(), what)
        except RuntimeError:  # what Path raises without a home folder
            user = path.parts[0]
            raise InputError(f"{what} {quoted(text)}: {quoted(user)} is no user's folder; write it out") from None
    if names_folder(text) and path.exists() and not path.is_dir():
        raise InputError(f"{what} {quoted(text)}: this is a file; leave out the slash at the end")
    return path


def check_path(path: Path, what: str) -> Path:
    """`path`, if the operating system can look it up, whether it is there or not. Raises InputError if it cannot.

    For names that are made from what a user gave, too: they are longer.
    """
    try:
        str(path).encode()
        path.lstat()
    except UnicodeEncodeError:
        raise InputError(f"{what} {quoted(path)}: the name is not UTF-8 text; rename the file") from None
    except ValueError:
        raise InputError(f"{what} {quoted(path)}: a NUL character cannot be in a path; remove it") from None
    except OSError as e:
        if e.errno not in _ABSENT:
            remedy = _REMEDY.get(e.errno or 0, "check the disk")
            raise InputError(f"{what} {quoted(path)}: {e.strerror or e}; {remedy}") from None
    return path


def names_folder(given: str | os.PathLike[str]) -> bool:
    """Whether a path is written as a folder's, with a slash at the end."""
    return os.fspath(given).endswith(tuple(filter(None, (os.sep, os.altsep))))


def quoted(text: str | os.PathLike[str], limit: int = 120) -> str:
    """A name for a message: in quotes, on one line, cut in the middle where it is longer than `limit` characters."""
    name = os.fspath(text)
    if len(name) > limit:
        half = (limit - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return repr(name)
