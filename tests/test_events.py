"""Events: what is declared, what documents say, and what the console takes is the same."""

import io
import re
import typing
from pathlib import Path

import pytest
from rich.console import Console

from std_cli import errors, events
from std_cli.cli.console import Reporter

DOCUMENT = Path(__file__).parents[1] / "examples" / "automation.md"
KINDS = {kind.__name__: kind for kind in typing.get_args(events.Event)}
TYPED = [kind for kind in vars(events).values() if typing.is_typeddict(kind)]
PARTS = [kind for kind in TYPED if kind not in KINDS.values()]


def fields_of(kind):
    return typing.get_type_hints(kind, include_extras=True)


def name_of(kind):
    """The value of "event"."""
    return typing.get_args(fields_of(kind)["event"])[0]


def sample(annotation, optional):
    """A value of a declared type; `optional`: with the fields that may be missing, and no None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if typing.is_typeddict(annotation):
        return {
            name: sample(hint, optional)
            for name, hint in fields_of(annotation).items()
            if optional or typing.get_origin(hint) is not typing.NotRequired
        }
    if origin is typing.NotRequired:
        return sample(arguments[0], optional)
    if origin is typing.Literal:
        return arguments[-1]
    if type(None) in arguments:
        return sample(arguments[0], optional) if optional else None
    if origin is dict:
        return {"a": sample(arguments[1], optional)}
    if origin is list or getattr(origin, "__name__", "") == "Sequence":
        return [sample(arguments[0], optional)] * 2
    if origin is not None:
        return {}  # settings
    return {str: "text", int: 3, float: 0.5, bool: False, typing.Any: "text"}[annotation]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_console_shows_every_event(kind, optional):
    event = sample(KINDS[kind], optional)
    with Reporter() as reporter:
        reporter.out = reporter.err = Console(file=io.StringIO(), width=120)
        reporter(event)


def test_the_documented_events_are_the_declared_ones():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    declared = {}
    for kind in KINDS.values():
        declared.setdefault(name_of(kind), set()).update(fields_of(kind))
    assert {event for event, _ in rows} == {"event", *declared}

    inner = {name for part in PARTS for name in fields_of(part)}
    values = {v for k in KINDS.values() for h in fields_of(k).values() for v in typing.get_args(h)}
    for event, keys in (row for row in rows if row[0] != "event"):
        keys = re.sub(r"\([^)]*\)", "", keys)  # keys of dictionaries, values
        named = set(re.findall(r"`(\w+)`", keys)) - {"list", "pull"}  # commands
        assert named <= declared[event] | inner | values, event


def test_the_documented_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert {kind: int(code) for code, kind in rows} == errors.EXIT_CODES
    assert set(typing.get_args(errors.Kind)) == set(errors.EXIT_CODES)
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {kind.kind for kind in classes if issubclass(kind, errors.StdError)}
    assert raised == {"failed", "request", "exists", "busy", "network"}


def test_every_field_is_documented():
    named = set(re.findall(r"`(\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    fields = {name for kind in (*KINDS.values(), *PARTS) for name in fields_of(kind)}
    assert fields <= named, fields - named
