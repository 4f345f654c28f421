"""The stages of a video run, each in its own thread:

    read | encode to latents | denoise | decode latents | write

`stylized` wires those in the middle for the frames that it is given, whichever range of the video
they are. Frames stream through bounded queues; what is held is the wavefront's band of latents and
a few frames, whatever the length of the video.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.media.compare import Comparison
from std_cli.media.pictures import Fit, fit_to
from std_cli.media.video.clip import Alpha, Pixels
from std_cli.media.video.flow import Grey, grey
from std_cli.stylize.frames import Place, SourceFrame

if TYPE_CHECKING:
    from torch import Tensor

    from std_cli.diffusion.video_pipeline import Conditions, VideoPipeline
    from std_cli.diffusion.windows import Finished, Wavefront

QUEUE = 4
"""Frames that wait between two stages."""
KEPT_SIDE = 320
"""Longer side in pixels, at most, of a source frame that is kept for the quality figures."""
T = TypeVar("T")
Arrays = dict[str, NDArray[np.generic]]


class Filter(Protocol):
    """A filter of the stylized frames, in order, after they are decoded."""

    def __call__(self, source: Grey, result: Pixels, shot: int) -> Pixels:
        """The filtered result; source and result are in the working size."""

    def state(self) -> Arrays:
        """What the next frame's result follows from, kept for a run that resumes."""


@dataclass(frozen=True)
class View:
    """From a frame as it is stored to what the network sees, and back to what is written. Sizes are
    (width, height)."""

    display: tuple[int, int]
    """Of the source with square pixels."""
    working: tuple[int, int]
    """That the network sees."""
    written: tuple[int, int]
    """Of one stylized frame in the result."""
    comparison: Comparison

    @property
    def _fit(self) -> Fit:
        return fit_to(*self.display, self.working)

    def seen(self, source: Pixels) -> Image.Image:
        """A frame of the source in the working size."""
        picture = Image.fromarray(source)
        if picture.size != self.display:
            picture = picture.resize(self.display, Image.Resampling.LANCZOS)
        return self._fit.apply(picture)

    def finished(self, result: Pixels) -> Pixels:
        """A stylized frame of the working size as it is written."""
        return resized(np.asarray(self._fit.undo(Image.fromarray(result))), self.written)

    def kept(self, source: Pixels) -> Pixels:
        """What is kept of a frame of the source while it is denoised: memory for many of them."""
        if self.comparison.mode != "none":
            return resized(source, self.written)
        width, height = self.written
        scale = min(1.0, KEPT_SIDE / max(width, height))
        return resized(source, (max(8, round(width * scale)), max(8, round(height * scale))))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """RGB (H, W, 3) or alpha (H, W) in another (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    # Lanczos rings: what is opaque would become less so
    how = Image.Resampling.LANCZOS if pixels.ndim == 3 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))


@dataclass
class Item:
    """A frame on its way through the stages."""

    place: Place
    source: Pixels
    """What `View.kept` keeps."""
    alpha: Alpha | None
    """In the size of the result."""
    grey: Grey | None
    """The source in the working size, for the filters, where there are any."""
    latent: "Tensor | None"
    """Clean, then finished; None of a frame that the wavefront has already."""
    joint: bool = False
    picture: Pixels | None = None
    """The stylized frame as it is written."""


@dataclass(frozen=True)
class Tick:
    """Work was done though no frame came out."""

    progress: float
    """See `Wavefront.progress`."""
    step: int
    """Steps that the oldest frame in flight has behind it."""


@dataclass(frozen=True)
class Checkpoint:
    """All frames before it are out: the state from which the rest can be made."""

    wave: dict[str, Any]
    """What JSON can hold of the wavefront's state; the next is its tensors."""
    tensors: "dict[str, Tensor]"
    filters: dict[str, Arrays] = field(default_factory=dict)


