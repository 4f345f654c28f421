"""What several workers do, in full: run by hand, each check in processes of its own.

    python -m tests.bench.scale [CHECK ...] [--folder DIR]

devices: `--devices cpu:2` on a clip of four shots is one process's result, bit for bit.
driver: the command is killed with -9 and given again: no unit that was finished runs again.
ctrl-c: Ctrl-C saves what is at work; the same command resumes.
cluster: the command is killed, the run continues in the cluster, and the same command shows it.
pictures: 300 files on two workers, one of them killed: all are there, none was made twice.
speed: two workers against one, with a core each, in one run; needs two idle cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image

from tests.micro import micro
from tests.stylize.test_videos import make_clip

STD = [sys.executable, "-m", "std_cli"]
SHOTS = 4


def command(folder: Path, out: str, *more: str, frames: int = 96, kind: str = "video") -> list[str]:
    """`std stylize video` of a clip of four shots, or of a folder of pictures."""
    look = ["--model", micro(), "--steps", "2", "--size", "64", "--json", "--no-config"]
    style = ["-s", str(folder / "style.png"), "-o", str(folder / out), "--style-blocks", "all"]
    if kind == "image":
        return [*STD, "stylize", "image", str(folder / "photos"), *style, *look, *more]
    clip, cuts = folder / f"in{frames}.mp4", folder / f"cuts{frames}.txt"
    if not clip.exists():
        make_clip(clip, frames, vfr=True)
        times = [frames / 25 * i / SHOTS for i in range(1, SHOTS)]
        cuts.write_text("".join(f"{time}\n" for time in times))
    video = ["--motion", "auto", "--cuts", str(cuts), "--steady", "0.5"]
    return [*STD, "stylize", "video", str(clip), *style, *look, *video, *more]


class Run:
    """A command at work, whose events are read as they come."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.events: list[dict] = []

    def __iter__(self) -> Iterator[dict]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def end(self) -> int:
        """Its exit code; what it wrote to stderr must be nothing."""
        for _ in self:
            pass
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        assert not said, said
        return self.process.wait()

    def messages(self) -> list[str]:
        return [event["message"] for event in self.events if "message" in event]


def done_units(folder: Path) -> dict[str, float]:
    """When each unit was done, by id."""
    return {f.parent.name: f.stat().st_mtime for f in folder.glob(".*/units/*/done.json")}


def workers() -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if (p.info["cmdline"] or [""])[0].startswith("ray::Worker")]


def check_devices(folder: Path) -> str:
    one, two = Run(command(folder, "one.mp4", "--device", "cpu")), None
    assert one.end() == 0, one.messages()
    two = Run(command(folder, "two.mp4", "--devices", "cpu:2"))
    assert two.end() == 0, two.messages()
    assert (folder / "one.mp4").read_bytes() == (folder / "two.mp4").read_bytes()
    most = max(e["workers"] for e in two.events if e.get("stage") == "spread")
    return f"equal bit for bit; {most} workers at once"


def check_driver(folder: Path) -> str:
    arguments = command(folder, "driver.mp4", "--devices", "cpu:1")
    run = Run(arguments)
    for _ in run:
        if len(done_units(folder)) >= 2:
            break
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    time.sleep(5)
    before = done_units(folder)
    left = len(workers())
    times: dict[str, float] = {}
    again = Run(arguments)
    for event in again:
        if event["event"] == "progress":
            times |= done_units(folder)
    assert again.end() == 0, again.messages()
    assert all(times[unit] == at for unit, at in before.items()), "a finished unit ran again"
    ran = max(e["units"] for e in again.events if e.get("stage") == "spread")
    assert ran == SHOTS - len(before)
    return f"{len(before)} of {SHOTS} done at the kill, {ran} run after it; {left} workers left"


