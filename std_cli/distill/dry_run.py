"""Before a run: a configuration to begin with, and a look at what it will take."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.config import Task
from std_cli.diffusion.memory import Live, counting, living
from std_cli.distill.config import DistillConfig, template
from std_cli.errors import InputError, StdError
from std_cli.paths import replace_file, user_path
from std_cli.weights.files import read_object
from std_cli.weights.resolve import TINY

if TYPE_CHECKING:
    from torch import Tensor

    from std_cli.distill.trainer import Trainer


def write_template(path: str | Path, task: Task, model: str) -> str:
    """Write a commented configuration; returns what to tell the user. Raises InputError if the file
    exists."""
    path = user_path(path, "--init")
    if path.exists():
        raise InputError(f"--init {path}: exists; name another file")
    folder = TINY if model == "tiny" else user_path(model, "--model")
    pack = read_object(folder / "std.json") if (folder / "std.json").is_file() else None
    replace_file(path, template(task, model, pack).encode())
    return f"{path}: set data.sources, then run std distill --config {path}"


def dry_run(config: DistillConfig, sampled: int = 32) -> dict[str, Any]:
    """Check configuration, data and weights, run real updates in a folder that is thrown away; the
    event "check".

    The first update warms up, the second is timed. Memory is reckoned by part, then measured on
    this device: the most bytes of tensors that were held at once in an update. A GPU's allocator
    tells; elsewhere a third update is run whose tensors are counted. Where a GPU's memory does not
    suffice, what was reckoned is told, and the rest is None.
    """
    import torch

    from std_cli.diffusion.pipeline import choose_device
    from std_cli.distill.dataset import Data
    from std_cli.distill.estimate import estimate_bytes
    from std_cli.distill.find_samples import find_samples
    from std_cli.distill.loader import check
    from std_cli.distill.train import count_held_out, count_updates, distill

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "--dry-run: runs in one process: start it without torchrun or accelerate launch"
        )
    found = find_samples([user_path(s, "data.sources") for s in config.data.sources])
    d = config.data
    report = check(Data(found, d.size, frames=d.frames, stride=d.stride, flip=d.flip), sampled)
    kind = choose_device(config.model.device).type
    # of other work of this process
    before = sum(t.untyped_storage().nbytes() for t in living(kind))
    seen: list[tuple[float, dict[str, Any]]] = []
    parts: dict[str, int] = {}
    live: Live | None = None
    peak: int | None = None

    extra = 0.0  # seconds of a run that are no updates

    def look(trainer: "Trainer") -> None:
        nonlocal extra
        parts.update(estimate_bytes(trainer))
        with suppress(torch.OutOfMemoryError):  # updates will meet it, too, and report it
            extra = _seconds_beside_updates(trainer, config)
        for lane in trainer.lanes:
            # the updates that are timed are those after the first walk
            lane.bank.used = len(lane.bank.slots)
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)  # loading may take more

    def follow(event: dict[str, Any]) -> None:
        nonlocal peak, live
        seen.append((time.monotonic(), event))
        if event.get("stage") != "distill":
            return
        if kind == "cuda":
            peak = event["memory"]
        elif event["step"] == 2:  # its optimizers have their moments
            live = meter.enter_context(counting(held=living(kind)))
        elif live is not None:
            peak = live.peak - before

    with tempfile.TemporaryDirectory() as folder, ExitStack() as meter:
        updates = 2 if kind == "cuda" else 3
        run = config.run.model_copy(
            update={"output": folder, "max_steps": updates, "save_every": 10**9, "push": None}
        )
        short = config.model_copy(update={"run": run, "data": d.model_copy(update={"held_out": 0})})
        try:
            distill(short, on_event=follow, on_ready=look)
            fits = True
        except StdError as e:
            if not isinstance(e.__cause__, torch.OutOfMemoryError) or not parts:
                raise
            fits = False
    [start] = [e for _, e in seen if e["event"] == "start"]
    progress = [(t, e) for t, e in seen if e.get("stage") == "distill"]
    training = start["samples"] - count_held_out(start["samples"], d.held_out)
    steps = count_updates(config, training, config.optimizer.accumulation)
    seconds = progress[1][0] - progress[0][0] if fits else None
    return {
        "event": "check",
        "pictures": report.pictures,
        "clips": report.clips,
        "captioned": round(report.captioned, 4),
        "skipped": {reason: len(names) for reason, names in report.skipped.items()},
        "sizes": report.sizes,
        "cannot_be_read": report.failed,
        "device": start["device"],
        "trainable_parameters": start["trainable"],
        "updates": steps,
        "memory_estimate_gib": {
            k: _gib(v) for k, v in (*parts.items(), ("total", sum(parts.values())))
        },
        "peak_memory_gib": _gib(peak) if fits and peak is not None else None,
        "peak_resident_gib": None if kind == "cuda" else _gib(progress[1][1]["memory"]) or None,
        "seconds_per_update": None if seconds is None else round(seconds, 3),
        "validation_hours": None if seconds is None else round(extra / 3600, 2),
        "hours": None if seconds is None else round((seconds * steps + extra) / 3600, 2),
    }


def _seconds_beside_updates(trainer: "Trainer", config: DistillConfig) -> float:
    """What validations, the comparison at the end and the banks' first walk take: each part is
    timed once, by count."""
    import torch

    from std_cli.distill.bank import first_walk
    from std_cli.distill.step import jump, teacher_step
    from std_cli.distill.train import count_held_out, count_updates
    from std_cli.distill.validation import SCHEDULES, Validation

    t, steps, entries = trainer, config.distill.steps, trainer.data.entries
    held_out = count_held_out(len(entries), config.data.held_out)
    validating = Validation(t, replace(t.data.found, entries=entries[:1]))
    n, times = torch.tensor([t.n_eta]), [time.monotonic()]
    with torch.no_grad():
        start = validating.start(0)
        x, c = start.x, start.c
        works: list[Callable[[], Tensor]] = [
            lambda: start.x0,
            lambda: teacher_step(
                t.roles.teacher, t.solver, x, n, c, t.around.unconditional(c), validating.w
            ),
            lambda: jump(t.roles.student, t.solver, x, n, c, n - 1)[0],
            lambda: t.around.decode(x[:, :, 0] if x.ndim == 5 else x),
        ]
        for work in works if held_out else works[:2]:
            work().sum().item()  # waits for the device
            times.append(time.monotonic())
    read, teacher, *others = (b - a for a, b in pairwise(times))
    walk = sum(first_walk(lane.bank) for lane in t.lanes) * teacher
    if not held_out:
        return walk
    student, decoding = others
    updates = count_updates(config, len(entries) - held_out, t.lane_count)
    validations = 1 + -(-updates // config.run.validate_every)
    weights = 2 if config.distill.ema else 1
    each = validations * (read + teacher + (steps + 2) * student)
    once = (t.n_eta + 1) * teacher + read + weights * len(SCHEDULES) * steps * student
    return held_out * (each + once) + validations * min(4, held_out) * 8 * decoding + walk


def _gib(size: int) -> float:
    return round(size / 2**30, 4)
