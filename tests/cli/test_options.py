"""Options are made from settings: what a field declares is what the command line takes."""

from fractions import Fraction
from typing import Annotated, Literal

import typer
from pydantic import Field
from typer.testing import CliRunner

from std_cli.cli.commands import app
from std_cli.cli.help import Command
from std_cli.cli.options import takes_settings
from std_cli.config import Flag, ImageSettings, VideoSettings


class Extended(ImageSettings):
    brush_width: Annotated[float, Flag("-b", "PIXELS", "Encoding")] = Field(2.5, gt=0, le=9)
    """Width of the brush."""
    order: Literal["random", "sorted"] = "random"
    """In which order strokes are painted."""
    dry: bool = False
    """Paint with a dry brush."""
    pause: Fraction | None = None
    """Seconds to wait."""


def test_a_new_field_is_an_option():
    commands, received = typer.Typer(), {}

    @commands.command(cls=Command)
    @takes_settings(Extended)
    def paint(*, target: str, settings: dict[str, object], loud: bool = False) -> None:
        """Paint."""
        received.update(settings, target=target, loud=loud)

    def run(*arguments):
        received.clear()
        return CliRunner().invoke(commands, arguments, env={"COLUMNS": "100"})

    shown = run("--help").output
    assert "-b, --brush-width PIXELS" in shown and "--order random|sorted" in shown
    assert "Width of the brush. [above 0 to 9] [default: 2.5]" in shown
    assert "--[no-]dry" in shown and "--pause FLOAT" in shown and "<" not in shown

    assert run("wall", "--loud").exit_code == 0
    assert (received.pop("target"), received.pop("loud")) == ("wall", True)
    assert received == dict.fromkeys(Extended.model_fields)

    given = ["--brush-width", "4", "--order", "sorted", "--dry", "--pause", "1/3", "--steps", "2"]
    assert run("wall", *given).exit_code == 0
    known = {name: received[name] for name in ("brush_width", "order", "dry", "pause", "steps")}
    assert known == dict(brush_width="4", order="sorted", dry=True, pause="1/3", steps="2")
    assert run("wall", "--no-dry").exit_code == 0 and received["dry"] is False


def test_every_setting_is_an_option_of_its_command():
    for command, kind in (("image", ImageSettings), ("video", VideoSettings)):
        group = typer.main.get_command(app).commands["stylize"]
        flags = {flag for p in group.commands[command].params for flag in p.opts}
        assert {f"--{name.replace('_', '-')}" for name in kind.model_fields} <= flags
