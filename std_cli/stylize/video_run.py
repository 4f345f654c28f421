"""The run of one video: connects the stages, writes what they finish, and resumes an interrupted
run.

The whole state goes to the work folder after every finished part, every half minute, and when the
run is stopped.
"""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from std_cli.config import VideoSettings
from std_cli.errors import Cancelled, StdError, counted
from std_cli.events import (
    ClipFacts,
    OnEvent,
    Place,
    RequestFacts,
    Thumbnail,
    VideoFigures,
    VideoResult,
)
from std_cli.interruption import unbroken
from std_cli.media.compare import Comparison, line_at
from std_cli.media.palette import ColorMix
from std_cli.media.video.clip import Clip, Pixels
from std_cli.media.video.extras import Extras
from std_cli.media.video.join import join
from std_cli.media.video.palette import Palette
from std_cli.media.video.quality import Quality
from std_cli.media.video.source_colors import SourceColors
from std_cli.media.video.steady import Steady
from std_cli.media.video.target import Target
from std_cli.media.write_picture import save_picture
from std_cli.paths import move, remove, writing
from std_cli.stylize.frames import (
    SourceFrame,
    Stretch,
    check_unchanged,
    input_fingerprint,
    source_frames,
    stretch_frames,
    unchanged,
)
from std_cli.stylize.latents import LatentPart, read_latents
from std_cli.stylize.part import Part
from std_cli.stylize.stages import (
    Arrays,
    Denoised,
    Filter,
    Item,
    Tick,
    View,
    denoised_items,
    pictures,
    stored_items,
)
from std_cli.stylize.work_folder import WorkFolder

if TYPE_CHECKING:
    from std_cli.diffusion.video_pipeline import Conditions, VideoPipeline
    from std_cli.diffusion.windows import Wavefront

SEGMENT = 48
"""Frames of a part of the result, at most: a part ends with its shot, so that a shot, or what
begins after a whole number of parts of it, has the same parts wherever it is made."""
SAVE_EVERY = 30.0
"""Seconds: what a kill or a power cut costs at most, in addition to the step at work."""


@dataclass(frozen=True)
class Job:
    """One video, checked before a weight is loaded."""

    source: Path
    name: str
    """The input as it was given."""
    output: str
    """The target's path as it was given."""
    clip: Clip
    target: Target
    extras: Extras
    """What the result has in addition to its pictures."""
    index: int
    total: int
    working: tuple[int, int]
    """Size that the network sees."""
    size: tuple[int, int]
    """Of one stylized frame as it is written; --compare side makes the result twice as wide."""
    cuts: list[Fraction] | None
    """Times of the cuts, seconds from the first frame; None: they are detected, or there are none.
    """
    frames: int | None
    """Estimate of how many there will be."""

    @property
    def facts(self) -> ClipFacts:
        """What events say of it."""
        return {
            "frames": self.frames,
            "width": self.target.width,
            "height": self.target.height,
            "codec": self.target.codec,
            "output": self.output,
        }


