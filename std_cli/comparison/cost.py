"""What a cell costs: the most memory that is in use while it is made."""

import threading
from types import TracebackType
from typing import Self

import psutil

EVERY = 0.02
"""Seconds from one look at the memory of the process to the next."""


class Memory:
    """The most memory that is in use inside it; a context manager."""

    def __init__(self) -> None:
        self.peak = 0
        """Bytes: on a GPU of its tensors, else of this process."""

    def __enter__(self) -> Self:
        self._gpu = _reset_gpu()
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._watcher.join()
        if self._gpu:  # on which a run with --device cpu puts nothing
            self.peak = _gpu_peak() or self.peak

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            if self._stop.wait(EVERY):
                return


def _reset_gpu() -> bool:
    """Whether there is a GPU whose memory is measured, from now on."""
    import torch

    if not torch.cuda.is_available():
        return False
    for number in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(number)
    return True


def _gpu_peak() -> int:
    import torch

    return max(torch.cuda.max_memory_allocated(n) for n in range(torch.cuda.device_count()))
