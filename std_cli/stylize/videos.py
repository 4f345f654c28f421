"""Stylization of videos: a request checked, then one video after another."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from std_cli.config import Pack, VideoSettings, video_settings
from std_cli.errors import Cancelled, InputError, StdError, at_work, counted
from std_cli.events import Error, OnEvent, RequestFacts, VideoResult
from std_cli.interruption import stoppable
from std_cli.media.compare import Comparison
from std_cli.media.fit import fit_to, working_size
from std_cli.media.palette import ColorMix
from std_cli.media.video.clip import Clip
from std_cli.media.video.cuts import read_cuts
from std_cli.media.video.extras import choose_extras
from std_cli.media.video.opening import FOLDER_RATE, open_clip
from std_cli.media.video.target import choose_target
from std_cli.paths import check_path, remove_stale_drafts, user_path
from std_cli.storage.scratch import LOCAL_ONLY, Scratch
from std_cli.stylize.model_choice import Find, call, choose_model
from std_cli.stylize.options import VideoOptions
from std_cli.stylize.outputs import (
    Existing,
    exists_already,
)
from std_cli.stylize.request import (
    Source,
    Style,
    Use,
    failure,
    mix_of_references,
    new_folder,
    origin,
    read_references,
    request_facts,
    some_failed,
    try_folder,
    weigh_styles,
)
from std_cli.stylize.video_run import Job, Run, thumbnail_path
from std_cli.stylize.work_folder import WorkFolder, check_folder, finished, folder_of
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile
from std_cli.weights.motion import WINDOW, MotionFiles
from std_cli.weights.resolve import ModelFiles

if TYPE_CHECKING:
    from PIL import Image

    from std_cli.diffusion.video_pipeline import VideoPipeline
    from std_cli.schedule import Schedule
from std_cli.stylize.video_outputs import (
    VideoOutput,
    check_video_outputs,
    find_videos,
    left_to_do,
    name_outputs,
    refuse_existing,
)


@dataclass(frozen=True)
class VideoRequest:
    """Videos to stylize, checked before a weight is loaded."""

    jobs: list[Job]
    failed: list[Error]
    """Error events of those that cannot be stylized."""
    folder: Path | None
    """Of the targets, where it is still to be made."""
    styles: "list[tuple[Source, float]]"
    references: "list[Image.Image]"
    """In RGB, over white where they are transparent."""
    mix: ColorMix | None
    """Of their colours, for --palette."""
    files: ModelFiles | None
    """None in a plan for a model that is not downloaded; so are the next two."""
    motion: MotionFiles | None
    lora: LoraFile | None
    s: VideoSettings
    schedule: "Schedule"
    window: int
    """Frames that are denoised at once."""
    overlap: int
    """Frames that neighbouring windows share."""
    notices: list[str]
    """What the user should know of inputs and references."""
    given: Mapping[str, Any]
    """The options that the user gave."""
    scratch: Scratch
    """The copies of what URLs name."""


def run_videos(
    r: VideoRequest,
    overwrite: bool,
    resume: bool,
    keep_work: bool,
    keep_going: bool,
    on_event: OnEvent,
    use: "Use[VideoPipeline]",
) -> list[VideoResult]:
    """Stylize the videos of a request one by one.

    keep_going: one that fails does not stop the others; a StdError at the end says how many did.
    use: gives the loaded pipeline for as long as one video takes.
    """
    with new_folder(r.folder):
        for folder in {job.target.path.parent for job in r.jobs}:
            remove_stale_drafts(folder)
        for message in r.notices:
            on_event({"event": "notice", "message": message})
        for error in r.failed:
            on_event(error)
        failed = [error["input"] for error in r.failed]
        total = len(r.failed) + len(r.jobs)
        if not total:
            return []
        facts = video_facts(r)
        results = []
        for job in r.jobs:
            try:
                results.append(
                    _stylize_one(r, job, facts, overwrite, resume, keep_work, on_event, use)
                )
            except StdError as e:
                if total == 1 or not keep_going or isinstance(e, Cancelled):
                    raise
                failed.append(job.name)
                on_event(failure(job.name, e))
        if failed:
            raise some_failed(failed, total, "videos")
        return results


def video_facts(r: VideoRequest) -> RequestFacts:
    """The resolved request, with fingerprints of all that the result follows from."""
    facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
    motion = r.motion
    facts["settings"] = dict(facts["settings"]) | {
        "motion": {"name": motion.name, "sha256": fingerprint(motion.weights)} if motion else None,
        "window": r.window,
        "overlap": r.overlap,
    }
    return facts


def _stylize_one(
    r: VideoRequest,
    job: Job,
    facts: RequestFacts,
    overwrite: bool,
    resume: bool,
    keep_work: bool,
    on_event: OnEvent,
    use: "Use[VideoPipeline]",
) -> VideoResult:
    run = Run(job, facts, r.s, r.mix, r.window, r.window - r.overlap, on_event)
    run.origin = origin(job.source, run.input_sha256, r.styles, r.given, r.scratch)
    stored = r.scratch.work_folder(folder_of(job.target.path))
    with WorkFolder(job.target.path, run.record(), resume, stored) as work:
        # killed after the result was moved into its place
        if kept := finished(job.target.path):
            result = run.report(kept)
            work.remove(keep_work)
            return result
        if job.target.path.exists() and not overwrite:
            raise exists_already(job.target.path)
        on_event({"event": "start", **facts, **run.about, **job.facts})
        with run_threads(r, work), use(on_event) as pipeline:
            pipeline.on_notice = run.notice
            conditions = pipeline.prepare(r.s, r.schedule, job.working)
            with at_work(), stoppable():
                result = run.go(pipeline, conditions, work, overwrite, keep_work)
    if stored is not None and not keep_work:
        stored.remove()  # not before the result is in the storage
    return result


def run_threads(
    r: VideoRequest, work: WorkFolder, threads: int | None = None
) -> AbstractContextManager[None]:
    """Around all that the networks do for a video: the threads that they take, `threads` where they
    are given. A run that resumes has those of the interrupted one: sums in another order have other
    bits."""
    from std_cli.diffusion.threads import torch_threads

    if work.state is not None:
        return torch_threads(work.state["threads"])
    return torch_threads(threads or stage_threads(r))


def stage_threads(r: VideoRequest) -> int | None:
    """Threads that each stage of a request takes; None: torch's number stays."""
    from std_cli.diffusion.devices import choose_device
    from std_cli.diffusion.threads import threads_of_a_stage

    on_cpu = choose_device(r.s.device).type == "cpu"
    return threads_of_a_stage(r.files) if on_cpu and r.files is not None else None


