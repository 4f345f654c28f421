"""Answers to TAB in a shell, within its patience: without Typer, pydantic and the rest.

Typer writes the script that a shell loads (`std --install-completion`); at each TAB the script runs
`std` with _STD_COMPLETE set. What the commands and their options are is described once, from
Typer's commands, and kept in the user's cache until a module of the command line changes.
"""

import json
import os
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.paths import cache_folder, config_folder

if TYPE_CHECKING:
    from typer._click.core import Command

Items = list[tuple[str, str]]
"""(value, help)"""
Node = dict[str, Any]
"""A command: "help", "commands" (nodes by name), "options" and "arguments" (each with "names",
"help", "takes", "many", "values" and "kind", the parameter's name)."""
PACKAGE = Path(__file__).parents[1]


def answer(instruction: str) -> bool:
    """Print what could be typed at the cursor, as the shell's script expects it; False if this is
    not asked for, or not by a shell that is known here."""
    task, _, shell = instruction.partition("_")
    if task != "complete" or shell not in _SHELLS:
        return False
    args, incomplete = _typed(shell)
    tree = _tree()
    _SHELLS[shell](_complete(tree, args, incomplete))
    return True


# --- what was typed, and how an answer is written ----------------------------------------------


def _typed(shell: str) -> tuple[list[str], str]:
    """(the words before the one at the cursor, without `std`; that word), by Typer's scripts."""
    if shell == "bash":
        words = _split(os.environ.get("COMP_WORDS", ""))
        at = int(os.environ.get("COMP_CWORD", "0"))
        args, incomplete = words[1:at], words[at] if at < len(words) else ""
        # bash takes = for a word of its own
        return [word for word in args if word != "="], "" if incomplete == "=" else incomplete
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(line)[1:]
    if not words or line.endswith(" "):
        return words, ""
    return words[:-1], words[-1]


def _split(line: str) -> list[str]:
    """The words of a line; a quote that is still open ends with it."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:
        words.append(lexer.token)
    return words


def _bash(items: Items) -> None:
    print("\n".join(value for value, _ in items))


def _zsh(items: Items) -> None:
    def escape(text: str) -> str:
        for character, escaped in (
            ('"', '""'),
            ("'", "''"),
            ("$", "\\$"),
            ("`", "\\`"),
            (":", "\\\\:"),
        ):
            text = text.replace(character, escaped)
        return text

    lines = [f'"{escape(value)}"' + (f':"{escape(text)}"' if text else "") for value, text in items]
    print("_arguments '*: :((" + "\n".join(lines) + "))'" if lines else "_files")


def _fish(items: Items) -> None:
    if os.environ.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        sys.exit(0 if items else 1)
    print("\n".join(f"{value}\t{text}" if text else value for value, text in items))


def _powershell(items: Items) -> None:
    print("\n".join(f"{value}:::{text or ' '}" for value, text in items))


_SHELLS = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
    "powershell": _powershell,
    "pwsh": _powershell,
}


# --- what could be typed -----------------------------------------------------------------------


def _complete(tree: Node, args: list[str], incomplete: str) -> Items:
    if args[:1] == ["help"]:
        node, *_ = _walk(tree["root"], args[1:])
        return _starting(incomplete, _commands(node))
    node, waiting, arguments = _walk(tree["root"], args)
    if waiting is not None:
        return _starting(incomplete, _values(tree, waiting, incomplete))
    if incomplete.startswith("-"):
        name, equals, value = incomplete.partition("=")
        if option := _option(node, name) if equals else None:
            found = _starting(value, _values(tree, option, value))
            return [(f"{name}={each}", text) for each, text in found]
        given = [id(_option(node, word.partition("=")[0])) for word in args]
        options = [each for each in node["options"] if each["many"] or id(each) not in given]
        return _starting(incomplete, [(n, o["help"]) for o in options for n in o["names"]])
    if node["commands"]:
        return _starting(incomplete, _commands(node))
    open_ = node["arguments"][arguments:] or [a for a in node["arguments"][-1:] if a["many"]]
    return _starting(incomplete, _values(tree, open_[0], incomplete)) if open_ else []


def _walk(root: Node, args: list[str]) -> tuple[Node, Node | None, int]:
    """(the command that words lead to, its option that waits for a value, how many arguments it
    has)."""
    node, waiting, arguments = root, None, 0
    for word in args:
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            option = _option(node, name)
            waiting = option if option and option["takes"] and not equals else None
        elif word in node["commands"]:
            node = node["commands"][word]
        else:
            arguments += 1
    return node, waiting, arguments


def _option(node: Node, name: str) -> Node | None:
    return next((option for option in node["options"] if name in option["names"]), None)


def _commands(node: Node) -> Items:
    return [(name, command["help"]) for name, command in node["commands"].items()]


def _starting(incomplete: str, items: Items) -> Items:
    return [item for item in dict.fromkeys(items) if item[0].startswith(incomplete)]


def _values(tree: Node, parameter: Node, incomplete: str) -> Items:
    """The values that an option or argument may take; none where the shell's file names serve."""
    kind, zoo = parameter["kind"], tree["zoo"]
    names = list(parameter["values"])
    if kind == "model":
        names += ["tiny", *(name for name, entry in zoo.items() if entry["kind"] == "base")]
        names += [repo for repo, snapshot in _cached() if (snapshot / "model_index.json").exists()]
    elif kind == "lora":
        names += ["auto", "none", *_weights(incomplete)]
        names += [
            repo
            for repo, snapshot in _cached()
            if any(snapshot.glob("*.safetensors")) and not (snapshot / "model_index.json").exists()
        ]
    elif kind == "motion":
        names += ["auto", "none"]
        names += [name for name, entry in zoo.items() if entry["kind"] == "motion"]
    elif kind == "codec":
        names += tree["codecs"]
    elif kind == "look":
        names += _looks()
    elif kind == "pull":
        names += [name for name, entry in zoo.items() if entry["repo"]]
    elif kind == "here":
        names += [name for name, entry in zoo.items() if entry["repo"] and _here(entry)]
    return [(name, zoo[name]["title"] if name in zoo else "") for name in names]


