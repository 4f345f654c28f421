"""`--shard i/n`: a part of a request in each of n processes that know nothing of each other, on any
machines that see the same folder; `std join` then checks that all is done, and joins it.

Each process finds the same units and takes its share of them. What failed is written to a manifest
of the attempt, `attempts/` in the work folder; a shard that is run again makes what is not done.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from std_cli.errors import InputError, StdError, counted
from std_cli.events import Event, OnEvent
from std_cli.paths import user_path
from std_cli.spread.executor import Here
from std_cli.spread.finish import finish, left_of, missing
from std_cli.spread.pictures import (
    PictureWork,
    begin_chunks,
    chunks_of,
    end_chunks,
    is_begun,
    not_made,
    place_of,
    prepare_chunks,
    read_chunks,
)
from std_cli.spread.run_unit import UnitWork
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.storage import keep_manifest, pull_plan
from std_cli.spread.units import Plan, find_units, rounds, shared_out
from std_cli.storage.scratch import Scratch
from std_cli.stylize.outputs import Existing
from std_cli.stylize.request import failure, new_folder, some_failed
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest
from std_cli.stylize.work_folder import folder_of, plan_of

_FORM = "give I/N with I from 0 to N-1, such as 0/16, or auto, or auto/N in an array of jobs"
_TASKS = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
"""Variables that hold the number of a job in an array: SLURM's, and that of indexed jobs of
Kubernetes."""


@dataclass(frozen=True)
class Shard:
    """Which part of a request this process makes."""

    number: int
    """From 0."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str, variables: Mapping[str, str]) -> Shard:
    """ "3/16"; "auto" takes the number and the count of SLURM's variables, "auto/16" the number of
    SLURM's or of Kubernetes'. Raises InputError."""
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise InputError(f"--shard {text}: {_FORM}")
    if match[1] != "auto":
        number, count = int(match[1]), int(match[2])
    else:
        number, count = _of_the_array(text, match[2], variables)
    if not 0 <= number < count:
        raise InputError(
            f"--shard {text}: number {number} of {count}: {_FORM}; an array of jobs begins with 0"
        )
    return Shard(number, count)


def _of_the_array(text: str, count: str | None, variables: Mapping[str, str]) -> tuple[int, int]:
    found = [name for name in _TASKS if variables.get(name, "").isdigit()]
    if not found:
        raise InputError(f"--shard {text}: {' and '.join(_TASKS)} are not set: give --shard I/N")
    number = int(variables[found[0]])
    if count is not None:
        return number, int(count)
    tasks = variables.get("SLURM_ARRAY_TASK_COUNT", "")
    if found[0] != _TASKS[0] or not tasks.isdigit():
        raise InputError(
            f"--shard auto: {found[0]} is set, but not SLURM_ARRAY_TASK_COUNT: give --shard "
            "auto/N, where N is the number of jobs"
        )
    first = variables.get("SLURM_ARRAY_TASK_MIN", "0")
    return number - int(first if first.isdigit() else 0), int(tasks)


# --- one shard ---------------------------------------------------------------------------------


def run_shard(
    saved: SavedRequest,
    shard: Shard,
    existing: Existing,
    on_event: OnEvent,
    *,
    resume: bool = True,
    verbose: bool = False,
) -> None:
    """Make this shard's part of a request, or what is left of it. Nothing is joined.

    Raises InputError for every problem of the request before a weight is loaded; StdError at the
    end if units failed, each of which was reported.
    """
    if saved.task == "image":
        _run_pictures(saved, shard, existing, on_event, verbose)
        return
    with Scratch(on_event) as scratch:
        request = saved.prepare(existing, scratch)
        assert isinstance(request, VideoRequest)
        _run_videos(request, saved, shard, scratch.events(on_event, False), resume, verbose)


