"""Before a run: a configuration to begin with, and a look at what it will take."""

import tempfile
import time
from pathlib import Path
from typing import Any

from std_cli.config import Task
from std_cli.distill.config import DistillConfig, template
from std_cli.errors import InputError
from std_cli.image import replace_file
from std_cli.weights import TINY, read_object


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

    Time and memory are as measured on this device; the first update, which warms up, does not count in the time.
    """
    from std_cli.distill.captions import find_samples
    from std_cli.distill.data import check
    from std_cli.distill.samples import Data
    from std_cli.distill.train import count_updates, distill

    found = find_samples([Path(s).expanduser() for s in config.data.sources])
    d = config.data
    report = check(Data(found, d.size, frames=d.frames, stride=d.stride, flip=d.flip), sampled)
    seen: list[tuple[float, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = config.run.model_copy(update={"output": folder, "max_steps": updates, "save_every": 10**9, "push": None})
        short = config.model_copy(update={"run": run, "data": d.model_copy(update={"held_out": 0})})
        distill(short, on_event=lambda e: seen.append((time.monotonic(), e)))
    [start] = [e for _, e in seen if e["event"] == "start"]
    progress = [(t, e) for t, e in seen if e.get("stage") == "distill"]
    steps = count_updates(config, start["samples"], config.optimizer.accumulation)
    seconds = progress[-1][0] - progress[-2][0]
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
        "seconds_per_update": round(seconds, 3),
        "hours": round(seconds * steps / 3600, 2),
        "peak_memory_gib": round(progress[-1][1]["memory"] / 2**30, 2),
    }
