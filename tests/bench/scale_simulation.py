"""The schedule of a long film on many GPUs, simulated: python -m tests.bench.scale_simulation

Shots are drawn from a distribution of film, std's own code makes them units and orders them, and
workers take them one after the other. Given are the seconds of a frame, and what a run does besides
that: it starts, reads all frames for their cuts, copies inputs, and joins the results.
"""

import argparse
import heapq
import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from std_cli.spread import units as planning
from std_cli.spread.ledger import Ledger
from std_cli.spread.units import Plan, Unit, rounds
from std_cli.storage.scratch import LOCAL_ONLY

GPUS = (1, 8, 64, 512)


@dataclass(frozen=True)
class Costs:
    """What the parts of a run take."""

    frame: float
    """Seconds of a frame on a GPU, everything included."""
    vae: float
    """The share of that in the VAE, which is what a pass after pieces takes."""
    start: float
    """Seconds until a worker is ready: Ray, the imports, the weights."""
    cuts: float
    """Frames per second of a core in the pass that finds the cuts, which reads a film on each."""
    cores: int
    """Of the machine that makes the plan."""
    unit: float
    """Seconds of a unit in addition to its frames: seeking, storing its state and its record."""
    film: float
    """Bytes of an hour of the inputs."""
    result: float
    """The same of the results."""
    link: float
    """Bytes per second between a worker and the storage."""
    storage: float
    """Bytes per second that the storage gives to all together."""


@dataclass
class Schedule:
    """What a simulated run took; seconds."""

    units: int
    computed: int
    """Frames, those of halos included."""
    cuts: float
    copy: float
    work: float
    longest: float
    """The longest unit."""
    join: float

    def total(self, costs: Costs) -> float:
        return costs.start + self.cuts + self.copy + self.work + self.join


def draw_shots(hours: float, fps: float, mean: float, spread: float, seed: int) -> list[int]:
    """Frames of the shots of so many hours of film: lognormal, with a mean in seconds and a
    standard deviation of `spread` times that."""
    generator = np.random.default_rng(seed)
    sigma = math.sqrt(math.log(1 + spread**2))
    left, shots = round(hours * 3600 * fps), []
    while left > 0:
        seconds = generator.lognormal(math.log(mean) - sigma**2 / 2, sigma)
        shots.append(min(left, max(1, round(seconds * fps))))
        left -= shots[-1]
    return shots


def plans_of(films: list[list[int]], gpus: int, request: Any) -> list[Plan]:
    """The units of films, given by the lengths of their shots, as `find_units` makes them."""
    read = []
    for lengths in films:
        ends = np.cumsum(lengths).tolist()
        marks: Any = defaultdict(lambda: (Fraction(0), 0))
        shots = [
            planning._Shot(number, end - length, length, marks)
            for number, (length, end) in enumerate(zip(lengths, ends, strict=True), 1)
        ]
        read.append(planning._Read(shots, Fraction(0), Fraction(ends[-1], 24), []))
    planning._split([shot for found in read for shot in found.shots], gpus, 0)
    jobs: list[Any] = [
        SimpleNamespace(
            name=f"film{i}.mp4", index=i, target=SimpleNamespace(path=f"film{i}_stylized.mp4")
        )
        for i in range(1, len(films) + 1)
    ]
    return [
        planning._plan(job, {}, found, request, None) for job, found in zip(jobs, read, strict=True)
    ]


def simulate(films: list[list[int]], gpus: int, request: Any, costs: Costs, fps: float) -> Schedule:
    """The run of films on so many GPUs."""
    plans = plans_of(films, gpus, request)
    frames = sum(map(sum, films))
    every = [unit for plan in plans for unit in plan.units]

    def seconds(unit: Unit) -> float:
        share = 1 - costs.vae if unit.keeps == "latents" else costs.vae if unit.of else 1.0
        stored = (unit.end - unit.first) / fps / 3600 * costs.result / costs.link
        return costs.unit + unit.frames * share * costs.frame + stored

    work = 0.0
    for ready in rounds(every):
        ledger, free = Ledger(ready), [0.0] * gpus
        end = 0.0
        while ledger.waiting:
            worker = heapq.heappop(free)
            unit = ledger.take(0, others=False)
            assert unit is not None
            heapq.heappush(free, worker + seconds(unit))
            end = max(end, worker + seconds(unit))
        work += end
    hours = frames / fps / 3600
    # a worker needs the films of its units; at most all of them
    share = min(1.0, len(every) / gpus / len(films) + 1 / len(films))
    rate = min(costs.link, costs.storage / gpus)
    return Schedule(
        len(every),
        sum(unit.frames for unit in every if not unit.of),
        _reading(films, costs),
        share * hours * costs.film / rate,
        work,
        max(map(seconds, every)),
        hours * costs.result * 2 / costs.link,
    )