def _run_videos(
    request: VideoRequest,
    saved: SavedRequest,
    shard: Shard,
    on_event: OnEvent,
    resume: bool,
    verbose: bool,
) -> None:
    for message in request.notices:
        on_event({"event": "notice", "message": message})
    failed = [error["input"] for error in request.failed]
    for error in request.failed:
        on_event(error)

    def fail(job: Job, error: StdError) -> None:
        failed.append(job.name)
        on_event(failure(job.name, error))

    if request.folder is not None:
        request.folder.mkdir(exist_ok=True)
    total = len(request.jobs) + len(failed)
    plans = find_units(
        request,
        shard.of,
        saved,
        on_event,
        resume=resume,
        shards=True,
        on_failure=fail if total > 1 else None,
    )
    share = shared_out([u for plan in plans for u in plan.units if not u.of], shard.of)
    mine = share[shard.number]
    _say(on_event, f"shard {shard}: {counted(len(mine), 'unit')} of {sum(map(len, share))}")
    work = UnitWork(saved, resume, verbose)
    try:
        outcome = Here(work, on_event).run(mine)
    finally:
        work.close()
    for plan in plans:
        ids = {unit.id for unit in plan.units}
        units = [unit.id for unit in mine if unit.id in ids]
        failures = {id: why for id, why in outcome.failed.items() if id in ids}
        folder = folder_of(plan.job.target.path)
        keep_manifest(folder, {"shard": asdict(shard)}, units, failures, request.scratch)
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        raise StdError(
            f"{len(outcome.failed)} of {counted(len(mine), 'unit')} of shard {shard} failed "
            f"({first}): the same command makes them again"
        )
    if failed:
        raise some_failed(failed, total, "videos")
    left = sum(not unit.of for plan in plans for unit in left_of(plan))
    _say(on_event, _then(shard, left, saved.output if len(plans) > 1 else plans[0].job.output))


def _then(shard: Shard, left: int, output: str) -> str:
    """What is said when a shard is done; left: units of all shards that are not."""
    others = f"{counted(left, 'unit')} of others left: when they are done, " if left else ""
    return f"shard {shard} is done; {others}give std join {output}"


def _say(on_event: OnEvent, message: str) -> None:
    on_event({"event": "notice", "message": message})


def _run_pictures(
    saved: SavedRequest, shard: Shard, existing: Existing, on_event: OnEvent, verbose: bool
) -> None:
    failed: dict[str, str] = {}

    def pass_on(event: Event) -> None:
        if event["event"] == "error" and "input" in event:
            failed[event["input"]] = event["message"]
        on_event(event)

    with Scratch(on_event) as scratch:
        request = prepare_chunks(saved, existing, scratch, shards=True)
        if request.folder is None:
            raise InputError(
                f"-o {saved.output}: shards write into one folder: name a folder, with / at its end"
            )
        for message in request.notices:
            _say(on_event, scratch.in_urls(message))
        for error in request.failed:
            pass_on(scratch.shown(error))
        if not request.jobs:
            raise some_failed(list(failed), len(failed), "pictures")
        mine = shared_out(chunks_of(request, shard.of), shard.of)[shard.number]
        work = PictureWork(saved, existing, verbose)
        try:
            work.refused(mine)
            folder = begin_chunks(request, saved, shard.of, existing)
            pictures = sum(chunk.frames for chunk in mine)
            _say(on_event, f"shard {shard}: {counted(pictures, 'picture')} of {len(request.jobs)}")
            outcome = Here(work, pass_on).run(mine)
        finally:
            work.close()
        ids = [chunk.id for chunk in mine]
        keep_manifest(folder, {"shard": asdict(shard)}, ids, failed | outcome.failed, scratch)
        if failed or outcome.failed:
            first = next(iter((failed | outcome.failed).values()))
            number = len(failed) + sum(c.frames for c in mine if c.id in outcome.failed)
            raise StdError(
                f"{counted(number, 'picture')} of shard {shard} failed ({first}): the same command "
                f"makes them again"
            )
        scratch.output(saved.output_here, try_it=False)  # it lists what others have made
        _say(on_event, _then(shard, len(not_made(request.jobs)), saved.output))


# --- joining -----------------------------------------------------------------------------------


