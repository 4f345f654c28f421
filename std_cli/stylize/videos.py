"""Stylization of videos: a request checked, then one video after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from std_cli.config import Pack, VideoSettings, video_settings
from std_cli.environment import LOADING
from std_cli.errors import InputError, OutputExists, StdError, at_work
from std_cli.events import Error, OnEvent, RequestFacts, VideoResult
from std_cli.interruption import stoppable
from std_cli.media.compare import Comparison
from std_cli.media.picture_kinds import PICTURE_SUFFIXES
from std_cli.media.pictures import expand_inputs, fit_to, working_size
from std_cli.media.video.clip import VIDEO_SUFFIXES, Clip
from std_cli.media.video.cuts import read_cuts
from std_cli.media.video.extras import choose_extras
from std_cli.media.video.opening import FOLDER_RATE, open_clip
from std_cli.media.video.target import choose_target
from std_cli.paths import check_path, names_folder, remove_stale_drafts, user_path
from std_cli.stylize.options import VideoOptions
from std_cli.stylize.request import (
    Find,
    Source,
    Style,
    Use,
    check_noise,
    choose_schedule,
    follow_lora,
    new_folder,
    origin,
    read_references,
    request_facts,
    try_folder,
    weigh_styles,
)
from std_cli.stylize.video_run import Job, Run, preview_path
from std_cli.stylize.work_folder import WorkFolder, check_folder, finished, folder_of
from std_cli.weights.fingerprints import fingerprint
from std_cli.weights.lora import LoraFile, resolve_lora
from std_cli.weights.motion import WINDOW, MotionFiles, resolve_motion
from std_cli.weights.parts import check_adapter, check_model
from std_cli.weights.resolve import ModelFiles, resolve_model

if TYPE_CHECKING:
    from PIL import Image

    from std_cli.diffusion.video_pipeline import VideoPipeline
    from std_cli.schedule import Schedule


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


def run_videos(
    r: VideoRequest,
    overwrite: bool,
    resume: bool,
    keep_work: bool,
    on_event: OnEvent,
    use: "Use[VideoPipeline]",
) -> list[VideoResult]:
    """Stylize the videos of a request one by one; one that fails does not stop the others.

    use: gives the loaded pipeline for as long as one video takes.
    """
    with new_folder(r.folder):
        for folder in {job.target.path.parent for job in r.jobs}:
            remove_stale_drafts(folder)
        for message in r.notices:
            on_event({"event": "notice", "message": message})
        for error in r.failed:
            on_event(error)
        failed, total = [e["input"] for e in r.failed], len(r.failed) + len(r.jobs)
        facts = video_facts(r)
        results = []
        for job in r.jobs:
            try:
                results.append(
                    _stylize_one(r, job, facts, overwrite, resume, keep_work, on_event, use)
                )
            except (InputError, StdError) as e:
                if total == 1:
                    raise
                failed.append(job.source.name)
                on_event(_error(job.source, e))
        if failed:
            raise StdError(f"{len(failed)} of {total} videos failed: {', '.join(failed)}")
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
    run = Run(job, facts, r.s, r.window, r.window - r.overlap, on_event)
    run.origin = origin(job.source, run.input_sha256, r.styles, r.given)
    with WorkFolder(job.target.path, run.record(), resume) as work:
        # killed after the result was moved into its place
        if kept := finished(job.target.path):
            result = run.report(kept)
            work.remove(keep_work)
            return result
        if job.target.path.exists() and not overwrite:
            raise OutputExists.at(job.target.path)
        on_event({"event": "start", **facts, **run.about, **job.facts})
        with use(on_event) as pipeline:
            pipeline.on_notice = run.notice
            conditions = pipeline.prepare(r.s, r.schedule, job.working)
            with at_work(), stoppable():
                return run.go(pipeline, conditions, work, overwrite, keep_work)


def _error(source: Path, error: StdError) -> Error:
    return {
        "event": "error",
        "message": str(error),
        "input": source.name,
        "kind": error.kind,
        "code": error.exit_code,
    }


def prepare_video(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path = ".",
    *,
    overwrite: bool = False,
    find: Find = lambda resolve, *args, **options: resolve(*args, **options),
    **options: Unpack[VideoOptions],
) -> VideoRequest:
    """Check everything before a weight is loaded, and leave nothing behind.

    Parameters and errors as of `Stylizer.video`.
    """
    given: dict[str, Any] = dict(options)
    asked = video_settings(given)  # raises what is wrong whatever the model says
    notices: list[str] = []
    sources = _sources([inputs] if isinstance(inputs, str | Path) else inputs, notices)
    styles = weigh_styles(style)
    references, white = read_references(styles)
    notices += white
    files = find(resolve_model, asked.model, ip_adapter=asked.ip_adapter)
    s = (
        video_settings(given, files.pack, f"{files.base}/std.json")
        if files
        else video_settings(given)
    )
    targets, folder = _targets(sources, user_path(output, "-o"), s.codec, names_folder(output))
    motion = find(resolve_motion, s.motion, files) if files else None
    # a pack has one of its own, or none
    own = files is not None and bool(files.pack) and s.motion == "auto"
    missing = motion is None and s.motion != "none" and not own  # of a plan: as the usual one
    window, overlap = _window(s, motion.window if motion else WINDOW if missing else 1)
    how = {"task": "v2v" if motion else "i2i", "eta": s.eta, "method": s.method, "steps": s.steps}
    lora = find(resolve_lora, s.lora, model=files, **how) if files else None
    if files:
        with LOADING:
            check_model(files, motion)
            if lora is not None and not missing:
                check_adapter(files, motion, lora, s.allow_partial)
    s, lora = follow_lora(s, lora, given)
    schedule = choose_schedule(s, lora)
    if files:
        check_noise(s, schedule, files)
    pack = Pack(**files.pack if files else {})
    cuts = None if s.cuts in ("auto", "off") else read_cuts(user_path(s.cuts, "--cuts"))
    made = try_folder(folder)
    jobs, failed = [], []
    for i, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
        try:
            jobs.append(
                _plan(source, target, i, len(sources), s, pack, overwrite, cuts, made is not None)
            )
        except (InputError, StdError) as e:
            if len(sources) == 1:
                raise
            failed.append(_error(source, e))
    return VideoRequest(
        jobs,
        failed,
        made,
        styles,
        references,
        files,
        motion,
        lora,
        s,
        schedule,
        window,
        overlap,
        notices,
        given,
    )


def _sources(inputs: Sequence[str | Path], notices: list[str]) -> list[Path]:
    found: list[Path] = []
    for item in inputs:
        path = user_path(item, "input")
        inside = _suffixes_in(path) if path.is_dir() else set()
        if inside & (PICTURE_SUFFIXES - VIDEO_SUFFIXES) and not inside & (
            VIDEO_SUFFIXES - PICTURE_SUFFIXES
        ):
            expand_inputs([path], notices=notices)  # the frames, for what is left out of them
            found.append(path)
        else:
            found += expand_inputs([item], VIDEO_SUFFIXES, "video", notices)
    if not found:
        raise InputError(
            "no input: give videos, folders of videos, or patterns such as 'clips/*.mp4'"
        )
    return list(dict.fromkeys(found))


def _suffixes_in(folder: Path) -> set[str]:
    try:
        return {file.suffix.lower() for file in folder.iterdir()}
    except OSError as e:
        raise InputError(
            f"cannot list folder {str(folder)!r}: {e.strerror}; check its permissions"
        ) from None


def _targets(
    sources: list[Path], output: Path, codec: str | None, a_folder: bool
) -> tuple[list[Path], Path | None]:
    """Where each result goes, the named file or NAME_stylized in the named folder; and that folder.

    a_folder: the output is written as a folder's name, with a slash at its end.
    """
    one_file = bool(output.suffix) and not output.is_dir() and not a_folder
    its_own = (
        len(sources) == 1
        and codec == "png"
        and (not output.is_dir() or finished(output) is not None)
    )
    if one_file or its_own:
        if len(sources) > 1:
            raise InputError(f"-o {output}: one file for {len(sources)} videos: give a folder")
        return [output], None
    targets = [check_path(output / f"{s.stem}_stylized{_suffix(s, codec)}", "-o") for s in sources]
    if double := next((t for i, t in enumerate(targets) if t in targets[:i]), None):
        raise InputError(
            f"two inputs would both be written to {double}: rename one, or give them in two runs"
        )
    return targets, output


def _suffix(source: Path, codec: str | None) -> str:
    """Of a result that was given no name: a folder's is a folder, what a container of the source's
    kind can hold."""
    if codec is None:
        if source.is_dir():
            return ""
        return (
            source.suffix.lower()
            if source.suffix.lower() in (".mov", ".mkv", ".webm", ".gif", ".webp")
            else ".mp4"
        )
    by_codec = {
        "png": "",
        "prores": ".mov",
        "ffv1": ".mkv",
        "vp9": ".webm",
        "gif": ".gif",
        "webp": ".webp",
    }
    return by_codec.get(codec, ".mp4")


def _window(s: VideoSettings, window: int) -> tuple[int, int]:
    """(frames of a window, frames that neighbours share)."""
    overlap = s.overlap if s.overlap is not None else window // 2
    if overlap and window == 1:
        raise InputError(
            f"--overlap {overlap}: frame by frame nothing overlaps: leave it out, or give "
            f"--motion auto"
        )
    if overlap >= window:
        raise InputError(
            f"--overlap {overlap}: a window has {window} frames, so it can be 0 to {window - 1}"
        )
    return window, overlap


def _plan(
    source: Path,
    target: Path,
    index: int,
    total: int,
    s: VideoSettings,
    pack: Pack,
    overwrite: bool,
    cuts: list[Fraction] | None,
    made: bool,
) -> Job:
    if target.exists() and not overwrite and finished(target) is None:
        raise OutputExists.at(target)
    check_folder(folder_of(target))
    if s.preview is not None:
        check_path(preview_path(target), "--preview")
    if target.exists() and target.resolve() == source.resolve():
        raise InputError(f"output {str(target)!r} is the input: name another file")
    clip = open_clip(source, fps=s.fps or FOLDER_RATE)
    if s.start is not None and clip.duration is not None and s.start >= clip.duration:
        raise InputError(
            f"--start {float(s.start):g}: {source.name} ends after {float(clip.duration):.3f} "
            f"seconds"
        )
    width, height = clip.display_size
    working = working_size(width, height, s.size, pack.base_resolution, pack.size_by == "area")
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
    return Job(source, clip, written, extras, index, total, working, size, cuts, _estimate(clip, s))


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
