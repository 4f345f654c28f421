"""`--compile`: the blocks that the networks repeat are compiled, each kind once.

To compile a whole UNet takes minutes, and its blocks seconds, for nearly the same speed:
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html. What the compiler made is kept
between runs.

There are no CUDA graphs ("reduce-overhead"): a graph is recorded for each block's call, with the
addresses of its inputs. All blocks of a kind share their compiled code and have other weights, so
that each call would either be a graph of its own or copy its weights into one; what one block
returns would be overwritten by the next call of the same graph while the network still holds it;
and torch's graphs belong to one thread, while the stages of a video have one each.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from std_cli.diffusion.devices import device_name
from std_cli.paths import cache_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLImg2ImgPipeline


_CACHE = "TORCHINDUCTOR_CACHE_DIR"
REPEATED = ("BasicTransformerBlock", "ResnetBlock2D")
"""Classes of diffusers' UNets, the motion UNet's too, whose temporal layers are the first's."""
_COMPILERS = ("torch._dynamo.", "torch._inductor.", "triton.")
"""Packages whose errors are of the compiler."""
SHAPES = 64
"""Shapes that a block is compiled for; torch would give up after 8, and SDXL with a motion adapter
has about 20."""


def compile_networks(
    pipe: "StableDiffusionXLImg2ImgPipeline", device: torch.device, backend: str = "inductor"
) -> None:
    """Compile the repeated blocks of the UNet and the VAE's decoder when they are first used, for
    the shapes that they then get. The modules stay where they are, with their attention
    processors."""
    import torch._dynamo

    versions = f"{torch.__version__}-{device_name(device)}"
    folder = cache_folder() / "compiled" / re.sub(r"[^\w.]+", "-", versions)
    # torch may have set it to a folder of the system's temporary ones, which are not kept
    if Path(os.environ.get(_CACHE, "torchinductor_")).name.startswith("torchinductor_"):
        os.environ[_CACHE] = str(folder)
    name = "recompile_limit"
    if not hasattr(torch._dynamo.config, name):  # before torch 2.7
        name = "cache_size_limit"
    limit = getattr(torch._dynamo.config, name)
    setattr(torch._dynamo.config, name, max(limit, SHAPES))
    for module in pipe.unet.modules():
        if type(module).__name__ in REPEATED:
            module.compile(dynamic=False, backend=backend)
    pipe.vae.decoder.compile(dynamic=False, backend=backend)


def undo_compilation(pipe: "StableDiffusionXLImg2ImgPipeline") -> None:
    """Let the modules of the UNet and the VAE work without the compiler from now on."""
    for network in (pipe.unet, pipe.vae):
        for module in network.modules():
            module._compiled_call_impl = None


def is_of_the_compiler(error: Exception) -> bool:
    """Whether an error comes from compiling: it is missing, or cannot compile a network."""
    return any(f"{kind.__module__}.".startswith(_COMPILERS) for kind in type(error).__mro__)


def compiler_s_reason(error: Exception) -> str:
    """Why a compilation failed, in one line."""
    cause = getattr(error, "inner_exception", error)
    lines = [" ".join(line.split()) for line in str(cause).splitlines() if line.strip()]
    line = next((line for line in lines if "error:" in line), lines[0] if lines else "no message")
    return f"{type(cause).__name__}: {line}"[:240]
