"""A storage in memory that counts what is asked of it: counted://BOX/name."""

from collections import Counter
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class CountedFileSystem(MemoryFileSystem):
    """As memory://, with files of its own; the user of a URL is left out of its paths."""

    protocol = "counted"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    calls: ClassVar[Counter] = Counter()
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("counted://")
        return "/" + path.rpartition("@")[2].strip("/") if path.strip("/") else ""

    def ls(self, path, detail=True, **options):
        self.calls["ls"] += 1
        return super().ls(path, detail=detail, **options)

    def info(self, path, **options):
        self.calls["info"] += 1
        return super().info(path, **options)

    def exists(self, path, **options):
        self.calls["exists"] += 1
        return super().exists(path, **options)

    def _open(self, path, mode="rb", **options):
        self.calls[f"open {mode}"] += 1
        return super()._open(path, mode, **options)


def counted(files):
    """The storage, empty but for these files: {path: bytes}."""
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    CountedFileSystem.store = {}
    CountedFileSystem.pseudo_dirs = [""]
    fs = CountedFileSystem()
    for path, data in files.items():
        fs.pipe_file(path, data)
    CountedFileSystem.calls = Counter()
    return fs
