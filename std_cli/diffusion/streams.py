"""The stages of a video next to each other on a GPU: CUDA streams, and copies without waiting.

The stage that denoises works on the default stream; each of the others has a stream. A tensor that
goes from one stage to the next is `Handed`: the next stage's stream waits for it, not the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def has_streams(device: torch.device) -> bool:
    return device.type == "cuda"


@dataclass(frozen=True)
class Handed:
    """A tensor that a stream of its device may still work on."""

    tensor: Tensor
    made: Any = None
    """The event at which it is complete; None on a device without streams."""

    def take(self) -> Tensor:
        """The tensor, for the current stream: what it does next waits for its maker."""
        if self.made is not None:
            self.made.wait()
            if self.tensor.device.type == "cuda":
                # its memory belongs to the maker's stream, which must not use it again too early
                self.tensor.record_stream(torch.cuda.current_stream(self.tensor.device))
        return self.tensor


def hand_over(tensor: Tensor) -> Handed:
    """A tensor of the current stream, for another."""
    return Handed(tensor, _event(tensor.device))


@dataclass
class Streams:
    """The streams of a device, by the stage that each is for."""

    device: torch.device
    _by_stage: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def aside(self, stage: str) -> Iterator[None]:
        """Inside, this thread's work is in the stage's stream, where the device has streams."""
        if not has_streams(self.device):
            yield
            return
        backend = torch.get_device_module(self.device)
        if stage not in self._by_stage:
            stream = self._by_stage[stage] = backend.Stream(self.device)
            stream.wait_stream(backend.current_stream(self.device))  # weights may be on their way
        with backend.stream(self._by_stage[stage]):
            yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device; a GPU copies it while the processor continues."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Arriving:
    """Tensors on their way to main memory."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [_begun(tensor) for tensor in tensors]
        self._made = _event(tensors[0].device)

    def tensors(self) -> list[Tensor]:
        """They are there when this returns."""
        if self._made is not None:
            self._made.synchronize()
        return self._tensors


def _begun(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return place.copy_(tensor.contiguous(), non_blocking=True)


def _event(device: torch.device) -> Any:
    """An event at the end of the current stream's work so far."""
    if not has_streams(device):
        return None
    backend = torch.get_device_module(device)
    event = backend.Event()
    event.record(backend.current_stream(device))
    return event
