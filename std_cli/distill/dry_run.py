"""Before a run: a configuration to begin with, and what a run will take."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from std_cli.config import Task
from std_cli.distill.config import DistillConfig, template
from std_cli.errors import InputError, OutputExists, StdError
from std_cli.events import Check, Event, TrainingProgress, TrainingStart
from std_cli.paths import replace_file, user_path
from std_cli.weights.files import read_object
from std_cli.weights.resolve import TINY

if TYPE_CHECKING:
    from torch import Tensor

    from std_cli.diffusion.memory import Live
    from std_cli.distill.loader import DataReport
    from std_cli.distill.trainer import Trainer

SAMPLED = 32
"""Files that are read to see whether the data can be used."""


def write_template(path: str | Path, task: Task, model: str) -> str:
    """Write a commented configuration; the message that says what to do next. Raises InputError if
    the file exists."""
    path = user_path(path, "--init")
    if path.exists():
        raise OutputExists(f"--init {path}: exists; name another file")
    folder = TINY if model == "tiny" else user_path(model, "--model")
    pack = read_object(folder / "std.json") if (folder / "std.json").is_file() else None
    replace_file(path, template(task, model, pack).encode())
    return f"{path}: set data.sources, then run std distill --config {path}"


def dry_run(config: DistillConfig) -> Check:
    """Check configuration, data and weights, and run real updates in a folder that is removed
    again; the event "check".

    The first update warms up, the second is timed. Memory is estimated by part, then measured on
    this device: the most bytes of tensors that were held at once in an update. On a GPU its
    allocator reports them; elsewhere a third update is run whose tensors are counted. Where a
    GPU's memory does not suffice, the estimate is reported, and what was not measured is None.
    """
    import torch

    from std_cli.distill.dataset import Dataset
    from std_cli.distill.loader import check_data
    from std_cli.distill.train import distill
    from std_cli.distill.training_run import find_data

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "--dry-run: runs in one process: start it without torchrun or accelerate launch"
        )
    data = config.data
    found = find_data(data)
    dataset = Dataset(found, data.size, frames=data.frames, stride=data.stride, flip=data.flip)
    report = check_data(dataset, SAMPLED)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as meter:
        probe = _Probe(config, meter)
        try:
            distill(probe.short(folder), on_event=probe.follow, on_ready=probe.look)
        except StdError as e:
            if not isinstance(e.__cause__, torch.OutOfMemoryError) or not probe.parts:
                raise
            probe.fits = False
    return cast(Check, _describe(report) | probe.describe())


def _describe(report: "DataReport") -> dict[str, Any]:
    return {
        "event": "check",
        "pictures": report.pictures,
        "clips": report.clips,
        "captioned": round(report.captioned, 4),
        "skipped": {reason: len(names) for reason, names in report.skipped.items()},
        "sizes": report.sizes,
        "cannot_be_read": report.failed,
    }


class _Probe:
    """Follows a run of a few updates, and measures it."""

    def __init__(self, config: DistillConfig, meter: ExitStack) -> None:
        """meter: holds what counts tensors until the run is over."""
        from std_cli.diffusion.devices import choose_device
        from std_cli.diffusion.memory import living

        self.config = config
        self.meter = meter
        self.kind = choose_device(config.model.device).type
        # other work of this process, which is not the run's
        self.before = sum(t.untyped_storage().nbytes() for t in living(self.kind))
        self.fits = True
        self.parts: dict[str, int] = {}
        """The estimate, bytes by part."""
        self.extra = 0.0
        """Seconds of the whole run that are no updates."""
        self.start: TrainingStart | None = None
        self.updates: list[tuple[float, TrainingProgress]] = []
        """(seconds of the clock, event) of every update."""
        self.peak: int | None = None
        self.live: Live | None = None

    def short(self, folder: str) -> DistillConfig:
        """The configuration of the run to follow."""
        updates = 2 if self.kind == "cuda" else 3
        run = self.config.run.model_copy(
            update={"output": folder, "max_steps": updates, "save_every": 10**9, "push": None}
        )
        data = self.config.data.model_copy(update={"held_out": 0})
        return self.config.model_copy(update={"run": run, "data": data})

    def look(self, trainer: "Trainer") -> None:
        """When all is loaded: estimate, and time what is not an update."""
        import torch

        from std_cli.distill.estimate import estimate_bytes

        self.parts = estimate_bytes(trainer)
        with suppress(torch.OutOfMemoryError):  # updates will meet it, too, and report it
            self.extra = _seconds_between_updates(trainer, self.config)
        for lane in trainer.lanes:
            # the updates that are timed stand for those after the first walk
            lane.bank.used = len(lane.bank.slots)
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)  # loading may take more

    def follow(self, event: Event) -> None:
        """Take the run's events."""
        from std_cli.diffusion.memory import counting, living

        if event["event"] == "start":
            self.start = cast(TrainingStart, event)
        if event["event"] != "progress" or event["stage"] != "distill":
            return
        self.updates.append((time.monotonic(), event))
        if self.kind == "cuda":
            self.peak = event["memory"]
        elif event["step"] == 2:  # the optimizers have their moments from now on
            self.live = self.meter.enter_context(counting(held=living(self.kind)))
        elif self.live is not None:
            self.peak = self.live.peak - self.before

    def describe(self) -> dict[str, Any]:
        """What was estimated and measured."""
        from std_cli.distill.training_run import count_held_out, count_updates

        assert self.start is not None
        samples = self.start["samples"]
        training = samples - count_held_out(samples, self.config.data.held_out)
        steps = count_updates(self.config, training, self.config.optimizer.accumulation)
        seconds = self.updates[1][0] - self.updates[0][0] if self.fits else None
        resident = None if self.kind == "cuda" else _gib(self.updates[1][1]["memory"]) or None
        parts = self.parts | {"total": sum(self.parts.values())}
        hours = None if seconds is None else (seconds * steps + self.extra) / 3600
        return {
            "device": self.start["device"],
            "trainable_parameters": self.start["trainable"],
            "updates": steps,
            "memory_estimate_gib": {part: _gib(size) for part, size in parts.items()},
            "peak_memory_gib": _gib(self.peak) if self.fits and self.peak is not None else None,
            "peak_resident_gib": resident,
            "seconds_per_update": None if seconds is None else round(seconds, 3),
            "validation_hours": None if seconds is None else round(self.extra / 3600, 2),
            "hours": None if hours is None else round(hours, 2),
        }


