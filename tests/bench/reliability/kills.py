"""Runs that are killed and interrupted at random moments, then repeated to their end.

The result must be the uninterrupted one's bit for bit, with the documented exit codes and nothing
left over. Each run is the command line itself, in a process that is forked from one which has
imported the libraries.
"""

import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli.errors import EXIT_CODES
from tests.processes import server

LIMIT = 180.0
"""Seconds after which a run counts as hanging."""
WAYS = {
    "SIGKILL": ([signal.SIGKILL], -signal.SIGKILL),
    "Ctrl-C": ([signal.SIGINT], 130),
    "two Ctrl-C": ([signal.SIGINT, signal.SIGINT], 130),
    "SIGTERM": ([signal.SIGTERM], 143),
}
"""What is sent, and the exit code of a run that it ends."""
EXISTS = EXIT_CODES["exists"]
"""The run before was killed when all was done: its result is there, and nothing else of it."""
_FAST = ["--size", "64", "--style", "../style.png", "--json"]


@dataclass
class Counts:
    """What happened to one kind of work."""

    killed: int = 0
    resumed: int = 0
    """Runs that were started again after a signal."""
    equal: int = 0
    different: int = 0
    leftovers: int = 0
    hangs: int = 0
    wrong: list[str] = field(default_factory=list)
    """Exit codes and texts that should not be."""

    @property
    def good(self) -> bool:
        return not (self.different or self.leftovers or self.hangs or self.wrong)


@dataclass(frozen=True)
class Work:
    """A kind of work: its command line, and the files that are its result; run in a folder of its
    own."""

    name: str
    arguments: list[str]
    results: str
    """A pattern."""


_VIDEO = [
    "stylize",
    "video",
    "../in.mp4",
    *_FAST,
    "--steps",
    "2",
    "--motion",
    "auto",
    "-o",
    "out.mp4",
]
_PICTURES = ["stylize", "image", "../in", *_FAST, "--steps", "4", "-o", "out", "--overwrite"]
WORKS = {
    "video": Work("video", _VIDEO, "out.mp4"),
    "pictures": Work("pictures", _PICTURES, "out/*"),
    "distill": Work(
        "distill", ["distill", "--config", "../run.toml", "--json"], "run/*.safetensors"
    ),
}


def measure(kind: str, kills: int, seed: int, folder: Path, model: str, most: int = 3) -> Counts:
    """Send `kills` signals to runs of one kind of work; each result is finished after at most
    `most` of them."""
    work, counts, r = WORKS[kind], Counts(), random.Random(f"{kind}{seed}")
    if kind != "distill":
        work = replace(work, arguments=[*work.arguments, "--model", model])
    if not (folder / "style.png").exists():
        prepare(folder, model)
    whole = folder / f"{kind}-whole"
    whole.mkdir()
    if _run(work, whole, None, (0, 0), counts):
        raise SystemExit(f"the uninterrupted run failed: {(whole / 'err.log').read_text()}")
    expected, events = _digests(whole, work), _lines(whole)
    number = 0
    while counts.killed < kills:
        number += 1
        place = folder / f"{kind}-{number}"
        place.mkdir()
        for _ in range(min(most, kills - counts.killed)):
            way = r.choice(list(WAYS))
            code = _run(work, place, way, (r.randint(0, events), r.uniform(0, 0.3)), counts)
            if code in (0, EXISTS):
                break
            counts.killed += 1
            counts.resumed += 1
            if way != "SIGKILL" and (stale := _drafts(place)):
                counts.wrong.append(f"{way} left {stale}")
        else:
            code = _run(work, place, None, (0, 0), counts)
        if code not in (0, EXISTS):
            counts.wrong.append(
                f"the last run ended with {code}: {(place / 'out.log').read_text()[-300:]}"
            )
        if _digests(place, work) == expected:
            counts.equal += 1
        else:
            counts.different += 1
        left = [name for name in os.listdir(place) if name.startswith(".")] + _drafts(place)
        counts.leftovers += bool(left)
        counts.wrong += [f"left over: {left}"] if left else []
    return counts


def prepare(folder: Path, model: str) -> None:
    """The inputs of all kinds, drawn from a fixed seed, and a configuration with the model."""
    import av

    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(n).resize((128, 48), Image.Resampling.BICUBIC) for n in noise]
    pictures[0].save(folder / "style.png")
    (folder / "in").mkdir()
    rows = []
    for i, picture in enumerate(pictures[1:6]):
        picture.resize((96, 72)).save(folder / "in" / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}))
    (folder / "in" / "metadata.jsonl").write_text("\n".join(rows))
    with av.open(str(folder / "in.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(18):  # three parts of `_child`
            file.mux(stream.encode(av.VideoFrame.from_image(pictures[6].crop((i, 0, i + 64, 48)))))
        file.mux(stream.encode())
    (folder / "run.toml").write_text(
        'run = {output = "run", max_steps = 4, save_every = 1, validate_every = 4}\n'
        f'model = {{name = "{model}", device = "cpu"}}\n'
        'data = {sources = ["../in"], size = [64, 64], workers = 1, held_out = 1}\n'
        'lora = {rank = 4, alpha = 4, targets = ["to_q", "conv1"]}\n'
        "distill = {steps = 2}\n"
        'adversarial = {features = "none"}\n'
        "optimizer = {warmup_steps = 1, accumulation = 1}\n"
    )


def _run(
    work: Work, place: Path, way: str | None, moment: tuple[int, float], counts: Counts
) -> int | None:
    """The exit code of one run, None if it hangs. It gets the signals of `way` at a moment: (events
    reported, seconds).

    Counted in events, so that the moments are spread over the work however busy the machine is.
    """
    child = server().Process(target=_child, args=(work.arguments, str(place)))
    child.start()
    sent, expected = WAYS[way] if way else ([], 0)
    if way:
        ready = place / "ready"  # signals before it is the command line are not its
        while child.is_alive() and not (ready.exists() and _lines(place) >= moment[0]):
            time.sleep(0.005)
        child.join(moment[1])
    for number in sent:
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, number)
            child.join(0.03)
    child.join(LIMIT)
    code = child.exitcode
    if code is None:
        counts.hangs += 1
        child.kill()
        child.join()
    (place / "ready").unlink(missing_ok=True)
    texts = (place / "err.log").read_text() if (place / "err.log").exists() else ""
    if re.search("Traceback|Fatal|terminate called|Exception ignored", texts):
        counts.wrong.append(f"{way}: {texts[-500:]}")
    if way and code not in (0, EXISTS, expected):
        counts.wrong.append(f"{way} ended with {code}: {texts[-200:]}")
    return code


def _child(arguments: list[str], place: str) -> None:
    """The command line, in `place`, with its output in out.log and err.log, and short parts, whose
    state is saved often."""
    from std_cli.cli import commands
    from std_cli.interruption import install
    from std_cli.stylize import video_run

    os.chdir(place)
    for name, number in (("out.log", 1), ("err.log", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.argv = ["std", *arguments]
    video_run.SEGMENT, video_run.SAVE_EVERY = 6, 0.05
    install()
    open("ready", "w").close()
    commands.main()


def _digests(place: Path, work: Work) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(place.glob(work.results))
    }


def _drafts(place: Path) -> list[str]:
    return [
        str(f.relative_to(place))
        for f in place.rglob(".std-*.tmp")
        if ".out.mp4.std" not in f.parts
    ]


def _lines(place: Path) -> int:
    log = place / "out.log"
    return log.read_bytes().count(b"\n") if log.exists() else 0
