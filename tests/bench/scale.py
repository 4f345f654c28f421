"""What several workers do, in full: run by hand, each check in processes of its own.

    python -m tests.bench.scale [CHECK ...] [--folder DIR]

devices: `--devices cpu:2` on a clip of four shots is one process's result, bit for bit.
pieces: one long shot in pieces, by workers and by shards, for several windows, overlaps, steps and
    filters: bit for bit.
killed: a worker is killed with -9 in a long shot: the same bytes, at most one segment made twice.
poison: a unit that raises, one that kills its workers and one whose input is bad are set aside; the
    rest is finished; then the same in shards.
driver: the command is killed with -9 and given again: no unit that was finished runs again.
ctrl-c: Ctrl-C saves what is at work; the same command resumes.
cluster: the command is killed, the run continues in the cluster, and the same command shows it.
storage: an S3 server and a cluster of two machines, all on this one: `--detach`, a machine
    removed and another added, the process of the run killed with -9, and wrong credentials.
pictures: 300 files on two workers, one of them killed: all are there, none was made twice.
speed: two workers against one, with a core each, in one run; needs two idle cores.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import psutil
from PIL import Image

from std_cli.stylize.video_run import SEGMENT
from tests.micro import micro
from tests.stylize.test_videos import make_clip

STD = [sys.executable, "-m", "std_cli"]
SHOTS = 4
THREADS = {"OMP_NUM_THREADS": "1"}
"""Of each process; empty with --threads."""
NODE = {"object_store_memory": 80 * 2**20}
ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "sesame",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def command(
    folder: Path, out: str, *more: str, frames: int = 96, size: int = 64, kind: str = "video"
) -> list[str]:
    """`std stylize video` of a clip of four shots, or of a folder of pictures."""
    look = ["--model", micro(), "--steps", "2", "--size", str(size), "--json", "--no-config"]
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
            env=os.environ | THREADS,
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


def all_workers() -> list[psutil.Process]:
    """The processes of Ray's actors."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if (p.info["cmdline"] or [""])[0].startswith("ray::")]


def workers() -> list[psutil.Process]:
    return [p for p in all_workers() if p.info["cmdline"][0].startswith("ray::Worker")]


def check_devices(folder: Path) -> str:
    one, two = Run(command(folder, "one.mp4", "--device", "cpu")), None
    assert one.end() == 0, one.messages()
    two = Run(command(folder, "two.mp4", "--devices", "cpu:2"))
    assert two.end() == 0, two.messages()
    assert (folder / "one.mp4").read_bytes() == (folder / "two.mp4").read_bytes()
    most = max(e["workers"] for e in two.events if e.get("stage") == "spread")
    return f"equal bit for bit; {most} workers at once"


LAYOUTS = [(8, 4, 2, "0"), (8, 2, 3, "0.5"), (5, 0, 2, "0.5"), (5, 2, 4, "0"), (3, 1, 2, "0.5")]
"""Length and overlap of windows, steps, --steady."""


def check_pieces(folder: Path) -> str:
    said = []
    for i, (window, overlap, steps, steady) in enumerate(LAYOUTS):
        model = folder / f"window{window}"
        if not model.exists():
            shutil.copytree(micro(), model)
            pack = json.loads((model / "std.json").read_text())
            (model / "std.json").write_text(json.dumps(pack | {"motion_window": window}))
        layout = ["--model", str(model), "--overlap", f"{overlap}", "--steps", f"{steps}"]
        layout += ["--steady", steady]
        layout += ["--cuts", "off", "--palette", "0.5"]
        where = [
            ("whole", ["--device", "cpu"]),
            ("pieces", ["--devices", "cpu:2"]),
            ("shards", ["--device", "cpu", "--shard", "0/2"]),
            ("shards", ["--device", "cpu", "--shard", "1/2"]),
        ]
        for name, more in where:
            run = Run(command(folder, f"{name}{i}.mp4", *layout, *more, frames=240))
            assert run.end() == 0, run.messages()
            if name == "pieces":
                units = sum(event["event"] == "unit" for event in run.events)
        join = Run([*STD, "join", str(folder / f"shards{i}.mp4"), "--json"])
        assert join.end() == 0, join.messages()
        made = {name: (folder / f"{name}{i}.mp4").read_bytes() for name, _ in where}
        assert made["pieces"] == made["whole"] == made["shards"], layout
        assert units >= 2, "the shot was not divided"
        said.append(
            f"windows of {window}, overlap {overlap}, {steps} steps, --steady {steady}: "
            f"{units} units"
        )
    return f"equal bit for bit; {'; '.join(said)}"


