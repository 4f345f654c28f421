"""Fingerprints of weights: what a manifest and a checkpoint remember a model by."""

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from std_cli.errors import InputError, StdError
from std_cli.paths import cache_folder, replace_file
from std_cli.weights.files import read_object


def fingerprint(path: Path) -> str:
    """16 hex digits that identify a weight file, or all weights and configs (names and contents) of
    a folder."""
    if path.is_file():
        return _known_sha256(path)[:16]
    files = sorted((f.relative_to(path).as_posix(), f) for f in path.rglob("*.*") if f.is_file())
    kept = [
        (name, file) for name, file in files if file.suffix in (".safetensors", ".json", ".txt")
    ]
    return hashlib.sha256(
        "".join(f"{name}\n{_known_sha256(file)}\n" for name, file in kept).encode()
    ).hexdigest()[:16]


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits; every byte is read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_sha256(path: Path) -> str:
    real = path.resolve()
    return _sha256_of(real, real.stat().st_size, real.stat().st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; that of a large one is remembered on disk while its size and time stay the
    same."""
    key = f"{path}|{size}|{mtime_ns}"
    store = cache_folder() / "sha256.json"
    known: dict[str, Any] = {}
    if size > 2**24:
        with suppress(OSError, InputError):
            known = read_object(store)
        if isinstance(known.get(key), str):
            return str(known[key])
    digest = sha256(path)
    if size > 2**24:
        with suppress(OSError, StdError):  # a cache that cannot be written only costs time
            store.parent.mkdir(parents=True, exist_ok=True)
            replace_file(store, json.dumps(known | {key: digest}, indent=0).encode())
    return digest
