"""Tensors out of a torch pickle (.pth), read without running what is in it."""

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_BYTES = 2 * 2**30  # DINOv2 ViT-L/14, the largest that is read from such a file, has 1.2 GB


def read_pickle(
    path: Path, inside: Collection[str] = (), most: int = MAX_BYTES
) -> "dict[str, torch.Tensor]":
    """{name: tensor} of a file that holds named tensors and nothing else, on the CPU.

    inside: names of the entry of a checkpoint that holds the tensors; the others, such as an
    optimizer's state, are not read from the disk. most: bytes that the file may unpack to.

    Raises InputError if it is missing, damaged, too large, holds something else, or would run code
    when it is read.
    """
    import argparse

    import torch

    damaged = f"{path} is missing or damaged, or would run code when read: download it again"
    try:
        # What the archive says it unpacks to: a small file can hold a huge one.
        packed = zipfile.is_zipfile(path)
        size = (
            sum(i.file_size for i in zipfile.ZipFile(path).infolist())
            if packed
            else path.stat().st_size
        )
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(damaged) from error
    check_size(path, size, most)
    # training scripts store their arguments, too; a Namespace runs nothing
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with allowed:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # there is no end to what a broken pickle can raise
        raise InputError(damaged) from error
    if isinstance(found, dict):
        found = next((found[name] for name in inside if name in found), found)
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for key, value in found.items()
    ):
        raise InputError(f"{path} must hold named tensors only: give another, or download it again")
    # a view can be larger than its memory
    check_size(path, sum(tensor.numel() * 4 for tensor in found.values()), most)
    return found


def check_size(path: Path, size: int, most: int = MAX_BYTES) -> None:
    """Raises InputError for more bytes than such a file may have here."""
    if size > most:
        raise InputError(
            f"{path} holds {size / 2**30:.1f} GiB, more than the {most >> 30} that are read of "
            f"such a file: choose a smaller one"
        )
