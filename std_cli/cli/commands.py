"""The command line: parses, calls one public function, and turns every error into one line and an
exit code."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from std_cli import __version__, interruption
from std_cli.cli import models
from std_cli.cli.console import Reporter
from std_cli.cli.failures import list_failures
from std_cli.cli.help import Command, Group
from std_cli.cli.options import takes_settings
from std_cli.config import CELL_SIDE, ImageSettings, Task, VideoSettings
from std_cli.environment import go_offline, silence_libraries
from std_cli.errors import EXIT_CODES, InputError, Kind, StdError, flags_named, wrong_values
from std_cli.events import Error

if TYPE_CHECKING:
    from std_cli.stylize.defaults import Given

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Stylize pictures and videos with few-step diffusion (Single Trajectory Distillation).",
)


class InputGroup(Group):
    """The commands for pictures and for videos: a file in the place of one is answered with the
    command that takes it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            from std_cli.stylize.inputs import kind_of

            if kind := kind_of(Path(args[0])):
                raise InputError(
                    f"{args[0]} is not a command: give std {ctx.info_name} {kind} {args[0]}"
                )
        return super().resolve_command(ctx, args)


stylize = typer.Typer(
    cls=InputGroup, no_args_is_help=True, help="Give pictures and videos the style of a reference."
)
plan = typer.Typer(
    cls=InputGroup,
    no_args_is_help=True,
    help="Estimate what stylizing takes before it runs: frames, memory, disk and time.",
)
app.add_typer(stylize, name="stylize")
app.add_typer(plan, name="plan")
config = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    help="Defaults of your own: std.toml in a folder, your config.toml, variables STD_...",
)
app.add_typer(models.app, name="models")
app.add_typer(config, name="config")


IN_AND_OUT, STYLE, MESSAGES = "Input and output", "Style", "Messages"

# What pictures and videos have in common in addition to their settings.
StyleFlag = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--style",
        metavar="FILE",
        help="A style reference picture. Repeat to mix several; FILE:2 has twice the weight.",
        rich_help_panel=IN_AND_OUT,
    ),
]
LookFlag = Annotated[
    str | None,
    typer.Option(
        "--look",
        metavar="NAME",
        help="Settings that std.toml or your config.toml has as [look.NAME].",
        rich_help_panel=STYLE,
    ),
]
NoConfigFlag = Annotated[
    bool,
    typer.Option(
        "--no-config",
        help="Read no defaults from std.toml, your config.toml and variables STD_...",
        rich_help_panel="Model",
    ),
]
OverwriteFlag = Annotated[
    bool,
    typer.Option(
        "-y", "--overwrite", help="Replace outputs that exist.", rich_help_panel=IN_AND_OUT
    ),
]
ReportFlag = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Write one page that shows the results with their sources, settings and figures.",
        rich_help_panel=IN_AND_OUT,
    ),
]
SkipExistingFlag = Annotated[
    bool,
    typer.Option(
        "--skip-existing",
        help="Leave out inputs whose outputs exist.",
        rich_help_panel=IN_AND_OUT,
    ),
]
KeepGoingFlag = Annotated[
    bool,
    typer.Option(
        "--keep-going/--no-keep-going",
        help="Of several inputs, stylize the others where one fails; the exit code is then 1.",
        rich_help_panel=IN_AND_OUT,
    ),
]
FailedFlag = Annotated[
    str | None,
    typer.Option(
        "--failed",
        metavar="FILE",
        help="List the inputs that failed in a text file, one a line.",
        rich_help_panel=IN_AND_OUT,
    ),
]
OfflineFlag = Annotated[
    bool,
    typer.Option(
        "--offline", help="Use what is here; never open a connection.", rich_help_panel="Model"
    ),
]
DryRunFlag = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only estimate what it would take: work, memory, disk, time. As std plan.",
        rich_help_panel=MESSAGES,
    ),
]
NoProbeFlag = Annotated[
    bool,
    typer.Option(
        "--no-probe",
        help="Load no model for the estimate, so that no time is measured.",
        rich_help_panel=MESSAGES,
    ),
]
JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON lines instead: events start, notice, progress, result, error.",
        rich_help_panel=MESSAGES,
    ),
]
QuietFlag = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=MESSAGES)
]
VerboseFlag = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Let the libraries' own messages through.",
        rich_help_panel=MESSAGES,
    ),
]
Settings = dict[str, Any]
"""By the names of their fields, as `takes_settings` gives them."""


def _input_argument(what: str) -> Any:
    return typer.Argument(metavar="INPUT", help=what, rich_help_panel=IN_AND_OUT)


def _output_option(default: str) -> Any:
    shown = f"A file for one input, else a folder. [default: {default} here]"
    return typer.Option("-o", "--output", metavar="OUT", help=shown, rich_help_panel=IN_AND_OUT)


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