def check_ctrl_c(folder: Path) -> str:
    arguments = command(folder, "stopped.mp4", "--devices", "cpu:2", frames=192)
    run = Run(arguments)
    for event in run:
        if event.get("stage") == "spread" and event["frame"] > 8:
            run.process.send_signal(signal.SIGINT)
            break
    assert run.end() == 130, run.messages()
    saved = len(list(folder.glob(".stopped.mp4.std/units/*/state.safetensors")))
    again = Run(arguments)
    assert again.end() == 0, again.messages()
    assert saved
    return f"exit 130, {saved} units saved; resumed to the end"


@contextmanager
def a_cluster() -> Iterator[str]:
    """A head on this machine; its address."""
    ray = [str(Path(sys.executable).with_name("ray"))]
    ray = ray if Path(ray[0]).exists() else [sys.executable, "-m", "ray.scripts.scripts"]
    port = "6399"
    start = ["start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    folder = tempfile.mkdtemp(prefix="std-ray-")
    process = subprocess.Popen(
        [*ray, *start, "--object-store-memory=83886080", "--block", f"--temp-dir={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        for child in children:
            if child.is_running():
                child.kill()


def check_cluster(folder: Path) -> str:
    with a_cluster() as address:
        time.sleep(30)
        arguments = command(
            folder, "far.mp4", "--cluster", address, "--devices", "cpu:2", frames=192
        )
        run = Run(arguments)
        for event in run:
            if event.get("stage") == "spread" and event["frame"] > 8:
                break
        run.process.kill()  # a laptop that is closed
        run.process.wait()
        before = len(done_units(folder))
        again = Run(arguments)
        assert again.end() == 0, again.messages()
        assert "this run is in the cluster already" in again.messages()
    assert (folder / "far.mp4").exists()
    return f"killed with {before} units done; the same command showed it to its end"


def check_pictures(folder: Path) -> str:
    photos = folder / "photos"
    photos.mkdir()
    for i in range(300):
        Image.new("RGB", (64, 64), (i % 256, i // 256 * 90, 40)).save(photos / f"p{i:03d}.png")
    run = Run(command(folder, "out/", "--devices", "cpu:2", kind="image"))
    killed = False
    for event in run:
        if event.get("stage") == "spread" and event["frame"] > 60 and not killed:
            workers()[0].kill()
            killed = True
    assert run.end() == 0, run.messages()
    assert killed and len(list((folder / "out").iterdir())) == 300
    made = Counter(e["input"] for e in run.events if e["event"] == "result")
    assert len(made) == 300 and set(made.values()) == {1}
    lost = max(event.get("lost", 0) for event in run.events)
    return f"300 results, each reported once; {lost} lost"


def check_speed(folder: Path) -> str:
    rates = {}
    for workers_ in (1, 2):
        # one worker on one core: with two it would take two threads, which slow a small network
        cores = ["taskset", "--cpu-list", "0"] if workers_ == 1 else []
        run = Run([*cores, *command(folder, f"speed{workers_}.mp4", "--devices", f"cpu:{workers_}",
                                    frames=960)])  # fmt: skip
        begun = None
        for event in run:
            if event.get("stage") == "spread" and event["frame"] > 0 and begun is None:
                begun = time.monotonic(), event["frame"]
            if event.get("stage") == "spread":
                ended = time.monotonic(), event["frame"]
        assert run.end() == 0, run.messages()
        assert begun is not None
        rates[workers_] = (ended[1] - begun[1]) / (ended[0] - begun[0])
    return f"{rates[1]:.2f} and {rates[2]:.2f} frames/s: {rates[2] / rates[1]:.2f} x"


CHECKS: dict[str, Callable[[Path], str]] = {
    "devices": check_devices,
    "driver": check_driver,
    "ctrl-c": check_ctrl_c,
    "cluster": check_cluster,
    "pictures": check_pictures,
    "speed": check_speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", default=[], metavar="CHECK")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    for name in given.checks or CHECKS:
        folder = Path(tempfile.mkdtemp(prefix=f"std-scale-{name}-", dir=given.folder))
        Image.linear_gradient("L").convert("RGB").save(folder / "style.png")
        begin = time.monotonic()
        print(f"{name}: {CHECKS[name](folder)} ({time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
