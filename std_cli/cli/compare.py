"""`std compare`: stylizations measured, side by side."""

from typing import Annotated, Any

import typer

from std_cli.cli.console import Reporter
from std_cli.cli.flags import (
    IN_AND_OUT,
    MACHINE,
    MESSAGES,
    DevicesFlag,
    JsonFlag,
    NoProbeFlag,
    OfflineFlag,
    QuietFlag,
    Settings,
    VerboseFlag,
    ready,
)
from std_cli.cli.imports import import_less
from std_cli.cli.options import takes_settings
from std_cli.comparison.config import NOT_SETTINGS
from std_cli.config import VideoSettings
from std_cli.errors import InputError

COMPARE = "Comparison"
EXAMPLES = """
std compare photos/ -s a.png -s b.png --model tiny --vary cfg=2,4,6 -o report/
std compare photo.jpg -s a.png --method std,tcd,pcm,none --vary steps=4,8 -o report/
std compare photos/ -s a.png --lora mine.safetensors --against others/=magenta -o report/
std compare --config paper-table.toml --dry-run
"""


_Content = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONTENT",
        help="Pictures and videos, folders of them, patterns.",
        rich_help_panel=IN_AND_OUT,
    ),
]
_Style = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--style",
        metavar="REF",
        help="A reference picture, or a folder of them; repeat. Each is a style of its own.",
        rich_help_panel=IN_AND_OUT,
    ),
]
_Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FOLDER",
        help="The report, which keeps the results: what is there is not made again. "
        "[default: comparison]",
        rich_help_panel=IN_AND_OUT,
    ),
]
_ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="The comparison's keys; flags replace them.",
        rich_help_panel=IN_AND_OUT,
    ),
]
_Method = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="Methods to compare, each with its own LoRA: std, lcm, tcd, pcm, tdd, hyper-sd, "
        "lightning, none. [default: std]",
        rich_help_panel=COMPARE,
    ),
]
_Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="A LoRA to compare, too, sampled as STD's; repeat. none: the methods are without "
        "a LoRA.",
        rich_help_panel=COMPARE,
    ),
]
_Vary = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE,...",
        help="A setting that varies, such as cfg=2,4,6,8; repeat. Values with commas are "
        "separated by |.",
        rich_help_panel=COMPARE,
    ),
]
_Seeds = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        help="Seeds of each combination, from --seed. [default: 3]",
        rich_help_panel=COMPARE,
    ),
]
_Seed = Annotated[
    int | None,
    typer.Option(metavar="INT", help="The first seed. [default: 0]", rich_help_panel=COMPARE),
]
_Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FOLDER=NAME",
        help="Results of another tool: files named as the contents, or CONTENT--STYLE; repeat.",
        rich_help_panel=COMPARE,
    ),
]
_Measures = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,...",
        help="What is measured; everything that can be if not given.",
        rich_help_panel=COMPARE,
    ),
]
_Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What differences are taken to; the first that is compared if not given.",
        rich_help_panel=COMPARE,
    ),
]
_Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Make the cells on a Ray cluster: its address, or auto. Where this process is lost, "
        "the same command resumes.",
        rich_help_panel=MACHINE,
    ),
]
_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Only estimate what it would take: cells, time, disk.",
        rich_help_panel=MESSAGES,
    ),
]


@takes_settings(VideoSettings, with_defaults=False, without=NOT_SETTINGS)
def compare(
    *,
    content: _Content = None,
    style: _Style = None,
    output: _Output = None,
    config_file: _ConfigFile = None,
    method: _Method = None,
    lora: _Lora = None,
    vary: _Vary = None,
    seeds: _Seeds = None,
    seed: _Seed = None,
    against: _Against = None,
    measures: _Measures = None,
    baseline: _Baseline = None,
    settings: Settings,
    devices: DevicesFlag = None,
    cluster: _Cluster = None,
    offline: OfflineFlag = False,
    dry_run: _DryRun = False,
    no_probe: NoProbeFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Stylize with several methods and settings, measure the results, and write a report.

    Each result is a cell: a content, a style, a method, values of what varies, a seed. Cells are
    kept in the report's folder: an interrupted comparison resumes, and a larger one adds to it.
    Defaults of your own are not read.
    """
    ready(verbose, offline)
    from std_cli.comparison.config import make_config, read_config
    from std_cli.stylize.sheet import parse_vary

    given: dict[str, Any] = {
        "content": content,
        "style": style,
        "output": output,
        "method": _names("--method", method),
        "lora": lora,
        "vary": parse_vary(vary or []),
        "seeds": seeds,
        "seed": seed,
        "against": _folders(against or []),
        "measures": _names("--measures", measures),
        "baseline": baseline,
        "settings": {name: value for name, value in settings.items() if value is not None},
    }
    given = {name: value for name, value in given.items() if value not in (None, [], {})}
    with Reporter(as_json, quiet) as report:
        if config_file is None:
            for name, shown in (("content", "CONTENT"), ("style", "--style")):
                if name not in given:
                    raise InputError(
                        f"{shown} is missing: give pictures, such as photo.jpg --style "
                        f"painting.png, or a --config file"
                    )
        config = read_config(config_file, given) if config_file else make_config(given)
        if not config.settings.get("compile"):
            import_less()
        if dry_run:
            from std_cli.comparison.plan import plan_comparison

            for flag, value in (("--devices", devices), ("--cluster", cluster)):
                if value is not None:
                    message = f"{flag} changes nothing in this plan, which is that of one process"
                    report({"event": "notice", "message": message})
            report(plan_comparison(config, probe=not no_probe, on_event=report))
            return
        from std_cli.comparison.run import run_comparison

        run_comparison(config, devices, cluster, verbose=verbose, on_event=report)


def _names(flag: str, given: list[str] | None) -> list[str]:
    """ "a,b" and "c" -> a, b, c. Raises InputError where none is named."""
    names = [name.strip() for text in given or [] for name in text.split(",") if name.strip()]
    if given and not names:
        raise InputError(f"{flag} {','.join(given)}: no names: give some, separated by commas")
    return names


def _folders(given: list[str]) -> dict[str, str]:
    """ "folder=name" by name. Raises InputError."""
    found: dict[str, str] = {}
    for text in given:
        folder, equals, name = text.rpartition("=")
        if not equals or not folder or not name.strip():
            raise InputError(f"--against {text}: give FOLDER=NAME, such as others/=magenta")
        if name.strip() in found:
            raise InputError(f"--against {text}: {name.strip()} is given twice: use another name")
        found[name.strip()] = folder
    return found
