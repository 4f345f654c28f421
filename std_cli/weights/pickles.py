"""Tensors out of a torch pickle (.pth), read without running what is in it."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.errors import InputError

if TYPE_CHECKING:
    import torch

MAX_BYTES = 2 * 2**30  # DINOv2 ViT-L/14, the largest that is read from such a file, has 1.2 GB


def read_pickle(path: Path) -> "dict[str, torch.Tensor]":
    """{name: tensor} of a file that holds named tensors and nothing else, on the CPU.

    Raises InputError if it is missing, damaged, too large, holds something else, or would run code
    when it is read.
    """
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
    check_size(path, size)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what a broken pickle can raise
        raise InputError(damaged) from error
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        for key, value in found.items()
    ):
        raise InputError(f"{path} must hold named tensors only: give another, or download it again")
    # a view can be larger than its memory
    check_size(path, sum(tensor.numel() * 4 for tensor in found.values()))
    return found


def check_size(path: Path, size: int) -> None:
    """Raises InputError for more bytes than a DINOv2 may have here."""
    if size > MAX_BYTES:
        most = f"the {MAX_BYTES >> 30} that are read of such a file"
        raise InputError(
            f"{path} holds {size / 2**30:.1f} GiB, more than {most}: choose a smaller one"
        )
