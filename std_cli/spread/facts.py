"""What results follow from in addition to the request, and must be the same at all workers."""

from importlib.metadata import version

from std_cli import __version__


def worker_facts(device: str, dtype: str) -> dict[str, str]:
    """The versions, and the kind of device, of this process; `device` and `dtype` as the settings
    have them. Kinds of processors differ by their instructions, which sum in another order."""
    import torch

    from std_cli.diffusion.devices import device_name
    from std_cli.diffusion.pipeline import choose_device, choose_dtype, name_dtype

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
