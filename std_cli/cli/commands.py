"""The command line: parses, calls one public function, and turns every error into one line and an
exit code."""

import atexit
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer
from pydantic import ValidationError

from std_cli import __version__, interruption
from std_cli.cli import compare, models, stylize
from std_cli.cli.console import Reporter
from std_cli.cli.flags import JsonFlag, LookFlag, QuietFlag, VerboseFlag
from std_cli.cli.help import Command, Group
from std_cli.config import Task
from std_cli.environment import silence_libraries
from std_cli.errors import EXIT_CODES, InputError, Kind, StdError, flags_named, wrong_values
from std_cli.events import Error

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Stylize pictures and videos with few-step diffusion (Single Trajectory Distillation).",
)


config = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Defaults of your own: std.toml in a folder, your config.toml, variables STD_...",
)
app.add_typer(stylize.stylize, name="stylize")
app.add_typer(stylize.plan, name="plan")
app.add_typer(models.app, name="models")
app.add_typer(config, name="config")
app.command("sheet", cls=Command, epilog=stylize.SHEET_EXAMPLES)(stylize.sheet)
app.command("compare", cls=Command, epilog=compare.EXAMPLES)(compare.compare)
app.command("show", cls=Command)(stylize.show)
app.command("repeat", cls=Command)(stylize.repeat)
app.command("join", cls=Command)(stylize.join)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", help="Print the version and stop.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"std {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@config.command("show", cls=Command)
def show_config(
    look: LookFlag = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="NAME", help="With this model's own.")
    ] = None,
    as_json: models.JsonFlag = False,
) -> None:
    """Show every setting, its value without flags, and where that comes from."""
    silence_libraries()
    from std_cli.stylize.defaults import show_defaults

    with Reporter(as_json) as report:
        report(show_defaults(flags={"look": look, "model": model}))


@config.command("path", cls=Command)
def config_path() -> None:
    """Print where your own config.toml is, or would be."""
    from std_cli.stylize.defaults import user_file

    typer.echo(user_file())


@app.command("help", cls=Command)
def help_(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Such as models pull.")
    ] = None,
) -> None:
    """Show the help of std, or of a command: std help stylize video."""
    app([*(words or []), "--help"], standalone_mode=False, prog_name="std")


@app.command("version", cls=Command)
def version(
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Of Python and the libraries, too, and the devices."),
    ] = False,
    as_json: models.JsonFlag = False,
) -> None:
    """Print the version of std."""
    silence_libraries()
    from std_cli.stylize.doctor import version_facts

    with Reporter(as_json) as report:
        report(version_facts(verbose))


@app.command("doctor", cls=Command)
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Leave the Hub alone.")] = False,
    as_json: models.JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Look for what would break a run: versions, devices, encoders, cache, the Hub, and a small
    stylization.

    The exit code is 1 if something would.
    """
    if not verbose:
        silence_libraries()
    from std_cli.stylize.doctor import examine

    with Reporter(as_json) as report:
        found = examine(offline=offline, on_event=report)
        report(found)
    raise typer.Exit(1 if any(problem["breaks"] for problem in found["problems"]) else 0)


DISTILL_EXAMPLES = """
std distill --init run.toml --model tiny
std distill --config run.toml --set distill.eta=0.65 --dry-run
std distill --config run.toml --max-steps 200
"""


@app.command("distill", cls=Command, epilog=DISTILL_EXAMPLES)
def distill(
    config_file: Annotated[
        str | None, typer.Option("--config", metavar="RUN.toml", help="The run's configuration.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a key of it; repeat."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="DIR", help="The run's folder: run.output.")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|none|CHECKPOINT",
            help="Continue from the newest good checkpoint, from none, or from this one.",
        ),
    ] = "auto",
    max_steps: Annotated[int | None, typer.Option(help="Updates: run.max_steps.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, run some updates, report time and memory, keep nothing.",
        ),
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", metavar="RUN.toml", help="Write a commented configuration and stop."
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="With --init: pictures or videos.")] = "i2i",
    model: Annotated[str, typer.Option(help="With --init: the model to train for.")] = "sdxl",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Distil a model into a few-step LoRA.

    Start with `std distill --init run.toml`, fill in data.sources, then
    `std distill --config run.toml`. An interrupted command resumes, bit for bit, when it is given
    again.
    """
    if not verbose:
        silence_libraries()
    with Reporter(as_json, quiet) as report:
        if init is not None:
            from std_cli.distill.dry_run import write_template

            report({"event": "notice", "message": write_template(init, task, model)})
            return
        if config_file is None:
            raise InputError(
                "--config is missing: give a configuration, such as one made by std distill "
                "--init run.toml"
            )
        given = [
            *(changes or []),
            *([f"run.max_steps={max_steps}"] if max_steps is not None else []),
        ]
        given += [f"run.output={json.dumps(output)}"] if output is not None else []
        from std_cli.distill.config import load_config

        try:
            settings = load_config(config_file, given)
            if dry_run:
                from std_cli.distill.dry_run import dry_run as check

                report(check(settings))
                return
        # each process of torchrun comes here; from now on they agree who reports
        except StdError as e:
            e.reported = os.environ.get("LOCAL_RANK", "0") != "0"
            raise
        from std_cli.distill.processes import leave
        from std_cli.distill.train import distill as train

        train(settings, resume=resume, on_event=report)
        leave()