def _seconds_between_updates(trainer: "Trainer", config: DistillConfig) -> float:
    """What validations, the comparison at the end and the banks' first walk take, by counting the
    passes of each kind; each kind is timed once."""
    from std_cli.distill.bank import first_walk
    from std_cli.distill.training_run import count_held_out, count_updates

    entries = trainer.data.entries
    held_out = count_held_out(len(entries), config.data.held_out)
    read, teacher, student, decoding = _time_passes(trainer, validate=held_out > 0)
    walk = sum(first_walk(lane.bank) for lane in trainer.lanes) * teacher
    if not held_out:
        return walk
    steps = config.distill.steps
    updates = count_updates(config, len(entries) - held_out, trainer.run.lane_count)
    validations = 1 + -(-updates // config.run.validate_every)
    schedules = 2
    weights = 2 if config.distill.ema else 1
    each = validations * (read + teacher + (steps + 2) * student)
    once = (trainer.n_eta + 1) * teacher + read + weights * schedules * steps * student
    sheets = validations * min(4, held_out) * 8 * decoding
    return held_out * (each + once) + sheets + walk


def _time_passes(trainer: "Trainer", validate: bool) -> tuple[float, float, float, float]:
    """Seconds to read a sample, of a teacher's step, and, if `validate`, of a student's pass and of
    decoding one picture (else 0)."""
    import torch

    from std_cli.distill.step import jump, teacher_step
    from std_cli.distill.validation import Validation

    validation = Validation(trainer, trainer.data.entries[:1])
    roles, solver, conditioner = trainer.roles, trainer.solver, trainer.conditioner
    n = torch.tensor([trainer.n_eta])
    times = [time.monotonic()]
    with torch.no_grad():
        start = validation.start(0)
        x, c = start.x, start.c
        unconditional = conditioner.unconditional(c)
        passes: list[Callable[[], Tensor]] = [
            lambda: start.x0,
            lambda: teacher_step(roles.teacher, solver, x, n, c, unconditional, validation.w),
            lambda: jump(roles.student, solver, x, n, c, n - 1)[0],
            lambda: conditioner.decode(x[:, :, 0] if x.ndim == 5 else x),
        ]
        for run in passes if validate else passes[:2]:
            run().sum().item()  # waits for the device
            times.append(time.monotonic())
    seconds = [after - before for before, after in pairwise(times)]
    read, teacher, student, decoding = [*seconds, 0.0, 0.0][:4]
    return read, teacher, student, decoding


def _gib(size: int) -> float:
    return round(size / 2**30, 4)
