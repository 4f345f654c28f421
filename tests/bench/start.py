"""What a command costs in addition to its work: `python -m tests.bench.start`.

Each command is a process of its own, with one thread, in turn with `import torch`. Prints CPU
seconds (user and system) and wall seconds, medians, and the CPU seconds relative to `import torch`.
Of the commands that stylize "ready" is the time until the networks have something to do, "work"
from there to the result, and "end" from the result to the end of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from PIL import Image

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "_STD_COMPLETE": ""}


def commands(folder, side, steps):
    """{name: arguments of Python}."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, side, side, 3), np.uint8)
    for name, values in zip(("in", "style"), pixels, strict=True):
        Image.fromarray(values).save(folder / f"{name}.png")
    one = ["in.png", "-s", "style.png", "--model", "tiny", "--steps", steps, "-y"]
    one += ["--size", str(side)]
    std = {
        "--version": ["--version"],
        "--help": ["--help"],
        "models": ["models", "list"],
        "config show": ["config", "show"],
        "show": ["show", "out.png"],
        "plan": ["plan", "image", *one, "--no-probe"],
        "stylize image": ["stylize", "image", *one, "-o", "out.png", "--json"],
    }
    return {name: ["-m", "std_cli", *arguments] for name, arguments in std.items()}


def run(arguments, folder, **environment):
    """{"cpu", "wall"} of a process, and of `--json` where it was in between, in CPU and wall
    seconds."""
    begin, marks = time.monotonic(), []
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        watched = psutil.Process(process.pid)
        for line in process.stdout:
            if line.startswith("{"):
                event = json.loads(line)
                if event["event"] == "result" or event.get("step") == 0:
                    times = watched.cpu_times()
                    marks.append((times.user + times.system, time.monotonic() - begin))
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    whole = (used.ru_utime + used.ru_stime, time.monotonic() - begin)
    found = dict(zip(("cpu", "wall"), whole, strict=True))
    if marks:
        (ready, ready_wall), (result, result_wall) = marks
        found |= {"ready cpu": ready, "work cpu": result - ready, "end cpu": whole[0] - result}
        found |= {"ready wall": ready_wall, "end wall": whole[1] - result_wall}
    return found


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--side", type=int, default=256, help="of the picture and at work, pixels")
    p.add_argument("--steps", default="2")
    p.add_argument("--only", help="names of commands, separated by commas")
    p.add_argument("--all-imports", action="store_true", help="with STD_IMPORTS=all, to compare")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = commands(folder, a.side, a.steps)
        # makes what std show reads, and compiles all modules
        run(chosen["stylize image"], folder)
        if a.only:
            chosen = {name: chosen[name] for name in a.only.split(",")}
        cases = {name: (command, {}) for name, command in chosen.items()}
        if a.all_imports:
            every = {"STD_IMPORTS": "all"}
            cases |= {f"{name} (all)": (command, every) for name, command in chosen.items()}
        rounds = []
        for _ in range(a.repeat):
            torch = run(["-c", "import torch"], folder)
            each = {"import torch": torch}
            for name, (command, environment) in cases.items():
                each[name] = run(command, folder, **environment)
            rounds.append(each)
    print(f"median of {a.repeat}, one thread, {a.side} x {a.side}, {a.steps} steps")
    print(f"{'':22}{'CPU s':>8}{'wall s':>8}{'ratio':>8}{'ready':>8}{'work s':>8}{'end s':>8}")
    for name in rounds[0]:
        print(_row(name, rounds))


def _row(name, rounds):
    def middle(key):
        return median(r[name][key] for r in rounds)

    def ratio(key):
        return median(r[name][key] / r["import torch"]["cpu"] for r in rounds)

    row = f"{name:22}{middle('cpu'):8.2f}{middle('wall'):8.2f}{ratio('cpu'):8.2f}"
    if "ready cpu" in rounds[0][name]:
        row += f"{ratio('ready cpu'):8.2f}{middle('work cpu'):8.2f}{middle('end wall'):8.2f}"
    return row


if __name__ == "__main__":
    main()