def main() -> None:
    """Run the command line and exit: 0 done, else the code of the error's kind (`EXIT_CODES`)."""
    interruption.install()
    code = 1  # of an exception, which STD_DEBUG lets through

    def end_at_once() -> None:
        # the interpreter's own end takes apart every module of the libraries, one by one: 0.2 s
        with suppress(OSError, ValueError):  # what cannot be written is left to its own end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    atexit.register(end_at_once)  # the first that is registered is the last that is called
    code = run(sys.argv[1:])
    # threads may still be at work: the interpreter's own end would have to wait for them, or abort
    if code >= 128:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of one command line; never raises, unless STD_DEBUG=1."""
    with flags_named():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False, prog_name="std")
        if code == 130:  # what Typer makes of Ctrl-C
            several = arguments[:1] == ["distill"] and os.environ.get("LOCAL_RANK", "0") != "0"
            kind = interruption.event()["kind"]
            return EXIT_CODES[kind] if several else _fail(kind, kind, arguments)
        return code if isinstance(code, int) else 0
    except typer.TyperException as e:
        message = _wrong_use(e)
        return _fail(message, "request", arguments) if message else e.exit_code
    except StdError as e:
        if os.environ.get("STD_DEBUG") == "1":
            raise
        if not e.reported:
            return _fail(str(e), e.kind, arguments)
        _wait_for_the_report()
        return e.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in `std ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:  # a bug of ours or a library's: still one line
        if os.environ.get("STD_DEBUG") == "1":
            raise
        text = " ".join(str(e).split()) or "no message"
        return _fail(
            f"unexpected {type(e).__name__}: {text}: run again with STD_DEBUG=1 for the traceback",
            "failed",
            arguments,
        )


def _wait_for_the_report() -> None:
    """Under torchrun or accelerate, wait to be ended: they end all processes as soon as one has
    ended with an error, and the one that reports it may not have come to it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # nothing is left to say or to save
        time.sleep(30)  # the one that reports may be on another machine, where nobody ends this


def _wrong_use(error: typer.TyperException) -> str:
    """What is wrong with the command line; "" where its help was shown instead."""
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if isinstance(cause, ValidationError) and parameter is not None:
        # Typer leaves the type of a value to pydantic
        _, value, wrong = next(wrong_values(cause))
        return f"{max(parameter.opts, key=len)} {value}: {wrong}"
    return error.format_message()


def _fail(message: str, kind: Kind, arguments: list[str]) -> int:
    code = EXIT_CODES[kind]
    error: Error = {"event": "error", "message": message, "kind": kind, "code": code}
    Reporter(as_json="--json" in arguments)(error)
    return code
