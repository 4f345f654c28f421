"""Pictures on several devices: chunks of files, each made by whichever worker is free."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.errors import StdError
from std_cli.events import Event, OnEvent
from std_cli.spread.facts import worker_facts
from std_cli.spread.saved_request import SavedRequest
from std_cli.stylize.outputs import Existing
from std_cli.stylize.pictures import ImageRequest, PictureJob, run_images

if TYPE_CHECKING:
    from std_cli.stylize.stylizer import Stylizer

MOST_OF_A_CHUNK = 64
"""Pictures; what the death of a worker, with --overwrite, makes be done again."""
CHUNKS_OF_A_WORKER = 8
"""At least, where there are pictures enough: so that all workers end at about the same time."""


@dataclass(frozen=True)
class Chunk:
    """Pictures that one worker makes, one after another."""

    id: str
    input: str
    """What it is called in messages; each chunk is an input of its own."""
    jobs: tuple[PictureJob, ...]

    @property
    def frames(self) -> int:
        """How many pictures: how much work it is."""
        return len(self.jobs)


def chunks_of(jobs: Sequence[PictureJob], workers: int) -> list[Chunk]:
    """All pictures in chunks, for so many workers."""
    most = max(1, min(MOST_OF_A_CHUNK, len(jobs) // (workers * CHUNKS_OF_A_WORKER)))
    chunks = []
    for first in range(0, len(jobs), most):
        part = tuple(jobs[first : first + most])
        name = f"pictures {first + 1} to {first + len(part)}"
        chunks.append(Chunk(f"pictures{first + 1:07d}", name, part))
    return chunks


class PictureWork:
    """What a worker does with chunks. It is sent to another process, prepares the request there,
    and holds the loaded model."""

    def __init__(self, saved: SavedRequest, overwrite: bool, verbose: bool) -> None:
        self._saved, self._overwrite, self._verbose = saved, overwrite, verbose
        self._request: ImageRequest | None = None
        self._stylizer: Stylizer | None = None

    def facts(self) -> Mapping[str, str]:
        """As `UnitWork.facts`."""
        options = self._saved.options
        return worker_facts(options.get("device", "auto"), options.get("dtype", "auto"))

    def run(self, chunk: Chunk, on_event: OnEvent) -> Mapping[str, Any]:
        """Make the pictures of a chunk; those that a worker that died has made are reported and not
        made again. A picture that fails is reported, and does not stop the others."""
        left = [job for job in chunk.jobs if self._overwrite or not _is_there(job)]
        for job in chunk.jobs:
            if job not in left:
                on_event(_made_before(job))
        request = replace(self._prepared(chunk.jobs[0]), jobs=left, failed=[], notices=[])
        failed: list[str] = []

        def pass_on(event: Event) -> None:
            if event["event"] == "error":
                failed.append(event["input"])
            if event["event"] not in ("start", "notice"):  # the driver says these once
                on_event(event)

        if self._stylizer is None:
            from std_cli.stylize.stylizer import Stylizer

            self._stylizer = Stylizer(verbose=self._verbose)
        rule: Existing = "replace" if self._overwrite else "refuse"
        use = partial(self._stylizer.use, request)
        try:
            for _ in run_images(request, rule, True, pass_on, use):
                pass
        except StdError:
            if not failed:
                raise
        return {"failed": failed}

    def _prepared(self, job: PictureJob) -> ImageRequest:
        """The request, checked in this process for one of its pictures."""
        if self._request is None:
            request = replace(self._saved, inputs=[str(job.source)]).prepare("note")
            assert isinstance(request, ImageRequest)
            self._request = request
        return self._request


def absolute(job: PictureJob, folder: str) -> PictureJob:
    """A job whose files are found from another working folder too."""
    assert isinstance(job.source, Path)
    assert job.target is not None
    return replace(job, source=folder / job.source, target=folder / job.target)


def _is_there(job: PictureJob) -> bool:
    return job.target is not None and os.path.lexists(job.target)


def _made_before(job: PictureJob) -> Event:
    """The result of a picture whose worker died before it reported it."""
    width, height = job.size
    return {
        "event": "result",
        "input": job.name,
        "index": job.index,
        "total": 0,
        "output": job.output,
        "width": width,
        "height": height,
        "seconds": 0.0,
    }