def worker_at(unit: Path) -> psutil.Process | None:
    """The worker that has the lock of a unit."""
    for worker in workers():
        try:
            if any(file.path == str(unit / "lock") for file in worker.open_files()):
                return worker
        except psutil.Error:
            continue
    return None


def check_killed(folder: Path) -> str:
    one = Run(command(folder, "one.mp4", "--device", "cpu", frames=480))
    assert one.end() == 0, one.messages()
    two, killed = Run(command(folder, "two.mp4", "--devices", "cpu:2", frames=480)), None
    for _ in two:
        for segment in folder.glob(".two.mp4.std/units/*/segment-00000"):
            unit = segment.parent
            part = unit / "frames.raw"
            at_work = part.exists() and part.stat().st_size and not (unit / "done.json").exists()
            if killed is None and at_work and (worker := worker_at(unit)) is not None:
                segments = len(list(unit.glob("segment-?????")))
                worker.kill()
                killed = unit.name, segments
    assert two.end() == 0, two.messages()
    assert killed is not None
    assert (folder / "one.mp4").read_bytes() == (folder / "two.mp4").read_bytes()
    units = {event["unit"]: event for event in two.events if event["event"] == "unit"}
    assert len(units) == SHOTS
    resumed = {name: event["resumed"] for name, event in units.items() if event["resumed"]}
    assert resumed == {killed[0]: killed[1] * SEGMENT}, (resumed, killed)
    frames = units[killed[0]]["frames"]
    return (
        f"equal bit for bit; killed after {killed[1]} segments of a unit of {frames} frames, of "
        f"which {resumed[killed[0]]} were not made again; nothing else was made twice"
    )


def check_poison(folder: Path) -> str:
    names = ["bug", "dies", "bad", "good"]
    clips = [str(make_clip(folder / f"{name}.mp4", 192, vfr=True)) for name in names]
    (folder / "cuts.txt").write_text("3.84\n")
    style = ["-s", str(folder / "style.png"), "-o", f"{folder}/out/", "--style-blocks", "all"]
    look = ["--model", micro(), "--steps", "2", "--size", "64", "--json", "--no-config"]
    arguments = [*STD, "stylize", "video", *clips, *style, *look]
    arguments += ["--motion", "auto", "--cuts", str(folder / "cuts.txt")]
    spread = [*arguments, "--devices", "cpu:2"]
    run = Run(spread)
    for event in run:  # until each has a plan
        if event.get("stage") == "spread":
            run.process.send_signal(signal.SIGINT)
            break
    assert run.end() == 130, run.messages()
    plans = {n: folder / "out" / f".{n}_stylized.mp4.std" for n in names}
    units = {
        name: [
            plan / "units" / unit["id"]
            for unit in json.loads((plan / "plan.json").read_text())["units"]
        ]
        for name, plan in plans.items()
    }
    damage(units["bug"][1])
    units["bad"][1].parent.mkdir(exist_ok=True)
    units["bad"][1].write_text("a file in the place of a unit's folder")
    said = []
    for how in (spread, [*arguments, "--shard", "0/1"]):
        run, deaths = Run(how), 0
        for _ in run:
            worker = worker_at(units["dies"][1])
            if worker is not None:
                worker.kill()
                deaths += 1
        assert run.end() == 1, run.messages()
        said += [message for message in run.messages() if "Ray" not in message]
        done = {name: sum((u / "done.json").exists() for u in units[name]) for name in names}
        said.append(f"units done: {done}; {deaths} killed")
        if deaths:
            assert deaths == 3 and (folder / "out" / "good_stylized.mp4").exists()
            assert done["bug"] == done["dies"] == 1
    return "\n  ".join(["", *said])


def damage(unit: Path) -> None:
    """Give a unit a state that no version of std writes, at which its worker raises each time."""
    from safetensors.numpy import save_file

    plan = json.loads((unit.parent.parent / "plan.json").read_text())
    kept = next(each for each in plan["units"] if each["id"] == unit.name)
    unit.mkdir(parents=True, exist_ok=True)
    identity = {k: v for k, v in kept.items() if k not in ("output", "threads")}
    run = {"std": "work folder", "run": plan["record"] | {"unit": identity}}
    (unit / "run.json").write_text(json.dumps(run))
    save_file({}, unit / "state.safetensors", {"std": "{}"})


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


@contextmanager
def two_machines() -> Iterator[Any]:
    """A cluster of two nodes of one processor, which see this process's environment."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args=NODE | {"include_dashboard": False, "num_cpus": 1}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def a_storage() -> Iterator[Any]:
    """A client of an S3 server of this process, with the buckets `films` and `out`."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ |= ACCOUNT
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    client = boto3.client("s3")
    for name in ("films", "out"):
        client.create_bucket(Bucket=name)
    try:
        yield client
    finally:
        server.stop()