def _weights(incomplete: str) -> list[str]:
    """Weight files of the folder that is being typed."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    with suppress(OSError):
        return [f"{folder}{n}" for n in os.listdir(folder or ".") if n.endswith(".safetensors")]
    return []


def _looks() -> list[str]:
    found: list[str] = []
    for file in (Path("std.toml"), config_folder() / "config.toml"):
        with suppress(OSError, ValueError, AttributeError):
            if file.is_file():
                found += tomllib.loads(file.read_text(encoding="utf-8")).get("look", {}).keys()
    return found


# --- the Hub's cache, as huggingface_hub lays it out -------------------------------------------


def _hub() -> Path:
    environ = os.environ
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(folder or os.path.join(home, "hub")))


def _cached() -> Iterator[tuple[str, Path]]:
    """(owner/name, snapshot folder) of every model repository of which something is here."""
    with suppress(OSError):
        for folder in sorted(_hub().glob("models--*--*")):
            for snapshot in (folder / "snapshots").iterdir():
                yield "/".join(folder.name.split("--")[1:]), snapshot


def _here(entry: Node) -> bool:
    """Whether the files of a model of the table are in the cache."""
    folder = _hub() / f"models--{entry['repo'].replace('/', '--')}"
    commit = entry["revision"]
    with suppress(OSError):
        commit = (folder / "refs" / commit).read_text().strip()
    snapshot = folder / "snapshots" / commit
    return all((snapshot / file).exists() for file in entry["files"] or ["model_index.json"])


# --- the description of the commands -----------------------------------------------------------


def _tree() -> Node:
    """The description, from the cache if no module that it is made from has changed."""
    made_from = _state()
    file = cache_folder() / "completion.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        tree: Node = json.loads(file.read_text(encoding="utf-8"))
        if tree["made_from"] == made_from:
            return tree
    tree = {"made_from": made_from, **_describe()}
    with suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"completion-{os.getpid()}.tmp")
        draft.write_text(json.dumps(tree), encoding="utf-8")
        os.replace(draft, file)
    return tree


def _state() -> list[list[str | int]]:
    """What the description is made from: names, times and sizes of files."""
    files = [
        *sorted((PACKAGE / "cli").glob("*.py")),
        PACKAGE / "config.py",
        PACKAGE / "weights" / "zoo.toml",
        PACKAGE / "media" / "video" / "target.py",
        config_folder() / "zoo.toml",
    ]
    found: list[list[str | int]] = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found.append([str(file), status.st_mtime_ns, status.st_size])
    return found


def _describe() -> Node:
    """The commands, the models and the codecs, by the modules that know them."""
    import typer

    from std_cli.cli.commands import app
    from std_cli.media.video.target import CONTAINERS, ENCODERS
    from std_cli.weights.zoo import zoo

    codecs = [codec for _, codecs in CONTAINERS.values() for codec in codecs]
    fields = {"kind", "title", "repo", "revision", "files"}
    return {
        "root": _node(typer.main.get_command(app)),
        "zoo": {
            n: entry.model_dump(mode="json", include=fields) for n, entry in zoo().models.items()
        },
        "codecs": list(dict.fromkeys([*codecs, *ENCODERS])),
    }


def _node(command: "Command") -> Node:
    from typer.core import TyperArgument, TyperOption

    from std_cli.cli.help import Group, first_sentence, metavar

    commands = command.commands if isinstance(command, Group) else {}
    names = command.list_commands(None) if isinstance(command, Group) else []
    node: Node = {
        "help": first_sentence(command.help or ""),
        "commands": {name: _node(commands[name]) for name in names},
        "options": [],
        "arguments": [],
    }
    for parameter in command.params:
        assert isinstance(parameter, TyperArgument | TyperOption)
        option = isinstance(parameter, TyperOption)
        kind = parameter.name
        if not option and kind in ("name", "names"):
            kind = "pull" if command.name == "pull" else "here"
        shown = metavar(parameter) if isinstance(parameter, TyperOption) else ""
        choices = shown.split("|") if "|" in shown else []
        node["options" if option else "arguments"].append(
            {
                "names": [*parameter.opts, *parameter.secondary_opts],
                "help": first_sentence(parameter.help or ""),
                "takes": isinstance(parameter, TyperOption) and not parameter.is_flag,
                "many": parameter.multiple or parameter.nargs == -1,
                "values": [choice for choice in choices if choice == choice.lower()],
                "kind": kind,
            }
        )
    help_names = ["-h", "--help"]
    node["options"].append(
        {
            "names": help_names,
            "help": "Show this message and exit",
            "takes": False,
            "many": False,
            "values": [],
            "kind": "help",
        }
    )
    return node
