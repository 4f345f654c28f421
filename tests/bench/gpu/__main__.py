"""How fast std is on a GPU: `python -m tests.bench.gpu OUT`.

A model with SDXL's real shapes and random weights is made on the device, then slices of rows are
measured, each of at most 8 minutes. Every row is printed and kept in OUT/rows.jsonl at once; a row
that fails says its error, and the next one follows. The same command measures only the rows that
are missing or failed. At the end, and after Ctrl-C, OUT/table.md has all rows as tables.

With `--device cpu --narrow` the same rows run on a CPU, on a narrow copy of the model: their
figures say nothing of a GPU, but that the bench works.
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from std_cli.environment import rest_waiting_threads, silence_libraries, silent_libraries

silence_libraries()
rest_waiting_threads()  # as the command line does

from std_cli.diffusion.devices import choose_device, device_name  # noqa: E402
from std_cli.errors import StdError  # noqa: E402
from tests.bench.gpu import (  # noqa: E402
    machine,
    memory,
    networks,
    pictures,
    processes,
    profile,
    training,
    videos,
)
from tests.bench.gpu.bench import SLICE_OF_RATES, Bench  # noqa: E402
from tests.bench.gpu.model import make_model  # noqa: E402
from tests.bench.gpu.rows import Facts, Row, Rows  # noqa: E402
from tests.bench.gpu.scale import NARROW, REAL, Scale  # noqa: E402


@dataclass(frozen=True)
class Slice:
    about: str
    rows: Callable[[Bench], Iterator[Row]]


def slices(scale: Scale) -> dict[str, Slice]:
    """All slices by name, in the order in which they run."""
    found = {
        SLICE_OF_RATES: Slice(
            "the rate of matrix products, which shares are of", networks.matmul_rows
        ),
        "plain": Slice("the plain diffusers snippet", pictures.plain_rows),
        "pictures": Slice("pictures by std", pictures.own_rows),
        "guidance": Slice("pictures with guidance in half of the steps", pictures.guidance_rows),
        "lora": Slice("pictures with a LoRA and without", pictures.lora_rows),
        "second-style": Slice("another style on the same Stylizer", pictures.style_rows),
        "vae": Slice("the VAE alone", networks.vae_rows),
        "vae-precision": Slice("what a run in fp16 takes for the VAE", networks.vae_precision_rows),
        "loop": Slice("the loop of a video, which must not wait", networks.loop_rows),
        "processor": Slice("what the processor does for each frame", videos.processor_rows),
        "unet": Slice("the UNet and the motion UNet alone, by batch", networks.unet_rows),
    }
    for clip in scale.clips:
        about = f"videos of {clip.size[0]} x {clip.size[1]}, by windows at once"
        for name, motion, how in (
            (f"video-{clip.name}", "none", "frame by frame"),
            (f"motion-{clip.name}", "auto", "with the motion adapter"),
        ):
            found[name] = Slice(f"{about}, {how}", partial(videos.rows, clip=clip, motion=motion))
    found |= {
        "precision": Slice("fp16 and bf16 against fp32", memory.precision_rows),
        "offload": Slice("memory by --offload next to the plan's", memory.offload_rows),
        "out-of-memory": Slice("runs on a GPU that is too small", memory.small_gpu_rows),
        "resume": Slice("a video that is killed, bit for bit", processes.resume_rows),
        "profile": Slice("what the device does, kernel by kernel", profile.rows),
        "compiled-networks": Slice("the UNet and the VAE, compiled", _compiled_networks),
        "compiled-pictures": Slice("pictures with --compile", pictures.compiled_rows),
        "compiled-videos": Slice("videos with --compile", videos.compiled_rows),
        "start": Slice("the first picture of a process", processes.start_rows),
    }
    for batch in scale.training_batches:
        about = f"updates of training, batch {batch}"
        found[f"training-{batch}"] = Slice(about, partial(training.rows, batch=batch))
    found["compiled-training"] = Slice("training with model.compile", training.compiled_rows)
    return found


def _compiled_networks(bench: Bench) -> Iterator[Row]:
    yield from networks.compiled_vae_rows(bench)
    yield from networks.compiled_unet_rows(bench)


class SliceOver(BaseException):
    """The time of a slice is over."""


@contextmanager
def ends_after(seconds: float) -> Iterator[None]:
    """Raises SliceOver inside when so much time has passed; never on Windows."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise SliceOver(f"cut short after {seconds:.0f} s, when the time of the slice was over")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure(bench: Bench, name: str, rows: Sequence[Row], limit: float) -> None:
    """The rows of a slice that are not there yet. Raises Unusable if an error leaves a GPU that
    this process cannot use any more."""
    begin = time.monotonic()
    for number, row in enumerate(rows):
        if bench.rows.has(name, row.name):
            continue
        left = limit - (time.monotonic() - begin)
        if left <= 0:
            count = sum(not bench.rows.has(name, other.name) for other in rows[number:])
            print(f"{name}: {count} rows are left: the same command measures them", flush=True)
            return
        try:
            with ends_after(left), silent_libraries:
                facts = row.measure()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            bench.rows.fail(name, row.name, error)
            with suppress(RuntimeError):
                bench.close()
            if not machine.usable(bench.device):
                raise Unusable from error
        else:
            bench.rows.add(name, row.name, facts | _goal(bench, row, facts))
    bench.close()


