"""Pictures in units: chunks of files, each made by whichever worker is free; the results are
written where one process writes them.

While the work folder is there, a picture whose result is there was made by this request if the
record in it says so. So what was begun continues after its last picture, and nothing of another
origin is replaced.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from std_cli.errors import Cancelled, InputError, StdError
from std_cli.events import Event, OnEvent
from std_cli.paths import remove, replace_file
from std_cli.spread.executor import Record, given_at_once
from std_cli.spread.facts import threads_in_one_process, worker_facts
from std_cli.spread.held import Held
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.storage import pull_folder, push_files, remove_stored
from std_cli.storage.scratch import Scratch
from std_cli.stylize.outputs import Existing, existing_notice, exists_already
from std_cli.stylize.pictures import ImageRequest, PictureJob, run_images
from std_cli.stylize.request import failure, request_facts
from std_cli.stylize.settings import read_record
from std_cli.stylize.work_folder import check_folder, check_same, folder_of, plan_of, write_run
from std_cli.weights.fingerprints import fingerprint

MOST_OF_A_CHUNK = 64
"""Pictures; what is shared out at once."""


@dataclass(frozen=True)
class Named:
    """A picture as every process knows it, from any working folder."""

    name: str
    """The input as it was given."""
    output: str
    """The target as it was given."""
    source: str
    """Path, or URL without what may be secret."""
    target: str
    """The same of the result."""
    index: int
    """From 1, within the request."""
    working: tuple[int, int]
    """(width, height) that the network sees."""
    size: tuple[int, int]
    """(width, height) of the result."""


@dataclass(frozen=True)
class Chunk:
    """Pictures that one worker makes, one after another."""

    id: str
    input: str
    """What it is called in messages; each chunk is an input of its own."""
    pictures: tuple[Named, ...]
    total: int
    """Pictures of the request."""
    threads: int | None
    """As `Unit.threads`."""

    @property
    def frames(self) -> int:
        """How many pictures: how much work it is."""
        return len(self.pictures)


def chunks_of(request: ImageRequest, parts: int) -> list[Chunk]:
    """All pictures of a request in chunks, for so many workers or shards."""
    jobs, total = request.jobs, len(request.jobs) + len(request.failed)
    most = given_at_once(len(jobs), parts, MOST_OF_A_CHUNK)
    threads = threads_in_one_process(request) if jobs else None
    chunks = []
    for first in range(0, len(jobs), most):
        part = tuple(_named(job, request.scratch) for job in jobs[first : first + most])
        name = f"pictures {first + 1} to {first + len(part)}"
        chunks.append(Chunk(f"pictures{first + 1:07d}", name, part, total, threads))
    return chunks


def _named(job: PictureJob, scratch: Scratch) -> Named:
    assert isinstance(job.source, Path)
    assert job.target is not None
    assert job.output is not None
    source, target = (scratch.in_urls(os.path.abspath(p)) for p in (job.source, job.target))
    return Named(
        scratch.in_urls(job.name),
        scratch.in_urls(job.output),
        source,
        target,
        job.index,
        job.working,
        job.size,
    )


class PictureWork(Held):
    """What a worker does with chunks. It is sent to another process, prepares the request there,
    and holds the loaded model."""

    def __init__(self, saved: SavedRequest, existing: Existing, verbose: bool) -> None:
        super().__init__(verbose)
        self._saved, self._existing = saved, existing
        self._request: ImageRequest | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureWork, (self._saved, self._existing, self._verbose)

    @property
    def request(self) -> ImageRequest:
        """The request without its pictures, prepared in this process."""
        if self._request is None:
            request = self._saved.prepare("note", self.scratch, only=lambda target: False)
            assert isinstance(request, ImageRequest)
            self._request = replace(request, notices=[])
        return self._request

    def facts(self) -> Mapping[str, str]:
        """As `UnitWork.facts`."""
        return worker_facts(self.request.s.device, self.request.s.dtype)

    def run(self, unit: Chunk, on_event: OnEvent) -> Record:
        """Make the pictures of a chunk; those that an earlier attempt has made are reported and not
        made again. A picture that fails is reported, and does not stop the others."""
        from std_cli.diffusion.threads import torch_threads

        begin, scratch = monotonic(), self.request.scratch
        jobs = [self._job(named) for named in unit.pictures]
        sources = [job.source for job in jobs if isinstance(job.source, Path)]
        with scratch.naming():
            scratch.fetch(sources)
            left = self._left(jobs, unit, on_event)
            with torch_threads(unit.threads):
                self._make(left, unit.total, on_event)
        scratch.drop([*sources, *(job.target for job in jobs if job.target)])
        resumed = len(jobs) - len(left)
        return {
            "frames": len(jobs),
            "resumed": resumed,
            "seconds": round(monotonic() - begin, 3),
        }

    def refused(self, chunks: Iterable[Chunk]) -> None:
        """Raises OutputExists for a result of another origin, which is not to be replaced."""
        if self._existing != "refuse":
            return
        for chunk in chunks:
            for job in map(self._job, chunk.pictures):
                if self._is_there(job) and not self._is_made(job):
                    assert job.target is not None
                    raise exists_already(job.target)

    def close(self) -> None:
        """As `Held.close`."""
        super().close()
        self._request = None

    def _job(self, named: Named) -> PictureJob:
        """A picture with the files of this machine."""
        scratch = self.request.scratch
        source, target = scratch.local(named.source), scratch.local(named.target)
        output = named.output if str(target) == named.target else str(target)
        return PictureJob(
            source, named.name, target, output, named.index, named.working, named.size
        )

    def _left(self, jobs: list[PictureJob], chunk: Chunk, on_event: OnEvent) -> list[PictureJob]:
        """The pictures that are still to be made; the others are reported."""
        left = []
        for job in jobs:
            assert job.target is not None
            if not self._is_there(job):
                left.append(job)
            elif self._is_made(job):
                on_event(self.request.scratch.shown(_made_before(job, chunk.total)))
            elif self._existing == "refuse":
                error = failure(job.name, exists_already(job.target))
                on_event(self.request.scratch.shown(error))
            elif self._existing == "replace":
                left.append(job)
            else:
                message = existing_notice([job.target], "skip")
                on_event({"event": "notice", "message": self.request.scratch.in_urls(message)})
        return left

    def _make(self, jobs: list[PictureJob], total: int, on_event: OnEvent) -> None:
        request, failed = replace(self.request, jobs=jobs), list[str]()
        put = request.scratch.events(on_event, self._existing == "replace")

        def pass_on(event: Event) -> None:
            if event["event"] == "error":
                failed.append(event["input"])
            if event["event"] not in ("start", "notice"):  # these are said once, of the request
                given: Any = dict(event)
                put(given | {"total": total} if "total" in given else given)

        rule: Existing = "replace" if self._existing == "replace" else "refuse"
        try:
            for _ in run_images(request, rule, True, pass_on, partial(self.stylizer.use, request)):
                pass
        except Cancelled:
            raise
        except StdError as e:
            if not failed and len(jobs) > 1:
                raise
            if not failed:  # of one picture it is not reported
                on_event(request.scratch.shown(failure(jobs[0].name, e)))

    def _is_there(self, job: PictureJob) -> bool:
        assert job.target is not None
        self.request.scratch.look(job.target)
        return os.path.lexists(job.target)

    def _is_made(self, job: PictureJob) -> bool:
        """Whether the result that is there is of this request and this input."""
        assert isinstance(job.source, Path)
        assert job.target is not None
        self.request.scratch.fetch([job.source, job.target])
        try:
            record = read_record(job.target)
        except StdError:
            return False
        made = record.get("origin")
        same_input = isinstance(made, dict) and made.get("sha256") == fingerprint(job.source)
        facts = facts_of(self.request)
        return same_input and all(record.get(name) == facts[name] for name in facts)


def facts_of(request: ImageRequest) -> dict[str, Any]:
    """What the results follow from, as JSON has it."""
    r = request
    facts = request_facts(r.s, r.schedule, r.files, r.lora, r.styles, r.references)
    made: dict[str, Any] = json.loads(json.dumps(facts))
    return made


def _made_before(job: PictureJob, total: int) -> Event:
    """The result of a picture that an earlier attempt made."""
    width, height = job.size
    return {
        "event": "result",
        "input": job.name,
        "index": job.index,
        "total": total,
        "output": job.output,
        "width": width,
        "height": height,
        "seconds": 0.0,
    }


# --- the work folder ---------------------------------------------------------------------------


def place_of(folder: Path) -> Path:
    """What stands for all results in a folder, in the name of their work folder."""
    return folder / "pictures"


def is_begun(output: Path, scratch: Scratch) -> bool:
    """Whether pictures are made in units in a folder, and not all are done."""
    if not output.is_dir():
        return False
    pull_folder(folder_of(place_of(output)), scratch)
    return plan_of(place_of(output)).exists()


def prepare_chunks(
    saved: SavedRequest, existing: Existing, scratch: Scratch, shards: bool = False
) -> ImageRequest:
    """The request, checked. Results that are there are looked at by the workers where they may be
    this request's: where it was begun, and in `shards`, which begin at different times."""
    begun = is_begun(Path(scratch.output(saved.output_here, try_it=False)), scratch)
    rule: Existing = "note" if shards or (begun and existing != "skip") else existing
    request = saved.prepare(rule, scratch)
    assert isinstance(request, ImageRequest)
    there = [job.target for job in request.jobs if job.target and job.target.exists()]
    said = existing_notice(there, "note") if there and rule == "note" else ""
    return replace(request, notices=[message for message in request.notices if message != said])


