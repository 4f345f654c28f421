"""The captions' embeddings: computed once, kept in one file, read row by row."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from std_cli.distill.bank import Conditions
from std_cli.errors import StdError
from std_cli.paths import FULL_DISK

Encode = Callable[[Sequence[str]], list[Conditions]]
AT_ONCE = 32
"""Captions that are encoded together."""


class CaptionCache:
    """caption -> {"states": (tokens, C), "pooled": (P,)}, fp16, from a file; beyond `limit` bytes
    by the encoders."""

    def __init__(
        self, captions: Sequence[str], encode: Encode, folder: Path, encoders: str, limit: float
    ) -> None:
        """encoders: identifies the text encoders' weights; a file made with others, or of other
        captions, is not used. limit: bytes that the file may take."""
        self.encode = encode
        self.rows = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        [first] = encode([""])
        self.shapes = {k: v.shape for k, v in first.items()}
        width = sum(v.numel() for v in first.values())
        self.cached = 2 * width * len(self.rows) <= limit
        if not self.cached:
            return
        key = hashlib.sha256("\0".join([encoders, *self.rows]).encode()).hexdigest()[:16]
        path = folder / f"captions-{key}.npy"
        if not path.exists():
            self._write(path, width)
        self.table = np.load(path, mmap_mode="r")

    def _write(self, path: Path, width: int) -> None:
        """Write under another name, then rename: the file is whole or missing."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        captions = list(self.rows)
        try:
            # A memory map that cannot grow would kill the process; a write raises an error.
            with part.open("wb") as file:
                head = {"descr": "<f2", "fortran_order": False, "shape": (len(captions), width)}
                np.lib.format.write_array_header_1_0(file, head)
                for start in range(0, len(captions), AT_ONCE):
                    made = self.encode(captions[start : start + AT_ONCE])
                    flat = [
                        torch.cat([v.flatten() for v in row.values()]).half().cpu().numpy()
                        for row in made
                    ]
                    file.write(np.stack(flat).astype("<f2").tobytes())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as e:
            what = "disk full while writing" if e.errno in FULL_DISK else "cannot write"
            raise StdError(
                f"{what} {path} ({e.strerror}): free some space, or lower data.text_cache"
            ) from e
        finally:
            part.unlink(missing_ok=True)

    def __getitem__(self, caption: str) -> Conditions:
        if not self.cached:
            return self.encode([caption])[0]
        row = torch.from_numpy(np.array(self.table[self.rows[caption]]))
        found = {}
        for name, shape in self.shapes.items():
            found[name] = row[: shape.numel()].view(shape)
            row = row[shape.numel() :]
        return found
