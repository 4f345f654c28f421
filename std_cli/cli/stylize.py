"""The commands that stylize: `std stylize`, `plan`, `sheet`, `show` and `repeat`."""

import inspect
import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from std_cli.cli import models
from std_cli.cli.console import Reporter
from std_cli.cli.failures import list_failures
from std_cli.cli.flags import (
    IN_AND_OUT,
    STYLE,
    ClusterFlag,
    DetachFlag,
    DevicesFlag,
    DryRunFlag,
    FailedFlag,
    JsonFlag,
    KeepGoingFlag,
    LookFlag,
    MixedGpusFlag,
    NoConfigFlag,
    NoProbeFlag,
    OfflineFlag,
    OverwriteFlag,
    QuietFlag,
    ReportFlag,
    Settings,
    ShardFlag,
    SkipExistingFlag,
    StyleFlag,
    VerboseFlag,
    input_argument,
    output_option,
    ready,
)
from std_cli.cli.help import Command, Group
from std_cli.cli.imports import import_less
from std_cli.cli.options import takes_settings
from std_cli.config import CELL_SIDE, ImageSettings, VideoSettings
from std_cli.environment import silence_libraries
from std_cli.errors import InputError

if TYPE_CHECKING:
    from typer._click.core import Context

    from std_cli.spread.on_ray import Where
    from std_cli.stylize.defaults import Given


class InputGroup(Group):
    """The commands for pictures and for videos: a file in the place of one is answered with the
    command that takes it."""

    def resolve_command(self, ctx: "Context", args: list[str]) -> Any:
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
        input_argument("Pictures, folders of pictures, patterns, or - for standard input."),
    ],
    style: StyleFlag = None,
    output: Annotated[str | None, output_option("NAME_stylized.png")] = None,
    overwrite: OverwriteFlag = False,
    skip_existing: SkipExistingFlag = False,
    keep_going: KeepGoingFlag = False,
    failed: FailedFlag = None,
    report_file: ReportFlag = None,
    devices: DevicesFlag = None,
    cluster: ClusterFlag = None,
    detach: DetachFlag = False,
    mixed_gpus: MixedGpusFlag = False,
    shard: ShardFlag = None,
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
    ready(verbose, offline)
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

            options |= _planned_spread(devices, cluster, shard, report)
            report(plan_images(*request, probe=not no_probe, origins=given.origins, **options))
            return
        if shard is not None:
            how = _existing(overwrite, skip_existing)
            alone = {"--devices": devices, "--cluster": cluster, "--report": report_file}
            asked = (inputs, given, output or ".", keep_going)
            _shard("image", shard, asked, how, verbose, report, alone | {"--failed": failed})
            return
        from std_cli.stylize.stylizer import stylize_images

        where = _where(devices, cluster, detach, mixed_gpus)
        with list_failures(failed, report) as on_event:
            options |= {"on_event": on_event, "report": report_file}
            if where is not None:
                if piped or "-" in inputs:
                    raise InputError("-: several devices read and write files: give files")
                from std_cli.spread.on_ray import spread_images

                files = (inputs, given.style, output or ".")
                spread_images(*files, where, verbose=verbose, **options)
                return
            for _ in stylize_images(*request, verbose=verbose, **options):
                pass