def begin_chunks(
    request: ImageRequest, saved: SavedRequest, parts: int, existing: Existing
) -> Path:
    """Write the plan file; returns the work folder. Raises InputError if another request was begun
    there, unless results are replaced."""
    assert request.folder is not None
    place = place_of(request.folder)
    folder, plan = folder_of(place), plan_of(place)
    check_folder(folder)
    record = {"facts": facts_of(request)}
    if plan.exists() and existing != "replace":
        before = read_chunks(request.folder)["record"]
        check_same(request.folder, before, record, "--overwrite")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, record, {})
    kept = {"request": saved.json(), "record": record, "shards": parts}
    replace_file(plan, json.dumps(kept, indent=1).encode())
    push_files(folder, ["run.json", plan.name], request.scratch)
    return folder


def end_chunks(folder: Path, scratch: Scratch) -> None:
    """Remove the work folder: all pictures are made."""
    remove_stored(folder, scratch)
    remove(folder)


def read_chunks(output: Path) -> dict[str, Any]:
    """The plan file of a folder of pictures. Raises InputError if it is damaged."""
    plan = plan_of(place_of(output))
    try:
        kept: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        raise InputError(f"{plan} is damaged: remove {plan.parent} to start over") from None


def not_made(jobs: Sequence[PictureJob]) -> list[PictureJob]:
    """The pictures without a result."""
    return [job for job in jobs if job.target and not job.target.exists()]
