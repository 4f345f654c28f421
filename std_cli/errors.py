"""Every error that a user can cause, as one tree.

    StdError            exit code 1: the work failed (full disk, out of memory, network)
    └── InputError      exit code 2: the request or an input is wrong, nothing was started
        └── NotDownloaded   it names weights that are not on this machine

The message is one line: what is wrong, the value, and what to do about it. Only `std_cli.cli` catches these.
"""


class StdError(Exception):
    """The work could not be done; the message is the one line that the user reads."""

    exit_code = 1


class InputError(StdError):
    """The request, a file of the user's, or a model that it names cannot be used as it is."""

    exit_code = 2


class NotDownloaded(InputError):
    """Weights are not on this machine, and cannot be fetched now."""
