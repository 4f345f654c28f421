"""A model's files on disk: their names, their JSON, their safetensors headers; no weight is read, and no pickle."""

import json
from pathlib import Path
from typing import Any

from std_cli.errors import InputError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def file_names(folder: Path, depth: int) -> set[str]:
    """The files of a folder, at most `depth` levels down: relative, with slashes."""
    levels = (folder.glob("/".join(["*"] * level)) for level in range(1, depth + 1))
    return {path.relative_to(folder).as_posix() for level in levels for path in level if path.is_file()}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or not JSON: copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(content).__name__}: copy it again")
    return content


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({key: shape}, metadata) of a safetensors file, whose length is checked too; no weight is read."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLES:
        raise InputError(f"{path} is a pickle, which can run any code when it is read: convert it to safetensors")
    try:
        with safe_open(path, framework="np") as file:
            keys = file.keys()
            return {key: file.get_slice(key).get_shape() for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing, damaged or no safetensors file: copy it again") from error
