"""The frames that a result is made of: a clip read with cuts, preview, --fps and its two ends.

It is a function of the clip and the settings: a run reads its frames so, and a plan counts them.
"""

import hashlib
import math
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli.config import VideoSettings
from std_cli.errors import StdError
from std_cli.media.transparency import fill_hidden
from std_cli.media.video.clip import Alpha, Clip, Frame, Pixels
from std_cli.media.video.cuts import CutDetector, GivenCuts
from std_cli.media.video.opening import FOLDER_RATE
from std_cli.media.video.read import read_frames
from std_cli.weights.fingerprints import fingerprint


@dataclass(frozen=True)
class Place:
    """Where a frame is in the result."""

    index: int
    """Its number, from 0."""
    shot: int
    """The number of its shot, from 1."""
    cut: bool
    """Whether it is the first frame of its shot."""
    pts: Fraction
    """When it is shown, in seconds on the clip's clock."""
    duration: Fraction
    """Seconds."""


@dataclass(frozen=True)
class SourceFrame:
    """A frame of the source that becomes one of the result."""

    place: Place
    rgb: Pixels
    alpha: Alpha | None
    """None if all is opaque, or transparency is not kept."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of one shot that are made apart from all others, by number.

    The frames `begin` to `stop` are denoised, of which `first` to `end` are kept: what lies around
    those has an influence on them (the halo).
    """

    shot: int
    """The number of the shot, from 1."""
    shot_first: int
    """Number of the first frame of the shot."""
    first: int
    end: int
    begin: int
    stop: int
    pts: Fraction
    """When frame `begin` is shown, in seconds on the clip's clock."""
    checksum: int
    """Of the pixels of frame `begin`, see `checksum`."""


def checksum(rgb: Pixels) -> int:
    """A number by which a frame is known again: Adler-32 of its pixels."""
    return zlib.adler32(np.ascontiguousarray(rgb).data)


def source_frames(
    clip: Clip,
    settings: VideoSettings,
    cuts: Sequence[Fraction] | None = None,
    *,
    keep_alpha: bool = False,
    begin: int = 0,
    end: int | None = None,
    on_notice: Callable[[str], None] = lambda message: None,
) -> Generator[SourceFrame, None, None]:
    """The frames `begin` to `end` (not included; None: the last) of the result.

    cuts: their times, seconds from the first frame; None: they are detected, unless the settings
    say "off". Frames before `begin` are decoded, too: shots and numbers follow from them. Notices
    are those of `read_frames`.
    """
    is_cut = _cut_finder(clip, settings, cuts)
    timeline = _Timeline(clip, settings)
    frames = read_frames(
        clip,
        start=settings.start,
        end=settings.end,
        max_frames=settings.max_frames,
        fps=None if clip.kind == "folder" else settings.fps,  # there it is the clip's rate
        deinterlace=settings.deinterlace,
        keep_alpha=keep_alpha,
        on_notice=on_notice,
    )
    index = 0
    with closing(frames):
        for frame in frames:
            rgb = _without_hidden_colours(frame)
            pts = timeline.place(frame.pts, is_cut(rgb, frame.pts))
            if pts is None:
                continue
            if index >= begin:
                cut = timeline.first_of_shot
                place = Place(index, timeline.shot, cut, pts, frame.duration)
                yield SourceFrame(place, rgb, frame.alpha)
            index += 1
            if index == end:
                return


_LEAD = 1
"""Seconds that are read before the frame that is looked for: what removes interlacing needs the
frames before."""


def stretch_frames(
    clip: Clip,
    settings: VideoSettings,
    cuts: Sequence[Fraction] | None,
    stretch: Stretch,
    *,
    keep_alpha: bool = False,
    begin: int = 0,
) -> Generator[SourceFrame, None, None]:
    """The frames of a stretch from number `begin` on, as `source_frames` gives them.

    The clip is read from a little before the stretch on. Where the pixels of its first frame are
    then not what they were when all was read, as in a file without an index, or with --preview,
    whose times are not the clip's, it is read from its beginning.
    """
    if settings.preview is None:
        frames = _read_near(clip, settings, stretch, keep_alpha)
        with closing(frames):
            first = next(frames, None)
            if first is not None and checksum(first.rgb) == stretch.checksum:
                if begin <= stretch.begin:
                    yield first
                for frame in frames:
                    if frame.place.index >= begin:
                        yield frame
                return
    yield from source_frames(
        clip,
        settings,
        cuts,
        keep_alpha=keep_alpha,
        begin=max(begin, stretch.begin),
        end=stretch.stop,
    )


