"""Before a run: a configuration to begin with, and a look at what it will take."""

import tempfile
import time
from pathlib import Path
from typing import Any

from std_cli.config import Task
from std_cli.distill.config import DistillConfig, template
from std_cli.errors import InputError, StdError
from std_cli.files import read_object
from std_cli.image import replace_file
from std_cli.weights import TINY


def write_template(path: Path, task: Task, model: str) -> str:
    """Write a commented configuration; returns what to tell the user. Raises InputError if the file exists."""
    if path.exists():
        raise InputError(f"--init {path}: exists; name another file")
    folder = TINY if model == "tiny" else Path(model).expanduser()
    pack = read_object(folder / "std.json") if (folder / "std.json").is_file() else None
    replace_file(path, template(task, model, pack).encode())
    return f"{path}: set data.sources, then run std distill --config {path}"


def dry_run(config: DistillConfig, updates: int = 2, sampled: int = 32) -> dict[str, Any]:
    """Check configuration, data and weights, run real updates in a folder that is thrown away; the event "check".

    Memory is reckoned by part, then measured, as time is, on this device; on a CPU as the loaded weights and what the
    process grew by from there. The first update, which warms up, does not count in the time. Where a GPU's memory does
    not suffice, what was reckoned is told and the measured figures are None.
    """
    import psutil
    import torch

    from std_cli.distill.captions import find_samples
    from std_cli.distill.data import check
    from std_cli.distill.estimate import estimate_bytes
    from std_cli.distill.samples import Data
    from std_cli.distill.train import count_updates, distill
    from std_cli.distill.trainer import Trainer

    found = find_samples([Path(s).expanduser() for s in config.data.sources])
    d = config.data
    report = check(Data(found, d.size, frames=d.frames, stride=d.stride, flip=d.flip), sampled)
    seen: list[tuple[float, dict[str, Any]]] = []
    parts: dict[str, int] = {}
    besides = 0  # of a process: the libraries

    def look(trainer: Trainer) -> None:
        nonlocal besides
        parts.update(estimate_bytes(trainer))
        if trainer.device.type == "cpu":
            besides = psutil.Process().memory_info().rss - parts["weights"] - parts["lora"]

    with tempfile.TemporaryDirectory() as folder:
        run = config.run.model_copy(update={"output": folder, "max_steps": updates, "save_every": 10**9, "push": None})
        short = config.model_copy(update={"run": run, "data": d.model_copy(update={"held_out": 0})})
        try:
            distill(short, on_event=lambda e: seen.append((time.monotonic(), e)), on_ready=look)
            fits = True
        except StdError as e:
            if not isinstance(e.__cause__, torch.OutOfMemoryError) or not parts:
                raise
            fits = False
    [start] = [e for _, e in seen if e["event"] == "start"]
    progress = [(t, e) for t, e in seen if e.get("stage") == "distill"]
    steps = count_updates(config, start["samples"], config.optimizer.accumulation)
    seconds = progress[-1][0] - progress[-2][0] if fits else None
    peak = progress[-1][1]["memory"] - besides if fits else None
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
        "peak_memory_gib": None if peak is None else _gib(peak),
        "seconds_per_update": None if seconds is None else round(seconds, 3),
        "hours": None if seconds is None else round(seconds * steps / 3600, 2),
    }


def _gib(size: int) -> float:
    return round(size / 2**30, 3)
