"""Before a run: a configuration to begin with, and a look at what it will take."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from std_cli.config import Task
from std_cli.distill.config import DistillConfig, template
from std_cli.errors import InputError, StdError
from std_cli.files import read_object
from std_cli.image import replace_file
from std_cli.memory import Live, counting, living
from std_cli.paths import user_path
from std_cli.weights import TINY


def write_template(path: str | Path, task: Task, model: str) -> str:
    """Write a commented configuration; returns what to tell the user. Raises InputError if the file exists."""
    path = user_path(path, "--init")
    if path.exists():
        raise InputError(f"--init {path}: exists; name another file")
    folder = TINY if model == "tiny" else user_path(model, "--model")
    pack = read_object(folder / "std.json") if (folder / "std.json").is_file() else None
    replace_file(path, template(task, model, pack).encode())
    return f"{path}: set data.sources, then run std distill --config {path}"


def dry_run(config: DistillConfig, sampled: int = 32) -> dict[str, Any]:
    """Check configuration, data and weights, run real updates in a folder that is thrown away; the event "check".

    The first update warms up, the second is timed. Memory is reckoned by part, then measured on this device: the most
    bytes of tensors that were held at once in an update. A GPU's allocator tells; elsewhere a third update is run whose
    tensors are counted. Where a GPU's memory does not suffice, what was reckoned is told, and the rest is None.
    """
    import torch

    from std_cli.distill.captions import find_samples
    from std_cli.distill.data import check
    from std_cli.distill.estimate import estimate_bytes
    from std_cli.distill.samples import Data
    from std_cli.distill.train import count_updates, distill
    from std_cli.distill.trainer import Trainer
    from std_cli.pipeline import choose_device

    found = find_samples([user_path(s, "data.sources") for s in config.data.sources])
    d = config.data
    report = check(Data(found, d.size, frames=d.frames, stride=d.stride, flip=d.flip), sampled)
    kind = choose_device(config.model.device).type
    before = sum(t.untyped_storage().nbytes() for t in living(kind))  # of other work of this process
    seen: list[tuple[float, dict[str, Any]]] = []
    parts: dict[str, int] = {}
    live: Live | None = None
    peak: int | None = None

    def look(trainer: Trainer) -> None:
        parts.update(estimate_bytes(trainer))
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
        run = config.run.model_copy(update={"output": folder, "max_steps": updates, "save_every": 10**9, "push": None})
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
    steps = count_updates(config, start["samples"], config.optimizer.accumulation)
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
        "memory_estimate_gib": {k: _gib(v) for k, v in (*parts.items(), ("total", sum(parts.values())))},
        "peak_memory_gib": _gib(peak) if fits and peak is not None else None,
        "peak_resident_gib": None if kind == "cuda" else _gib(progress[1][1]["memory"]) or None,
        "seconds_per_update": None if seconds is None else round(seconds, 3),
        "hours": None if seconds is None else round(seconds * steps / 3600, 2),
    }


def _gib(size: int) -> float:
    return round(size / 2**30, 4)
