"""Every error that a user can cause, as one tree.

    StdError                failed: the work failed (full disk, out of memory)
    ├── Cancelled           the caller of the Python API ended it
    ├── NetworkError        network: the Hub failed, or a download did
    └── InputError          request: the request or an input is wrong, no work was begun
        ├── OutputExists    exists: the output is there, and was not to be replaced
        ├── Busy            busy: another run writes the output
        └── NotDownloaded   network: weights are not on this machine, and cannot be fetched now

The words are each error's `kind`; `EXIT_CODES` has the exit codes. The message is one line: what is
wrong, the value, and what to do about it. Only `std_cli.cli.commands` catches these.

Names and values in it may come from files of anyone. So every message is made printable and cut
here, and `quote` shows a value out of a file. URLs are shown without what may be secret in them.
"""

import re
import reprlib
import unicodedata
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

Kind = Literal["failed", "request", "exists", "busy", "network", "interrupted", "terminated"]
EXIT_CODES: dict[Kind, int] = {
    "failed": 1,
    "request": 2,
    "exists": 3,
    "busy": 4,
    "network": 5,
    "interrupted": 130,
    "terminated": 143,
}
"""The exit code of each kind of error; the last two are signals: Ctrl-C and SIGTERM."""

LONGEST = 2000
"""Characters of a message; the middle of a longer one is left out, as the remedy is at its end."""
_JOINERS = "\u200c\u200d"  # of emoji and of some scripts; they move nothing
_QUOTE = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = _QUOTE.maxlong = 80
_QUOTE.maxlevel = 2


def printable(text: str, most: int = LONGEST) -> str:
    """Text in one line without control characters (they are shown as \\x1b), and cut in the middle
    beyond `most`.

    A terminal obeys the control characters that it is sent, and cannot print lone surrogates, which
    stand for the bytes of a file name that are not UTF-8.
    """
    if len(text) > most:
        text = f"{text[: most * 3 // 4]} ... {text[-(most // 4) :]}"
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and character not in _JOINERS
    ):
        return character.encode("unicode_escape").decode("ascii")
    return character


_USER = re.compile(r"(?<=://)[^/\s'\"@]*@")
_QUERY = re.compile(
    r"(https?://[^\s'\"?#]*|[a-z][a-z0-9+.-]+://[^\s'\"?]*(?=\?[^\s'\"]*=))[?#][^\s'\"]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Text in which URLs have neither user and password nor a query, which may hold a token."""
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))


def quote(value: object) -> str:
    """A value out of a file as Python writes it, at most about 80 characters of it: for a
    message."""
    return printable(_QUOTE.repr(value), 120)


def counted(number: int | None, of: str) -> str:
    """ "1 frame", "2 frames", "unknown frames" for None."""
    return f"unknown {of}s" if number is None else f"{number} {of}{'s'[: number != 1]}"


# --- values that a model of pydantic refuses ---------------------------------------------------

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "no such key",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "multiple_of": "must be a multiple of {multiple_of}",
    "fraction_type": "must be a number or a fraction",
    "fraction_parsing": "must be a number or a fraction",
    "none_required": "must be left out",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "string_unicode": "must be a text",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have {max_length} characters at most",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table of keys",
    "model_type": "must be a table of keys",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} entries at most",
    "string_pattern_mismatch": "has not the form that is expected",
    "invalid_key": "must have texts as keys",
}
"""What is said of a value, by pydantic's type of error."""


def wrong_values(error: "ValidationError", depth: int = 1) -> Iterator[tuple[str, object, str]]:
    """(name, value, what is wrong) of each value that pydantic refuses, in the words of std.

    depth: how many parts a name has, as 2 for section.key. What pydantic says of one value for each
    of the kinds that it may be of is joined by "or". The name is "" for a value as a whole.
    """
    found: dict[str, tuple[object, list[str]]] = {}
    for details in error.errors(include_url=False):
        name = ".".join(map(str, details["loc"][:depth]))
        value, messages = found.setdefault(name, (details["input"], []))
        message = _in_words(details)
        if message not in messages:
            messages.append(message)
    for name, (value, messages) in found.items():
        rest = [message.removeprefix("must be ") for message in messages[1:]]
        yield name, value, " or ".join([messages[0], *rest])


def _in_words(details: "ErrorDetails") -> str:
    context = details.get("ctx", {})
    if "error" in context:  # a ValueError of our own, or of a library's type
        return str(context["error"])
    shown = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()
    }
    return _WORDS.get(details["type"], "cannot be used").format(**shown)


# --- messages of the command line and of Python ------------------------------------------------

_flags_named = False


@contextmanager
def flags_named() -> Iterator[None]:
    """Inside, messages name options as the command line spells them: --style-scale, -o."""
    global _flags_named
    before, _flags_named = _flags_named, True
    try:
        yield
    finally:
        _flags_named = before


def in_callers_words(message: str, parameters: Collection[str]) -> str:
    """A message as its caller reads it: on the command line with flags, as it is written; from
    Python with `parameters` in their place, style_scale for --style-scale.

    Flags of other commands, as of `std models verify --repair`, stay.
    """
    if _flags_named:
        return message
    message = message.replace("pass --overwrite", "pass overwrite=True")
    message = re.sub(r"std stylize (image|video)", r"stylize_\1", message)
    message = re.sub(r"(?<![\w-])-o (?=\S)", "output ", message)

    def parameter(flag: re.Match[str]) -> str:
        name = flag[2].replace("-", "_")
        if name not in parameters:
            return flag[0]
        return f"{name}=False" if flag[1] else name

    return re.sub(r"(?<![\w-])--(no-)?([a-z]+(?:-[a-z]+)*)(?!\w)", parameter, message)


class StdError(Exception):
    """The work could not be done; the message is the one line that the user reads."""

    kind: Kind = "failed"
    """What to do about it, for programs: only "busy" and "network" are worth trying again."""
    reported = False
    """Another process of the same run reports it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(redacted(message)))

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.kind]


class InputError(StdError):
    """The request, a file of the user's, or a model that it names cannot be used as it is."""

    kind: Kind = "request"


class OutputExists(InputError):
    """The output exists, and the request does not say to replace it."""

    kind: Kind = "exists"

    @classmethod
    def at(cls, path: object) -> "OutputExists":
        """The error for an output at this path."""
        return cls(f"output {str(path)!r} exists; pass --overwrite to replace it, or name another")


class Busy(InputError):
    """Another run writes the same output now."""

    kind: Kind = "busy"


class NetworkError(StdError):
    """The Hub could not be reached or failed, or what it sent was damaged."""

    kind: Kind = "network"


class Cancelled(StdError):
    """The caller ended the work; what is finished stays, and a video resumes."""


class NotDownloaded(InputError):
    """Weights are not on this machine, and cannot be fetched now."""

    kind: Kind = "network"


@contextmanager
def at_work() -> Iterator[None]:
    """Inside, work has begun: an InputError, whose exit code says that it has not, becomes a
    StdError; an output that another program made meanwhile is still one that exists."""
    try:
        yield
    except OutputExists:
        raise
    except InputError as e:
        error = StdError(str(e))
        error.reported = e.reported
        raise error from e
