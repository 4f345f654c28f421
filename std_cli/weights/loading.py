"""What the libraries raise while they load, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from std_cli.errors import InputError, StdError, printable


@contextmanager
def loading(what: str, path: Path, fails: str = "cannot be loaded from") -> Iterator[None]:
    """Turns what a library raises while it builds or loads a part of a model into one line.

    The libraries raise exceptions of some fifty kinds for files that they cannot use; those of this
    package, and a GPU's memory that runs out, pass. `fails`: what cannot be done, for the error.
    Raises InputError that names part and file.
    """
    try:
        yield
    except StdError:
        raise
    except MemoryError as error:
        raise StdError(
            f"no memory to load {what}: close other programs, or use a smaller model"
        ) from error
    except Exception as error:  # configs of anyone make libraries raise exceptions of any kind
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = printable(lines[0], 300) if lines else "no message"
        raise InputError(
            f"{what} {fails} {path} ({type(error).__name__}: {reason.rstrip('.:')}): fetch it "
            f"again, or choose another"
        ) from error
