"""The options of a command, made from the fields of its settings: a new setting is one field."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from std_cli.config import Flag, ImageSettings

AS_TYPED = (bool, int, float, str)
"""Types that the parser checks; it passes others on as text, and the settings check them."""


Command = Callable[..., None]


def takes_settings(kind: type[ImageSettings]) -> Callable[[Command], Command]:
    """Give a command the flags of all fields of `kind`; it receives them as `settings`, by name.

    A value that was not given is None. The command's own parameters come first in its help.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        parameters = {n: p for n, p in own.parameters.items() if n != "settings"}
        fields = {name: _parameter(name, field) for name, field in kind.model_fields.items()}

        @wraps(command)
        def run(**given: Any) -> None:
            settings = {name: given.pop(name) for name in fields}
            command(**given, settings={k: None if v is False else v for k, v in settings.items()})

        every = [*parameters.values(), *fields.values()]
        run.__signature__ = own.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in every} | {"return": None}
        return run

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The flag of a setting: `style_scale` is --style-scale."""
    flag = next((m for m in field.metadata if isinstance(m, Flag)), Flag())
    kind = _parsed_as(field.annotation)
    switch = kind is bool
    option = typer.Option(
        *([flag.short] if flag.short else []),
        f"--{name.replace('_', '-')}",
        metavar=flag.metavar,
        help=_help(field, with_default=not switch),
        rich_help_panel=flag.panel,
    )
    annotation = Annotated[bool, option] if switch else Annotated[kind | None, option]
    default = False if switch else None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _parsed_as(annotation: Any) -> Any:
    """The type that the parser takes a value as: that of the field without None, else text."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal or annotation in AS_TYPED:
        return annotation
    return kinds[0] if len(kinds) == 1 and kinds[0] in AS_TYPED else str


def _help(field: FieldInfo, with_default: bool) -> str:
    text = " ".join(str(field.description).split())
    if with_default and field.default is not None:
        text += f" [dim]\\[default: {field.default}][/dim]"
    return text
