"""A picture from standard input, and one to standard output: `-`."""

import sys
from typing import BinaryIO

from std_cli.errors import InputError
from std_cli.stylize.request import Encoded

LARGEST = 2**30
"""Bytes of a picture on standard input, at most."""


def with_standard_input(inputs: list[str]) -> list[str | Encoded]:
    """The inputs, with the picture that standard input holds in place of `-`. Raises InputError if
    there is none."""
    if "-" not in inputs:
        return [*inputs]
    if inputs.count("-") > 1:
        raise InputError("input '-' is given twice: standard input holds one picture")
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("input '-': nothing is piped into standard input: pipe a picture into it")
    data = sys.stdin.buffer.read(LARGEST + 1)
    if not data:
        raise InputError("input '-': standard input is empty: pipe a picture into it")
    if len(data) > LARGEST:
        raise InputError(f"input '-' has more than {LARGEST} bytes: give a file")
    return [Encoded(data, "-") if item == "-" else item for item in inputs]


def standard_output(as_json: bool) -> BinaryIO:
    """Where the bytes of a picture go. Raises InputError where they cannot: a terminal, or JSON
    lines."""
    if as_json:
        raise InputError("-o -: with --json standard output holds events: leave one of them out")
    if sys.stdout.isatty():
        raise InputError("-o -: standard output is a terminal: redirect it, or name a file")
    return sys.stdout.buffer
