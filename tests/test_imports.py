"""What imports what: the heavy libraries only where they are needed, and our own modules in one direction."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "std_cli"

# A module imports only from its own row and from the rows below. Modules not named here are free to come and go.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("cli_models",),
    ("console",),
    ("doctor", "models", "convert"),
    ("plan",),
    ("clips",),
    ("clip_run",),
    ("stylize", "distill"),
    ("pipeline",),
    ("savings", "memory", "parts"),
    ("lora", "downloads", "identify"),
    ("config", "weights", "schedule", "wavefront", "video", "work"),
    ("hub", "fingerprints"),
    ("layout", "model_configs"),
    ("image",),
    ("open_picture", "color_profile", "transparency"),
    ("files", "picture_kinds", "pickles", "match", "startup", "zoo"),
    ("errors",),
)
RANK = {module: rank for rank, row in enumerate(LAYERS) for module in row}

# Who may import a library; tinypack trains the embedded model, apart from the tool.
OWNERS = {
    "typer": {"cli", "cli_models"},
    "rich": {"console"},
    "huggingface_hub": {"hub", "downloads"},
    "av": {"video", "tinypack"},
    "diffusers": {"pipeline", "parts", "lora", "memory", "distill", "convert", "tinypack"},
    "std_cli.tinypack": {"tinypack"},
}


def imports(file: Path) -> set[str]:
    """Everything that a file imports, anywhere in it, as dotted names; `from a import b` counts as a and as a.b."""
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
    """The module or sub-package of std_cli that a file belongs to: std_cli/tinypack/vae.py is tinypack."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_import_direction(file):
    module, names = top_level(file), imports(file)

    for library, owners in OWNERS.items():
        if module not in owners:
            assert not {name for name in names if f"{name}.".startswith(f"{library}.")}, f"only {owners} may"

    if module in RANK:
        ours = {name.split(".")[1] for name in names if name.startswith("std_cli.")}
        assert not {other for other in ours if RANK.get(other, RANK[module]) < RANK[module]}, "imported from above"


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_line_answers_without_the_heavy_libraries(flag):
    command = [sys.executable, "-X", "importtime", "-m", "std_cli", flag]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "std_cli.cli" in loaded
    assert not loaded & {"torch", "diffusers", "transformers"}
