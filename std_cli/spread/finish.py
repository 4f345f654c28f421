"""The units of a video joined to its result, which is that of a run in one process."""

import time
from collections.abc import Sequence
from pathlib import Path

from std_cli.errors import StdError, at_work, counted
from std_cli.events import OnEvent, VideoResult
from std_cli.media.video.quality import Quality
from std_cli.spread.run_unit import UnitRecord, read_done, run_of, units_folder
from std_cli.spread.storage import pull_folder, pull_records, remove_stored
from std_cli.spread.units import Plan, Unit, shared_out
from std_cli.stylize.outputs import exists_already
from std_cli.stylize.video_run import Made
from std_cli.stylize.videos import VideoRequest, video_facts
from std_cli.stylize.work_folder import WorkFolder, finished, folder_of, stored_arrays
from std_cli.weights.fingerprints import sha256


def left_of(plan: Plan) -> list[Unit]:
    """The units of a video that are not done, in order. Raises StdError for a damaged record."""
    folder = units_folder(plan.job.target.path)
    return [unit for unit in plan.units if read_done(folder / unit.id) is None]


def finish(
    plan: Plan, request: VideoRequest, overwrite: bool, keep_work: bool, on_event: OnEvent
) -> VideoResult:
    """Join the units of a video: the segments with the source's sound, subtitles, tags and times,
    and the figures of all. The result is written next to its place, then moved there, and the work
    folder is removed.

    Raises StdError if a unit is missing or damaged, or if the work fails; OutputExists, and
    InputError for units of another request.
    """
    target = plan.job.target.path
    run = run_of(plan.job, request, video_facts(request), on_event)
    with WorkFolder(target, plan.record, True, of_units=True) as work, at_work():
        if kept := finished(target):  # killed after the result was moved into its place
            result = run.report(kept)
            work.remove(keep_work)
            return result
        if target.exists() and not overwrite:
            raise exists_already(target)
        pull_records(target, request.scratch)
        if left := left_of(plan):
            raise StdError(missing([plan], left))
        for unit in plan.units:
            if unit.keeps == "frames":
                pull_folder(units_folder(target) / unit.id, request.scratch)
        run.begin_notices()
        begin = time.monotonic()
        made, seconds = _made(plan, units_folder(target))
        run.late_notices += [n for n in plan.notices if n not in run.late_notices]
        seconds += time.monotonic() - begin
        result = run.finish(made, work, seconds, overwrite, keep_work)
    if not keep_work:
        remove_stored(folder_of(target), request.scratch)  # not before the result is in its storage
    return result


def missing(plans: Sequence[Plan], left: Sequence[Unit]) -> str:
    """What is said where units are not done: one of them, and who makes it."""
    first, total = left[0], sum(len(plan.units) for plan in plans)
    what = f"{len(left)} of {counted(total, 'unit')} {'is' if len(left) == 1 else 'are'} not done"
    frames = f"frames {first.first} to {first.end - 1}"
    where = f"{first.input}, shot {first.shot}, {frames}"
    shards = plans[0].shards
    if shards is None or first.of:
        return f"{what} ({where}): run the same command again"
    units = [unit for plan in plans for unit in plan.units if not unit.of]
    ids = {unit.id for unit in left}
    missing = [
        f"{number}/{shards}"
        for number, share in enumerate(shared_out(units, shards))
        if any(unit.id in ids for unit in share)
    ]
    more = f" and of {len(missing) - 8} more" if len(missing) > 8 else ""
    one = len(missing) == 1
    return (
        f"{what} ({where}): {'that is' if one else 'those are'} of shard "
        f"{', '.join(missing[:8])}{more}: run the same command with --shard {missing[0]}"
        f"{'' if one else ' and so on'}, then std join again"
    )


def _made(plan: Plan, folder: Path) -> tuple[Made, float]:
    """What all units made together, and the seconds that it took them."""
    segments: list[Path] = []
    quality = Quality()
    frames, seconds = 0, 0.0
    for unit in plan.units:
        record = read_done(folder / unit.id)
        assert record is not None  # it was looked for
        seconds += record.seconds
        if unit.keeps != "frames":
            continue
        segments += _checked(record, folder / unit.id)
        quality.merge(Quality.from_state(stored_arrays(folder / unit.id, "quality")))
        frames += record.frames
    if frames != plan.frames:
        raise StdError(
            f"the units of {plan.job.target.path} have {counted(frames, 'frame')}, not "
            f"{plan.frames}: give --no-resume to start over"
        )
    return Made(segments, frames, 0, plan.first_pts, plan.end, quality), seconds


def _checked(record: UnitRecord, folder: Path) -> list[Path]:
    """The segments of a unit, which are what they were when they were written."""
    files = [folder / name for name in record.files]
    for file in files:
        try:
            same = sha256(file) == record.files[file.name]
        except OSError:
            same = False
        if not same:
            raise StdError(f"{file} is missing or damaged: remove {folder} and run its unit again")
    return files
