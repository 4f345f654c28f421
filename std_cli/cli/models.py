"""`std models`: parses and calls one function of `models`, `identify` or `convert` each."""

from typing import Annotated

import typer

from std_cli.cli.console import Reporter
from std_cli.cli.help import Command, Group
from std_cli.environment import go_offline, silence_libraries
from std_cli.errors import InputError
from std_cli.weights.zoo import LoraLayout, TaskName

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="The models: what is here, fetch, check, remove, convert."
)


NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Models, as std models list names them."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON lines instead.")]
QuietFlag = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
OfflineFlag = Annotated[
    bool, typer.Option("--offline", help="Use what is here; never open a connection.")
]


@app.command("list", cls=Command)
def list_(as_json: JsonFlag = False) -> None:
    """What there is, what of it is here, and what each task needs."""
    _ready()
    from std_cli.weights.cache import list_models

    with Reporter(as_json) as report:
        for event in list_models():
            report(event)


PULL_EXAMPLES = """
std models pull --for video --eta 0.65
std models pull sdxl lcm
"""


@app.command("pull", cls=Command, epilog=PULL_EXAMPLES)
def pull(
    names: NamesArgument = None,
    task: Annotated[
        TaskName | None,
        typer.Option("--for", help="What this task needs."),
    ] = None,
    eta: Annotated[
        float, typer.Option(help="With --for: the STD LoRA nearest to it.", min=0.01, max=1)
    ] = 0.75,
    offline: OfflineFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fetch models that are not here. HF_HOME, HF_TOKEN, HF_ENDPOINT and proxies are respected."""
    _ready(offline)
    from std_cli.weights import cache

    wanted = [*(names or []), *(cache.needed(task, eta) if task else [])]
    if not wanted:
        raise InputError(
            "nothing to pull: name models (std models list shows them), or say --for image"
        )
    with Reporter(as_json, quiet) as report:
        cache.pull(wanted, on_event=report)


@app.command("path", cls=Command)
def path(name: Annotated[str, typer.Argument(help="A model.")]) -> None:
    """Print where a model is."""
    _ready()
    from std_cli.weights.cache import path_of

    typer.echo(path_of(name))


@app.command("verify", cls=Command)
def verify(
    names: NamesArgument = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is damaged.")] = False,
    offline: OfflineFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check the hashes and headers of models, all that are here if none is named."""
    _ready(offline)
    from std_cli.weights import cache

    with Reporter(as_json, quiet) as report:
        cache.verify(names or (), repair=repair, on_event=report)


@app.command("rm", cls=Command)
def rm(names: NamesArgument = None, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Delete models from the cache."""
    _ready()
    from std_cli.weights import cache

    if not names:
        raise InputError("nothing to remove: name models (std models list shows them)")
    with Reporter(as_json, quiet) as report:
        cache.remove(names, on_event=report)


@app.command("inspect", cls=Command)
def inspect(
    file: Annotated[str, typer.Argument(help="A .safetensors file, or DINOv2's .pth.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a weights file is and what it fits."""
    _ready()
    from std_cli.weights.inspect import inspect_file

    with Reporter(as_json) as report:
        report(inspect_file(file))


@app.command("convert", cls=Command)
def convert(
    file: Annotated[
        str,
        typer.Argument(help="A LoRA, HotShot-XL's layers, an SDXL checkpoint, or DINOv2's .pth."),
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="The file, or folder, to write.")],
    to: Annotated[
        LoraLayout | None,
        typer.Option("--to", help="Spelling of a LoRA; ComfyUI and sd-scripts read kohya's."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("-y", "--overwrite", help="Replace an output that exists.")
    ] = False,
    offline: OfflineFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a LoRA in another spelling, or weights as a folder that diffusers or transformers
    reads."""
    _ready(offline)
    from std_cli.weights.convert import convert as run

    with Reporter(as_json, quiet) as report:
        report(run(file, output, to=to, overwrite=overwrite))


def _ready(offline: bool = False) -> None:
    """What comes before the heavy imports."""
    if offline:
        go_offline()
    silence_libraries()
