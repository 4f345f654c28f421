"""The stages of a video run, each in its own thread:

    read | encode to latents | denoise | decode latents | write

`denoised_items` and `pictures` wire those in the middle for the frames that they are given,
whichever range of the video they are. Frames stream through bounded queues; what is held is the
wavefront's band of latents and a few frames, whatever the length of the video.
"""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from std_cli.interruption import ending
from std_cli.media.compare import Comparison
from std_cli.media.fit import Fit, fit_to
from std_cli.media.palette import Levels, rounded
from std_cli.media.video.clip import Alpha, Pixels, Seen
from std_cli.media.video.steady import AHEAD, Steady
from std_cli.stylize.frames import Place, SourceFrame

if TYPE_CHECKING:
    from torch import Tensor

    from std_cli.diffusion.streams import Arriving, Handed
    from std_cli.diffusion.video_pipeline import Conditions, VideoPipeline
    from std_cli.diffusion.windows import Finished, Wavefront

QUEUE = 4
"""Frames that wait between two stages."""
KEPT_SIDE = 320
"""Longer side in pixels, at most, of a source frame that is kept for the quality figures."""
T = TypeVar("T")
Arrays = dict[str, NDArray[np.generic]]


class Filter(Protocol):
    """A filter of the stylized frames, in order, after they are decoded and before they are
    rounded."""

    def __call__(self, seen: Seen, result: Levels) -> Levels:
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

    def cover(self, alpha: Alpha | None) -> Alpha:
        """How much each pixel of the working size counts, of a frame with this alpha."""
        return self._fit.cover(None if alpha is None else Image.fromarray(alpha))

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
    seen: Pixels | None
    """The source in the working size, for the filters, where there are any."""
    latent: "Handed | None"
    """Clean, then finished; None of a frame that the wavefront has already."""
    joint: bool = False
    picture: Pixels | None = None
    """The stylized frame as it is written."""
    filters: dict[str, Arrays] = field(default_factory=dict)
    """The states of the filters after this frame."""


@dataclass(frozen=True)
class Tick:
    """Work was done though no frame came out."""

    progress: float
    """See `Wavefront.progress`."""
    step: int
    """Steps that the oldest frame in flight has behind it."""


class Denoised:
    """What is denoised and not written yet, from which a run resumes: the wavefront's state, and
    the frames that it has finished. The thread that denoises notes it, the one that writes takes
    it, at any moment."""

    def __init__(self, wave: "Wavefront", finished: "Iterable[Finished]") -> None:
        self._lock = threading.Lock()
        self._finished = {frame.number: frame for frame in finished}
        self._wave = wave.state()
        self.begun = False
        """Whether anything was done since the run began."""

    @property
    def finished(self) -> "dict[int, Finished]":
        """The finished frames that are not written, by number."""
        with self._lock:
            return dict(self._finished)

    def note(self, wave: "Wavefront", finished: "Iterable[Finished]" = ()) -> None:
        """The wavefront has worked; `finished` came out of it."""
        state = wave.state()
        with self._lock:
            self._wave, self.begun = state, True
            self._finished.update({frame.number: frame for frame in finished})

    def drop(self, number: int) -> None:
        """A frame is written, or is not kept; one that was denoised before is not here."""
        with self._lock:
            self.begun = True
            self._finished.pop(number, None)

    def state(self) -> "tuple[dict[str, Any], dict[str, Tensor]]":
        """(what JSON can hold, tensors) for `restored`."""
        with self._lock:
            (tensors, wave), finished = self._wave, list(self._finished.values())
        latents = {f"finished.{frame.number}": frame.latent for frame in finished}
        joints = {str(frame.number): frame.joint for frame in finished}
        return {"wave": wave, "finished": joints}, tensors | latents

    @classmethod
    def restored(
        cls, wave: "Wavefront", state: dict[str, Any], tensors: "dict[str, Tensor]"
    ) -> "Denoised":
        """Bring the wavefront to where it was when `state` gave these; returns what it was of."""
        from std_cli.diffusion.windows import Finished

        wave.load_state(tensors, state["wave"])
        return cls(
            wave,
            [
                Finished(int(number), tensors[f"finished.{number}"], joint)
                for number, joint in state["finished"].items()
            ],
        )


def denoised_items(
    frames: Generator[SourceFrame, None, None],
    pipeline: "VideoPipeline",
    conditions: "Conditions",
    wave: "Wavefront",
    denoised: Denoised,
    view: View,
    filtered: bool,
) -> Generator[Item | Tick, None, None]:
    """The frames with finished latents, in order, and ticks in between. `denoised` is kept up to
    date.

    The first of `frames` is the first that has not come out: the first of a range that begins with
    a shot or with its halo, or that from which a run resumes. filtered: there is a filter that
    needs the source.
    """
    encoded = in_thread(encode(in_thread(frames), pipeline, wave.pushed, view, filtered))
    return in_thread(denoise(encoded, pipeline, conditions, wave, denoised))


