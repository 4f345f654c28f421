"""What the process of a command imports."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from std_cli.cli import imports
from tests.micro import micro
from tests.processes import std

HEAVY = {"peft", "scipy", "sympy", "jinja2", "boto3"}
HEAVY |= {"torch._dynamo.convert_frame", "torch.distributed.tensor"}
"""What stylizing has no use for; of the compiler, the module that everything else of it needs."""

COMMAND = """
import sys
from std_cli.cli.commands import run
assert run(sys.argv[1:]) == 0
"""
"""A command, and its process after it."""


def python(source, *arguments, **environment):
    """What a new process that runs `source` prints."""
    command = [sys.executable, "-W", "ignore", "-c", source, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stylize(picture, reference, output):
    return [
        *("stylize", "image", picture, "-s", reference, "-m", micro(), "--size", "64x64"),
        *("--steps", 2, "-o", output, "--quiet"),
    ]


def names(package):
    """What the `__init__` of a package imports from its modules: {name: module}."""
    found = {}
    [folder] = importlib.util.find_spec(package).submodule_search_locations
    for node in ast.walk(ast.parse((Path(folder) / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {alias.name: f"{package}.{node.module}" for alias in node.names}
    return found


AFTER = """
print(*sorted(sys.modules), flush=True)
import importlib, json, os
for package, names in json.loads(os.environ["NAMES"]).items():
    for name, module in names.items():
        value = getattr(sys.modules[package], name)
        assert value is getattr(importlib.import_module(module), name), name
import peft, scipy.stats, torch, transformers
from diffusers.models.unets import *
assert {"CLIPTextModel", "BertModel", "pipeline"} <= {*dir(transformers)}
clip = sys.modules["transformers.models.clip.modeling_clip"]
assert transformers.CLIPTextModel is clip.CLIPTextModel
assert transformers.utils.is_torch_available() and not hasattr(transformers, "nothing")
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert "torch._dynamo.convert_frame" in sys.modules
"""
"""Everything can be imported after a command: every name of a deferred package, the libraries that
seemed to be missing, the compiler."""


def test_a_picture_is_the_same_with_fewer_imports(tmp_path, picture, reference):
    """In a new process, against one that has imported the libraries as usual."""
    less, usual = tmp_path / "less.png", tmp_path / "usual.png"
    diffusers = [package for package in imports.DEFERRED if package.startswith("diffusers.")]
    known = {package: names(package) for package in diffusers}
    assert all(len(found) > 8 for found in known.values())
    arguments = stylize(picture, reference, less)
    loaded = set(python(COMMAND + AFTER, *arguments, NAMES=json.dumps(known)).split())
    assert std(*stylize(picture, reference, usual)).returncode == 0

    assert less.read_bytes() == usual.read_bytes()
    assert {"torch", "diffusers", "transformers"} <= loaded
    assert not (HEAVY | {"ray"}) & loaded


def test_known_names_are_where_transformers_has_them():
    import transformers

    for name, module in imports.DEFERRED["transformers"].items():
        if module is None:
            assert not hasattr(transformers, name)
        else:
            there = getattr(importlib.import_module(module), name)
            assert getattr(transformers, name) is there


def test_the_tested_versions_are_those_of_the_constraints():
    file = Path(__file__).parents[2] / "constraints.txt"
    lines = (line.partition("==") for line in file.read_text().splitlines())
    pinned = {name.strip(): version for name, _, version in lines}
    for name, version in imports.TESTED.items():
        assert pinned[name].startswith(f"{version}.")


@pytest.mark.parametrize("change", ["imported", "another version", "asked for"])
def test_imports_are_as_usual_otherwise(change, monkeypatch):
    finders = list(sys.meta_path)
    with monkeypatch.context() as patched:  # pytest itself needs the modules
        if change != "imported":  # as in a new process
            new = {name: module for name, module in sys.modules.items() if name in ("os", "sys")}
            patched.setattr(imports.sys, "modules", new)
        if change == "another version":
            patched.setattr(imports, "TESTED", imports.TESTED | {"torch": "1.0"})
        if change == "asked for":
            patched.setenv("STD_IMPORTS", "all")
        imports.import_less()
    assert sys.meta_path == finders


def test_small_commands_leave_the_libraries_alone(tmp_path, picture, reference):
    """Neither what reads a record, nor what lists models and settings, needs a network."""
    output = tmp_path / "out.png"
    assert std(*stylize(picture, reference, output)).returncode == 0
    commands = (["show", str(output)], ["models", "list"], ["config", "show"], ["version"])
    source = """
import json, sys
from std_cli.cli.commands import run
for command in json.loads(sys.argv[1]):
    assert run(command) == 0
print(*{"torch", "diffusers", "transformers"} & sys.modules.keys())
"""
    assert python(source, json.dumps(commands)).splitlines()[-1] == ""
