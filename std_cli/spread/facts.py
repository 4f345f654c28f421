"""What results follow from in addition to the request, and must be the same at all workers."""

from importlib.metadata import version

from std_cli import __version__
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.videos import VideoRequest, stage_threads


def worker_facts(device: str, dtype: str) -> dict[str, str]:
    """The versions, and the kind of device, of this process; `device` and `dtype` as the settings
    have them. Kinds of processors differ by their instructions, which sum in another order."""
    import torch

    from std_cli.diffusion.devices import choose_device, choose_dtype, device_name, name_dtype

    chosen = choose_device(device)
    kind = device_name(chosen)
    if chosen.type == "cpu":
        kind = f"{kind} with {torch.backends.cpu.get_cpu_capability()}"
    return {
        "std": __version__,
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "dtype": name_dtype(choose_dtype(dtype, chosen)),
        "device": kind,
    }


def threads_in_one_process(request: VideoRequest | ImageRequest) -> int | None:
    """The threads that the networks take where this process makes the whole request, which every
    worker then takes: sums on another number differ in their last bits. None on a GPU."""
    import torch

    from std_cli.diffusion.devices import choose_device

    if choose_device(request.s.device).type != "cpu":
        return None
    of_a_stage = stage_threads(request) if isinstance(request, VideoRequest) else None
    return of_a_stage or torch.get_num_threads()