def prepare_video(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path = ".",
    *,
    scratch: Scratch = LOCAL_ONLY,
    existing: Existing = "refuse",
    keep_going: bool = True,
    find: Find = call,
    only: Callable[[Path], bool] | None = None,
    **options: Unpack[VideoOptions],
) -> VideoRequest:
    """Check everything before a weight is loaded, and leave nothing behind.

    scratch: what receives copies of the inputs and references that URLs name. only: called with the
    path of each result: whether it is of interest; the inputs of others are neither copied nor
    opened. Other parameters and errors as of `Stylizer.video`.
    """
    given: dict[str, Any] = dict(options)
    asked = video_settings(given)  # raises what is wrong whatever the model says
    notices: list[str] = []
    styles = weigh_styles(scratch.style(style))
    named = [path for path, _ in styles if isinstance(path, Path)]
    output = scratch.output(output, try_it=existing != "note")
    inputs = scratch.inputs(inputs)
    listed = [inputs] if isinstance(inputs, str | Path) else inputs
    sources = find_videos(listed, named, notices, scratch)
    scratch.fetch(named)
    pictures, white = read_references(styles)
    notices += white
    preview = asked.preview is not None
    outputs, folder = name_outputs(sources, output, asked.codec, preview, notices)
    cuts_file = None if asked.cuts in ("auto", "off") else user_path(asked.cuts, "--cuts")
    check_video_outputs(outputs, folder, [*named, *filter(None, [cuts_file])], asked)
    outputs = left_to_do(outputs, existing, notices)
    wanted = [
        (i, place) for i, place in enumerate(outputs, 1) if only is None or only(place.target)
    ]
    scratch.fetch(place.source for _, place in wanted)
    choice = choose_model(given, asked, bool(outputs), find)
    s, files, motion = choice.s, choice.files, choice.motion
    if files and motion is None and given.get("motion") == "auto" and not choice.lacks_motion:
        notices.append(
            f"--motion auto: {files.name} has no motion adapter: frames are denoised one by one"
        )
    window, overlap = _window(s, motion.window if motion else WINDOW if choice.lacks_motion else 1)
    pack = Pack(**files.pack if files else {})
    cuts = read_cuts(cuts_file) if cuts_file is not None else None
    made = try_folder(folder)
    jobs, failed = [], []
    for i, place in wanted:
        try:
            if existing == "refuse":
                refuse_existing(place, s.preview is not None)
            scratch.check(place.source)
            jobs.append(_plan(place, i, len(outputs), s, pack, cuts, made is not None))
        except StdError as e:
            if len(outputs) == 1 or not keep_going:
                raise
            failed.append(failure(place.name, e))
    return VideoRequest(
        jobs,
        failed,
        made,
        styles,
        [picture.on_white() for picture in pictures],
        mix_of_references(pictures, [weight for _, weight in styles]) if s.palette else None,
        files,
        motion,
        choice.lora,
        s,
        choice.schedule,
        window,
        overlap,
        notices,
        given,
        scratch,
    )


