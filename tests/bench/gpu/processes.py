"""Slices that run the command line in processes of their own: the first picture after the start,
and a video that is killed and resumed."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.bench.gpu.bench import Bench
from tests.bench.gpu.rows import Facts, Goal, Row

FIRST_GOAL = Goal("seconds", 15)


# --- the first picture -------------------------------------------------------------------------


def start_rows(bench: Bench) -> Iterator[Row]:
    yield Row("first picture", partial(_first, bench, []))
    yield Row("first picture, --compile, cold", partial(_cold, bench))
    yield Row("first picture, --compile, kept artifacts", partial(_kept, bench), FIRST_GOAL)


def _artifacts(bench: Bench) -> Path:
    return bench.out / "artifacts"


def _cold(bench: Bench) -> Facts:
    """Compiled with nothing kept from before; what it leaves is for the next row."""
    shutil.rmtree(_artifacts(bench), ignore_errors=True)
    facts = _first(bench, ["--compile"])
    (_artifacts(bench) / "complete").touch()
    return facts


def _kept(bench: Bench) -> Facts:
    if not (_artifacts(bench) / "complete").exists():  # or those of a run that was cut short
        _cold(bench)
    return _first(bench, ["--compile"])


def _first(bench: Bench, more: list[str]) -> Facts:
    """Seconds from the start of the process to the result's line, and to its end."""
    side = bench.scale.side
    folder = _artifacts(bench)
    folder.mkdir(exist_ok=True)
    env = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    source, style = _inputs(bench)
    begin = time.perf_counter()
    with bench.process(
        *("stylize", "image", source, "--style", style, "-o", bench.out / "first.png"),
        *("--size", f"{side}x{side}", "--steps", bench.scale.few_steps, "--cfg", 1),
        *_options(bench),
        *more,
        env=env,
    ) as process:
        until_result, spent = 0.0, 0.0
        for event in _events(process):
            if event["event"] == "result":
                until_result, spent = time.perf_counter() - begin, event["seconds"]
        whole = time.perf_counter() - begin
    return {"seconds": round(until_result, 2), "picture": spent, "until exit": round(whole, 2)}


def _inputs(bench: Bench) -> tuple[Path, Path]:
    side = bench.scale.side
    return bench.picture_file("in.png", side, 1), bench.picture_file("style.png", side // 2, 0)


def _options(bench: Bench) -> list[str]:
    given = bench.load_options()
    pairs = [[f"--{name}", str(value)] for name, value in given.items()]
    return [*(word for pair in pairs for word in pair), "--overwrite", "--json", "--offline"]


def _events(process: Any) -> Iterator[dict[str, Any]]:
    """What a process reports, until it ends. Raises RuntimeError if it failed."""
    said = ""
    for line in process.stdout:
        event = json.loads(line)
        said = event["message"] if event["event"] == "error" else said
        yield event
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said or errors[-300:]}")


# --- a killed video ----------------------------------------------------------------------------


def resume_rows(bench: Bench) -> Iterator[Row]:
    yield Row("uninterrupted, twice", partial(_twice, bench))
    for name in bench.scale.kills:
        yield Row(f"{name}, then the same command", partial(_killed, bench, name))


def _twice(bench: Bench) -> Facts:
    """Whether two runs are equal at all: else the rows of killed ones say nothing."""
    first, again = _whole(bench), bench.out / "resume" / "again.mp4"
    facts = _run(bench, again)
    return {"seconds": facts["seconds"], "frames": facts["frames"], **_compared(first, again)}


def _killed(bench: Bench, name: str) -> Facts:
    """A run that gets the signal when half of its frames are done, or for SIGKILL when its first
    part is finished; its repetition against an uninterrupted run."""
    whole, out = _whole(bench), bench.out / "resume" / f"{name}.mp4"
    _remove(out)
    frames = bench.scale.killed_frames
    with bench.process(*_command(bench, out)) as process:
        at = 0
        for line in process.stdout:
            at = max(at, int(json.loads(line).get("frame") or 0))
            if at >= (49 if name == "SIGKILL" and frames > 49 else frames // 2):
                process.send_signal(getattr(signal, name))
                break
        process.communicate()
    if process.returncode == 0:
        raise RuntimeError(f"the run ended before {name}")
    facts = _run(bench, out)
    return {
        "killed at frame": at,
        "exit code": process.returncode,
        "resumed frames": facts["resumed"],
        "seconds": facts["seconds"],
        **_compared(whole, out),
    }


def _whole(bench: Bench) -> Path:
    """The result of an uninterrupted run, made once."""
    path = bench.out / "resume" / "whole.mp4"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        _run(bench, path)
    return path


def _run(bench: Bench, out: Path) -> Facts:
    """The result event of a run to its end."""
    result: Facts = {}
    with bench.process(*_command(bench, out)) as process:
        for event in _events(process):
            if event["event"] == "result":
                result = event
    return result


def _command(bench: Bench, out: Path) -> list[object]:
    clip = bench.scale.clips[0]
    size = f"{clip.size[0]}x{clip.size[1]}"
    return [
        *("stylize", "video", bench.clip(clip.size, bench.scale.killed_frames)),
        *("--style", _inputs(bench)[1], "-o", out, "--size", size, "--output-size", "model"),
        *("--steps", clip.steps, "--cfg", clip.cfg, "--cuts", "off", "--motion", "auto"),
        *("--batch", 2),
        *_options(bench),
    ]


def _remove(out: Path) -> None:
    """A result and the work folder of a run that did not end."""
    out.unlink(missing_ok=True)
    shutil.rmtree(out.with_name(f".{out.name}.std"), ignore_errors=True)


def _compared(one: Path, other: Path) -> Facts:
    """Whether two videos are equal bit for bit, and how far their pixels differ if they are not."""
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (one, other)]
    if digests[0] == digests[1]:
        return {"equal": True}
    pictures = [_pictures(path) for path in (one, other)]
    if pictures[0].shape != pictures[1].shape:
        return {"equal": False, "frames differ": f"{len(pictures[0])} and {len(pictures[1])}"}
    difference = np.abs(pictures[0].astype(int) - pictures[1].astype(int))
    changed = int((difference.max((1, 2, 3)) > 0).sum())
    return {"equal": False, "most levels": int(difference.max()), "frames that differ": changed}


def _pictures(path: Path) -> np.ndarray:
    """(frames, H, W, 3)"""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