def stylized(
    frames: Generator[SourceFrame, None, None],
    pipeline: "VideoPipeline",
    conditions: "Conditions",
    wave: "Wavefront",
    view: View,
    filters: Mapping[str, Filter],
    segment: int,
) -> Generator[Item | Tick | Checkpoint, None, None]:
    """The finished frames in order; after about every `segment` of them, and at the end, a
    checkpoint.

    The first of `frames` is the wavefront's and the filters' next one to finish: the first of a
    range that begins with a shot, or the one that follows a checkpoint.
    """
    encoded = in_thread(encode(in_thread(frames), pipeline, wave.pushed, view, bool(filters)))
    denoised = in_thread(denoise(encoded, pipeline, conditions, wave, segment))
    return in_thread(decode(denoised, pipeline, view, filters))


def in_thread(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, made in a thread a few ahead of who consumes them. Closing it closes
    `items`."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(QUEUE)
    stop, end = threading.Event(), StopIteration()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(item, None):
                    break
            put(None, end)
        except BaseException as e:  # raised where the items are consumed
            put(None, e)
        finally:
            items.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is end:
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


# --- the stages --------------------------------------------------------------------------------


def encode(
    frames: Iterator[SourceFrame],
    pipeline: "VideoPipeline",
    pushed: int,
    view: View,
    filtered: bool,
) -> Generator[Item, None, None]:
    """Latents of the frames from number `pushed` on, which the wavefront does not have yet.
    filtered: there is a filter that needs the source."""
    for frame in frames:
        new = frame.place.index >= pushed
        seen = view.seen(frame.rgb) if filtered or new else None
        yield Item(
            place=frame.place,
            source=view.kept(frame.rgb),
            alpha=resized(frame.alpha, view.written) if frame.alpha is not None else None,
            grey=grey(seen) if filtered and seen is not None else None,
            latent=pipeline.encode(seen) if new and seen is not None else None,
        )


def denoise(
    items: Iterator[Item],
    pipeline: "VideoPipeline",
    conditions: "Conditions",
    wave: "Wavefront",
    segment: int,
) -> Generator[Item | Tick | Checkpoint, None, None]:
    """The items with finished latents; ticks, and checkpoints as `stylized` has them."""
    from std_cli.diffusion.pipeline import oom_is_one_line

    waiting: dict[int, Item] = {}
    emitted = saved = wave.emitted

    def out(finished: "list[Finished]") -> Iterator[Item | Tick | Checkpoint]:
        nonlocal emitted, saved
        for result in finished:
            item = waiting.pop(emitted)
            item.latent, item.joint = result.latent, result.joint
            emitted += 1
            yield item
        yield Tick(wave.progress, wave.lowest_step)
        if emitted - saved >= segment:
            yield checkpoint()

    def checkpoint() -> Checkpoint:
        nonlocal saved
        saved = emitted
        tensors, rest = wave.state()
        return Checkpoint(rest, tensors)

    with oom_is_one_line():
        for item in items:
            waiting[item.place.index] = item
            if item.latent is not None:
                noised = pipeline.add_noise(conditions, item.latent)
                yield from out(wave.push(noised, item.place.cut))
        for finished in wave.end():
            yield from out(finished)
        yield checkpoint()


def decode(
    items: Iterator[Item | Tick | Checkpoint],
    pipeline: "VideoPipeline",
    view: View,
    filters: Mapping[str, Filter],
) -> Generator[Item | Tick | Checkpoint, None, None]:
    """The items with their pictures, filtered; the filters' states in the checkpoints."""
    for item in items:
        if isinstance(item, Item):
            assert item.latent is not None
            pixels = pipeline.decode(item.latent)
            for apply in filters.values():
                assert item.grey is not None
                pixels = apply(item.grey, pixels, item.place.shot)
            item.picture = view.finished(pixels)
            item.latent = item.grey = None
        elif isinstance(item, Checkpoint):
            item.filters.update({name: f.state() for name, f in filters.items()})
        yield item