def join_shards(
    output: str | Path,
    on_event: OnEvent,
    *,
    overwrite: bool = False,
    keep_work: bool = False,
    verbose: bool = False,
) -> None:
    """Join what shards have made of an output, or of all outputs in a folder.

    What no shard makes is made here: the filters that run along a shot that was made in pieces.

    Raises InputError if nothing was made in shards there; StdError if a shard is missing, of which
    nothing is written, or if the work fails.
    """
    with Scratch(on_event) as place:
        path = user_path(place.output(str(output), try_it=False), "OUT")
        if is_begun(path, place):
            _join_pictures(path, keep_work, on_event)
            return
        pull_plan(path, place)
        for folder in path.glob(".*.std") if path.is_dir() else ():
            pull_plan(path / folder.name[1:-4], place)
        requests = _requests(path)
    for saved, names in requests:
        _join_videos(saved, names, overwrite, keep_work, verbose, on_event)


def _join_pictures(output: Path, keep_work: bool, on_event: OnEvent) -> None:
    """Check that all pictures are made, and remove the work folder. Raises StdError if some are
    not; the shards are named."""
    kept = read_chunks(output)
    saved, parts = SavedRequest.from_json(kept["request"]), int(kept["shards"])
    with Scratch(on_event) as scratch:
        request = prepare_chunks(saved, "note", scratch, shards=True)
        left = {scratch.in_urls(job.name) for job in not_made(request.jobs)}
        total = counted(len(request.jobs), "picture")
        if left:
            shards = [
                f"{i}/{parts}"
                for i, share in enumerate(shared_out(chunks_of(request, parts), parts))
                if any(picture.name in left for chunk in share for picture in chunk.pictures)
            ]
            raise StdError(
                f"{len(left)} of {total} are not made, of shard {', '.join(shards[:8])}: run the "
                f"same command with --shard {shards[0]}, then std join again"
            )
        assert request.folder is not None
        if not keep_work:
            end_chunks(folder_of(place_of(request.folder)), scratch)
        _say(on_event, f"{total} of {parts} shards are in {scratch.in_urls(str(request.folder))}")


def _requests(path: Path) -> list[tuple[SavedRequest, set[str]]]:
    """The requests of which units were made for an output, or for outputs in a folder, each with
    the inputs that they are of."""
    plans = [plan_of(path)] if plan_of(path).exists() else []
    if not plans and path.is_dir():
        plans = sorted(path.glob(".*.std/plan.json"))
    if not plans:
        raise InputError(
            f"{str(path)!r}: no shard has made anything of it: give the output of a "
            f"command with --shard, or its folder"
        )
    found: dict[str, tuple[SavedRequest, set[str]]] = {}
    for file in plans:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            saved = SavedRequest.from_json(kept["request"])
            key = json.dumps(kept["request"], sort_keys=True)
            found.setdefault(key, (saved, set()))[1].add(kept["input"])
        except (OSError, ValueError, TypeError, KeyError):
            raise InputError(f"{file} is damaged: give --no-resume to start over") from None
    return list(found.values())


def _join_videos(
    saved: SavedRequest,
    names: set[str],
    overwrite: bool,
    keep_work: bool,
    verbose: bool,
    on_event: OnEvent,
) -> None:
    with Scratch(on_event) as scratch:
        request = saved.prepare("note", scratch)
        assert isinstance(request, VideoRequest)
        on_event = scratch.events(on_event, overwrite)
        _join(request, saved, names, overwrite, keep_work, verbose, on_event)


def _join(
    request: VideoRequest,
    saved: SavedRequest,
    names: set[str],
    overwrite: bool,
    keep_work: bool,
    verbose: bool,
    on_event: OnEvent,
) -> None:
    plans = find_units(request, 1, None, on_event)
    plans = [plan for plan in plans if plan.units[0].input in names]
    _check_complete(plans)
    work = UnitWork(saved, verbose=verbose)
    try:
        passes = [unit for plan in plans for unit in left_of(plan)]
        for ready in rounds(passes):
            outcome = Here(work, on_event).run(ready)
            if outcome.failed:
                raise StdError(next(iter(outcome.failed.values())))
    finally:
        work.close()
    with new_folder(request.folder):
        for plan in plans:
            finish(plan, request, overwrite, keep_work, on_event)


def _check_complete(plans: Sequence[Plan]) -> None:
    left = [unit for plan in plans for unit in left_of(plan) if not unit.of]
    if left:
        raise StdError(missing(plans, left))
