"""How much work the inputs of a request are: frames, shots, windows, evaluations, bytes of the
results."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from std_cli.config import ImageSettings, VideoSettings
from std_cli.errors import InputError
from std_cli.events import PlannedInput
from std_cli.media.compare import Comparison
from std_cli.stylize.frames import source_frames
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.video_run import SEGMENT, Job

COUNTED = 2000
"""Frames of the longest video whose shots are counted: it is decoded for that."""
BITS_PER_PIXEL = {
    "h264": 0.5, "hevc": 0.35, "av1": 0.3, "vp9": 0.35, "prores": 3.5, "ffv1": 14, "png": 14,
    "gif": 5, "webp": 3,
}  # fmt: skip
"""Of a result at the default quality, a rough upper figure: brush strokes cost more bits than
camera pictures do."""
PICTURE_BITS = {".png": 16, ".webp": 3}
"""The same for pictures; 4, that of jpg, for all others."""


def area(size: Sequence[int]) -> int:
    """Pixels of (width, height)."""
    return size[0] * size[1]


def evaluations_of(settings: ImageSettings) -> int:
    """Evaluations of the network for a picture, or for a window of frames."""
    return settings.steps + len(settings.unconditional_steps)


def picture_inputs(request: ImageRequest) -> list[PlannedInput]:
    """The work of each picture."""
    settings = request.s
    evaluations = evaluations_of(settings)
    comparison = Comparison(settings.compare, settings.labels)
    return [
        {
            "input": job.name,
            "output": job.output,
            "width": comparison.size(*job.size)[0],
            "height": job.size[1],
            "working": list(job.working),
            "frames": 1,
            "shots": 1,
            "windows": 1,
            "evaluations": evaluations,
            "disk": _picture_bytes(job.target, comparison.size(*job.size)) if job.target else 0,
        }
        for job in request.jobs
    ]


def video_input(
    job: Job,
    settings: VideoSettings,
    window: int,
    stride: int,
    on_notice: Callable[[str], None],
) -> PlannedInput:
    """The work of one video. It is decoded for that if it has at most `COUNTED` frames, and what
    the reader notices is what a run would notice; of a longer one what its header says.

    Raises InputError if no frame is left to stylize.
    """
    from std_cli.diffusion.windows import window_starts

    lengths = _shot_lengths(job, settings, on_notice)
    shots = len(lengths) if lengths is not None else None
    frames = sum(lengths) if lengths is not None else job.frames
    if lengths is None and frames is not None:
        lengths = [frames]
    windows = evaluations = disk = None
    target = job.target
    if frames is not None and lengths is not None:
        windows = sum(len(window_starts(length, window, stride)) for length in lengths)
        evaluations = windows * evaluations_of(settings)
        bits = BITS_PER_PIXEL.get(target.codec, 1)
        disk = int(frames * target.width * target.height * bits / 8)
    return {
        "input": job.name,
        "output": job.output,
        "width": target.width,
        "height": target.height,
        "working": list(job.working),
        "frames": frames,
        "shots": shots,
        "windows": windows,
        "evaluations": evaluations,
        "disk": disk,
    }


def _shot_lengths(
    job: Job, settings: VideoSettings, on_notice: Callable[[str], None]
) -> list[int] | None:
    """Frames of each shot; None of a video that is too long to be decoded for it."""
    if job.frames is None or job.frames <= COUNTED:
        notices: list[str] = []
        frames = source_frames(
            job.clip,
            settings,
            job.cuts,
            keep_alpha=job.target.alpha,
            end=COUNTED + 1,
            on_notice=notices.append,
        )
        shots = [frame.place.shot for frame in frames]
        if not shots:
            raise InputError(f"{job.source.name}: no frames between --start and --end: widen them")
        if len(shots) <= COUNTED:
            for notice in notices:
                on_notice(notice)
            return [len(list(group)) for _, group in itertools.groupby(shots)]
    for notice in job.clip.notices:
        on_notice(notice)
    if job.clip.alpha and not job.target.alpha:
        on_notice(
            f"{job.clip.path.name} can be transparent: transparent parts would show white (prores, "
            f"ffv1, png, gif and webp keep them)"
        )
    return None


def part_bytes(job: Job) -> int:
    """What the frames of the part at hand take on the disk, as they are kept for a resumed run."""
    frames = min(SEGMENT, job.frames or SEGMENT)
    return frames * job.target.width * job.target.height * (4 if job.target.alpha else 3)


def _picture_bytes(target: Path, size: tuple[int, int]) -> int:
    return int(area(size) * PICTURE_BITS.get(target.suffix.lower(), 4) / 8)
