"""Pictures in shards: chunks of files, each of which one shard makes; the results are written where
a run in one process writes them.

A picture whose result is there was made by this request if the record in it says so. So a shard
that was killed continues after its last picture, and nothing of another origin is replaced.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from std_cli.errors import InputError, StdError, counted
from std_cli.events import Event, OnEvent
from std_cli.paths import remove, replace_file
from std_cli.spread.saved_request import SavedRequest
from std_cli.spread.units import Unit, shared_out
from std_cli.stylize.outputs import Existing, existing_notice, exists_already
from std_cli.stylize.pictures import ImageRequest, PictureJob, run_images
from std_cli.stylize.request import request_facts
from std_cli.stylize.settings import read_record
from std_cli.stylize.stylizer import Stylizer
from std_cli.stylize.work_folder import check_folder, check_same, plan_of, write_run
from std_cli.weights.fingerprints import fingerprint

CHUNK = 64
"""Pictures of a unit at most."""


def _place(folder: Path) -> Path:
    """What stands for all results in a folder, in the name of their work folder."""
    return folder / "pictures"


@dataclass
class PictureUnits:
    """The pictures of a request in units."""

    request: ImageRequest
    existing: Existing
    units: list[Unit]
    facts: dict[str, Any]
    on_event: OnEvent

    @classmethod
    def of(cls, saved: SavedRequest, parts: int, existing: Existing, on_event: OnEvent) -> Self:
        """The units of a request, so many that each of `parts` shards has one; kept in the plan
        file. Raises InputError for a request that is not one of files in a folder, or for the
        results of another one."""
        request = saved.prepare("note")
        assert isinstance(request, ImageRequest)
        if request.folder is None:
            raise InputError(
                f"-o {saved.output}: shards write into one folder: name a folder, with / at its end"
            )
        there = [job.target for job in request.jobs if job.target and job.target.exists()]
        said = existing_notice(there, "note") if there else ""
        for message in request.notices:
            if message != said:
                on_event({"event": "notice", "message": message})
        for error in request.failed:
            on_event(error)
        facts = dict(
            request_facts(
                request.s, request.schedule, request.files, request.lora, request.styles,
                request.references,
            )
        )  # fmt: skip
        units = _units(request, parts, facts)
        made = cls(request, existing, units, facts, on_event)
        made._keep(saved, parts)
        return made

    @property
    def folder(self) -> Path:
        """The work folder."""
        assert self.request.folder is not None
        return plan_of(_place(self.request.folder)).parent

    def _keep(self, saved: SavedRequest, parts: int) -> None:
        folder, plan = self.folder, plan_of(_place(self.folder.parent))
        check_folder(folder)
        record = json.loads(json.dumps({"facts": self.facts}))
        if plan.exists():
            check_same(self.folder.parent, _read(plan)["record"], record)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_run(folder, record, {})
        kept = {"request": saved.json(), "record": record, "shards": parts}
        replace_file(plan, json.dumps(kept, indent=1).encode())

    def left(self) -> list[PictureJob]:
        """The pictures without a result."""
        return [j for j in self.request.jobs if j.target and not j.target.exists()]

    def run(self, units: Sequence[Unit], verbose: bool) -> dict[str, str]:
        """Make the pictures of units; returns why, by input, some failed. Raises OutputExists for a
        result of another origin that is not to be replaced."""
        wanted = {name for unit in units for name in unit.files}
        jobs = [job for job in self.request.jobs if job.name in wanted and not self._is_made(job)]
        for job in jobs:
            if self.existing == "refuse" and job.target and job.target.exists():
                raise exists_already(job.target)
        request = replace(self.request, jobs=jobs, failed=[], notices=[])
        failed: dict[str, str] = {}

        def pass_on(event: Event) -> None:
            if event["event"] == "error" and "input" in event:
                failed[event["input"]] = event["message"]
            self.on_event(event)

        with Stylizer(verbose=verbose) as stylizer:
            use = partial(stylizer.use, request)
            try:
                for _ in run_images(request, self.existing, True, pass_on, use):
                    pass
            except StdError as e:
                if not failed and len(jobs) == 1:
                    failed[jobs[0].name] = str(e)
                elif not failed:
                    raise
        return failed

    def _is_made(self, job: PictureJob) -> bool:
        """Whether the result of a picture is there, of this request and this input."""
        if job.target is None or not job.target.exists():
            return False
        try:
            record = read_record(job.target)
        except StdError:
            return False
        assert isinstance(job.source, Path)
        made = record.get("origin")
        same_input = isinstance(made, dict) and made.get("sha256") == fingerprint(job.source)
        facts = json.loads(json.dumps(self.facts))
        return same_input and all(record.get(name) == facts[name] for name in facts)

    @staticmethod
    def is_there(output: Path) -> bool:
        """Whether pictures were made in shards in a folder."""
        return output.is_dir() and plan_of(_place(output)).exists()

    @classmethod
    def join(cls, output: Path, on_event: OnEvent, keep_work: bool) -> None:
        """Check that all pictures are made, and remove the work folder.

        Raises StdError if some are not; the shards are named.
        """
        kept = _read(plan_of(_place(output)))
        saved, parts = SavedRequest.from_json(kept["request"]), int(kept["shards"])
        made = cls.of(saved, parts, "note", lambda event: None)
        if made.left():
            raise StdError(made.missing(parts))
        if not keep_work:
            remove(made.folder)
        on_event(
            {
                "event": "notice",
                "message": f"{counted(len(made.request.jobs), 'picture')} of {parts} shards are "
                f"in {output}",
            }
        )

    def missing(self, parts: int) -> str:
        """What is said where pictures have no result."""
        left = {job.name for job in self.left()}
        shards = [
            f"{i}/{parts}"
            for i, share in enumerate(shared_out(self.units, parts))
            if any(left & set(unit.files) for unit in share)
        ]
        return (
            f"{len(left)} of {counted(len(self.request.jobs), 'picture')} are not made, of shard "
            f"{', '.join(shards[:8])}: run the same command with --shard {shards[0]}, then std "
            f"join again"
        )


def _units(request: ImageRequest, parts: int, facts: dict[str, Any]) -> list[Unit]:
    jobs = request.jobs
    size = max(1, min(CHUNK, -(-len(jobs) // parts)))
    units = []
    for i in range(0, len(jobs), size):
        files = tuple(job.name for job in jobs[i : i + size])
        text = json.dumps([facts, files], sort_keys=True)
        digits = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"pictures{i + 1:07d}-{digits}"
        units.append(Unit(name, "pictures", str(request.folder), 1, files=files))
    return units


def _read(plan: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8"))
        return kept
    except (OSError, ValueError):
        raise InputError(f"{plan} is damaged: remove {plan.parent} to start over") from None