@dataclass
class _Written:
    """How far the result is."""

    segments: int = 0
    """Parts that are finished."""
    part: list[Fraction] = field(default_factory=list)
    """Times of the frames of the part at hand."""
    frames: int = 0
    following: int = 0
    """Number of the next frame that comes out of the stages, to be written or not."""
    shot: int = 0
    """The number of the last frame's shot, from 1."""
    first_pts: Fraction | None = None
    end: Fraction = Fraction(0)
    """When the last frame ends."""

    def add(self, item: Item) -> None:
        if self.first_pts is None:
            self.first_pts = item.place.pts
        self.end = item.place.pts + item.place.duration
        self.frames += 1
        self.shot = item.place.shot
        self.part.append(item.place.pts)

    def state(self) -> dict[str, Any]:
        """What JSON can hold of it, for `from_state`."""
        first = str(self.first_pts) if self.first_pts is not None else None
        part = [str(time) for time in self.part]
        return vars(self) | {"part": part, "first_pts": first, "end": str(self.end)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Written":
        first = state["first_pts"]
        return cls(
            segments=state["segments"],
            part=[Fraction(time) for time in state["part"]],
            frames=state["frames"],
            following=state["following"],
            shot=state["shot"],
            first_pts=Fraction(first) if first is not None else None,
            end=Fraction(state["end"]),
        )


@dataclass(frozen=True)
class Made:
    """Finished frames in their segments, and what was measured of them."""

    segments: Sequence[Path]
    frames: int
    resumed: int
    """Frames that an earlier run had finished."""
    first_pts: Fraction
    end: Fraction
    """When the last frame ends; seconds on the clip's clock, as `first_pts`."""
    quality: Quality
    thumbnail: Thumbnail = field(default_factory=Thumbnail)


@dataclass
class Run:
    """One video: what it is made of, and what is said of it."""

    job: Job
    facts: RequestFacts
    settings: VideoSettings
    mix: ColorMix | None
    """Of the references' colours, for --palette."""
    window: int
    stride: int
    on_event: OnEvent
    input_sha256: str = field(init=False)
    origin: Mapping[str, Any] = field(default_factory=dict)
    """See `request.origin`."""
    late_notices: list[str] = field(default_factory=list)
    """Of the reader, which has its own thread: they are said when all frames are read."""

    def __post_init__(self) -> None:
        self.input_sha256 = input_fingerprint(self.job.source)
        self._comparison = Comparison(self.settings.compare, self.settings.labels)
        self._view = View(
            self.job.clip.display_size,
            self.job.working,
            self.job.size,
            self._comparison,
        )

    @property
    def about(self) -> Place:
        """What every event of this video says."""
        return {"input": self.job.name, "index": self.job.index, "total": self.job.total}

    def record(self) -> dict[str, Any]:
        """All that the result follows from; JSON-ready."""
        target, cuts = self.job.target, self.job.cuts
        settings = dict(self.facts["settings"])
        settings.pop("batch", None)  # it changes the speed alone
        return {
            "version": self.facts["version"],
            "settings": settings,
            "input": {"name": self.job.source.name, "sha256": self.input_sha256},
            "cuts": [str(cut) for cut in cuts] if cuts is not None else None,
            "output": {
                "size": [target.width, target.height],
                "encoder": target.encoder,
                "pix_fmt": target.pix_fmt,
                "options": target.options,
            },
        }

    def go(
        self,
        pipeline: "VideoPipeline",
        conditions: "Conditions",
        work_folder: WorkFolder,
        overwrite: bool,
        keep_work: bool,
    ) -> VideoResult:
        """Make the result and put it in its place; returns the result event."""
        begin = time.monotonic()
        self.begin_notices()
        made = self.make(pipeline, conditions, work_folder)
        return self.finish(made, work_folder, time.monotonic() - begin, overwrite, keep_work)

    def begin_notices(self) -> None:
        """Say what was noticed of the input and of what goes with it."""
        for message in (*self.job.clip.notices, *self.job.extras.notices):
            self.notice(message)

    def make(
        self,
        pipeline: "VideoPipeline",
        conditions: "Conditions",
        work_folder: WorkFolder,
        stretch: Stretch | None = None,
        *,
        keep_latents: bool = False,
        latents: Sequence[Path] | None = None,
    ) -> Made:
        """Make the frames of the result, or of a stretch of it, as segments in the work folder.

        keep_latents: the segments hold finished latents, of which another call makes the frames.
        latents: the segments of such calls, in order: the frames are not denoised.

        Raises StdError if there are no frames, or if the work fails.
        """
        wave = self._wavefront(pipeline, conditions, stretch)
        pipeline.savings.frames = pipeline.frames_at_once(conditions, self.stride)
        written, denoised = self._resume(pipeline, wave, work_folder)
        resumed = written.frames
        quality = Quality.from_state(work_folder.arrays("quality"))
        filters = {} if keep_latents else self._filters(work_folder)
        frames = unchanged(
            self._frames(written.following, stretch), self.job.source, self.input_sha256
        )
        if latents is not None:
            stored = read_latents(latents, written.frames)
            at_once = pipeline.savings.frames
            items = stored_items(frames, stored, self._view, self.settings.steps, at_once)
        else:
            items = denoised_items(
                frames, pipeline, conditions, wave, denoised, self._view, bool(filters)
            )
        if not keep_latents:
            first = stretch.first if stretch else 0
            items = pictures(items, pipeline, self._view, filters, first)
        output = _Output(
            self,
            pipeline,
            work_folder,
            written,
            denoised,
            quality,
            filters,
            wave.progress,
            stretch,
            keep_latents,
        )
        output.write(items)
        if written.first_pts is None:
            raise StdError(
                f"{self.job.source.name}: no frames between --start and --end: widen them"
            )
        return Made(
            work_folder.segments(written.segments),
            written.frames,
            resumed,
            written.first_pts,
            written.end,
            quality,
            output.thumbnail,
        )

    def finish(
        self, made: Made, work_folder: WorkFolder, seconds: float, overwrite: bool, keep_work: bool
    ) -> VideoResult:
        """Join what was made, and put it in its place; returns the result event. seconds: what it
        took."""
        figures = made.quality.figures
        with writing(self.job.target.path):
            try:
                self._join(work_folder, made, figures)
                report: VideoFigures = {
                    "frames": made.frames,
                    "resumed": made.resumed,
                    "seconds": round(seconds, 3),
                    "fps": round((made.frames - made.resumed) / seconds, 3) if seconds else 0.0,
                    "seam_ratio": figures["seam_ratio"],
                    "flicker": figures["flicker"],
                    **made.thumbnail,
                }
                work_folder.finish(report)
                move(work_folder.draft, self.job.target.path, overwrite)
                work_folder.remove(keep_work)
            finally:
                remove(work_folder.draft)
        for message in self.late_notices:
            if message not in self.job.clip.notices:  # said at the beginning
                self.notice(message)
        return self.report(report)

    def _filters(self, work_folder: WorkFolder) -> dict[str, Filter]:
        """The filters of the stylized frames in their order, each where it was when it was saved.
        Steady is the last: it also takes out what little the map of the colours changes."""
        settings = self.settings
        filters: dict[str, Filter] = {}
        if self.mix is not None:
            state = work_folder.arrays("palette")
            filters["palette"] = Palette.from_state(self.mix, settings.palette, state)
        if settings.keep_colors:
            filters["keep_colors"] = SourceColors()
        if settings.steady:
            state = work_folder.arrays("steady")
            filters["steady"] = Steady.from_state(settings.steady, state)
        return filters

    def _frames(self, begin: int, stretch: Stretch | None) -> Generator[SourceFrame, None, None]:
        job, alpha = self.job, self.job.target.alpha
        if stretch is not None:
            return stretch_frames(
                job.clip, self.settings, job.cuts, stretch, keep_alpha=alpha, begin=begin
            )
        return source_frames(
            job.clip,
            self.settings,
            job.cuts,
            keep_alpha=alpha,
            begin=begin,
            on_notice=self.late_notices.append,
        )

    def _wavefront(
        self, pipeline: "VideoPipeline", conditions: "Conditions", stretch: Stretch | None
    ) -> "Wavefront":
        from std_cli.diffusion.windows import Wavefront

        return Wavefront(
            self.window,
            self.stride,
            self.settings.steps,
            partial(pipeline.predict, conditions),
            partial(pipeline.step, conditions),
            self.settings.batch or pipeline.windows_at_once(conditions, self.window),
            lambda now: self.notice(f"the GPU is out of memory: continuing with --batch {now}"),
            fill=self.settings.compile,
            first=stretch.begin if stretch else 0,
        )

    def _resume(
        self, pipeline: "VideoPipeline", wave: "Wavefront", work_folder: WorkFolder
    ) -> tuple[_Written, Denoised]:
        """Bring wavefront and pipeline to where an interrupted run was; returns what it has
        written and denoised, nothing in a run that starts from the beginning."""
        state = work_folder.state
        if state is None:
            return _Written(following=wave.pushed), Denoised(wave, ())
        pipeline.savings.restore(state["savings"])
        tensors = work_folder.tensors_of("denoised")
        tensors = {name: tensor.to(pipeline.device) for name, tensor in tensors.items()}
        denoised = Denoised.restored(wave, state["denoised"], tensors)
        written = _Written.from_state(state["written"])
        self.notice(f"resuming after {counted(written.frames, 'finished frame')}")
        return written, denoised

    def _join(
        self, work_folder: WorkFolder, made: Made, figures: Mapping[str, float | None]
    ) -> None:
        """Make the result of the finished parts and all that it has in addition, as a draft."""
        target, clip, settings = self.job.target, self.job.clip, self.settings
        about: dict[str, object] = {"input": self.job.source.name, "origin": self.origin}
        about |= {"frames": made.frames, **figures}
        begin = made.first_pts if settings.start is not None else None
        sound = clip.audio > 0 and settings.audio == "copy" and settings.preview is None
        zero = round(made.first_pts / target.time_base)  # ticks, as the parts have them
        if sound and target.holds_sound and begin is None and clip.origin is not None:
            # sound that is there before the picture
            zero = min(zero, clip.origin // target.time_base)
        cut_off = settings.end is not None or settings.max_frames is not None
        check_unchanged(self.job.source, self.input_sha256)
        remove(work_folder.draft)  # of a run that was killed
        self.late_notices += join(
            made.segments,
            target,
            clip,
            out=work_folder.draft,
            extras=self.job.extras,
            begin=begin,
            until=made.end if cut_off else None,
            shift=zero * target.time_base,
            end=made.end,
            comment=json.dumps({"std": self.facts | about}),
        )

    def composed(self, item: Item) -> Pixels:
        """A finished frame as it is written, with its source where they are compared."""
        assert item.picture is not None
        line = line_at(item.place.pts - self.job.clip.start)
        return self._comparison.compose(item.source, item.picture, line)

    def notice(self, message: str) -> None:
        """Say something that the user should know of this video."""
        self.on_event({"event": "notice", "message": message, **self.about})

    def report(self, figures: VideoFigures) -> VideoResult:
        """The result event, which is also passed on; `figures` are those of the finished run."""
        target = self.job.target
        result: VideoResult = {
            "event": "result",
            **self.about,
            **figures,
            "output": self.job.output,
            "width": target.width,
            "height": target.height,
            "codec": target.codec,
        }
        self.on_event(result)
        return result


class _Output:
    """Writes finished frames, or their latents, into parts, measures them, and saves the state from
    which the rest can be made."""

    def __init__(
        self,
        run: Run,
        pipeline: "VideoPipeline",
        work_folder: WorkFolder,
        written: _Written,
        denoised: Denoised,
        quality: Quality,
        filters: Mapping[str, Filter],
        progress: float,
        stretch: Stretch | None,
        keep_latents: bool,
    ) -> None:
        """`progress`: of the wavefront when the run begins. Others as of `Run.make`."""
        self.run, self.pipeline, self.work_folder = run, pipeline, work_folder
        self.written, self.denoised, self.quality = written, denoised, quality
        self.thumbnail: Thumbnail = {}
        """{"thumbnail": path} once there is one."""
        self._filters: dict[str, Arrays] = {name: f.state() for name, f in filters.items()}
        self._saved = time.monotonic()
        self._first = stretch.first if stretch else 0
        self._end = stretch.end if stretch else None
        self._keep_latents = keep_latents
        self._meter = _Meter(run, progress, stretch)
        self._part = self._open_part()

    def write(self, pictures: Generator[Item | Tick, None, None]) -> None:
        """Consume all that the stages finish."""
        try:
            for item in pictures:
                with unbroken():  # here the state is not that of a moment
                    self._take(item)
                if self.written.following == self._end:
                    break  # what follows was there for its influence alone
            with unbroken():
                if self._part.times:
                    self._finish_part()
        except (KeyboardInterrupt, Cancelled) as e:
            self._stop(e)
            raise
        finally:
            self._part.leave()
            pictures.close()

    def _take(self, item: Item | Tick) -> None:
        if isinstance(item, Item):
            self._add(item)
        if len(self._part.times) >= SEGMENT:
            self._finish_part()
        elif time.monotonic() - self._saved >= SAVE_EVERY:
            self._save(store=False)  # the frames at hand are many bytes
        if isinstance(item, Tick):  # last, as the receiver may stop the run
            self._meter.report(self.written, item, self.thumbnail)

    def _add(self, item: Item) -> None:
        if item.place.index >= self._first:
            if item.place.cut and self._part.times:
                self._finish_part()
            self._write(item)
            self.written.add(item)
        self.written.following = item.place.index + 1
        self.denoised.drop(item.place.index)

    def _write(self, item: Item) -> None:
        if isinstance(self._part, LatentPart):
            assert item.latent is not None
            self._part.write(item.latent.take(), item.joint, item.place.pts)
            return
        assert item.picture is not None
        self._part.write(self.run.composed(item), item.place.pts, item.alpha)
        self.quality.add(item.source, item.picture, joint=item.joint, shot=item.place.shot)
        self._filters = item.filters
        if self.run.settings.preview is not None and item.place.cut:
            path = thumbnail_path(self.run.job.target.path)
            _save_thumbnail(item.picture, path)
            self.thumbnail = {"thumbnail": str(path)}

    def _open_part(self) -> Part | LatentPart:
        number, times = self.written.segments, self.written.part
        if self._keep_latents:
            return LatentPart(self.work_folder, number, times)
        return Part(self.work_folder, self.run.job.target, number, times)

    def _finish_part(self) -> None:
        self._part.close()
        self.written.segments += 1
        self.written.part = []
        self._save()
        self._part = self._open_part()  # after the state, which no longer needs the old one

    def _save(self, store: bool = True) -> None:
        """Save the state, and first the frames that it counts; `store`: as of `WorkFolder.save`."""
        import torch

        if self.written.part:
            self._part.sync()
        denoised, tensors = self.denoised.state()
        state = {
            "written": self.written.state(),
            "savings": self.pipeline.savings.state(),
            "threads": torch.get_num_threads(),
            "denoised": denoised,
        }
        arrays = {"quality": self.quality.state(), **self._filters}
        groups = {"denoised": tensors}
        if isinstance(self._part, LatentPart) and self.written.part:
            groups["part"] = {"like": self._part.like}
        self.work_folder.save(state, groups, arrays, store)
        self._saved = time.monotonic()

    def _stop(self, why: BaseException) -> None:
        """Save what is done; without waiting for the stages, whose work at hand is lost."""
        if self.denoised.begun:
            self._save()
        if isinstance(why, KeyboardInterrupt):
            done = counted(self.written.frames, "finished frame")
            then = "resumes there" if self.denoised.begun else "starts over"
            self.run.notice(f"stopped after {done}; the same command {then}")


class _Meter:
    """Reports the progress. Frames in flight count by the steps that they have behind them, so that
    it always moves."""

    def __init__(self, run: Run, progress: float, stretch: Stretch | None) -> None:
        self.run, self.begin, self.first = run, time.monotonic(), progress
        self.zero = stretch.begin if stretch else 0
        self.frames = stretch.end - stretch.begin if stretch else run.job.frames
        self._last: tuple[int, float] | None = None

    def report(self, written: _Written, tick: Tick, thumbnail: Thumbnail) -> None:
        """Report where the run is, if that has changed."""
        now = written.frames, tick.progress
        if now == self._last:
            return
        self._last = now
        seconds, frames = time.monotonic() - self.begin, self.frames
        rate = (tick.progress - self.first) / seconds if seconds else 0.0
        progress = tick.progress - self.zero
        left = max(0.0, frames - progress) if frames is not None else None
        self.run.on_event(
            {
                "event": "progress",
                "stage": "video",
                **self.run.about,
                "frame": written.frames,
                "frames": frames,
                "progress": round(progress, 3),
                "fps": round(rate, 3),
                "eta": round(left / rate, 1) if left is not None and rate else None,
                "shot": max(1, written.shot),
                "step": tick.step,
                "steps": self.run.settings.steps,
                **thumbnail,
            }
        )


def thumbnail_path(target: Path) -> Path:
    """Where the thumbnail of --preview is written: NAME_preview.mp4.jpg."""
    return target.with_name(f"{target.name}.jpg")


def _save_thumbnail(picture: Pixels, path: Path) -> None:
    small = Image.fromarray(picture)
    small.thumbnail((320, 320))
    save_picture(small, path, {}, overwrite=True)
