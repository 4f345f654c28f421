"""The samples that cells are measured on: what came in, its style, and what was made of it."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import overload

import numpy as np

from std_cli.comparison.cells import Cell, prepare_clip
from std_cli.comparison.measures import Sample
from std_cli.config import VideoSettings, video_settings
from std_cli.errors import StdError, counted
from std_cli.media.pictures import read_picture
from std_cli.media.video.clip import Clip, Pixels
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames
from std_cli.stylize.frames import source_frames


class Frames(Sequence[Pixels]):
    """The frames of a clip in order, decoded when they are asked for: one is held at a time, and an
    earlier one decodes the clip again."""

    def __init__(self, read: Callable[[], Generator[Pixels, None, None]], count: int) -> None:
        self._read, self._count = read, count
        self._frames: Generator[Pixels, None, None] | None = None
        self._at = -1
        self._frame: Pixels | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        """A frame, (H, W, 3) RGB."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        number = index + self._count if index < 0 else index
        if not 0 <= number < self._count:
            raise IndexError(index)
        if self._frames is None or number < self._at:
            self.close()
            self._frames, self._at = self._read(), -1
        while self._at < number:
            self._frame = next(self._frames)
            self._at += 1
        assert self._frame is not None
        return self._frame

    def close(self) -> None:
        """Let the decoder go."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None


def sample_of(cell: Cell) -> Sample:
    """What a cell is measured on. Raises StdError where its files cannot be read any more, or a
    clip and its result have different numbers of frames."""
    style = np.asarray(read_picture(cell.style.path).on_white())
    if cell.content.kind == "picture":
        content, result = (
            [np.asarray(read_picture(path).on_white())] for path in (cell.content.path, cell.path)
        )
        return Sample(content, style, result, prompt_of(cell))
    return _of_clip(cell, style)


def prompt_of(cell: Cell) -> str:
    """What the result should show, in words; "" of another tool's."""
    return str(cell.facts.get("settings", {}).get("prompt", ""))


def _of_clip(cell: Cell, style: Pixels) -> Sample:
    joints: set[int] = set()
    if cell.of_peer:
        source = _Source(open_clip(cell.content.path), video_settings(dict(cell.options)), None)
        shots, times = source.places()
    else:
        request = prepare_clip(cell)
        [job] = request.jobs
        source = _Source(job.clip, request.s, job.cuts)
        shots, times = source.places()
        joints = joints_of(shots, request.window, request.window - request.overlap)

    def results() -> Generator[Pixels, None, None]:
        with closing(read_frames(open_clip(cell.path))) as frames:
            for frame in frames:
                yield frame.rgb

    made = sum(1 for _ in results())
    if made != len(times):
        raise StdError(
            f"{cell.path.name} has {counted(made, 'frame')}, and of {cell.content.path.name} "
            f"{len(times)} are compared: give a result with a frame for each"
        )
    content, result = Frames(source.frames, made), Frames(results, made)
    return Sample(content, style, result, prompt_of(cell), times, shots, joints)


@dataclass(frozen=True)
class _Source:
    """The frames of a clip that are stylized."""

    clip: Clip
    settings: VideoSettings
    cuts: Sequence[Fraction] | None

    def frames(self) -> Generator[Pixels, None, None]:
        with closing(source_frames(self.clip, self.settings, self.cuts)) as frames:
            for frame in frames:
                yield frame.rgb

    def places(self) -> tuple[list[int], list[float]]:
        """(the shot of each frame, its time in seconds)."""
        with closing(source_frames(self.clip, self.settings, self.cuts)) as frames:
            places = [frame.place for frame in frames]
        return [place.shot for place in places], [float(place.pts) for place in places]


def joints_of(shots: Sequence[int], window: int, stride: int) -> set[int]:
    """The frames at which a window of frames begins, or the one before has ended. shots: the number
    of each frame's shot."""
    from std_cli.diffusion.windows import window_starts

    found, first = set(), 0
    for _, group in groupby(shots):
        length = len(list(group))
        if length > window:
            for start in window_starts(length, window, stride):
                found |= {first + start, first + start + window}
        first += length
    return {number for number in found if number < len(shots)}
