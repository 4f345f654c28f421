"""The run of one unit: the same wherever it runs, from what an earlier attempt left to the record
that says that it is done."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import Busy, StdError, at_work
from std_cli.events import Event, OnEvent, RequestFacts
from std_cli.interruption import stoppable
from std_cli.paths import replace_file
from std_cli.spread.executor import Record
from std_cli.spread.facts import worker_facts
from std_cli.spread.held import Held
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.storage import pull_folder
from std_cli.spread.units import Unit, name_of
from std_cli.stylize.frames import check_unchanged
from std_cli.stylize.request import Use, origin
from std_cli.stylize.video_run import Job, Run
from std_cli.stylize.videos import VideoRequest, run_threads, video_facts
from std_cli.stylize.work_folder import WorkFolder, folder_of
from std_cli.weights.fingerprints import sha256

if TYPE_CHECKING:
    from std_cli.diffusion.video_pipeline import VideoPipeline


@dataclass(frozen=True)
class UnitRecord:
    """What a unit made, as `done.json` in its folder keeps it; JSON-able."""

    id: str
    files: dict[str, str]
    """SHA-256 of each segment, by name, in order."""
    frames: int
    resumed: int
    """Of these, how many an earlier attempt had finished."""
    first_pts: str
    end: str
    """When the last frame ends: a fraction of seconds on the clip's clock, as `first_pts`."""
    seconds: float
    """That the last attempt took."""

    def json(self) -> dict[str, Any]:
        """What `done.json` holds."""
        return asdict(self)


def units_folder(output: Path) -> Path:
    """The folder that has a folder for each unit of an output."""
    return folder_of(output) / "units"


def read_done(folder: Path) -> UnitRecord | None:
    """The record of a unit that is done; None of one that is not.

    Raises StdError for one that is damaged.
    """
    file = folder / "done.json"
    try:
        return UnitRecord(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError):
        raise StdError(
            f"{file} is damaged: remove {folder} and run the same command again"
        ) from None


def job_of(unit: Unit, request: VideoRequest) -> Job:
    """The video that a unit is of."""
    return next(job for job in request.jobs if name_of(job, request) == unit.output)


def run_of(job: Job, request: VideoRequest, facts: RequestFacts, on_event: OnEvent) -> Run:
    """The run of a video of a request: what units and the joining of them have in common."""
    stride = request.window - request.overlap
    run = Run(job, facts, request.s, request.mix, request.window, stride, on_event)
    run.origin = origin(
        job.source, run.input_sha256, request.styles, request.given, request.scratch
    )
    return run


def run_unit(
    unit: Unit,
    request: VideoRequest,
    folder: Path,
    use: "Use[VideoPipeline]",
    on_event: OnEvent,
    resume: bool = True,
) -> UnitRecord:
    """Make a unit of a video in its folder, and `done.json` last of all.

    It continues from what an earlier attempt stored there; one that is done is not made again.
    folder: next to those of the units that this one is made of. use: gives the loaded pipeline.
    resume: False starts over.

    Raises Busy if another process makes it, InputError if the folder is of something else, StdError
    if the work fails.
    """
    if resume and (done := read_done(folder)) is not None:
        return done
    run = run_of(job_of(unit, request), request, video_facts(request), on_event)
    folder.parent.mkdir(parents=True, exist_ok=True)
    record = run.record() | {"unit": unit.identity()}
    stored = request.scratch.work_folder(folder)
    for id in unit.of:
        pull_folder(folder.parent / id, request.scratch)
    try:
        with WorkFolder(run.job.target.path, record, resume, stored, unit=folder) as work:
            if resume and (done := read_done(folder)) is not None:
                return done
            work.done.unlink(missing_ok=True)
            with run_threads(request, work, unit.threads), use(on_event) as pipeline:
                pipeline.on_notice = run.notice
                conditions = pipeline.prepare(request.s, request.schedule, run.job.working)
                with at_work(), stoppable():
                    done = _make(unit, run, pipeline, conditions, work)
            if stored is not None:
                stored.push(folder, [work.done.name])
            return done
    except Busy:
        raise Busy(
            f"another process makes unit {unit.id} of {run.job.target.path}: wait for it, or give "
            f"each shard a number of its own"
        ) from None


def _make(
    unit: Unit, run: Run, pipeline: "VideoPipeline", conditions: Any, work: WorkFolder
) -> UnitRecord:
    begin = time.monotonic()
    made = run.make(
        pipeline,
        conditions,
        work,
        unit.stretch,
        keep_latents=unit.keeps == "latents",
        latents=_latents_of(unit, work.path.parent) if unit.of else None,
    )
    check_unchanged(run.job.source, run.input_sha256)
    record = UnitRecord(
        unit.id,
        {segment.name: sha256(segment) for segment in made.segments},
        made.frames,
        made.resumed,
        str(made.first_pts),
        str(made.end),
        round(time.monotonic() - begin, 3),
    )
    replace_file(work.done, json.dumps(record.json(), indent=1).encode())
    return record


def _latents_of(unit: Unit, units: Path) -> list[Path]:
    """The files of the latents that a unit is made of, in order. Raises StdError if one is not
    done."""
    files: list[Path] = []
    for id in unit.of:
        done = read_done(units / id)
        if done is None:
            raise StdError(f"unit {id} is not done, which unit {unit.id} is made of: run it first")
        files += [units / id / name for name in done.files]
    return files


class UnitWork(Held):
    """What a worker of any kind does with the units of a request. It can be sent to another
    process, prepares the request there, and holds the loaded model."""

    def __init__(self, saved: SavedRequest, resume: bool = True, verbose: bool = False) -> None:
        super().__init__(verbose)
        self._saved, self._resume = saved, resume
        self._requests: dict[str, VideoRequest] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return UnitWork, (self._saved, self._resume, self._verbose)

    def _request(self, output: str) -> VideoRequest:
        """The request, prepared in this process, with the video of this output alone (see
        `units.name_of`); "": with none."""
        if output not in self._requests:
            scratch = self.scratch

            def is_wanted(target: Path) -> bool:
                return scratch.in_urls(os.path.abspath(target)) == output

            request = self._saved.prepare("note", scratch, is_wanted)
            assert isinstance(request, VideoRequest)
            for error in request.failed:
                raise StdError(error["message"])
            self._requests[output] = request
        return self._requests[output]

    def facts(self) -> Mapping[str, str]:
        """What results follow from and what must be the same at all workers: the versions, and the
        kind of device."""
        settings = self._request("").s
        return worker_facts(settings.device, settings.dtype)

    def run(self, unit: Unit, on_event: OnEvent) -> Record:
        """Make a unit, or what is left of it. Errors as of `run_unit`."""
        request = self._request(unit.output)
        scratch = request.scratch
        folder = units_folder(job_of(unit, request).target.path) / unit.id
        use = partial(self.stylizer.use, request)

        def in_urls(event: Event) -> None:
            on_event(scratch.shown(event))

        with scratch.naming():
            made = run_unit(unit, request, folder, use, in_urls, self._resume)
        return {"frames": made.frames, "resumed": made.resumed, "seconds": made.seconds}

    def close(self) -> None:
        """As `Held.close`."""
        super().close()
        self._requests = {}
