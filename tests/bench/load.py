"""Memory and time of loading: `python -m tests.bench.load`, on a CPU, on Linux.

A model with SDXL's layers and random weights is written into a temporary folder (`--shapes medium`,
or `real`, which takes 10 GB of disk and 16 GiB of memory), as a diffusers folder and as one file.
Each case is a process that first loads the embedded model, so that the libraries' own memory and
imports do not count, then reads the files once, then loads. Printed: the most resident memory
beyond what the process had, files that are mapped included, as a multiple of the weights in the
run's precision; and the seconds of loading as a multiple of those of reading the files. Before both
the files are dropped from the system's cache; `--warm` leaves them there. Of several processes
(`--times`) the shortest reading and the shortest loading count: a virtual machine's host may take
seconds to give it memory that it had taken back, and the processor may be shared.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from std_cli.environment import rest_waiting_threads
from tests.micro import tiny_with_motion

CASES = {
    "picture": ("folder", False, False),
    "video": ("folder", True, False),
    "one file": ("file", False, False),
    "one file, video": ("file", True, False),
    "LoRA": ("folder", False, True),
}
"""(which files, with a motion adapter, with a LoRA)"""


def write(folder, shapes):
    """The model, its adapters and a LoRA, in fp16."""
    import torch
    from diffusers import MotionAdapter
    from safetensors.torch import save_file

    from std_cli.weights.motion import HOTSHOT_CONFIG
    from tests.weights import sdxl

    given = {"medium": sdxl.MEDIUM, "real": sdxl.REAL, "narrow": sdxl.NARROW}[shapes]
    torch.set_default_dtype(torch.float16)  # of the random weights
    made = sdxl.Sdxl(folder, given)
    made.fill(folder / "home")
    save_file(sdxl.original(made.states), folder / "checkpoint.safetensors")
    widths = {"block_out_channels": given.unet["block_out_channels"]}
    adapter = MotionAdapter.from_config(HOTSHOT_CONFIG | widths)
    adapter.half().save_pretrained(folder / "motion")


def memory(name):
    """MiB of the process: "VmRSS" now, "VmHWM" at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def read_once(files):
    piece = bytearray(2**24)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def drop(files):
    """Out of the system's cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work):
    """(seconds, of them on a processor, what it returned)"""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def measure(folder, case, dtype, warm):
    import torch

    from std_cli.diffusion.devices import choose_dtype
    from std_cli.diffusion.pipeline import Pipeline
    from std_cli.weights.lora import LoraFile
    from std_cli.weights.motion import resolve_motion
    from std_cli.weights.resolve import resolve_model, weight_files

    which, moving, adapted = CASES[case]
    cpu = torch.device("cpu")
    dtype = choose_dtype(dtype, cpu)
    tiny = resolve_model(tiny_with_motion())
    Pipeline(tiny, None, cpu, dtype, motion=resolve_motion("auto", tiny))
    files = resolve_model("sdxl" if which == "folder" else str(folder / "checkpoint.safetensors"))
    motion = resolve_motion(str(folder / "motion"), files) if moving else None
    [path] = folder.glob("std_sdxl_*.safetensors")
    lora = LoraFile(path.name, path, 1.0, None, {}, None) if adapted else None
    read = [file for part, _ in weight_files(files).values() for file in part]
    read += [files.image_encoder / "model.safetensors", files.ip_adapter]
    read += [motion.weights] if motion else []
    read += [path] if lora else []
    read = list(dict.fromkeys(read))
    (read_once if warm else drop)(read)
    reading = timed(lambda: read_once(read))
    if not warm:
        drop(read)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    loading = timed(lambda: Pipeline(files, lora, cpu, dtype, motion=motion))
    parts = {id(part): part for part in loading[2].pipe.components.values()}.values()
    tensors = [t for part in parts if isinstance(part, torch.nn.Module) for t in part.parameters()]
    weights = sum({t.data_ptr(): t.nbytes for t in tensors}.values()) / 2**20
    found = {"weights": weights, "peak": memory("VmHWM") - before, "own": before}
    found |= {"reading": reading[:2], "loading": loading[:2]}
    print(json.dumps(found))


def one_case(command, environment):
    done = subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads(done.stdout)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--shapes", choices=["narrow", "medium", "real"], default="medium")
    p.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="bf16")
    p.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    p.add_argument("--warm", action="store_true")
    p.add_argument("--times", type=int, default=3, help="processes for each case")
    p.add_argument("--folder", type=Path, help="where the model is; it is written if it is not")
    p.add_argument("--one", choices=["write", *CASES])
    a = p.parse_args()
    if a.one == "write":
        return write(a.folder, a.shapes)
    if a.one:
        return measure(a.folder, a.one, a.dtype, a.warm)
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary) / "model"
        rest_waiting_threads()
        environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.load", "--folder", folder]
        command += ["--shapes", a.shapes, "--dtype", a.dtype, *(["--warm"] if a.warm else [])]
        if not folder.exists():
            subprocess.run([*command, "--one", "write"], check=True, env=environment)
        print(f"{a.shapes} shapes, {a.dtype}, CPU, files {'in the cache' if a.warm else 'on disk'}")
        print(
            f"{'':16}{'weights MiB':>12}{'peak MiB':>10}{'ratio':>7}"
            f"{'read s':>8}{'load s':>8}{'ratio':>7}{'load CPU s':>12}{'own MiB':>9}"
        )
        for case in a.only:
            each = [one_case([*command, "--one", case], environment) for _ in range(a.times)]
            one = max(each, key=lambda found: found["peak"])
            read, _ = min(found["reading"] for found in each)
            load, cpu = min(found["loading"] for found in each)
            print(
                f"{case:16}{one['weights']:12.0f}{one['peak']:10.0f}"
                f"{one['peak'] / one['weights']:7.3f}{read:8.2f}{load:8.2f}{load / read:7.2f}"
                f"{cpu:12.2f}{one['own']:9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