def _read_near(
    clip: Clip, settings: VideoSettings, stretch: Stretch, keep_alpha: bool
) -> Generator[SourceFrame, None, None]:
    """The frames of a stretch; none if no frame has the time of its first."""
    fps = None if clip.kind == "folder" else settings.fps
    lead = Fraction(math.ceil(fps * _LEAD)) / fps if fps else Fraction(_LEAD)
    start = max(stretch.pts - clip.start - lead, settings.start or Fraction(0))
    frames = read_frames(
        clip,
        start=start,
        end=settings.end,
        fps=fps,
        deinterlace=settings.deinterlace,
        keep_alpha=keep_alpha,
    )
    index = None
    with closing(frames):
        for frame in frames:
            if index is None:
                if frame.pts < stretch.pts:
                    continue
                if frame.pts > stretch.pts:
                    return
                index = stretch.begin
            cut = index == stretch.shot_first
            place = Place(index, stretch.shot, cut, frame.pts, frame.duration)
            yield SourceFrame(place, _without_hidden_colours(frame), frame.alpha)
            index += 1
            if index == stretch.stop:
                return


class _Timeline:
    """Where frames are in the result: the number of the shot, and the time.

    With --preview a shot has its first seconds only, and the shots follow each other without a gap.
    """

    def __init__(self, clip: Clip, settings: VideoSettings) -> None:
        self.preview = settings.preview
        self.shot = 0
        self.first_of_shot = False
        self._frame_time = 1 / (settings.fps or clip.frame_rate or FOLDER_RATE)
        self._shot_start = Fraction(0)
        self._last: Fraction | None = None
        self._time = clip.start

    def place(self, pts: Fraction, cut: bool) -> Fraction | None:
        """When the result shows the next frame; None if it leaves the frame out."""
        self.first_of_shot = cut or self.shot == 0
        if self.first_of_shot:
            self.shot += 1
            self._shot_start = pts
        if self.preview is None:
            return pts
        if pts - self._shot_start >= self.preview:
            return None
        if self._last is not None:
            self._time += self._frame_time if self.first_of_shot else pts - self._last
        self._last = pts
        return self._time


def _cut_finder(
    clip: Clip, settings: VideoSettings, cuts: Sequence[Fraction] | None
) -> Callable[[Pixels, Fraction], bool]:
    """Called with each frame and its time; True where a new shot starts."""
    if settings.cuts == "off":
        return lambda rgb, pts: False
    return CutDetector() if cuts is None else GivenCuts(cuts, clip.start)


def _without_hidden_colours(frame: Frame) -> Pixels:
    """The pixels, with what cannot be seen filled from what can, so that it has no effect."""
    if frame.alpha is None:
        return frame.rgb
    return np.asarray(fill_hidden(Image.fromarray(np.dstack([frame.rgb, frame.alpha]))))


# --- the input stays as it is ------------------------------------------------------------------


def input_fingerprint(source: Path) -> str:
    """16 hex digits that identify a file's contents, or a folder's."""
    if source.is_file():
        return fingerprint(source)
    inside = sorted(f for f in source.iterdir() if f.is_file())
    return hashlib.sha256(
        "".join(f"{f.name}\n{fingerprint(f)}\n" for f in inside).encode()
    ).hexdigest()[:16]


def check_unchanged(source: Path, sha256: str) -> None:
    """Raise StdError if the input is not what it was when its fingerprint was `sha256`."""
    remedy = "put it back as it was and give the same command again: finished parts are kept"
    try:
        now = input_fingerprint(source)
    except OSError as e:
        raise StdError(f"{source.name} cannot be read any more ({e.strerror}): {remedy}") from None
    if now != sha256:
        raise StdError(f"{source.name} was changed or cut while it was read: {remedy}")


def unchanged(
    frames: Generator[SourceFrame, None, None], source: Path, sha256: str
) -> Generator[SourceFrame, None, None]:
    """The frames. Raises StdError if the input was changed meanwhile, also in place of the error
    that this led to."""
    try:
        yield from frames
    except (StdError, OSError):
        check_unchanged(source, sha256)
        raise
    check_unchanged(source, sha256)
