"""metrics.jsonl of a run, and what else its figures are reported to."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from std_cli.distill.training_run import TrainingRun
from std_cli.paths import replace_file, writing

if TYPE_CHECKING:
    from accelerate import Accelerator

NAME = "metrics.jsonl"


class MetricsLog:
    """One line of metrics.jsonl for each update, and the tracker of run.track. Use it as a context
    manager. Only the first process writes; in the others nothing happens.
    """

    def __init__(self, run: TrainingRun, first: int) -> None:
        """first: updates done before. Lines after it, which an interrupted run wrote after its last
        checkpoint, are cut off."""
        self.path = run.folder / NAME
        self.file: BinaryIO | None = None
        self.tracker: Accelerator | None = None
        if not run.world.is_main_process:
            return
        self._cut_off(first)
        with writing(self.path):
            # without a buffer: what could not be written is not tried again on closing
            self.file = self.path.open("ab", buffering=0)
        if run.config.run.track != "none":
            self.tracker = _start_tracker(run)

    def write(self, step: int, figures: Mapping[str, object]) -> None:
        """Add the figures of an update; 0 is the state before the first one."""
        if self.file is None:
            return
        line = (json.dumps({"step": step, **figures}) + "\n").encode()
        with writing(self.path):
            while line:  # a write to a full disk may take a part of it
                line = line[self.file.write(line) :]
        if self.tracker is not None:
            numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
            self.tracker.log(numbers, step=step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is None:
            return
        with suppress(OSError):  # each line reported its own
            os.fsync(self.file.fileno())
        self.file.close()
        if self.tracker is not None:
            self.tracker.end_training()

    def _cut_off(self, first: int) -> None:
        lines = []
        if first and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= first]
        replace_file(self.path, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a kill left it half written
        return math.inf


def _start_tracker(run: TrainingRun) -> "Accelerator":
    from accelerate import Accelerator

    tracker = Accelerator(log_with=run.config.run.track, project_dir=str(run.folder))
    settings = json.dumps(run.config.model_dump(mode="json"))
    tracker.init_trackers("std-distill", config={"config": settings})
    return tracker
