"""The device that networks run on: what it is called, and how much memory it has."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def free_memory(device: "torch.device") -> tuple[int, int]:
    """(free, total) bytes of a GPU's memory, or of main memory."""
    import psutil
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    main = psutil.virtual_memory()
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return min(total - torch.mps.driver_allocated_memory(), main.available), total
    return main.available, main.total


def device_name(device: "torch.device") -> str:
    """The name that its maker gave it."""
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{'Apple GPU' if device.type == 'mps' else platform.processor() or platform.machine()}"
