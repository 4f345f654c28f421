"""A request made in units, by an executor: its videos are read, their units run, and the results
joined, one video after another as its units are done."""

from collections.abc import Sequence

from std_cli.errors import Cancelled, StdError, counted
from std_cli.events import OnEvent, VideoResult
from std_cli.paths import remove_stale_drafts
from std_cli.spread.executor import Executor
from std_cli.spread.finish import finish, left_of
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import Unit, find_units, rounds
from std_cli.stylize.outputs import Existing
from std_cli.stylize.report import reporting
from std_cli.stylize.request import failure, new_folder, some_failed
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest


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
    request = saved.prepare(existing)
    assert isinstance(request, VideoRequest)
    overwrite = existing == "replace"
    with (
        new_folder(request.folder),
        reporting(report, overwrite, on_event, request.jobs, request.s) as on_event,
    ):
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
