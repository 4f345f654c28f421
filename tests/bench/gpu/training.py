"""Slices of training: the sides of tests.bench.train, a process each. As a program it is such a
process: it takes a request as JSON and prints what it measured."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import numpy as np

from tests.bench import train
from tests.bench.gpu.bench import Bench
from tests.bench.gpu.machine import GIB
from tests.bench.gpu.rows import Facts, Goal, Row
from tests.micro import micro

SPEED_GOAL = Goal("x the port's updates", 1.5, at_least=True)
EXTRA = {
    "ours, 8-bit": {"optimizer": {"name": "adamw8bit"}},
    "ours, compile": {"model": {"compile": True}},
}
"""Sides in addition to those of tests.bench.train, with what they change in the configuration."""


def rows(bench: Bench, batch: int) -> Iterator[Row]:
    for side in train.SIDES:
        goal = SPEED_GOAL if side != "port" else None
        yield Row(f"{side}, batch {batch}", partial(_side, bench, side, batch), goal)
    yield Row(f"ours, 8-bit, batch {batch}", partial(_side, bench, "ours, 8-bit", batch))


def compiled_rows(bench: Bench) -> Iterator[Row]:
    batches = bench.scale.training_batches
    # a CPU compiles for minutes
    for batch in batches[:1] if bench.scale.narrow else batches:
        yield Row(f"ours, compile, batch {batch}", partial(_side, bench, "ours, compile", batch))


def _side(bench: Bench, side: str, batch: int) -> Facts:
    bench.close()
    folder = bench.out / "training"
    if not (folder / "pictures").exists():
        folder.mkdir(exist_ok=True)
        train.make_pictures(folder / "pictures", bench.scale.training_side)
    # a CPU takes over eight minutes to compile the passes of SDXL's layers, however narrow
    few_layers = bench.scale.narrow and side == "ours, compile"
    request = train.Request(
        side="port" if side == "port" else "ours",
        changes=(train.SIDES | EXTRA)[side],
        folder=str(folder),
        model=micro() if few_layers else str(bench.model),
        device=str(bench.device),
        size=bench.scale.training_side,
        batch=batch,
        steps=bench.scale.updates,
        warmup=bench.scale.updates_before,
    )
    found = train.measure(request) if bench.in_process else _in_a_process(request)
    seconds = float(np.median(found["wall"]))
    facts: Facts = {
        "seconds": round(seconds, 4),
        "first update": round(found["first"], 2),
        "GiB": round((found["peak"] - found["base"]) / GIB, 3),
    }
    if few_layers:
        return facts | {"note": "another model, of few layers"}
    port = bench.rows.find(f"training-{batch}", f"port, batch {batch}") or {}
    if side != "port" and isinstance(port.get("seconds"), float):
        facts["x the port's updates"] = round(port["seconds"] / seconds, 3)  # type: ignore[operator]
        facts["x the port's memory"] = round(facts["GiB"] / port["GiB"], 3)  # type: ignore[operator]
    return facts


def _in_a_process(request: train.Request) -> train.Measured:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.gpu.training"]
    done = subprocess.run(
        [*command, json.dumps(asdict(request))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found: train.Measured = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(train.measure(train.Request(**json.loads(sys.argv[1])))))
