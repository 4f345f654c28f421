"""The documents are true: their Python runs, their `std` commands are parsed, what they name
exists, and the map of the modules is complete."""

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from std_cli import stylize_image, stylize_video
from std_cli.cli.commands import app
from std_cli.config import VideoSettings, image_settings, video_settings
from tests.micro import micro
from tests.stylize.test_videos import make_clip

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "std_cli" / "packs").rglob("*.md"),
    ]
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT))
)


def fenced(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return [block for kind, block in FENCED.findall(text) if kind == language]


# --- Python ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo):
    """The files that the documents' examples name."""
    folder = tmp_path_factory.mktemp("documents")
    photo.resize((96, 64)).save(folder / "photo.jpg")
    photo.resize((64, 64)).rotate(90).save(folder / "painting.png")
    make_clip(folder / "in.mp4", 3, (96, 64))
    [defaults] = fenced(ROOT / "examples" / "automation.md", "toml")
    (folder / "std.toml").write_text(defaults)
    (folder / "refs").mkdir()
    shutil.copy(folder / "painting.png", folder / "refs" / "watercolour.png")
    fast = {"model": micro(), "steps": 1, "size": 64}
    stylize_image(
        folder / "photo.jpg", folder / "painting.png", folder / "photo_stylized.png", **fast
    )
    stylize_video(folder / "in.mp4", folder / "painting.png", folder / "in_stylized.mp4", **fast)
    return folder


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if fenced(document, "python")],
    ids=lambda document: document.name,
)
def test_the_python_of_the_documents_runs(document, folder, monkeypatch, capsys):
    """Block after block, as one would type them, with a smaller model."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    for block in fenced(document, "python"):
        source = block.replace('"tiny"', repr(micro()))
        exec(compile(source, str(document), "exec"), names)


# --- commands ----------------------------------------------------------------------------------


def lines(document: Path) -> Iterator[str]:
    """The lines of the document's shell blocks, fenced or indented."""
    text = document.read_text(encoding="utf-8")
    for block in fenced(document, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    for line in FENCED.sub("", text).splitlines():
        if line.startswith("    "):
            yield re.sub(r"\[(--[^\]]*)\]", r"\1", line)  # [--option] is one that may be left out


def commands(document: Path) -> list[list[str]]:
    """The arguments of every `std` command in the document's shell blocks."""
    found = []
    for line in lines(document):
        for part in re.split(r"&&|\|\s", line):
            if re.match(r"\s*(\S*/)?std\s", part):
                found.append(shlex.split(part, comments=True)[1:])
    return found


def parse(arguments: list[str]) -> None:
    """Parse a command as the command line does, without running it. Raises if an option does not
    exist or a value cannot be used."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    context = command.make_context(command.name, list(arguments))
    if kind := getattr(command.callback, "settings", None):
        check = video_settings if kind is VideoSettings else image_settings
        check({name: context.params[name] for name in kind.model_fields})


@every_document
def test_the_commands_of_the_documents_are_parsed(document):
    for arguments in commands(document):
        try:
            parse(arguments)
        except Exception as error:  # of Typer's parser, which has no public names for its errors
            pytest.fail(f"std {shlex.join(arguments)}: {error!r}")


def test_commands_are_found_and_wrong_ones_are_not_parsed():
    found = commands(ROOT / "README.md")
    assert len(found) > 12 and ["doctor"] in found
    for wrong in (
        ["stylize", "image", "a.png", "--colour", "red"],
        ["stylize", "image", "a.png", "--eta", "x"],
        ["paint"],
    ):
        with pytest.raises(Exception, match=r"--colour|--eta x|paint"):
            parse(wrong)


def options(command: Any) -> set[str]:
    own = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    return own.union(*(options(other) for other in getattr(command, "commands", {}).values()))


@every_document
def test_what_the_documents_name_exists(document):
    """Options of `std`, modules that are run, files of the project."""
    text = document.read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m ([\w.]+)", text)) - {"venv"}:
        assert importlib.util.find_spec(module), module
    codes = [code for code in INLINE.findall(FENCED.sub("", text)) if "python" not in code]
    known = options(typer.main.get_command(app)) | {"--help"}
    of_others = {"--multi_gpu", "--nproc-per-node", "--fix", "--cpu", "--num_processes"}
    if document.name not in {
        "CONTRIBUTING.md",
        "distill-compare.md",
        "distill-mixture.md",
        "gpu.md",
    }:
        flags = {flag for code in codes for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", code)}
        if document.parent.name != "tiny":  # its commands are those of tinypack
            assert flags - known - of_others == set()
    for code in codes:
        if re.fullmatch(r"(std_cli|tests|examples|\.ci|\.github)/[\w./-]*", code):
            assert (ROOT / code).exists(), code


@every_document
def test_links_lead_to_files(document):
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


# --- the map of the modules --------------------------------------------------------------------


def test_the_map_of_the_modules_is_complete():
    """A table for each folder, a row for each module."""
    text = (ROOT / "examples" / "architecture.md").read_text(encoding="utf-8")
    mapped = set()
    for folder, rows in re.findall(
        r"^\| `(std_cli/[\w/]*)` \| \|\n((?:\|.*\n)+)", text, re.MULTILINE
    ):
        mapped |= {
            folder + module for module in re.findall(r"^\| `(\w+\.py)` \|", rows, re.MULTILINE)
        }
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "std_cli").rglob("*.py")}
    packages = {module for module in modules if module.count("/") > 1 and "__init__" in module}
    assert mapped == modules - packages


def test_the_paths_of_the_map_exist():
    text = (ROOT / "examples" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|toml))`", text))
    assert len(paths) > 30
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "std_cli" / path).exists(), path
