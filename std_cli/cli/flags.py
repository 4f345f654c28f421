"""Flags that several commands have."""

from typing import Annotated, Any

import typer

from std_cli.environment import go_offline, silence_libraries

IN_AND_OUT, STYLE, MACHINE, MESSAGES = "Input and output", "Style", "Machine", "Messages"

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
DevicesFlag = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="WHICH",
        help="Spread the work: all (every GPU), 2 (so many), cuda:0,cuda:1, or cpu:2 (two workers "
        "on the processor). Needs std-cli[ray].",
        rich_help_panel=MACHINE,
    ),
]
ClusterFlag = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Spread the work over a Ray cluster: its address, or auto. It continues there where "
        "this process is lost.",
        rich_help_panel=MACHINE,
    ),
]
DetachFlag = Annotated[
    bool,
    typer.Option(
        "--detach",
        help="With --cluster: return at once; the same command without it shows the run.",
        rich_help_panel=MACHINE,
    ),
]
MixedGpusFlag = Annotated[
    bool,
    typer.Option(
        "--mixed-gpus",
        help="Accept workers with GPUs of several kinds, whose results differ in their last bits.",
        rich_help_panel=MACHINE,
    ),
]
ShardFlag = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Make only part I (from 0) of N of the work, in N processes or jobs; then std join. "
        "auto takes I and N of a SLURM array; auto/N takes I of it, or of Kubernetes.",
        rich_help_panel=MACHINE,
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


def input_argument(what: str) -> Any:
    return typer.Argument(metavar="INPUT", help=what, rich_help_panel=IN_AND_OUT)


def output_option(default: str) -> Any:
    shown = f"A file for one input, else a folder. [default: {default} here]"
    return typer.Option("-o", "--output", metavar="OUT", help=shown, rich_help_panel=IN_AND_OUT)


def ready(verbose: bool, offline: bool) -> None:
    """What comes before the heavy imports."""
    if offline:
        go_offline()
    if not verbose:
        silence_libraries()