@stylize.command("video", cls=Command, epilog=VIDEO_EXAMPLES)
@takes_settings(VideoSettings)
def video(
    *,
    inputs: Annotated[
        list[str],
        input_argument("Videos, folders of videos, patterns; a folder of pictures is a video."),
    ],
    style: StyleFlag = None,
    output: Annotated[str | None, output_option("NAME_stylized.mp4")] = None,
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
    devices: DevicesFlag = None,
    cluster: ClusterFlag = None,
    detach: DetachFlag = False,
    mixed_gpus: MixedGpusFlag = False,
    shard: ShardFlag = None,
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
    ready(verbose, offline)
    with Reporter(as_json, quiet) as report:
        given = _given(VideoSettings, settings, style, look, no_config, report)
        request = (inputs, given.style, output or ".")
        options = given.values | {"overwrite": overwrite, "skip_existing": skip_existing}
        options |= {"keep_going": keep_going, "on_event": report}
        if dry_run:
            from std_cli.stylize.plan import plan_video

            options |= _planned_spread(devices, cluster, shard, report)
            report(plan_video(*request, probe=not no_probe, origins=given.origins, **options))
            return
        if shard is not None:
            how = _existing(overwrite, skip_existing) | {"resume": resume}
            asked = (inputs, given, output or ".", keep_going)
            alone = {"--devices": devices, "--cluster": cluster, "--report": report_file}
            _shard("video", shard, asked, how, verbose, report, alone | {"--failed": failed})
            return
        from std_cli.stylize.stylizer import stylize_video

        options |= {"resume": resume, "keep_work": keep_work, "verbose": verbose}
        where = _where(devices, cluster, detach, mixed_gpus)
        with list_failures(failed, report) as on_event:
            options |= {"on_event": on_event, "report": report_file}
            if where is not None:
                from std_cli.spread.on_ray import spread_video

                spread_video(*request, where, **options)
                return
            stylize_video(*request, **options)


def _planned_spread(
    devices: str | None, cluster: str | None, shard: str | None, report: Reporter
) -> dict[str, Any]:
    """The option of a plan that adds what the request takes on several devices, if any."""
    if devices is None and shard is None:
        if cluster is not None:
            message = f"--cluster {cluster} is not asked by a plan: give --devices N, or cpu:N, too"
            report({"event": "notice", "message": message})
        return {}
    from std_cli.spread.plan import how_many, plan_spread

    parts = how_many(devices, shard)
    return {} if parts is None else {"spread": plan_spread(parts, report)}


def _where(
    devices: str | None, cluster: str | None, detach: bool, mixed_gpus: bool
) -> "Where | None":
    """On which devices the work is spread; None if it is not."""
    if devices is None and cluster is None:
        for flag, given in (("--detach", detach), ("--mixed-gpus", mixed_gpus)):
            if given:
                raise InputError(f"{flag} needs --cluster: give it, or leave out {flag}")
        return None
    from std_cli.spread.on_ray import Where

    return Where(devices or "all", cluster, detach, mixed_gpus)


def _existing(overwrite: bool, skip_existing: bool) -> dict[str, Any]:
    from std_cli.stylize.outputs import existing_rule

    return {"existing": existing_rule(overwrite, skip_existing)}


def _shard(
    task: Literal["image", "video"],
    shard: str,
    asked: tuple[list[str], "Given", Any, bool],
    how: dict[str, Any],
    verbose: bool,
    report: Reporter,
    alone: Mapping[str, object],
) -> None:
    """Make one shard of a request: (inputs, style and settings, output, whether to keep going).

    alone: options that are of a whole request, and their values.
    """
    for flag in (flag for flag, value in alone.items() if value is not None):
        raise InputError(f"{flag} is of a whole request: leave out {flag}, or --shard {shard}")
    from std_cli.spread.saved_request import SavedRequest
    from std_cli.spread.shards import parse_shard, run_shard

    which = parse_shard(shard, os.environ)
    inputs, given, output, keep_going = asked
    saved = SavedRequest.of(task, inputs, given.style, output, keep_going, given.values)
    run_shard(saved, which, on_event=report, verbose=verbose, **how)


def join(
    output: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The output of commands with --shard, or its folder."),
    ],
    overwrite: OverwriteFlag = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Keep the work folder .OUT.std/.")
    ] = False,
    offline: OfflineFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Join what the shards of a command have made: std stylize ... --shard I/N.

    A shard that is missing or has failed is named, and nothing is written.
    """
    ready(verbose, offline)
    from std_cli.spread.shards import join_shards

    with Reporter(as_json, quiet) as report:
        join_shards(output, report, overwrite=overwrite, keep_work=keep_work, verbose=verbose)


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


@takes_settings(ImageSettings)
def sheet(
    *,
    inputs: Annotated[
        list[str], input_argument("Pictures, folders, patterns; with --frame, videos.")
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
    ready(verbose, offline)
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


def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A picture or video made by std.")],
    as_json: models.JsonFlag = False,
) -> None:
    """Show what a picture or video was made with: settings, model, hashes, figures."""
    silence_libraries()
    from std_cli.stylize.settings import read_record

    with Reporter(as_json) as report:
        report({"event": "record", "file": file, "record": read_record(file)})


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
    output: Annotated[str | None, output_option("FILE_again")] = None,
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
    ready(verbose, offline)
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
    if not given.values.get("compile"):
        import_less()
    return given
