"""What is said of a value that a model of pydantic refuses: words of std, for every type of
error."""

import importlib
import math
import pkgutil
import re
from fractions import Fraction

import pytest
from pydantic import BaseModel, ValidationError

import std_cli
from std_cli.cli.commands import run
from std_cli.config import ImageDefaults, VideoSettings, video_settings
from std_cli.errors import InputError, wrong_values

VALUES = (
    None, True, 0, -1, 3, 10**12, 10**400, 0.5, -1.5, math.inf, math.nan, "", "x", "1.5", "3",
    "inf", "9" * 5000, b"x", [], ["x"], [1, 2, 3], [None] * 500, {}, {"a": 1}, {1: 1}, (1, 2),
    Fraction(1, 3), object, "\ud800",
)  # fmt: skip
PYDANTICS = re.compile(
    r"Input should|a valid |Field required|not permitted|unable to|Value error|cannot be used|"
    "pydantic"
)


def kinds():
    """Every model in std_cli: of settings, files and tables."""
    for module in pkgutil.walk_packages(std_cli.__path__, "std_cli."):
        if re.search(r"config|zoo|motion$|inspect|convert|find_samples", module.name):
            importlib.import_module(module.name)
    found, waiting = set(), [BaseModel]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("std_cli."):
                found.add(kind)
    return found


def test_every_error_that_a_field_can_give_has_words_of_std():
    found, fields = kinds(), 0
    assert {VideoSettings, ImageDefaults} < found and len(found) > 20
    for kind in found:
        for name, field in kind.model_fields.items():
            fields += 1
            for value in VALUES:
                with pytest.raises(ValidationError) as error:
                    kind.model_validate({field.alias or name: value, "no such": 1})
                    kind.model_validate("no table")
                for shown, _, message in wrong_values(error.value):
                    assert not PYDANTICS.search(message), (kind, shown, value, message)
    assert fields > 150


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eta": "x"}, "--eta x: must be a number"),
        ({"steps": 1.5}, "--steps 1.5: must be a whole number"),
        ({"cfg": 51}, "--cfg 51: must be at most 50"),
        ({"eta": 0}, "--eta 0: must be more than 0"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"fps": "x"}, "--fps x: must be a number or a fraction"),
        ({"audio": "loud"}, "--audio loud: must be 'copy' or 'none'"),
        ({"size": 1.5}, "--size 1.5: must be a list or a whole number"),
        ({"output_size": 7}, "--output-size 7: must be a list or 'source' or 'model'"),
        ({"compile": "x"}, "--compile x: must be true or false"),
        ({"device": "tpu"}, "--device tpu: must be auto, cpu, mps, cuda or cuda:N"),
        ({"prompt": 3}, "--prompt 3: must be a text"),
    ],
)
def test_the_words(given, message):
    with pytest.raises(InputError) as error:
        video_settings(given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stylize image a.png -s b.png --steps many", "--steps many: must be a whole number"),
        ("stylize video a.mp4 -s b.png --start x --eta y", "--eta y: must be a number; --start x"),
        ("models pull --for image --eta high", "--eta high: must be a number"),
        ("models pull --for image --eta 2", "--eta 2: must be at most 1"),
        ("models pull --for paint", "--for"),
        ("distill --task song", "--task"),
        ("distill --max-steps few", "--max-steps few: must be a whole number"),
    ],
)
def test_on_the_command_line(line, message, capsys):
    assert run(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not PYDANTICS.search(error)
