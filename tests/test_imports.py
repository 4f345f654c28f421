"""What imports what: the heavy libraries only where they are needed, and our own modules in one
direction."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "std_cli"

# A module or sub-package imports only from its own row and from the rows below. `stylize` and
# `distill` share a row, and neither imports the other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("comparison",),
    ("spread",),
    ("stylize", "distill"),
    ("diffusion",),
    ("media",),
    ("config",),
    ("weights",),
    ("storage",),
    ("paths", "schedule"),
    ("errors", "environment", "events", "interruption"),
)
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}

# Who may import a library; tinypack trains the embedded model, apart from the tool.
OWNERS = {
    "typer": {"cli"},
    "rich": {"cli/console", "cli/tables"},
    "huggingface_hub": {"weights/hub", "weights/downloads"},
    "fsspec": {"storage", "paths"},
    "av": {"media/video", "tinypack"},
    "diffusers": {
        "diffusion",
        "distill",
        "weights/convert",
        "weights/lora",
        "weights/networks",
        "weights/parts",
        "tinypack",
    },
    "ray": {"spread/ray_start", "spread/ray_executor", "spread/ray_worker", "spread/on_ray"},
    "std_cli.tinypack": {"tinypack"},
}


def imports(file: Path) -> set[str]:
    """Everything that a file imports, anywhere in it, as dotted names; `from a import b` counts as
    a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = file.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def top_level(file: Path) -> str:
    """The module or sub-package of std_cli that a file belongs to: std_cli/tinypack/vae.py is
    tinypack."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_import_direction(file):
    module, names = top_level(file), imports(file)
    place = file.relative_to(PACKAGE).with_suffix("").as_posix()

    for library, owners in OWNERS.items():
        if not any(f"{place}/".startswith(f"{owner}/") for owner in owners):
            assert not {name for name in names if f"{name}.".startswith(f"{library}.")}, (
                f"only {owners} may"
            )

    if module in RANK:
        ours = {name.split(".")[1] for name in names if name.startswith("std_cli.")}
        assert not {other for other in ours if RANK.get(other, RANK[module]) < RANK[module]}, (
            "imported from above"
        )
        assert not ({"stylize", "distill"} <= ours | {module}) or module == "cli", (
            "neither needs the other"
        )


def test_the_top_of_the_package_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= 9


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_line_answers_without_the_heavy_libraries(flag):
    command = [sys.executable, "-X", "importtime", "-m", "std_cli", flag]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "std_cli.cli.commands" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "ray"}
