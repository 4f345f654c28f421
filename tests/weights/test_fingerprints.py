"""Fingerprints of files and folders, and where those of large files are remembered."""

import json
import re
from pathlib import Path

import pytest

from std_cli.weights import fingerprints
from std_cli.weights.fingerprints import fingerprint
from tests.weights.files import sdxl_folder


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sdxl_folder(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{16}", one) and fingerprint(folder) == one
    (folder / "notes.md").write_text("not a part")
    assert fingerprint(folder) == one
    config = folder / "vae" / "config.json"
    config.rename(config.with_name("renamed.json"))
    assert fingerprint(folder) != one
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert fingerprint(tmp_path / "abc") == "ba7816bf8f01cfea"
    assert not (tmp_path / "cache").exists()  # small files are not remembered

    large, store = tmp_path / "large", tmp_path / "cache" / "std" / "sha256.json"
    large.write_bytes(bytes(2**24 + 1))
    digest = fingerprint(large)
    assert list(json.loads(store.read_text())) == [
        f"{large}|{2**24 + 1}|{large.stat().st_mtime_ns}"
    ]
    for damaged in ("[", "[]", json.dumps(dict.fromkeys(json.loads(store.read_text()), 1))):
        store.write_text(damaged)
        fingerprints._sha256_of.cache_clear()
        assert fingerprint(large) == digest
    store.write_text(json.dumps(dict.fromkeys(json.loads(store.read_text()), "f" * 64)))
    fingerprints._sha256_of.cache_clear()
    assert fingerprint(large) == "f" * 16  # not read a second time
