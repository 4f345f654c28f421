"""What `--help` shows: Typer's commands, with pages that are made here and drawn by `tables`."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, get_args

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from std_cli.config import ImageSettings, Panel

if TYPE_CHECKING:
    from typer._click.core import Command as AnyCommand
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

ORDER = ("stylize", "plan", "models", "distill", "doctor", "config", "help", "version")
"""Of the commands of `std`; those that are not named here come before the last three."""
PANELS: tuple[str, ...] = ("Arguments", "Options", *get_args(Panel))
SEMI_REQUIRED = "style"
"""The option that is shown as required, though a look or a file of defaults may stand for it."""
Rows = list[tuple[str, str]]
"""(names, text) of each option, argument or command."""


@dataclass(frozen=True)
class Page:
    """The help of a command."""

    usage: str
    text: str
    panels: dict[str, Rows]
    """By title."""
    notes: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


class Command(TyperCommand):
    """A command whose examples are the lines of its epilog."""

    def format_help(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        _print(_page(self, ctx))

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        return _usage_pieces(self)


class Group(TyperGroup):
    """Commands, in the order of `ORDER`."""

    command_class = Command

    def format_help(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        page = _page(self, ctx)
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        rows = [(name, _first_sentence(command.help or "")) for name, command in commands]
        _print(replace(page, panels={"Commands": rows, **page.panels}))

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        return ["COMMAND ..."]

    def list_commands(self, ctx: "Context") -> list[str]:
        def place(name: str) -> int:
            return ORDER.index(name) if name in ORDER else ORDER.index("doctor")

        return sorted(self.commands, key=place)


def _print(page: Page) -> None:
    from std_cli.cli.console import print_help

    print_help(page)


def _page(command: "AnyCommand", ctx: "Context") -> Page:
    panels: dict[str, Rows] = {}
    grouped = any(getattr(p, "rich_help_panel", None) for p in command.params)
    kind = getattr(command.callback, "settings", None)
    for parameter in command.get_params(ctx):
        assert isinstance(parameter, TyperArgument | TyperOption)
        usual = "Arguments" if isinstance(parameter, TyperArgument) else "Options"
        if grouped and parameter.name == "help":
            usual = "Messages"
        if not parameter.hidden:
            row = (_names(parameter), _text(parameter, kind))
            panels.setdefault(parameter.rich_help_panel or usual, []).append(row)
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    examples = [line for line in (command.epilog or "").splitlines() if line]
    ordered = {title: panels[title] for title in PANELS if title in panels}
    return Page(usage, text, ordered, examples=examples)


def _usage_pieces(command: "AnyCommand") -> list[str]:
    """INPUT... --style FILE [OPTIONS]"""
    needed = []
    for parameter in command.params:
        assert isinstance(parameter, TyperArgument | TyperOption)
        if isinstance(parameter, TyperArgument):
            name = _names(parameter)
            needed.append(name if parameter.required else f"[{name}]")
        elif parameter.required or parameter.name == SEMI_REQUIRED:
            needed.append(_names(parameter).split(", ")[-1].strip())
    return [*needed, "[OPTIONS]"]


def _names(parameter: TyperArgument | TyperOption) -> str:
    """ "-m, --model NAME", "--[no-]compile", "INPUT..." """
    if isinstance(parameter, TyperArgument):
        return parameter.display_name_raw.upper() + ("..." if parameter.nargs == -1 else "")
    short = "".join(f"{name}, " for name in parameter.opts if not name.startswith("--"))
    [long] = [name for name in parameter.opts if name.startswith("--")]
    if f"--no-{long[2:]}" in parameter.secondary_opts:
        long = f"--[no-]{long[2:]}"
    value = "" if parameter.is_flag else f" {_metavar(parameter)}"
    return f"{short or '    '}{long}{value}"


def _metavar(option: TyperOption) -> str:
    choices = option.type_descriptor.choices
    if option.metavar is not None or choices is None:
        return option.metavar or option.bare_type().upper().replace("STR", "TEXT")
    return "|".join(map(str, choices))


def _text(parameter: TyperArgument | TyperOption, kind: type[ImageSettings] | None) -> str:
    text = " ".join((parameter.help or "").split())
    default = parameter.default
    if kind is not None and parameter.name in kind.model_fields:
        default = kind.model_fields[parameter.name].default
    if parameter.required or parameter.name == SEMI_REQUIRED:
        text += " [required]"
    if default is not None and not isinstance(default, bool):
        text += f" [default: {default}]"
    return text


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