def _reading(films: list[list[int]], costs: Costs) -> float:
    """Seconds until all films are read, each by one thread."""
    free = [0.0] * costs.cores
    for film in films:
        heapq.heappush(free, heapq.heappop(free) + sum(film) / costs.cuts)
    return max(free)


def report(films: list[list[int]], request: Any, costs: Costs, fps: float) -> list[str]:
    """A row of Markdown for each number of GPUs."""
    frames = sum(map(sum, films))
    rows = [
        "| GPUs | units | halo | start | cuts | copy | units' work | longest unit | join | hours "
        "| efficiency | of the work alone |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for gpus in GPUS:
        found = simulate(films, gpus, request, costs, fps)
        ideal, total = frames * costs.frame / gpus, found.total(costs)
        parts = (costs.start, found.cuts, found.copy, found.work, found.longest, found.join)
        minutes = " | ".join(f"{part / 60:.1f}" for part in parts)
        rows.append(
            f"| {gpus} | {found.units} | {found.computed / frames - 1:.1%} | {minutes} | "
            f"{total / 3600:.2f} | {ideal / total:.0%} | {ideal / found.work:.0%} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=10, help="of film")
    parser.add_argument("--films", type=int, default=6)
    parser.add_argument("--fps", type=float, default=24)
    parser.add_argument("--mean", type=float, default=4.0, help="seconds of a shot")
    parser.add_argument("--spread", type=float, default=1.2, help="standard deviation by mean")
    parser.add_argument("--one-shot", action="store_true", help="films without a cut")
    parser.add_argument("--frame", type=float, default=0.4, help="GPU seconds of a frame")
    parser.add_argument("--vae", type=float, default=0.07, help="share of the VAE in that")
    parser.add_argument("--start", type=float, default=60, help="seconds until a worker is ready")
    parser.add_argument("--cuts", type=float, default=130, help="frames per second of a core")
    parser.add_argument("--cores", type=int, default=16, help="of the machine that plans")
    parser.add_argument("--unit", type=float, default=2, help="seconds of a unit beside its frames")
    parser.add_argument("--gb", type=float, nargs=2, default=(5, 5), help="an hour in, and out")
    parser.add_argument("--link", type=float, default=0.5, help="GB per second of a worker")
    parser.add_argument("--storage", type=float, default=10, help="GB per second, of all")
    parser.add_argument(
        "--windows", type=int, nargs=3, default=(8, 4, 8), help="window, overlap, steps"
    )
    parser.add_argument("--steady", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    window, overlap, steps = given.windows
    request = SimpleNamespace(
        window=window,
        overlap=overlap,
        mix=None,
        scratch=LOCAL_ONLY,
        s=SimpleNamespace(steps=steps, steady=given.steady, device="cpu"),
    )
    hours = given.hours / given.films
    films = [
        [round(hours * 3600 * given.fps)]
        if given.one_shot
        else draw_shots(hours, given.fps, given.mean, given.spread, given.seed + i)
        for i in range(given.films)
    ]
    costs = Costs(
        given.frame, given.vae, given.start, given.cuts, given.cores, given.unit,
        given.gb[0] * 1e9, given.gb[1] * 1e9, given.link * 1e9, given.storage * 1e9,
    )  # fmt: skip
    lengths = np.concatenate(films) / given.fps
    print(
        f"{given.films} films, {given.hours:g} hours, {len(lengths)} shots: mean "
        f"{lengths.mean():.1f} s, median {np.median(lengths):.1f} s, longest "
        f"{lengths.max():.0f} s; minutes:\n"
    )
    print("\n".join(report(films, request, costs, given.fps)))


if __name__ == "__main__":
    main()