IMAGE_EXAMPLES = """
std stylize image photo.jpg -s painting.png
std stylize image photos/ -s painting.png --eta 0.65 -o styled/
std stylize image photo.jpg -s a.png:2 -s b.png:1 --model tiny -o mixed.png
"""
SHEET_EXAMPLES = """
std sheet photo.jpg -s a.png -s b.png --vary eta=0.55,0.65,0.75 --vary style-scale=0.6,1
std sheet photos/ -s a.png -s b.png --model tiny -o sheet.png
std sheet in.mp4 --frame 2 --frame 0:12.5 -s a.png --vary steps=4,8
"""
VIDEO_EXAMPLES = """
std stylize video in.mp4 -s painting.png
std stylize video in.mp4 -s painting.png --preview 2
std stylize video in.mp4 -s painting.png --start 1:05 --end 1:20 -o part.mov
"""


@stylize.command("image", cls=Command, epilog=IMAGE_EXAMPLES)
@takes_settings(ImageSettings)
def image(
    *,
    inputs: Annotated[
        list[str],
        _input_argument("Pictures, folders of pictures, patterns, or - for standard input."),
    ],
    style: StyleFlag = None,
    output: Annotated[str | None, _output_option("NAME_stylized.png")] = None,
    overwrite: OverwriteFlag = False,
    skip_existing: SkipExistingFlag = False,
    keep_going: KeepGoingFlag = False,
    failed: FailedFlag = None,
    report_file: ReportFlag = None,
    look: LookFlag = None,
    settings: Settings,
    offline: OfflineFlag = False,
    no_config: NoConfigFlag = False,
    dry_run: DryRunFlag = False,
    no_probe: NoProbeFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Stylize pictures."""
    _ready(verbose, offline)
    from std_cli.cli.pipes import standard_output, with_standard_input

    piped = output == "-" and not dry_run
    target = standard_output(as_json) if piped else output or "."
    pictures = with_standard_input(inputs)
    with Reporter(as_json, quiet, only_stderr=piped) as report:
        given = _given(ImageSettings, settings, style, look, no_config, report)
        request = (pictures, given.style, target)
        options = given.values | {"overwrite": overwrite, "skip_existing": skip_existing}
        options |= {"keep_going": keep_going, "on_event": report}
        if dry_run:
            from std_cli.stylize.plan import plan_images

            report(plan_images(*request, probe=not no_probe, origins=given.origins, **options))
            return
        from std_cli.stylize.stylizer import stylize_images

        with list_failures(failed, report) as on_event:
            options |= {"on_event": on_event, "report": report_file}
            for _ in stylize_images(*request, verbose=verbose, **options):
                pass


@stylize.command("video", cls=Command, epilog=VIDEO_EXAMPLES)
@takes_settings(VideoSettings)
def video(
    *,
    inputs: Annotated[
        list[str],
        _input_argument("Videos, folders of videos, patterns; a folder of pictures is a video."),
    ],
    style: StyleFlag = None,
    output: Annotated[str | None, _output_option("NAME_stylized.mp4")] = None,
    overwrite: OverwriteFlag = False,
    skip_existing: SkipExistingFlag = False,
    keep_going: KeepGoingFlag = True,
    failed: FailedFlag = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Continue where the same command was interrupted, or start over.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = True,
    keep_work: Annotated[
        bool,
        typer.Option(
            "--keep-work",
            help="Keep the work folder .OUT.std/ when the result is finished.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = False,
    report_file: ReportFlag = None,
    look: LookFlag = None,
    settings: Settings,
    offline: OfflineFlag = False,
    no_config: NoConfigFlag = False,
    dry_run: DryRunFlag = False,
    no_probe: NoProbeFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Stylize videos of any length.

    Sound, subtitles, chapters and frame times are kept. An interrupted command resumes when it is
    given again.
    """
    _ready(verbose, offline)
    with Reporter(as_json, quiet) as report:
        given = _given(VideoSettings, settings, style, look, no_config, report)
        request = (inputs, given.style, output or ".")
        options = given.values | {"overwrite": overwrite, "skip_existing": skip_existing}
        options |= {"keep_going": keep_going, "on_event": report}
        if dry_run:
            from std_cli.stylize.plan import plan_video

            report(plan_video(*request, probe=not no_probe, origins=given.origins, **options))
            return
        from std_cli.stylize.stylizer import stylize_video

        options |= {"resume": resume, "keep_work": keep_work, "verbose": verbose}
        with list_failures(failed, report) as on_event:
            options |= {"on_event": on_event, "report": report_file}
            stylize_video(*request, **options)


def _only_planned(command: Callable[..., None]) -> Callable[..., None]:
    """The same command, with the same options, as `std plan`."""
    signature = inspect.signature(command)

    @wraps(command)
    def run(**given: Any) -> None:
        command(**given, dry_run=True)

    kept = [p for p in signature.parameters.values() if p.name != "dry_run"]
    run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return run


for name, command, examples in (
    ("image", image, IMAGE_EXAMPLES),
    ("video", video, VIDEO_EXAMPLES),
):
    plan.command(
        name,
        cls=Command,
        help=f"Estimate what std stylize {name} would take with the same options.\n\n"
        "Downloads and writes nothing.",
        epilog=examples.replace("std stylize", "std plan"),
    )(_only_planned(command))


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


@app.command("sheet", cls=Command, epilog=SHEET_EXAMPLES)
@takes_settings(ImageSettings)
def sheet(
    *,
    inputs: Annotated[
        list[str], _input_argument("Pictures, folders, patterns; with --frame, videos.")
    ],
    style: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--style",
            metavar="FILE",
            help="A style reference picture. Repeat to compare several.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="A setting with the values to compare, such as eta=0.55,0.65; repeat. Values with "
            "commas are separated by |.",
            rich_help_panel=STYLE,
        ),
    ] = None,
    frame: Annotated[
        list[str] | None,
        typer.Option(
            metavar="T",
            help="Of videos: stylize the frame at this time; repeat for several.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    side: Annotated[
        int,
        typer.Option(
            min=32,
            max=2048,
            metavar="INT",
            help="Long side of a cell in the sheet, pixels.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = CELL_SIDE,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="The sheet; NAME.cells/ next to it keeps its cells.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = "sheet.png",
    overwrite: OverwriteFlag = False,
    look: LookFlag = None,
    settings: Settings,
    offline: OfflineFlag = False,
    no_config: NoConfigFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Draw one labelled sheet of inputs, styles and settings, to choose from.

    Each --style is a column or a row of its own, and so is each value of --vary; what is given last
    are the columns. Cells are kept: an interrupted sheet resumes, and a larger one adds to it.
    """
    _ready(verbose, offline)
    from std_cli.stylize.sheet import make_sheet, parse_vary

    with Reporter(as_json, quiet) as report:
        given = _given(ImageSettings, settings, style, look, no_config, report)
        varied = parse_vary(vary or [])
        options = {
            name: value
            for name, value in given.values.items()
            if name not in varied or given.origins[name].source == "flag"
        }
        make_sheet(
            inputs,
            given.style,
            output,
            vary=varied,
            frames=frame or [],
            side=side,
            overwrite=overwrite,
            verbose=verbose,
            on_event=report,
            **options,
        )


@app.command("show", cls=Command)
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A picture or video made by std.")],
    as_json: models.JsonFlag = False,
) -> None:
    """Show what a picture or video was made with: settings, model, hashes, figures."""
    silence_libraries()
    from std_cli.stylize.settings import read_record

    with Reporter(as_json) as report:
        report({"event": "record", "file": file, "record": read_record(file)})


@app.command("repeat", cls=Command)
@takes_settings(VideoSettings, with_defaults=False)
def repeat(
    *,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A picture or video made by std.", rich_help_panel=IN_AND_OUT
        ),
    ],
    input: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            help="Another picture, folder or video to stylize.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    style: StyleFlag = None,
    output: Annotated[str | None, _output_option("FILE_again")] = None,
    overwrite: OverwriteFlag = False,
    settings: Settings,
    offline: OfflineFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Make a picture or video of std again, on the same or another input, with changes.

    Settings that are not given are those that are recorded in FILE. What differs from then is
    reported: the version, weights, references, the input.
    """
    _ready(verbose, offline)
    from std_cli.stylize.defaults import join
    from std_cli.stylize.repeat import repeat as make_again

    changes = join(VideoSettings, settings, own=False).values
    with Reporter(as_json, quiet) as report:
        make_again(
            file,
            input,
            style,
            output,
            overwrite=overwrite,
            verbose=verbose,
            on_event=report,
            **changes,
        )


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


def _ready(verbose: bool, offline: bool) -> None:
    """What comes before the heavy imports."""
    if offline:
        go_offline()
    if not verbose:
        silence_libraries()


def _given(
    kind: type[ImageSettings],
    settings: Settings,
    style: list[str] | None,
    look: str | None,
    no_config: bool,
    report: Reporter,
) -> "Given":
    """What flags and defaults of one's own give, reported where a default takes effect."""
    from std_cli.stylize.defaults import join

    given = join(kind, {**settings, "style": style, "look": look}, own=not no_config)
    for message in given.notices:
        report({"event": "notice", "message": message})
    if not given.style:
        raise InputError(
            "--style is missing: give a reference picture, such as --style painting.png, or a "
            "--look that names one"
        )
    return given


def main() -> None:
    """Run the command line and exit: 0 done, else the code of the error's kind (`EXIT_CODES`)."""
    interruption.install()
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
        return e.exit_code if e.reported else _fail(str(e), e.kind, arguments)
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
