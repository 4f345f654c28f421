"""The run of one video: decode | encode to latents | denoise | decode latents | write, each in a
thread of its own.

Frames stream through bounded queues; what is held is the wavefront's band of latents and a few
frames, whatever the length of the video. After every finished segment the whole state goes to the
work folder.
"""

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from std_cli.config import VideoSettings
from std_cli.errors import StdError
from std_cli.media.pictures import fit_to, save_picture
from std_cli.media.transparency import fill_hidden
from std_cli.media.video.clip import Alpha, Clip, Frame, Pixels
from std_cli.media.video.cuts import CutDetector, GivenCuts
from std_cli.media.video.extras import Extras
from std_cli.media.video.join import join
from std_cli.media.video.quality import Quality
from std_cli.media.video.read import read_frames
from std_cli.media.video.steady import Grey, Steady, grey
from std_cli.media.video.write import SegmentWriter, Target
from std_cli.paths import move, remove, writing
from std_cli.stylize.pictures import (
    Event,
    OnEvent,
)
from std_cli.stylize.work_folder import WorkFolder
from std_cli.weights.fingerprints import fingerprint

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import VideoPipeline
    from std_cli.diffusion.windows import Wavefront

SEGMENT = 48
"""Frames of a finished part: how much an interrupted run repeats at most, beside what is in
flight."""
QUEUE = 4
"""Frames that wait between two stages."""
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One video, checked before a weight is loaded."""

    source: Path
    clip: Clip
    target: Target
    extras: Extras
    """What the result has in addition to its pictures."""
    index: int
    total: int
    working: tuple[int, int]
    """Size that the network sees."""
    size: tuple[int, int]
    """Of one stylized frame as it is written; with side_by_side the result is twice as wide."""
    cuts: list[Fraction] | None
    frames: int | None
    """Estimate of how many there will be."""

    @property
    def facts(self) -> Event:
        t = self.target
        return {
            "frames": self.frames,
            "width": t.width,
            "height": t.height,
            "codec": t.codec,
            "output": str(t.path),
        }


@dataclass
class _Item:
    """A frame on its way."""

    index: int
    pts: Fraction
    """As it will be written."""
    duration: Fraction
    cut: bool
    """It begins a shot."""
    source: Pixels
    """What the quality figures need of it; with side_by_side the frame in the size of the
    result."""
    alpha: Alpha | None = None
    """In the size of the result, where that has it."""
    grey: Grey | None = None
    """The source in the working size, where the result is to be made steady."""
    latent: Any = None
    """Clean, then finished."""
    joint: bool = False
    picture: Pixels | None = None


@dataclass(frozen=True)
class _Checkpoint:
    """All frames before it are out: the state to go on from."""

    state: dict[str, Any]
    tensors: dict[str, Any]


@dataclass(frozen=True)
class _Tick:
    """Work was done though no frame came out."""

    progress: float
    step: int


@dataclass
class Run:
    """One video: decode | encode to latents | denoise | decode latents | write, each in its own
    thread."""

    job: Job
    facts: Event
    s: VideoSettings
    window: int
    stride: int
    on_event: OnEvent
    first_pts: Fraction | None = None
    end: Fraction = Fraction(0)
    """When the last frame that was written ends."""
    notices: list[str] = field(default_factory=list)
    input_sha256: str = ""

    @property
    def about(self) -> Event:
        return {"input": self.job.source.name, "index": self.job.index, "total": self.job.total}

    def record(self) -> Event:
        """All that the result follows from."""
        t, ignored = self.job.target, ("batch",)
        self.input_sha256 = input_fingerprint(self.job.source)
        settings = {k: v for k, v in self.facts["settings"].items() if k not in ignored}
        return {
            "version": self.facts["version"],
            "settings": settings,
            "input": {"name": self.job.source.name, "sha256": self.input_sha256},
            "cuts": [str(c) for c in self.job.cuts] if self.job.cuts is not None else None,
            "output": {
                "size": [t.width, t.height],
                "encoder": t.encoder,
                "pix_fmt": t.pix_fmt,
                "options": t.options,
            },
        }

    def go(
        self, pipeline: "VideoPipeline", work: WorkFolder, overwrite: bool, keep_work: bool
    ) -> Event:
        begin = time.monotonic()
        for message in self.job.extras.notices:
            self.notice(message)
        wave = self._wavefront(pipeline)
        quality, steady, segments, emitted, pushed = Quality(), Steady(self.s.steady), 0, 0, 0
        if work.state is not None:
            kept = work.state
            segments, emitted, pushed = kept["segments"], kept["emitted"], kept["pushed"]
            self.first_pts, self.end = Fraction(kept["first_pts"]), Fraction(kept["end"])
            waves = {
                k.removeprefix("wave."): v for k, v in work.tensors.items() if k.startswith("wave.")
            }
            wave.load_state({k: v.to(pipeline.device) for k, v in waves.items()}, kept["wave"])
            pipeline.savings.take_again(kept["savings"])
            quality = Quality.from_state(
                {
                    k.removeprefix("quality."): v.numpy()
                    for k, v in work.tensors.items()
                    if k.startswith("quality.")
                }
            )
            if "steady.source" in work.tensors:
                steady.before = (
                    work.tensors["steady.source"].numpy(),
                    work.tensors["steady.result"].numpy(),
                )
            self.notice(f"going on after {emitted} finished frames")
        resumed, done, saved, shot = (
            emitted,
            emitted,
            emitted,
            kept["shot"] if work.state is not None else 0,
        )
        writer: SegmentWriter | None = None
        thumbnail = None
        meter = _Meter(self, wave.progress)
        frames = self.read(emitted)
        encoded = _stage(self._encode(_stage(frames), pipeline, pushed))
        pictures = _stage(
            self._decode(_stage(self._denoise(encoded, pipeline, wave)), pipeline, steady)
        )
        try:
            for item in pictures:
                if isinstance(item, _Tick):
                    meter.tell(done, shot, item.progress, item.step, thumbnail)
                elif isinstance(item, _Checkpoint):
                    if writer is not None:
                        writer.close()
                        writer, segments = None, segments + 1
                    import torch

                    times = {"first_pts": str(self.first_pts), "end": str(self.end)}
                    kept = {"segments": segments, "emitted": done, "shot": shot, **times}
                    kept["savings"] = pipeline.savings.taken
                    tensors = {
                        f"quality.{k}": torch.from_numpy(np.array(v))
                        for k, v in quality.state().items()
                    }
                    work.save(item.state | kept, item.tensors | tensors)
                    saved = done
                else:
                    assert item.picture is not None
                    if writer is None:
                        writer = SegmentWriter(work.segment(segments), self.job.target)
                    result = item.picture
                    self.first_pts = item.pts if self.first_pts is None else self.first_pts
                    self.end = item.pts + item.duration
                    writer.write(self._beside(item.source, result), item.pts, item.alpha)
                    quality.add(item.source, result, joint=item.joint, cut=item.cut)
                    done += 1
                    shot += item.cut
                    if self.s.preview is not None and item.cut:
                        thumbnail = self._thumbnail(result)
        except BaseException as e:
            if writer is not None:
                writer.__exit__(type(e), e, None)
            if isinstance(e, KeyboardInterrupt):
                then = (
                    f"resumes after frame {saved}"
                    if saved
                    else "starts over: no part was finished yet"
                )
                self.notice(f"stopped after {done} frames; the same command {then}")
            raise
        finally:
            pictures.close()
        if not done:
            raise StdError(
                f"{self.job.source.name}: no frames between --start and --end: widen them"
            )
        return self._finish(
            work, segments, done, resumed, quality, begin, thumbnail, overwrite, keep_work
        )

    def _wavefront(self, pipeline: "VideoPipeline") -> "Wavefront":
        from std_cli.diffusion.windows import Wavefront

        batch = self.s.batch or pipeline.windows_at_once(self.window)
        return Wavefront(
            self.window,
            self.stride,
            self.s.steps,
            pipeline.predict,
            pipeline.step,
            batch,
            lambda now: self.notice(f"the GPU is out of memory: going on with --batch {now}"),
        )

    def read(self, skip: int = 0) -> Generator[_Item, None, None]:
        """The frames that the result has, from `skip` on; those before are decoded only for the
        sake of the cuts."""
        s, clip = self.s, self.job.clip
        detect: Callable[[Pixels, Fraction], bool]
        if s.cuts == "off":
            detect = lambda rgb, pts: False  # noqa: E731
        elif self.job.cuts is None:
            detect = CutDetector()
        else:
            detect = GivenCuts(self.job.cuts, clip.start)
        index, shot_start, time_out = 0, None, Fraction(0)
        last: Fraction | None = None
        begun = False
        frames = read_frames(
            clip,
            start=s.start,
            end=s.end,
            max_frames=s.max_frames,
            fps=s.fps,
            deinterlace=s.deinterlace,
            keep_alpha=self.job.target.alpha,
            on_notice=self.notices.append,
        )
        for frame in self._unchanged(frames):
            rgb = frame.rgb
            if frame.alpha is not None:  # what cannot be seen has no effect
                rgb = np.asarray(fill_hidden(Image.fromarray(np.dstack([rgb, frame.alpha]))))
            cut = detect(rgb, frame.pts) or shot_start is None
            if cut:
                shot_start, begun = frame.pts, False
            assert shot_start is not None
            if s.preview is not None:
                if frame.pts - shot_start >= s.preview:
                    continue
                # the parts of the shots follow each other without a gap
                gap = frame.pts - last if last is not None and begun else self._frame_time()
                time_out = time_out + gap if index else clip.start
                last = frame.pts
            begun_now, begun = not begun, True
            pts = frame.pts if s.preview is None else time_out
            if index >= skip:
                alpha = _resized(frame.alpha, self.job.size) if frame.alpha is not None else None
                yield _Item(index, pts, frame.duration, begun_now, rgb, alpha)
            index += 1

    def _unchanged(self, frames: Generator[Frame, None, None]) -> Iterator[Frame]:
        """The frames; what ends them is named rightly if it is that the input was changed
        meanwhile."""
        try:
            yield from frames
        except (StdError, OSError):
            self._check_input()
            raise
        self._check_input()

    def _check_input(self) -> None:
        """Raise StdError if the input is not what it was when the run began."""
        name = self.job.source.name
        again = "put it back as it was and give the same command again: what is finished is kept"
        try:
            now = input_fingerprint(self.job.source)
        except OSError as e:
            raise StdError(f"{name} cannot be read any more ({e.strerror}): {again}") from None
        if self.input_sha256 and now != self.input_sha256:  # a plan only counts the frames
            raise StdError(f"{name} was changed or cut while it was read: {again}")

    def _frame_time(self) -> Fraction:
        return 1 / (self.s.fps or self.job.clip.frame_rate or Fraction(25))

    def _encode(
        self, items: Iterator[_Item], pipeline: "VideoPipeline", pushed: int
    ) -> Generator[_Item, None, None]:
        fit = fit_to(*self.job.clip.display_size, self.job.working)
        for item in items:
            known = item.index < pushed  # it is in the wavefront already
            if self.s.steady or not known:
                picture = Image.fromarray(item.source)
                if picture.size != self.job.clip.display_size:
                    picture = picture.resize(self.job.clip.display_size, Image.Resampling.LANCZOS)
                picture = fit.apply(picture)
                item.grey = grey(picture) if self.s.steady else None
                item.latent = None if known else pipeline.encode(picture)
            item.source = self._keep(item.source)
            yield item

    def _keep(self, source: Pixels) -> Pixels:
        """What is kept of a frame while it is denoised: memory for many of them."""
        if self.s.side_by_side:
            return _resized(source, self.job.size)
        width, height = self.job.size
        scale = min(1.0, 320 / max(width, height))
        return _resized(source, (max(8, round(width * scale)), max(8, round(height * scale))))

    def _denoise(
        self, items: Iterator[_Item], pipeline: "VideoPipeline", wave: "Wavefront"
    ) -> Generator[_Item | _Tick | _Checkpoint, None, None]:
        from std_cli.diffusion.pipeline import oom_is_one_line

        waiting: dict[int, _Item] = {}
        emitted = saved = wave.emitted

        def out(finished: list[Any]) -> Iterator[_Item | _Tick | _Checkpoint]:
            nonlocal emitted, saved
            for f in finished:
                item = waiting.pop(emitted)
                item.latent, item.joint = f.latent, f.joint
                emitted += 1
                yield item
            yield _Tick(wave.progress, wave.lowest_step)
            if emitted - saved >= SEGMENT:
                yield checkpoint()

        def checkpoint() -> _Checkpoint:
            nonlocal saved
            saved = emitted
            tensors, rest = wave.state()
            state = {"pushed": rest["_pushed"], "wave": rest}
            return _Checkpoint(state, {f"wave.{k}": v for k, v in tensors.items()})

        with oom_is_one_line():
            for item in items:
                waiting[item.index] = item
                if item.latent is None:
                    continue
                yield from out(wave.push(pipeline.add_noise(item.latent), item.cut))
            for finished in wave.end():
                yield from out(finished)
            yield checkpoint()

    def _decode(
        self, items: Iterator[Any], pipeline: "VideoPipeline", steady: Steady
    ) -> Generator[Any, None, None]:
        import torch

        fit = fit_to(*self.job.clip.display_size, self.job.working)
        for item in items:
            if isinstance(item, _Item):
                pixels = pipeline.decode(item.latent)
                if item.grey is not None:
                    pixels = steady(item.grey, pixels, item.cut)
                picture = fit.undo(Image.fromarray(pixels))
                item.latent, item.grey, item.picture = (
                    None,
                    None,
                    _resized(np.asarray(picture), self.job.size),
                )
            elif isinstance(item, _Checkpoint) and steady.before is not None:
                arrays = zip(("source", "result"), steady.before, strict=True)
                item.tensors.update(
                    {f"steady.{name}": torch.from_numpy(np.array(a)) for name, a in arrays}
                )
            yield item

    def _beside(self, source: Pixels, result: Pixels) -> Pixels:
        return np.concatenate([source, result], 1) if self.s.side_by_side else result

    def _thumbnail(self, picture: Pixels) -> str:
        path = preview_path(self.job.target.path)
        small = Image.fromarray(picture)
        small.thumbnail((320, 320))
        save_picture(small, path, {}, overwrite=True)
        return str(path)

    def notice(self, message: str) -> None:
        self.on_event({"event": "notice", "message": message, **self.about})

    def _finish(
        self,
        work: WorkFolder,
        segments: int,
        done: int,
        resumed: int,
        quality: Quality,
        begin: float,
        thumbnail: str | None,
        overwrite: bool,
        keep_work: bool,
    ) -> Event:
        target, clip, s = self.job.target, self.job.clip, self.s
        figures = quality.figures
        comment = json.dumps(
            {"std": self.facts | {"input": self.job.source.name, "frames": done, **figures}}
        )
        assert self.first_pts is not None
        begin_at = self.first_pts if s.start is not None else None
        sound = clip.audio > 0 and s.audio == "copy" and s.preview is None and target.holds_sound
        zero = round(self.first_pts / target.time_base)  # ticks, as the parts have them
        if sound and begin_at is None and clip.origin is not None:
            # sound that is there before the picture
            zero = min(zero, clip.origin // target.time_base)
        self._check_input()
        with writing(target.path):
            try:
                remove(work.draft)  # of a run that was killed
                self.notices += join(
                    work.segments(segments),
                    target,
                    clip,
                    out=work.draft,
                    extras=self.job.extras,
                    begin=begin_at,
                    until=self.end if s.end is not None or s.max_frames is not None else None,
                    shift=zero * target.time_base,
                    end=self.end,
                    comment=comment,
                )
                seconds = time.monotonic() - begin
                told = {
                    "frames": done,
                    "resumed": resumed,
                    "seconds": round(seconds, 3),
                    "fps": round((done - resumed) / seconds, 3),
                    **figures,
                    **({"thumbnail": thumbnail} if thumbnail else {}),
                }
                work.finish(told)
                move(work.draft, target.path, overwrite)
                work.remove(keep_work)
            finally:
                remove(work.draft)
        for message in self.notices:
            self.notice(message)
        return self.tell(told)

    def tell(self, told: Event) -> Event:
        """The result event."""
        result = {"event": "result", **self.about, **self.job.facts, **told}
        self.on_event(result)
        return result


class _Meter:
    """Tells the progress. Frames in flight count by the steps that they have behind them, so that
    it never stands."""

    def __init__(self, run: Run, progress: float) -> None:
        self.run, self.begin, self.first = run, time.monotonic(), progress

    def tell(self, done: int, shot: int, progress: float, step: int, thumbnail: str | None) -> None:
        seconds, frames = time.monotonic() - self.begin, self.run.job.frames
        rate = (progress - self.first) / seconds if seconds else 0.0
        left = max(0.0, frames - progress) if frames is not None else None
        self.run.on_event(
            {
                "event": "progress",
                "stage": "video",
                **self.run.about,
                "frame": done,
                "frames": frames,
                "progress": round(progress, 3),
                "fps": round(rate, 3),
                "eta": round(left / rate, 1) if left is not None and rate else None,
                "shot": max(1, shot),
                "step": step,
                "steps": self.run.s.steps,
                **({"thumbnail": thumbnail} if thumbnail else {}),
            }
        )


def _stage(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The same items, made in a thread of their own a few ahead of who consumes them. Closing it
    closes `items`."""
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

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    break
            put(None, end)
        except BaseException as e:  # told to who consumes
            put(None, e)
        finally:
            items.close()

    thread = threading.Thread(target=work, daemon=True)
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


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """RGB (H, W, 3) or alpha (H, W) in another (width, height)."""
    if pixels.shape[1::-1] == size:
        return pixels
    # Lanczos rings: what is opaque would become less so
    how = Image.Resampling.LANCZOS if pixels.ndim == 3 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def preview_path(target: Path) -> Path:
    """Where the thumbnail of --preview is written."""
    return target.with_name(f"{target.stem}_preview.jpg")


def input_fingerprint(source: Path) -> str:
    """16 hex digits that identify a file's contents, or a folder's."""
    if source.is_file():
        return fingerprint(source)
    inside = sorted(f for f in source.iterdir() if f.is_file())
    return hashlib.sha256(
        "".join(f"{f.name}\n{fingerprint(f)}\n" for f in inside).encode()
    ).hexdigest()[:16]
