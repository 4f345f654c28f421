"""One training sample of a captioned picture or clip: decoded, scaled to cover the training size,
cropped, mirrored."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.distill.find_samples import FoundSamples, SampleFile
from std_cli.distill.shards import read_part
from std_cli.errors import InputError, StdError, counted
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import Picture, expand_inputs, read_picture
from std_cli.media.video.opening import open_clip
from std_cli.media.video.read import read_frames

_MAX_PICTURE = 1 << 28
"""Bytes of a picture in a shard, which is read whole."""


@dataclass(frozen=True)
class Sample:
    """A picture or clip as training takes it."""

    pixels: NDArray[np.float32]
    """(F, 3, H, W) in [-1, 1]."""
    caption: str
    original_size: tuple[int, int]
    """(height, width) of the file's picture, upright, with square pixels."""
    crop: tuple[int, int]
    """(top, left) of the crop, in pixels of the picture scaled to cover the training size and
    flipped."""
    reference: Image.Image | None
    """The style's picture, RGB; None if there is none to choose from."""
    key: str
    """The file's name."""
    index: int
    """The index of its entry."""


class Dataset:
    """Captioned pictures and clips as samples of one size."""

    def __init__(
        self,
        found: FoundSamples,
        size: tuple[int, int],
        *,
        frames: int,
        stride: int,
        flip: float,
        references: Sequence[Path] = (),
    ) -> None:
        """`size` is (width, height); a sample has `frames` frames, `stride` apart. flip:
        probability of mirroring.

        With frames > 1 pictures are left out. references: pictures of which each sample gets one.
        Raises InputError if nothing is left.
        """
        if min(size) < 1 or frames < 1 or stride < 1 or not 0 <= flip <= 1:
            raise ValueError(f"no samples of {size}, {frames} frames, stride {stride}, flip {flip}")
        self.found = found
        self.size = size
        self.frames = frames
        self.stride = stride
        self.flip = flip
        self.entries = [e for e in found.entries if frames == 1 or e.kind == "clip"]
        self.references = list(references)
        self.bad_references: dict[Path, str] = {}
        """{reference that could not be read so far: the reason}."""
        if not self.entries:
            raise InputError(
                f"no clips for samples of {counted(frames, 'frame')}, only "
                f"{counted(len(found.entries), 'captioned picture')}; give clips, or train for "
                f"pictures"
            )

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """A random part of one entry: of a clip the frames from somewhere on, of either kind a
        crop.

        A clip too short for the stride gets a smaller one; one whose container does not say how
        long it is (recorded by a browser) is read from its beginning. Raises InputError if the file
        cannot be used, StdError if only the part that was chosen cannot.
        """
        entry = self.entries[index]
        if entry.kind == "picture":
            picture = _flat(_read_picture(entry))
            crop = self._crop(picture.size, rng)
            size, pictures = picture.size, [crop.apply(picture)]
        else:
            size, crop, pictures = self._read_clip(entry, rng)
        # (F, H, W, 3) -> (F, 3, H, W)
        pixels = np.stack([np.asarray(p) for p in pictures]).transpose(0, 3, 1, 2)
        return Sample(
            pixels=np.ascontiguousarray(pixels, np.float32) / np.float32(127.5) - np.float32(1),
            caption=entry.caption,
            original_size=(size[1], size[0]),
            crop=(crop.top, crop.left),
            reference=self._reference(rng),
            key=str(entry.path),
            index=index,
        )

    def _crop(self, size: tuple[int, int], rng: np.random.Generator) -> "_Crop":
        width, height = self.size
        scale = max(width / size[0], height / size[1])
        scaled = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
        left, top = (
            int(rng.integers(s - out + 1)) for s, out in zip(scaled, self.size, strict=True)
        )
        return _Crop(self.size, scaled, left, top, bool(rng.random() < self.flip))

    def _read_clip(
        self, entry: SampleFile, rng: np.random.Generator
    ) -> tuple[tuple[int, int], "_Crop", list[Image.Image]]:
        """(display size, crop, cropped frames)."""
        clip = open_clip(entry.path, part=entry.part)
        crop = self._crop(clip.display_size, rng)

        def read(first: int, step: int, count: int) -> list[Image.Image]:
            # half a frame early: times are rounded
            start = (first - Fraction(1, 2)) * interval if first else None
            frames = read_frames(clip, start=start, step=step, max_frames=count)
            return [crop.apply(Image.fromarray(frame.rgb)) for frame in frames]

        total = clip.frames if clip.duration else None  # what the container says
        interval = clip.duration / total if clip.duration and total else Fraction(0)
        step = self._step(total) if total else self.stride
        span = (self.frames - 1) * step + 1
        starts = max(1, total - span + 1) if total else 1
        try:
            first = int(rng.integers(starts))
            pictures = read(first, step, self.frames)
            # fewer than the container says, or at uneven times
            if first and len(pictures) < self.frames:
                pictures = read(0, step, self.frames)
            if len(pictures) < self.frames:
                pictures = read(0, 1, span)
                pictures = pictures[:: self._step(len(pictures))][: self.frames]
            if len(pictures) < self.frames:
                raise StdError(
                    f"{str(entry.path)!r} has only {counted(len(pictures), 'frame')}, fewer "
                    f"than {self.frames}"
                )
        except StdError as e:
            # a failure that does not depend on the start is the file's fault
            raise (StdError if starts > 1 else InputError)(str(e)) from None
        return clip.display_size, crop, pictures

    def _step(self, total: int) -> int:
        """The stride that a clip of `total` frames has room for."""
        return (
            self.stride
            if self.frames == 1
            else max(1, min(self.stride, (total - 1) // (self.frames - 1)))
        )

    def _reference(self, rng: np.random.Generator) -> Image.Image | None:
        for i in rng.permutation(len(self.references)):
            path = self.references[i]
            if path in self.bad_references:
                continue
            try:
                return _flat(read_picture(path))
            except InputError as e:
                self.bad_references[path] = str(e)
        if self.references:
            raise StdError(
                f"no style reference can be read; the first: "
                f"{next(iter(self.bad_references.values()))}"
            )
        return None


@dataclass(frozen=True)
class _Crop:
    """Scale to cover `size`, mirror, cut out `size`."""

    size: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    flip: bool

    def apply(self, image: Image.Image) -> Image.Image:
        """`image` need not have square pixels. Computes (Lanczos) no more than what is cut out."""
        (width, height), (w, h) = self.size, self.scaled
        left = w - width - self.left if self.flip else self.left  # before mirroring
        across, down = image.width / w, image.height / h
        right, bottom = (
            min(image.width, (left + width) * across),
            min(image.height, (self.top + height) * down),
        )
        box = (left * across, self.top * down, right, bottom)
        cut = image.resize(self.size, Image.Resampling.LANCZOS, box=box)
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else cut


def _read_picture(entry: SampleFile) -> Picture:
    if entry.part is None:
        return read_picture(entry.path)
    if entry.part.size > _MAX_PICTURE:
        raise InputError(
            f"{str(entry.path)!r} has {entry.part.size} bytes, too many for a picture: "
            "scale it down"
        )
    try:
        return read_picture(entry.path, read_part(entry.part))
    except (OSError, EOFError) as e:
        raise InputError(
            f"{str(entry.path)!r} cannot be read ({getattr(e, 'strerror', 'it is cut short')})"
        ) from None


def _flat(picture: Picture) -> Image.Image:
    return picture.on_white()


def fingerprint_samples(entries: Sequence[SampleFile]) -> str:
    """16 hex digits of the samples in their order: names inside their source, sizes, captions.

    So data that were moved, or whose path is written in another way, are the same data.
    """
    sizes = (entry.part.size if entry.part is not None else _size(entry.path) for entry in entries)
    return _digest(
        f"{e.name}\0{size}\0{e.caption}\0" for e, size in zip(entries, sizes, strict=True)
    )


def fingerprint_references(pictures: Sequence[Path]) -> str:
    """16 hex digits of the style pictures in their order, by name and size."""
    return _digest(f"{path.name}\0{_size(path)}\0" for path in pictures)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it was removed since it was found; reading it will report that
        return -1


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures directly inside a folder, for style references. Raises InputError if there are
    none."""
    if not Path(folder).is_dir():
        raise InputError(f"no such folder of style references: {str(folder)!r}; check the path")
    return expand_inputs([folder], PICTURE_SUFFIXES)
