"""A request made in units, by an executor: its videos are read, their units run, and the results
joined; its pictures are made in chunks."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from std_cli.errors import Cancelled, StdError, counted
from std_cli.events import Event, OnEvent, VideoResult
from std_cli.paths import remove_stale_drafts
from std_cli.spread.executor import Executor
from std_cli.spread.finish import finish, left_of
from std_cli.spread.pictures import Chunk, absolute, chunks_of
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import Unit, find_units, rounds
from std_cli.storage.scratch import Scratch
from std_cli.stylize.outputs import Existing
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.report import reporting
from std_cli.stylize.request import failure, new_folder, request_facts, some_failed
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest

if TYPE_CHECKING:
    from std_cli.spread.ray_executor import RayExecutor


def drive_videos(
    saved: SavedRequest,
    executor: Executor,
    parts: int,
    on_event: OnEvent,
    *,
    existing: Existing = "refuse",
    resume: bool = True,
    keep_work: bool = False,
    report: str | None = None,
) -> list[VideoResult]:
    """Stylize the videos of a request in units, for `parts` devices; returns the result of each.

    Units that an earlier run has finished are not run again. Raises InputError for every problem of
    the request before a unit is run; StdError at the end says what failed, each of which was
    reported, while the others were finished. report: as of `Stylizer.video`.
    """
    overwrite = existing == "replace"
    with ExitStack() as stack:
        request = saved.prepare(existing, stack.enter_context(Scratch(on_event)))
        assert isinstance(request, VideoRequest)
        stack.enter_context(new_folder(request.folder))
        page = reporting(report, overwrite, on_event, request.jobs, request.s)
        on_event = stack.enter_context(page)
        return _Drive(request, saved, executor, on_event).go(parts, overwrite, resume, keep_work)


class _Drive:
    def __init__(
        self, request: VideoRequest, saved: SavedRequest, executor: Executor, on_event: OnEvent
    ) -> None:
        self.request, self.saved, self.executor = request, saved, executor
        self.on_event = on_event
        self.failed = [error["input"] for error in request.failed]
        self.total = len(request.failed) + len(request.jobs)

    def go(self, parts: int, overwrite: bool, resume: bool, keep_work: bool) -> list[VideoResult]:
        request = self.request
        for folder in {job.target.path.parent for job in request.jobs}:
            remove_stale_drafts(folder)
        for message in request.notices:
            self.on_event({"event": "notice", "message": message})
        for error in request.failed:
            self.on_event(error)
        plans = find_units(
            request,
            parts,
            self.saved,
            self.on_event,
            resume=resume,
            on_failure=self.fail if self.total > 1 else None,
        )
        reasons = self.run_units([unit for plan in plans for unit in left_of(plan)])
        results = []
        for plan in plans:
            try:
                if why := [reasons[unit.id] for unit in plan.units if unit.id in reasons]:
                    units = counted(len(plan.units), "unit")
                    raise StdError(f"{len(why)} of {units} of {plan.job.name} failed: {why[0]}")
                results.append(finish(plan, request, overwrite, keep_work, self.on_event))
            except StdError as e:
                if self.total == 1 or isinstance(e, Cancelled):
                    raise
                self.fail(plan.job, e)
        if self.failed:
            raise some_failed(self.failed, self.total, "videos")
        return results

    def run_units(self, units: Sequence[Unit]) -> dict[str, str]:
        """Run units, those that wait for others after them; returns why, by id, some failed."""
        reasons: dict[str, str] = {}
        for ready in rounds(units):
            reasons |= self.executor.run(
                unit for unit in ready if not any(other in reasons for other in unit.of)
            ).failed
        return reasons

    def fail(self, job: Job, error: StdError) -> None:
        self.failed.append(job.name)
        self.on_event(failure(job.name, error))


def drive_pictures(
    saved: SavedRequest,
    executor: "RayExecutor[Chunk]",
    parts: int,
    on_event: OnEvent,
    *,
    existing: Existing = "refuse",
    report: str | None = None,
) -> None:
    """Stylize the pictures of a request in chunks, by `parts` workers; one that fails does not stop
    the others. Errors as of `drive_videos`."""
    request = saved.prepare(existing)
    assert isinstance(request, ImageRequest)
    with (
        new_folder(request.folder if request.jobs else None),
        reporting(report, existing == "replace", on_event, request.jobs, request.s) as on_event,
    ):
        _Pictures(request, on_event).go(executor, parts, saved.folder)


class _Pictures:
    """Which pictures of a request are made, and which failed: each is reported once, whatever
    workers die."""

    def __init__(self, request: ImageRequest, on_event: OnEvent) -> None:
        self.request, self.on_event = request, on_event
        self.failed = [error["input"] for error in request.failed]
        self.total = len(request.jobs) + len(request.failed)
        self.seen: set[str] = set()

    def go(self, executor: "RayExecutor[Chunk]", parts: int, folder: str) -> None:
        r = self.request
        if r.jobs:
            facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
            self.on_event({"event": "start", "total": self.total, **facts})
        for message in r.notices:
            self.on_event({"event": "notice", "message": message})
        for error in r.failed:
            self.on_event(error)
        executor.on_event = self.pass_on
        chunks = chunks_of([absolute(job, folder) for job in r.jobs], parts)
        reasons = executor.run(chunks).failed
        for chunk in chunks:
            for job in chunk.jobs:
                if job.name not in self.seen:
                    why = reasons.get(chunk.id, "its worker did not report it")
                    self.pass_on(failure(job.name, StdError(why)))
        if self.failed:
            raise some_failed(self.failed, self.total, "pictures")

    def pass_on(self, event: Event) -> None:
        """Pass on what is reported, of each picture the first result or failure."""
        given: dict[str, Any] = dict(event)
        if event["event"] in ("result", "error") and "input" in given:
            if given["input"] in self.seen:
                return
            self.seen.add(given["input"])
            if event["event"] == "error":
                self.failed.append(given["input"])
            else:
                given["total"] = self.total
        self.on_event(cast(Event, given))
