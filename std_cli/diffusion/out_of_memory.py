"""What a run does when the GPU's memory runs out: it takes the next saving, reports it, and repeats
the work.

In this order: fewer windows at once (`windows.Wavefront.batch`); the VAE in tiles; weights in main
memory that come to the GPU a model, then a layer at a time. Slices of the VAE's batch, which other
tools take in between, save nothing here: it never works on more than one frame. All but the tiles
give the same result; a tile's normalisation sees the tile alone, so colours change a little.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from std_cli.config import Offload
from std_cli.diffusion.compiled import undo_compilation
from std_cli.errors import InputError, StdError

T = TypeVar("T")
TILES = (512, 256)
"""Sides of the VAE's tiles, pixels; SDXL's VAE takes 1/4 and 1/16 of the memory of 1024 x 1024 for
them."""
OUT_OF_MEMORY = (
    "the GPU is out of memory: use a smaller --size, or --offload model, or --offload sequential"
)
_OFFLOADED = {
    "model": "continuing with --offload model, slower: the models wait in main memory",
    "sequential": "continuing with --offload sequential, much slower: "
    "the layers wait in main memory",
}


@dataclass
class Savings:
    """The savings of one diffusers pipeline."""

    pipe: Any
    device: torch.device
    offload: Offload
    on_notice: Callable[[str], None]
    tile: int | None = None
    """Side of the VAE's tiles; None: it works on whole frames."""
    lock: Any = field(init=False)
    """Held at work: on a GPU the threads of a run work one at a time, so that weights can move
    between them."""

    def __post_init__(self) -> None:
        self.lock = nullcontext() if self.device.type == "cpu" else threading.RLock()

    def attempt(self, do: Callable[[], T], side: Callable[[], int] = lambda: 0) -> T:
        """The result of `do`, which is called again with one more saving each time that memory runs
        out. Raises StdError when no saving is left.

        side: called after memory ran out; the longer side of the VAE's picture in pixels, 0 if the
        VAE was not at work.
        """
        with self.lock:
            while True:
                try:
                    return do()
                except torch.OutOfMemoryError as error:
                    # it would hold the tensors of what failed
                    out_of_memory = error.with_traceback(None)
                saving = self._take(side())
                if saving is None:
                    raise StdError(OUT_OF_MEMORY) from out_of_memory
                self.on_notice(f"the GPU is out of memory: {saving}")

    def _take(self, side: int) -> str | None:
        """Take the next saving and name it; None if there is none."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = [tile for tile in TILES if tile < min(side, self.tile or side)]
        if smaller:
            self._work_in_tiles(smaller[0])
            return (
                f"continuing with the VAE in tiles of {self.tile} pixels, which changes colours "
                f"a little"
            )
        if self.offload == "sequential":
            return None
        self._offload("model" if self.offload == "none" else "sequential")
        return _OFFLOADED[self.offload]

    def state(self) -> dict[str, Any]:
        """The savings in force, for `restore`; JSON-ready."""
        return {"tile": self.tile, "offload": self.offload}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the savings that an interrupted run had taken, so that it continues with the frames
        that it would have made. Savings that are in force already stay."""
        with self.lock:
            if state["tile"] is not None and (self.tile is None or state["tile"] < self.tile):
                self._work_in_tiles(state["tile"])
            modes = ["none", *_OFFLOADED]
            if modes.index(state["offload"]) > modes.index(self.offload):
                self._offload(state["offload"])

    def _work_in_tiles(self, side: int) -> None:
        vae, self.tile = self.pipe.vae, side
        vae.enable_tiling()
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // self.pipe.vae_scale_factor

    def _offload(self, mode: Offload) -> None:
        self.offload = mode
        undo_compilation(self.pipe)  # compiled blocks cannot be moved so
        with torch.inference_mode(False):  # the weights stay ordinary tensors
            enable_offload(self.pipe, mode, self.device)


def check_offload(offload: Offload, device: torch.device) -> None:
    """Raises InputError for a CPU, which has nothing to offload to."""
    if offload != "none" and device.type == "cpu":
        raise InputError(
            f"--offload {offload} moves weights to a GPU, and this runs on the CPU: leave it out"
        )


def enable_offload(pipe: Any, offload: Offload, device: torch.device) -> None:
    """Keep the weights in main memory: whole models, or layers, come to the device when it is their
    turn."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