def stored_items(
    frames: Generator[SourceFrame, None, None],
    latents: "Iterator[tuple[Tensor, bool]]",
    view: View,
    steps: int,
    at_once: int,
) -> Generator[Item | Tick, None, None]:
    """As `denoised_items`, of frames that were denoised before: `latents` gives for each its
    finished latent, and whether a window starts or ends there. at_once: frames between two ticks.
    """
    from std_cli.diffusion.streams import Handed

    read = in_thread(frames)

    def items() -> Generator[Item | Tick, None, None]:
        with closing(read):
            for frame, (latent, joint) in zip(read, latents, strict=False):
                item = _item(frame, view, np.asarray(view.seen(frame.rgb)), Handed(latent))
                item.joint = joint
                yield item
                if frame.place.index % at_once == at_once - 1:
                    yield Tick(frame.place.index + 1, steps)

    return in_thread(items())


def pictures(
    items: Generator[Item | Tick, None, None],
    pipeline: "VideoPipeline",
    view: View,
    filters: Mapping[str, Filter],
    first: int,
) -> Generator[Item | Tick, None, None]:
    """The items with their pictures, from frame number `first` on; those before it, which are there
    for their influence alone, and the ticks as they are."""
    return in_thread(decode(items, pipeline, view, filters, first))


def in_thread(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, made in a thread a few ahead of who consumes them.

    Closing it closes `items`, when the item at work is finished; where a signal ends the process
    that is not waited for.
    """
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
        if not ending():
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
    from std_cli.diffusion.streams import hand_over

    for frame in frames:
        new = frame.place.index >= pushed
        seen = view.seen(frame.rgb) if filtered or new else None
        latent = None
        if new and seen is not None:
            with pipeline.aside("encode"):
                latent = hand_over(pipeline.encode(seen))
        yield _item(
            frame, view, np.asarray(seen) if filtered and seen is not None else None, latent
        )


def _item(frame: SourceFrame, view: View, seen: Pixels | None, latent: "Handed | None") -> Item:
    return Item(
        place=frame.place,
        source=view.kept(frame.rgb),
        alpha=resized(frame.alpha, view.written) if frame.alpha is not None else None,
        seen=seen,
        latent=latent,
    )


def denoise(
    items: Iterator[Item],
    pipeline: "VideoPipeline",
    conditions: "Conditions",
    wave: "Wavefront",
    denoised: Denoised,
) -> Generator[Item | Tick, None, None]:
    """The items with finished latents, and a tick for each piece of work."""
    from std_cli.diffusion.pipeline import oom_is_one_line
    from std_cli.diffusion.streams import hand_over

    before, held = denoised.finished, wave.pushed
    waiting: dict[int, Item] = {}

    def work() -> Iterator[Item | Tick]:
        for finished in wave.work():
            denoised.note(wave, finished)
            for frame in finished:
                yield complete(waiting.pop(frame.number), frame)
            yield Tick(wave.progress, wave.lowest_step)

    def complete(item: Item, frame: "Finished") -> Item:
        item.latent, item.joint = hand_over(frame.latent), frame.joint
        return item

    with oom_is_one_line():
        for item in items:
            number = item.place.index
            if number in before:
                yield complete(item, before.pop(number))
                continue
            waiting[number] = item
            if item.latent is not None:
                wave.push(pipeline.add_noise(conditions, item.latent.take()), item.place.cut)
                denoised.note(wave)
            if number >= held - 1:  # all that the wavefront has are here
                yield from work()
                yield Tick(wave.progress, wave.lowest_step)
        wave.end()
        yield from work()


def decode(
    items: Iterator[Item | Tick],
    pipeline: "VideoPipeline",
    view: View,
    filters: Mapping[str, Filter],
    first: int,
) -> Generator[Item | Tick, None, None]:
    """The items with their pictures, filtered, from frame number `first` on; all else as it is.

    Frames that come one after the other without a tick in between are decoded at once, as many as
    the VAE takes. Where the device has streams it decodes frames, and threads compute their motion,
    while those before are filtered. On a processor that would only be more work at the same time.
    """
    from std_cli.diffusion.streams import has_streams

    ahead = AHEAD if has_streams(pipeline.device) else 0
    together: list[Item] = []
    begun: deque[tuple[Item, Seen | None, Arriving]] = deque()

    def begin() -> None:
        with pipeline.aside("decode"):
            latents = [item.latent.take() for item in together if item.latent is not None]
            decoded = pipeline.begin_decoding([each.to(pipeline.device) for each in latents])
        for item, arriving in zip(together, decoded, strict=True):
            begun.append((item, expected(item), arriving))
        together.clear()

    def expected(item: Item) -> Seen | None:
        if not filters:
            return None
        assert item.seen is not None
        place = item.place
        seen = Seen(item.seen, view.cover(item.alpha), place.shot, float(place.duration))
        for each in filters.values():
            if isinstance(each, Steady):
                each.expect(seen)
        return seen

    def finished(item: Item, seen: Seen | None, decoded: "Arriving") -> Item:
        levels = pipeline.levels(decoded)
        if seen is not None:
            for apply in filters.values():
                levels = apply(seen, levels)
        item.picture = view.finished(rounded(levels))
        item.filters = {name: f.state() for name, f in filters.items()}
        item.latent = item.seen = None
        return item

    for item in items:
        passes = isinstance(item, Tick) or item.place.index < first
        if isinstance(item, Item) and not passes:
            together.append(item)
        if together and (passes or len(together) >= pipeline.savings.frames):
            begin()
        while len(begun) > ahead:
            yield finished(*begun.popleft())
        if passes:
            yield item
    if together:
        begin()
    while begun:
        yield finished(*begun.popleft())