class Unusable(Exception):
    """The process cannot use its GPU any more."""


def _goal(bench: Bench, row: Row, facts: Facts) -> Facts:
    """What a row should be on an H100; nothing is said of narrow shapes."""
    if row.goal is None or bench.scale.narrow:
        return {}
    return {"goal": str(row.goal), "met": row.goal.met(facts)}


def run(bench: Bench, names: Sequence[str], limit: float) -> None:
    """Describe the machine, make the model if it is not there, and measure the slices."""
    bench.rows.add("machine", f"run {bench.rows.run}", machine.describe(bench.device))
    if not bench.model.exists():
        begin = time.perf_counter()
        make_model(bench.model, bench.scale.narrow, bench.device)
        machine.free(bench.device)
        size = sum(f.stat().st_size for f in bench.model.rglob("*") if f.is_file())
        facts: Facts = {
            "seconds": round(time.perf_counter() - begin, 1),
            "GiB": round(size / machine.GIB, 3),
        }
        bench.rows.add("machine", "making the model", facts)
    every = slices(bench.scale)
    for name in names:
        measure(bench, name, list(every[name].rows(bench)), limit)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    scale = NARROW if given.narrow else REAL
    if given.list:
        for name, each in slices(scale).items():
            print(f"{name:20}{each.about}")
        return 0
    if given.out is None:
        return _wrong("name the folder of the results: python -m tests.bench.gpu OUT")
    known = list(slices(scale))
    for name in given.slice or known:
        if name not in known:
            return _wrong(f"--slice {name}: there is no such slice: one of {', '.join(known)}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given.device):
        return _wrong(f"--device {given.device}: must be cuda, cuda:N or cpu")
    try:
        device = machine.with_index(choose_device(given.device))
    except StdError as error:
        return _wrong(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out.absolute()
    card = device_name(device)
    rows = Rows(out, card, scale.name, given.run or time.strftime("%Y-%m-%d %H:%M:%S"))
    model = given.model.absolute() if given.model else out / f"model-{scale.name}"
    return finish(Bench(out, model, device, scale, rows), given.slice or known, given.limit)


def finish(bench: Bench, names: Sequence[str], limit: float) -> int:
    """`run`, and the table whatever happens; the exit code."""
    code = 0
    try:
        run(bench, names, limit)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", flush=True)
        code = 130
    except Unusable:
        again = [sys.executable, *sys.orig_argv[1:]]
        again += [] if "--run" in again else ["--run", bench.rows.run]
        print("this process cannot use the GPU any more: continuing in another one", flush=True)
        os.execv(sys.executable, again)
    finally:
        text = bench.rows.tables()
        (bench.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if code == 0 and bench.rows.failed():
        print(f"{bench.rows.failed()} rows failed: see {bench.rows.errors}")
        code = 1
    return code


def _wrong(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder of the results")
    p.add_argument("--list", action="store_true", help="list the slices")
    p.add_argument("--slice", nargs="+", metavar="NAME", help="only these")
    p.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    p.add_argument("--narrow", action="store_true", help="a narrow copy of the model")
    p.add_argument("--model", type=Path, help="folder of the model; OUT/model-... if not given")
    p.add_argument("--limit", type=float, default=480, help="seconds of a slice at most")
    p.add_argument("--run", help=argparse.SUPPRESS)
    return p.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
