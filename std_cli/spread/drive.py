"""A request made in units, by an executor: its videos are read, their units run, and the results
joined; its pictures are made in chunks."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from std_cli.errors import Cancelled, InputError, StdError, counted
from std_cli.events import Event, OnEvent, VideoResult
from std_cli.paths import is_url, remove_stale_drafts
from std_cli.spread.devices import crowded
from std_cli.spread.executor import Executor
from std_cli.spread.finish import finish, left_of
from std_cli.spread.pictures import Chunk, begin_chunks, chunks_of, end_chunks, prepare_chunks
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.storage import keep_manifest
from std_cli.spread.units import Plan, Unit, find_units, rounds
from std_cli.storage.scratch import Scratch
from std_cli.stylize.outputs import Existing
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.report import reporting
from std_cli.stylize.request import failure, new_folder, request_facts, some_failed
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest
from std_cli.stylize.work_folder import folder_of


def drive_videos(
    saved: SavedRequest,
    executor: Executor[Unit],
    parts: int,
    on_event: OnEvent,
    *,
    existing: Existing = "refuse",
    resume: bool = True,
    keep_work: bool = False,
    report: str | None = None,
    cores: int | None = None,
) -> list[VideoResult]:
    """Stylize the videos of a request in units, for `parts` devices; returns the result of each.

    Units that an earlier run has finished are not run again. Raises InputError for every problem of
    the request before a unit is run; StdError at the end says what failed, each of which was
    reported, while the others were finished. report: as of `Stylizer.video`. cores: those that all
    workers share; None where they are on several machines.
    """
    overwrite = existing == "replace"
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(on_event))
        request = saved.prepare(existing, scratch)
        assert isinstance(request, VideoRequest)
        stack.enter_context(new_folder(request.folder))
        page = reporting(report, overwrite, on_event, request.jobs, request.s)
        on_event = scratch.events(stack.enter_context(page), overwrite)
        drive = _Drive(request, saved, executor, on_event)
        return drive.go(parts, overwrite, resume, keep_work, cores)


class _Drive:
    def __init__(
        self,
        request: VideoRequest,
        saved: SavedRequest,
        executor: Executor[Unit],
        on_event: OnEvent,
    ) -> None:
        self.request, self.saved, self.executor = request, saved, executor
        self.on_event = on_event
        self.failed = [error["input"] for error in request.failed]
        self.total = len(request.failed) + len(request.jobs)

    def go(
        self, parts: int, overwrite: bool, resume: bool, keep_work: bool, cores: int | None
    ) -> list[VideoResult]:
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
        units = [unit for plan in plans for unit in left_of(plan)]
        _say_crowded(units, parts, cores, self.on_event)
        reasons = self.run_units(units)
        results = []
        for plan in plans:
            try:
                if why := {u.id: reasons[u.id] for u in plan.units if u.id in reasons}:
                    self.keep(plan, why)
                    total, first = counted(len(plan.units), "unit"), next(iter(why.values()))
                    raise StdError(f"{len(why)} of {total} of {plan.job.name} failed: {first}")
                results.append(finish(plan, request, overwrite, keep_work, self.on_event))
            except StdError as e:
                if self.total == 1 or isinstance(e, Cancelled):
                    raise
                self.fail(plan.job, e)
        if self.failed:
            again = "the same command with --skip-existing continues them: finished units are kept"
            raise some_failed(self.failed, self.total, "videos", again)
        return results

    def run_units(self, units: Sequence[Unit]) -> dict[str, str]:
        """Run units, those that wait for others after them; returns why, by id, some failed."""
        reasons: dict[str, str] = {}
        for ready in rounds(units):
            reasons |= self.executor.run(
                unit for unit in ready if not any(other in reasons for other in unit.of)
            ).failed
        return reasons

    def keep(self, plan: Plan, failed: dict[str, str]) -> None:
        """Write which units of a video failed into its work folder."""
        folder, ids = folder_of(plan.job.target.path), [unit.id for unit in plan.units]
        keep_manifest(folder, {}, ids, failed, self.request.scratch)

    def fail(self, job: Job, error: StdError) -> None:
        self.failed.append(job.name)
        self.on_event(failure(job.name, error))


def _say_crowded(
    units: Sequence[Unit] | Sequence[Chunk], parts: int, cores: int | None, on_event: OnEvent
) -> None:
    """Report where workers take more threads than there are cores."""
    threads = units[0].threads if units else None
    if message := crowded(min(parts, len(units)), threads, cores):
        on_event({"event": "notice", "message": message})


class PictureDrive:
    """Stylizes the pictures of a request in chunks. Which are made, and which failed, is reported
    once of each, whatever workers die."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._failed: list[str] = []
        self._seen: set[str] = set()

    def go(
        self,
        saved: SavedRequest,
        executor: Executor[Chunk],
        parts: int,
        existing: Existing,
        report: str | None,
        cores: int | None = None,
    ) -> None:
        """Make all pictures, by `parts` workers, which report to `pass_on`; one that fails does not
        stop the others. Errors, report and cores as of `drive_videos`."""
        if report is not None and is_url(saved.output):
            raise InputError(
                f"--report {report}: the results at {saved.output} are put there by the workers: "
                f"leave out --report, or give -o a folder"
            )
        with Scratch(self._on_event) as scratch:
            request = prepare_chunks(saved, existing, scratch)
            folder = request.folder
            with (
                new_folder(folder if request.jobs else None),
                reporting(
                    report, existing == "replace", self._on_event, request.jobs, request.s
                ) as self._on_event,
            ):
                self._announce(request)
                chunks = chunks_of(request, parts)
                _say_crowded(chunks, parts, cores, self._on_event)
                work = begin_chunks(request, saved, parts, existing) if folder and chunks else None
                reasons = executor.run(chunks).failed
                for chunk in chunks:
                    for picture in chunk.pictures:
                        if picture.name not in self._seen:
                            why = reasons.get(chunk.id, "its worker did not report it")
                            self.pass_on(failure(picture.name, StdError(why)))
                if work is not None and not self._failed:
                    end_chunks(work, scratch)
                if self._failed:
                    ids = [chunk.id for chunk in chunks]
                    if work is not None:
                        keep_manifest(work, {"pictures": self._failed}, ids, reasons, scratch)
                    total = len(request.jobs) + len(request.failed)
                    again = (
                        f"the same command makes them again ({work} is kept for it)" if work else ""
                    )
                    raise some_failed(self._failed, total, "pictures", again)

    def _announce(self, r: ImageRequest) -> None:
        if r.jobs:
            facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
            total = len(r.jobs) + len(r.failed)
            self._on_event({"event": "start", "total": total, **facts})
        for message in r.notices:
            self._on_event({"event": "notice", "message": r.scratch.in_urls(message)})
        for error in r.failed:
            self._failed.append(error["input"])
            self._on_event(r.scratch.shown(error))

    def pass_on(self, event: Event) -> None:
        """Pass on what is reported, of each picture the first result or failure."""
        given: dict[str, Any] = dict(event)
        if event["event"] in ("result", "error") and "input" in given:
            if given["input"] in self._seen:
                return
            self._seen.add(given["input"])
            if event["event"] == "error":
                self._failed.append(given["input"])
        self._on_event(cast(Event, given))
