"""The device under measurement: what it is, its time, its memory, its rate."""

import ctypes
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
GIB = 2**30
_ASKED = (
    "name",
    "driver_version",
    "power.limit",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
)


def describe(device: torch.device) -> dict[str, object]:
    """The device's memory, and the versions of what runs on it; clocks and power limit as
    nvidia-smi has them."""
    import diffusers

    from std_cli.diffusion.devices import free_memory

    free, total = free_memory(device)
    facts: dict[str, object] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "memory GiB": round(total / GIB, 1),
        "free GiB": round(free / GIB, 1),
    }
    if device.type == "cpu":
        return facts | {"threads": torch.get_num_threads()}
    facts["CUDA"] = str(torch.version.cuda)
    return facts | smi_facts(_nvidia_smi(device))


def smi_facts(line: str) -> dict[str, object]:
    """A line of nvidia-smi's CSV by the names that were asked for, without what it does not
    know."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_ASKED):
        return {}
    known = zip(_ASKED, values, strict=True)
    return {name: value for name, value in known if value and not value.startswith("[")}


def _nvidia_smi(device: torch.device) -> str:
    """Its line of a GPU, which it knows by its UUID, whatever CUDA_VISIBLE_DEVICES says; "" without
    the tool."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    command += [f"--id=GPU-{uuid}"] if uuid is not None else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def with_index(device: torch.device) -> torch.device:
    """ "cuda" as the GPU that it stands for: the limit of a process's memory is set by number."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def usable(device: torch.device) -> bool:
    """Whether the device still computes: after some errors a process cannot use a GPU any more."""
    try:
        return bool((torch.ones(2, device=device) + 1).sum().item() == 4)
    except RuntimeError:
        return False


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    work: Callable[[], object], device: torch.device, seconds: float, least: int = 3
) -> float:
    """The median duration of `work`, called for about so many seconds and `least` times at least,
    after two calls that do not count."""
    for _ in range(2):
        work()
    spent: list[float] = []
    while len(spent) < least or (sum(spent) < seconds and len(spent) < 1000):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


def free(device: torch.device) -> None:
    """Give back the memory that nothing holds: what is resident is counted again when it is used
    again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The most memory in use inside `with`: the allocator's on a GPU, else the process's resident
    memory, sampled."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.base = 0
        """Bytes at the start: the process's on a CPU."""
        self.most = 0
        """Bytes of tensors, or of the process."""
        self.reserved: int | None = None
        """Bytes that the allocator held, which is what other processes miss; None on a CPU."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        free(self.device)
        if self.device.type == "cuda":
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.base = self.most = _resident()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.type != "cuda":
            self._stop.set()
            self._thread.join()
        elif error is None:
            synchronize(self.device)
            self.most = torch.cuda.max_memory_allocated(self.device)
            self.reserved = torch.cuda.max_memory_reserved(self.device)

    def facts(self, planned: int | None = None) -> dict[str, object]:
        """GiB of a row, next to what a plan estimates in bytes."""
        found: dict[str, object] = {"GiB": round(self.most / GIB, 3)}
        if self.reserved is not None:
            found["reserved GiB"] = round(self.reserved / GIB, 3)
        if planned is not None:
            found["plan GiB"] = round(planned / GIB, 3)
        return found

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.most = max(self.most, _resident())


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def matmul_rate(side: int, dtype: str, device: torch.device, seconds: float) -> float:
    """FLOP per second of a product of two square matrices in fp16, bf16, fp32 or tf32."""
    kind = DTYPES["fp32" if dtype == "tf32" else dtype]
    left = torch.randn(side, side, device=device, dtype=kind)
    right = torch.randn_like(left)
    with tf32(dtype == "tf32"):
        spent = seconds_of(lambda: left @ right, device, seconds)
    return 2 * side**3 / spent


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products and convolutions in fp32 on a GPU with TF32's 10 bits of mantissa, or in full
    precision."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def memory_limit(device: torch.device, limit: int) -> Iterator[None]:
    """A GPU on which this process gets so many bytes at most."""
    total = torch.cuda.get_device_properties(device).total_memory
    free(device)
    torch.cuda.set_per_process_memory_fraction(fraction(limit, total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def fraction(limit: int, total: int) -> float:
    """The share of a memory that a limit is, as the allocator takes it: from 0 to 1."""
    return min(1.0, max(0.0, limit / total))
