"""What `--help` shows: Typer's commands, with pages that are made here and drawn by `tables`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, get_args

from typer import TyperException
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from std_cli.config import ImageSettings, Panel
from std_cli.errors import InputError

if TYPE_CHECKING:
    from typer._click.core import Command as AnyCommand
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

    from std_cli.events import ResolvedSetting

ORDER = ("stylize", "plan", "models", "distill", "doctor", "config", "help", "version")
"""Of the commands of `std`; those that are not named here come before the last three."""
PANELS: tuple[str, ...] = ("Arguments", "Options", *get_args(Panel))
_ARGUMENTS = "std arguments"
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

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)  # the help shows the defaults of the model that they name
        return super().parse_args(ctx, args)

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
        rows = [(name, first_sentence(command.help or "")) for name, command in commands]
        _print(replace(page, panels={"Commands": rows, **page.panels}))

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        return ["COMMAND ..."]

    def list_commands(self, ctx: "Context | None") -> list[str]:
        def place(name: str) -> int:
            return ORDER.index(name) if name in ORDER else ORDER.index("doctor")

        return sorted(self.commands, key=place)


def _print(page: Page) -> None:
    from std_cli.cli.console import print_help

    print_help(page)


def _page(command: "AnyCommand", ctx: "Context") -> Page:
    panels: dict[str, Rows] = {}
    grouped = any(getattr(p, "rich_help_panel", None) for p in command.params)
    defaults, notes = _defaults(command, ctx)
    for parameter in command.get_params(ctx):
        assert isinstance(parameter, TyperArgument | TyperOption)
        usual = "Arguments" if isinstance(parameter, TyperArgument) else "Options"
        if grouped and parameter.name == "help":
            usual = "Messages"
        if not parameter.hidden:
            row = (_names(parameter), _text(command, parameter, defaults))
            panels.setdefault(parameter.rich_help_panel or usual, []).append(row)
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    examples = [line for line in (command.epilog or "").splitlines() if line]
    ordered = {title: panels[title] for title in PANELS if title in panels}
    return Page(usage, text, ordered, notes, examples)


def _defaults(
    command: "AnyCommand", ctx: "Context"
) -> tuple[dict[str, "ResolvedSetting"], list[str]]:
    """The settings that the command would take without further flags, by the model, method and look
    that its line names; and what the help says of them."""
    kind = _settings_of(command)
    if kind is None:
        return {}, []
    from std_cli.stylize.defaults import show_defaults

    flags = {name: _last(command, ctx, name) for name in ("model", "method", "look")}
    own = _last(command, ctx, "no_config") is None
    try:
        shown = show_defaults(kind, flags, own=own)["settings"]
        without = show_defaults(kind, own=own)["settings"]
    except InputError as e:
        shown = without = show_defaults(kind, own=False)["settings"]
        return shown, [f"Defaults are those that are built in: {e}"]
    named = [f"--{name} {value}" for name, value in flags.items() if value]
    notes = [f"Defaults are those with {' '.join(named)}."] if named else []
    return shown | {name: without[name] for name in ("model", "method")}, notes


def _last(command: "AnyCommand", ctx: "Context", name: str) -> str | None:
    """The value that the command line gives to an option; None if it gives none, or cannot be
    parsed."""
    parser = command.make_parser(ctx)
    try:
        values, _, _ = parser.parse_args(list(ctx.meta.get(_ARGUMENTS, ())))
    except TyperException:
        return None
    return values.get(name)


def _usage_pieces(command: "AnyCommand") -> list[str]:
    """INPUT... --style FILE [OPTIONS]"""
    needed = []
    for parameter in command.params:
        assert isinstance(parameter, TyperArgument | TyperOption)
        if isinstance(parameter, TyperArgument):
            name = _names(parameter)
            needed.append(name if parameter.required else f"[{name}]")
        elif parameter.required or _semi_required(command, parameter):
            needed.append(_names(parameter).split(", ")[-1].strip())
    return [*needed, "[OPTIONS]"]


def _settings_of(command: "AnyCommand") -> type[ImageSettings] | None:
    """The settings that have defaults for this command."""
    return getattr(command.callback, "settings", None)


def _semi_required(command: "AnyCommand", parameter: TyperArgument | TyperOption) -> bool:
    """Whether an option is shown as required, though a look or a file of defaults may stand for
    it."""
    return parameter.name == "style" and _settings_of(command) is not None


def _names(parameter: TyperArgument | TyperOption) -> str:
    """ "-m, --model NAME", "--[no-]compile", "INPUT..." """
    if isinstance(parameter, TyperArgument):
        return parameter.display_name_raw.upper() + ("..." if parameter.nargs == -1 else "")
    short = "".join(f"{name}, " for name in parameter.opts if not name.startswith("--"))
    [long] = [name for name in parameter.opts if name.startswith("--")]
    if f"--no-{long[2:]}" in parameter.secondary_opts:
        long = f"--[no-]{long[2:]}"
    value = "" if parameter.is_flag else f" {metavar(parameter)}"
    return f"{short or '    '}{long}{value}"


def metavar(option: TyperOption) -> str:
    """What stands for the value of an option: FLOAT, or the values that there are, as a|b."""
    choices = option.type_descriptor.choices
    if option.metavar is not None or choices is None:
        return option.metavar or option.bare_type().upper().replace("STR", "TEXT")
    return "|".join(map(str, choices))


def _text(
    command: "AnyCommand",
    parameter: TyperArgument | TyperOption,
    defaults: Mapping[str, "ResolvedSetting"],
) -> str:
    text = " ".join((parameter.help or "").split())
    if parameter.required or _semi_required(command, parameter):
        text += " [required]"
    default: object = parameter.default
    if setting := defaults.get(parameter.name):
        from std_cli.cli.tables import place_of, shown

        built_in = setting["source"] == "built in"
        default = None if setting["value"] is None else shown(parameter.name, setting)
        default = default if built_in or default is None else f"{default}, {place_of(setting)}"
        default = None if default == "false" else default
    if default is None or isinstance(default, bool):
        return text
    return f"{text} [default: {default}]"


def first_sentence(text: str) -> str:
    """Without its full stop."""
    sentence = " ".join(text.split("\n\n")[0].split()).partition(". ")[0]
    return sentence if sentence.endswith("...") else sentence.removesuffix(".")
