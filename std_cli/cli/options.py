"""The options of a command, made from the fields of its settings: a new setting is one field."""

import inspect
from collections.abc import Callable, Collection
from fractions import Fraction
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from std_cli.config import LARGEST, Flag, ImageSettings

Command = Callable[..., None]
_METAVARS = {int: "INT", float: "FLOAT", Fraction: "FLOAT"}
_BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}


def takes_settings(
    kind: type[ImageSettings], with_defaults: bool = True, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the flags of all fields of `kind`; it receives them as `settings`, by name.

    with_defaults: whether what is not given is the user's default, or else the one built in, as the
    help then shows. without: fields that are no flags of this command.

    Values are texts, which the settings check, and switches are True or False; a value that was not
    given is None. In the help they are where the command has its parameter `settings`.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        fields = {
            name: _parameter(name, field)
            for name, field in kind.model_fields.items()
            if name not in without
        }

        @wraps(command)
        def run(**given: Any) -> None:
            settings = {name: given.pop(name) for name in fields}
            command(**given, settings=settings)

        every: list[inspect.Parameter] = []
        for name, parameter in own.parameters.items():
            every += fields.values() if name == "settings" else [parameter]
        run.__signature__ = own.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every} | {"return": None}
        run.settings = kind if with_defaults else None  # type: ignore[attr-defined]
        return run

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The flag of a setting: `style_scale` is --style-scale."""
    flag = next((m for m in field.metadata if isinstance(m, Flag)), Flag())
    long = f"--{name.replace('_', '-')}"
    switch = field.annotation is bool
    option = typer.Option(
        *([flag.short] if flag.short else []),
        f"{long}/--no-{long[2:]}" if switch else long,
        metavar=flag.metavar or _metavar(field.annotation),
        help=" ".join([*str(field.description).split(), *_range(field)]),
        rich_help_panel=flag.panel,
    )
    annotation = Annotated[bool | None, option] if switch else Annotated[str | None, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _metavar(annotation: Any) -> str:
    """What stands for a value of this type in the help: the values that it may have, else its
    kind."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    kinds = [annotation, *get_args(annotation)]
    kinds += [get_args(kind)[0] for kind in kinds if get_origin(kind) is Annotated]
    return next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")


def _range(field: FieldInfo) -> list[str]:
    """["[more than 0, to 1]"] of a bounded number."""
    found = [
        f"{words} {bound:g}"
        for each in field.metadata
        for name, words in _BOUNDS.items()
        if (bound := getattr(each, name, None)) is not None and bound < LARGEST
    ]
    return [f"[{' '.join(found)}]"] if found else []
