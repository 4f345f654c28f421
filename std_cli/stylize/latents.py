"""Finished latents of a stretch of frames, kept in files, so that another run makes the pictures.

Filters that run along a shot need its frames in order, and pieces of a shot are denoised in any
order: what the pieces keep is a few percent of the size of the pictures that it becomes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from std_cli.errors import InputError, StdError
from std_cli.media.video.write import write_errors
from std_cli.paths import replace_file
from std_cli.stylize.work_folder import WorkFolder

if TYPE_CHECKING:
    from torch import Tensor


class LatentPart:
    """Consecutive finished latents on their way into one file: the counterpart of `part.Part`.

    Those at hand are kept one after another in the same file as a part's frames.
    """

    def __init__(self, work_folder: WorkFolder, number: int, times: Sequence[Fraction]) -> None:
        """`times` (seconds) are those of the frames that an interrupted run has kept of it.

        Raises InputError if they are not there, StdError if the disk cannot be written.
        """
        self.path = work_folder.segment(number)
        self.times: list[Fraction] = []
        """Of the frames that it has."""
        self._latents: list[Tensor] = []
        self._joints: list[bool] = []
        self._frames = work_folder.frames
        if times:
            self._read_again(work_folder, times)
        with write_errors(self._frames):
            self._kept = self._frames.open("r+b" if times else "w+b")
            self._kept.truncate(sum(map(len, map(_packed, self._latents, self._joints))))
            self._kept.seek(0, os.SEEK_END)

    def _read_again(self, work_folder: WorkFolder, times: Sequence[Fraction]) -> None:
        import torch

        like = work_folder.tensors_of("part")["like"]
        size = like.nbytes + 1
        data = self._frames.read_bytes()
        if len(data) < size * len(times):
            raise InputError(f"{self._frames} is damaged: give --no-resume to start over")
        for i, time in enumerate(times):
            packed = bytearray(data[i * size : (i + 1) * size])
            latent = torch.frombuffer(packed[:-1], dtype=like.dtype).reshape(like.shape)
            self._latents.append(latent)
            self._joints.append(bool(packed[-1]))
            self.times.append(time)

    @property
    def like(self) -> "Tensor":
        """A latent of the shape and precision of those that are kept; there must be one."""
        return self._latents[0]

    def write(self, latent: "Tensor", joint: bool, pts: Fraction) -> None:
        """The next frame's finished latent (4, h, w), and whether a window starts or ends there."""
        self._latents.append(latent.cpu())
        self._joints.append(joint)
        self.times.append(pts)
        with write_errors(self._frames):
            self._kept.write(_packed(self._latents[-1], joint))

    def sync(self) -> None:
        """Have all latents on the disk."""
        with write_errors(self._frames):
            self._kept.flush()
            os.fsync(self._kept.fileno())

    def close(self) -> None:
        """Write the file."""
        import torch
        from safetensors.torch import save

        tensors = {"latents": torch.stack(self._latents), "joints": torch.tensor(self._joints)}
        replace_file(self.path, save(tensors))
        self.leave()

    def leave(self) -> None:
        """Leave the part as it is: what was kept at the last `sync` stays."""
        with suppress(OSError):  # of latents that no state counts
            self._kept.close()


def _packed(latent: "Tensor", joint: bool) -> bytes:
    import torch

    return latent.contiguous().view(torch.uint8).numpy().tobytes() + bytes([joint])


def read_latents(files: Sequence[Path], skip: int) -> "Iterator[tuple[Tensor, bool]]":
    """(finished latent (4, h, w), whether a window starts or ends there) of each frame of the
    files in order, without the first `skip`. Raises StdError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in files:
        try:
            kept = load_file(file)
            pairs = list(zip(kept["latents"].unbind(), kept["joints"].tolist(), strict=True))
        except (SafetensorError, OSError, KeyError, ValueError):
            raise StdError(
                f"the finished part {file} cannot be read: remove {file.parent} and run the same "
                f"command again"
            ) from None
        yield from pairs[skip:]
        skip = max(0, skip - len(pairs))