def check_storage(folder: Path) -> str:
    names = ["a", "b", "c"]
    (folder / "cuts.txt").write_text("3.84\n")
    look = ["--model", micro(), "--steps", "2", "--size", "64", "--no-config"]
    look += ["--style-blocks", "all", "-s", str(folder / "style.png")]
    look += ["--motion", "auto", "--cuts", str(folder / "cuts.txt"), "--json"]
    for name in names:
        make_clip(folder / f"{name}.mp4", 192, vfr=True)
    with a_storage() as client:
        for name in names:
            client.upload_file(str(folder / f"{name}.mp4"), "films", f"{name}.mp4")
        with two_machines() as cluster:
            lines = _in_cluster(client, cluster, look)
            from moto import settings

            settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
            denied = Run(_from_storage(cluster, look, "s3://out/denied/"))
            assert denied.end() == 2, denied.messages()
            lines += denied.messages()
            settings.INITIAL_NO_AUTH_ACTION_COUNT = 10**9
        for name in names:
            client.download_file("out", f"{name}_stylized.mp4", str(folder / f"far-{name}.mp4"))
    one = [*STD, "stylize", "video", *(str(folder / f"{name}.mp4") for name in names)]
    here = Run([*one, "-o", f"{folder}/here/", *look, "--device", "cpu"])
    assert here.end() == 0, here.messages()
    for name in names:
        near = folder / "here" / f"{name}_stylized.mp4"
        assert pictures_of(near) == pictures_of(folder / f"far-{name}.mp4"), name
    return "\n  ".join(["frames and times equal those of one process", *lines])


def _from_storage(cluster: Any, look: list[str], out: str) -> list[str]:
    given = [*STD, "stylize", "video", "s3://films/*.mp4", "-o", out, "--keep-work", *look]
    return [*given, "--cluster", cluster.address, "--devices", "cpu:2"]


def _in_cluster(client: Any, cluster: Any, look: list[str]) -> list[str]:
    other = cluster.add_node(**NODE, num_cpus=1)
    arguments = _from_storage(cluster, look, "s3://out/")
    detached = Run([*arguments, "--detach"])
    assert detached.end() == 0, detached.messages()
    run, then, lines = Run(arguments), 0, detached.messages()
    before: dict[str, object] = {}
    for event in run:
        if event.get("stage") != "spread":
            continue
        done = records(client)
        if then == 0 and event["workers"] == 2:
            cluster.remove_node(other, allow_graceful=False)
            cluster.add_node(**NODE, num_cpus=1)
            then = 1
        elif then == 1 and len(done) >= 2:
            [driver] = [p for p in all_workers() if "ray::Driver" in p.info["cmdline"][0]]
            before = done
            driver.kill()
            then = 2
    assert run.end() == 0, run.messages()
    assert then == 2, then
    after = records(client)
    assert len(after) == 6 and all(after[name] == at for name, at in before.items())
    lines.append(f"{len(before)} of 6 units done when the run's process was killed: none again")
    return lines + run.messages()


def records(client: Any) -> dict[str, object]:
    """(ETag, time) of the record of each unit that is done, by its key."""
    found = client.list_objects_v2(Bucket="out").get("Contents", [])
    return {
        each["Key"]: (each["ETag"], each["LastModified"])
        for each in found
        if each["Key"].endswith("/done.json")
    }


def pictures_of(path: Path) -> list[tuple[object, bytes]]:
    """(time, pixels) of each frame of a video."""
    with av.open(str(path)) as file:
        return [(f.time, f.to_ndarray(format="rgb24").tobytes()) for f in file.decode(video=0)]


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
        # at 64 px the driver's and Ray's own work, on the same two cores, is a tenth of all
        run = Run([*cores, *command(folder, f"speed{workers_}.mp4", "--devices", f"cpu:{workers_}",
                                    frames=480, size=192)])  # fmt: skip
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
    "pieces": check_pieces,
    "killed": check_killed,
    "poison": check_poison,
    "driver": check_driver,
    "ctrl-c": check_ctrl_c,
    "cluster": check_cluster,
    "storage": check_storage,
    "pictures": check_pictures,
    "speed": check_speed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", default=[], metavar="CHECK")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", action="store_true", help="as many as std takes by itself")
    given = parser.parse_args()
    if given.threads:
        THREADS.clear()
    for name in given.checks or CHECKS:
        folder = Path(tempfile.mkdtemp(prefix=f"std-scale-{name}-", dir=given.folder))
        Image.linear_gradient("L").convert("RGB").save(folder / "style.png")
        begin = time.monotonic()
        print(f"{name}: {CHECKS[name](folder)} ({time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
