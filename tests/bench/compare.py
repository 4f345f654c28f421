"""What `std compare` promises, beyond what the suite has time for:
`python -m tests.bench.compare kills|cells|paper FOLDER [--kills 10] [--cells 500]`.

kills: the command is killed at random moments and given again until it ends; its report is that of
a command that was left alone, but for time and memory. cells: cached cells of photographs, 512
pixels, become a report; its time, memory and size. paper: examples/paper-table.toml from end to
end with narrow random weights in the published layouts.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from skimage import data

import std_cli
from std_cli.comparison import make
from std_cli.comparison.cost import Memory
from std_cli.weights.hub import source
from std_cli.weights.zoo import zoo
from tests.comparison.pictures import FAST, draw, without_costs
from tests.weights.files import cache
from tests.weights.sdxl import Sdxl, link

ROOT = Path(__file__).parents[2]


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report_of(folder: Path) -> dict:
    """report.json without times, memory and the folder's own name."""
    text = (folder / "report.json").read_text(encoding="utf-8").replace(folder.name, "FOLDER")
    return without_costs(json.loads(text))


def kills(folder: Path, wanted: int) -> None:
    """Kill the command `wanted` times, each after a random share of the time that is left."""
    draw(folder)
    command = [sys.executable, "-m", "std_cli", "compare", "photos", "-s", "styles", "--model",
               FAST["model"], "--size", "64", "--steps", "1", "--vary", "cfg=1,4", "--seeds", "3",
               "-q", "-o"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    subprocess.run([*command, "whole"], cwd=folder, env=env, check=True)
    whole = time.monotonic() - begin
    chance = random.Random(0)
    done = ended = 0
    while done < wanted:
        for path in (folder / "killed" / "cells").glob("*.json"):
            if chance.random() < 0.5:  # some cells are left to be made
                path.unlink()
        process = subprocess.Popen([*command, "killed"], cwd=folder, env=env)
        try:
            process.wait(chance.uniform(0.4, 0.9) * whole)
            ended += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            cells = len(list((folder / "killed" / "cells").glob("*.json")))
            print(f"kill {done}: {cells} cells were recorded", flush=True)
    subprocess.run([*command, "killed"], cwd=folder, env=env, check=True)
    same = report_of(folder / "killed") == report_of(folder / "whole")
    verdict = "the same" if same else "ANOTHER"
    print(f"{done} kills, {ended} runs that ended before: the report is {verdict}")


def cells(folder: Path, count: int) -> None:
    """A report of `count` cells that are there: the results are photographs with noise, put where
    the command looks for them."""
    contents, styles = folder / "contents", folder / "styles"
    photos = [Image.fromarray(getattr(data, n)()).convert("RGB") for n in ("astronaut", "coffee")]
    for place in (contents, styles):
        place.mkdir(parents=True)
        for i, photo in enumerate(photos):
            photo.resize((512, 512)).rotate(5 * i).save(place / f"{place.name}{i}.png")
    noise = np.random.default_rng(0)

    def fill(missing, *_):
        for cell in missing:
            if cell.is_made():
                continue
            with Image.open(cell.content.path) as picture:
                pixels = np.asarray(picture, np.int16)
            pixels = np.clip(pixels + noise.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(cell.path, compress_level=1)
            cost = {"seconds": 1.0, "evaluations": 8, "memory": 2**30}
            found = make.fingerprint(cell.path)
            cell.record = {"key": cell.key, "result": found, "cost": cost, "figures": {}}
            cell.save()
        return 0

    from std_cli.comparison import run

    made, run.make = run.make, fill
    request = {"methods": ["std"], "seeds": 5, "measures": ["edges"], **FAST}
    request["vary"] = {"cfg": list(range(1, count // 20 + 1))}
    try:
        std_cli.compare(contents, styles, folder / "r", **request)
    finally:
        run.make = made
    for seeds in (1, 5):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            print(alone.submit(rendered, folder, request | {"seeds": seeds}).result())


def rendered(folder: Path, request: dict) -> str:
    """What it takes to make the report again, in a process that does nothing else."""
    before = psutil.Process().memory_info().rss
    begin, cpu = time.monotonic(), cpu_seconds()
    with Memory() as memory:
        table = std_cli.compare(folder / "contents", folder / "styles", folder / "r", **request)
    spent, passed = cpu_seconds() - cpu, time.monotonic() - begin
    size = (folder / "r" / "report.html").stat().st_size
    return (
        f"{len(table.cells)} cached cells: {spent:.1f} CPU s, {passed:.1f} s, page "
        f"{size / 1e6:.1f} MB, memory {before / 2**20:.0f} to {memory.peak / 2**20:.0f} MiB"
    )


def paper(folder: Path) -> None:
    """The paper's table with stand-ins, small: one style, a size of 64, one seed."""
    home = folder / "hf"
    stand_in = Sdxl(folder)
    stand_in.fill(home)
    for entry in zoo().models.values():
        if entry.kind == "lora" and entry.method != "std":
            place = (
                cache(home, source(entry.name).repo, source(entry.name).revision)
                if not _there(home, entry.name)
                else _there(home, entry.name)
            )
            (place / entry.files[0]).parent.mkdir(parents=True, exist_ok=True)
            link(stand_in.lora, place / entry.files[0])
    command = [sys.executable, "-m", "std_cli", "compare", "--config", "examples/paper-table.toml",
               "-s", "examples/style-oil.png", "--seeds", "1", "--size", "64", "--vary", "cfg=2,8",
               "--vary", "steps=4,8", "-o", str(folder / "paper")]  # fmt: skip
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True)
    print(done.returncode, done.stdout, done.stderr[-3000:])


def _there(home: Path, name: str) -> Path | None:
    """The snapshot folder of a repository that is laid out already."""
    repo = home / "hub" / f"models--{source(name).repo.replace('/', '--')}"
    return next(iter((repo / "snapshots").iterdir()), None) if repo.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "cells", "paper"])
    parser.add_argument("folder", type=Path, help="that is not there yet")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--cells", type=int, default=500)
    given = parser.parse_args()
    folder = given.folder.absolute()
    folder.mkdir(parents=True)
    if given.what == "kills":
        kills(folder, given.kills)
    elif given.what == "cells":
        cells(folder, given.cells)
    else:
        paper(folder)


if __name__ == "__main__":
    main()