def _window(s: VideoSettings, window: int) -> tuple[int, int]:
    """(frames of a window, frames that neighbours share)."""
    overlap = s.overlap if s.overlap is not None else window // 2
    if overlap and window == 1:
        raise InputError(
            f"--overlap {overlap}: frame by frame nothing overlaps: leave it out, or name a motion "
            f"adapter with --motion"
        )
    if overlap >= window:
        raise InputError(
            f"--overlap {overlap}: a window has {counted(window, 'frame')}, so it can be 0 to "
            f"{window - 1}"
        )
    return window, overlap


def _plan(
    output: VideoOutput,
    index: int,
    total: int,
    s: VideoSettings,
    pack: Pack,
    cuts: list[Fraction] | None,
    made: bool,
) -> Job:
    source, target = output.source, output.target
    check_folder(folder_of(target))
    if s.preview is not None:
        check_path(thumbnail_path(target), "--preview")
    clip = open_clip(source, fps=s.fps or FOLDER_RATE)
    if s.start is not None and clip.duration is not None and s.start >= clip.duration:
        raise InputError(
            f"--start {float(s.start):g}: {source.name} ends after {float(clip.duration):.3f} "
            f"seconds"
        )
    width, height = clip.display_size
    base = pack.video_resolution or pack.base_resolution
    working = working_size(width, height, s.size, base, pack.size_by == "area")
    if s.output_size == "source":
        size, sar = (clip.width, clip.height), clip.sample_aspect_ratio
    elif s.output_size == "model":
        left, top, right, bottom = fit_to(width, height, working).box
        size, sar = (right - left, bottom - top), Fraction(1)
    else:
        size, sar = s.output_size, Fraction(1)
    comparison = Comparison(s.compare, s.labels)
    # where the frames do not keep their times
    rate = s.fps or (clip.frame_rate or Fraction(25) if s.preview is not None else None)
    written = choose_target(
        target,
        clip,
        codec=s.codec,
        crf=s.crf,
        preset=s.preset,
        size=comparison.size(*size),
        sar=sar,
        rate=rate,
        made=made,
        alpha=clip.alpha and s.compare == "none",
    )
    extras = choose_extras(
        clip,
        written,
        audio=s.audio == "copy",
        subtitles=s.subtitles == "copy",
        preview=s.preview is not None,
        twice_as_wide=s.compare == "side",
    )
    return Job(
        source,
        output.name,
        output.given,
        clip,
        written,
        extras,
        index,
        total,
        working,
        size,
        cuts,
        _estimate(clip, s),
    )


def _estimate(clip: Clip, s: VideoSettings) -> int | None:
    """Frames that a run will have; None where nothing tells."""
    duration = clip.duration
    if duration is None or s.preview is not None:
        return s.max_frames
    kept = max(Fraction(0), min(duration, s.end or duration) - (s.start or 0))
    rate = s.fps or (
        Fraction(clip.frames) / duration if clip.frames and duration else clip.frame_rate
    )
    if rate is None:
        return s.max_frames
    frames = max(1, round(kept * rate))
    return min(frames, s.max_frames) if s.max_frames else frames
