"""The device that networks run on, its name and its memory; and the precision that they work in."""

from typing import TYPE_CHECKING

from std_cli.errors import InputError, counted

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """The torch device of `auto`, `cuda`, `cuda:N`, `mps` or `cpu`. Raises InputError if this
    machine has none."""
    import torch

    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, _, index = name.partition(":")
    count = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }[kind]
    if count <= int(index or 0):
        raise InputError(
            f"--device {name}: this machine has {counted(count, f'{kind} device')}: "
            "use --device auto"
        )
    return torch.device(name)


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


def torch_dtype(name: str) -> "torch.dtype":
    """The dtype that std calls fp32, fp16 or bf16."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


def name_dtype(dtype: "torch.dtype") -> str:
    """What std calls a dtype."""
    import torch

    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def choose_dtype(name: str, device: "torch.device", training: bool = False) -> "torch.dtype":
    """fp16 on a GPU, as published; on a CPU bf16 if it has instructions for that and nothing is
    trained, else fp32; unless the user chose."""
    if name == "auto":
        bf16 = not training and _multiplies_bf16()
        name = "fp16" if device.type != "cpu" else "bf16" if bf16 else "fp32"
    return torch_dtype(name)


def _multiplies_bf16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX: with `tiny` on an AMD EPYC bf16 took 0.7 of the
    time of fp32 for a picture, 0.8 for a video. Others compute bf16 by way of fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_arithmetic(device: "torch.device", dtype: "torch.dtype") -> bool:
    """Whether networks work in `dtype` on a device with kernels made for it.

    A processor without instructions for half precision has only torch's plain loops: a convolution
    of 512 channels at 64 x 64 takes 68 s of an AVX2 core in bf16, 0.3 s in fp32.
    """
    import torch

    if device.type != "cpu" or dtype == torch.float32:
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
