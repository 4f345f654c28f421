"""The command line: parses, calls one public function, and turns every error into one line and an exit code."""

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from std_cli import __version__
from std_cli.config import Dtype, ImageSettings, Offload, ScheduleChoice, StyleBlocks
from std_cli.console import Reporter
from std_cli.errors import InputError, StdError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Stylize pictures and videos with few-step diffusion (Single Trajectory Distillation).",
)
stylize = typer.Typer(no_args_is_help=True, help="Give pictures the style of a reference.")
app.add_typer(stylize, name="stylize")


def _help(name: str, shown: bool = True) -> str:
    """A setting's docstring and default, from config."""
    field = ImageSettings.model_fields[name]
    return f"{field.description} [dim]\\[default: {field.default}][/dim]" if shown else str(field.description)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"std {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@stylize.command("image")
def image(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Pictures, folders of pictures, or patterns.")],
    style: Annotated[
        list[str] | None,
        typer.Option("--style", metavar="REF[:WEIGHT]", help="A style reference picture; repeat to mix several."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="A file for one input, else a folder. [dim]\\[default: NAME_stylized.png here][/dim]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help=_help("prompt"))] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("-n", "--negative-prompt", help=_help("negative_prompt"))
    ] = None,
    eta: Annotated[float | None, typer.Option("--eta", help=_help("eta"))] = None,
    steps: Annotated[int | None, typer.Option("--steps", help=_help("steps"))] = None,
    cfg: Annotated[float | None, typer.Option("--cfg", help=_help("cfg"))] = None,
    style_scale: Annotated[float | None, typer.Option("--style-scale", help=_help("style_scale"))] = None,
    style_blocks: Annotated[StyleBlocks | None, typer.Option("--style-blocks", help=_help("style_blocks"))] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH|N", help=_help("size", shown=False))] = None,
    seed: Annotated[int | None, typer.Option("--seed", help=_help("seed"))] = None,
    schedule: Annotated[ScheduleChoice | None, typer.Option("--schedule", help=_help("schedule"))] = None,
    model: Annotated[str | None, typer.Option("--model", help=_help("model"))] = None,
    lora: Annotated[
        str | None, typer.Option("--lora", metavar="auto|none|FILE|HUB_ID[:SCALE]", help=_help("lora"))
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help=_help("device"))] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help=_help("dtype"))] = None,
    offload: Annotated[Offload | None, typer.Option("--offload", help=_help("offload"))] = None,
    compile: Annotated[bool, typer.Option("--compile", help=_help("compile", shown=False))] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON lines instead: events start, notice, progress, result, error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Let the libraries' own messages through.")] = False,
) -> None:
    """Stylize pictures.

    Settings that are not given are the model's own defaults where its folder has a std.json, else those shown.
    """
    if not style:
        raise InputError("--style is missing: give a reference picture, such as --style painting.png")
    if not verbose:
        _hush()
    from std_cli.stylize import stylize_images

    with Reporter(as_json, quiet) as report:
        for _ in stylize_images(
            inputs,
            style,
            output or ".",
            overwrite=overwrite,
            on_event=report,
            size=size,
            prompt=prompt,
            negative_prompt=negative_prompt,
            eta=eta,
            steps=steps,
            cfg=cfg,
            style_scale=style_scale,
            style_blocks=style_blocks,
            seed=seed,
            schedule=schedule,
            model=model,
            lora=lora,
            device=device,
            dtype=dtype,
            offload=offload,
            compile=compile or None,
        ):
            pass


def _hush() -> None:
    """Keep the libraries' warnings and progress bars from the user's terminal; before they are imported."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong request or input, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line; never raises, unless STD_DEBUG=1."""
    try:
        code = app(arguments, standalone_mode=False, prog_name="std")
        if code == 130:  # what Typer makes of Ctrl-C
            return _fail("interrupted", 130, arguments)
        return code if isinstance(code, int) else 0
    except typer.TyperException as e:
        message = e.format_message()  # none where the help was shown instead
        return _fail(message, e.exit_code, arguments) if message else e.exit_code
    except StdError as e:
        if os.environ.get("STD_DEBUG") == "1":
            raise
        return _fail(str(e), e.exit_code, arguments)
    except BrokenPipeError:  # the reader of our output has gone, as in `std ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:  # a bug of ours or a library's: still one line
        if os.environ.get("STD_DEBUG") == "1":
            raise
        text = " ".join(str(e).split()) or "no message"
        return _fail(
            f"unexpected {type(e).__name__}: {text}: run again with STD_DEBUG=1 for the traceback", 1, arguments
        )


def _fail(message: str, code: int, arguments: list[str]) -> int:
    Reporter(as_json="--json" in arguments)({"event": "error", "message": message, "code": code})
    return code
