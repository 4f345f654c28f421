"""What a run does when the GPU's memory runs out: it takes the next saving, reports it, and repeats
the work.

In this order: fewer windows at once (`windows.Wavefront.batch`); one frame at a time in the VAE;
the VAE in tiles; weights in main memory that come to the GPU a model, then a layer at a time. All
but the tiles give the same result; a tile's normalisation sees the tile alone, so colours change a
little.

A compiler that fails is given up in the same way: `--compile` is a wish, and the work does not need
it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from std_cli.config import Offload
from std_cli.diffusion.compiled import (
    compiler_s_reason,
    is_of_the_compiler,
    undo_compilation,
)
from std_cli.errors import InputError, StdError

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLImg2ImgPipeline


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


class _Turns:
    """Lets threads work together, or one of them alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._waiting = 0
        """Those that want to be alone, whom no more of the others may delay."""

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._working >= 0 and not self._waiting)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._working == 0)
            self._waiting -= 1
            self._working = -1
        try:
            yield
        finally:
            with self._changed:
                self._working = 0
                self._changed.notify_all()


@dataclass
class Savings:
    """The savings of one diffusers pipeline."""

    pipe: "StableDiffusionXLImg2ImgPipeline"
    device: torch.device
    offload: Offload
    on_notice: Callable[[str], None]
    frames: int = 1
    """Frames of a video that the VAE decodes at once."""
    tile: int | None = None
    """Side of the VAE's tiles; None: it works on whole frames."""
    compiled: bool = False
    """Whether the networks are compiled; given up for good where the compiler fails."""
    _turns: _Turns = field(default_factory=_Turns)
    _changes: int = 0
    """How often something was given up or taken."""

    def attempt(
        self, do: Callable[[], T], side: Callable[[], int] = lambda: 0, save: bool = True
    ) -> T:
        """The result of `do`, which is called again with one more saving each time that memory runs
        out, and without the compiler if that fails. Raises StdError when no saving is left.

        side: called after memory ran out; the longer side of the VAE's picture in pixels, 0 if the
        VAE was not at work. save: False leaves torch.OutOfMemoryError to the caller.
        """
        while True:
            with self._at_work():
                changes = self._changes
                try:
                    return do()
                except torch.OutOfMemoryError as error:
                    if not save:
                        raise
                    # it would hold the tensors of what failed
                    failure: Exception = error.with_traceback(None)
                except Exception as error:  # compilers raise anything
                    if not self.compiled or not is_of_the_compiler(error):
                        raise
                    failure = error.with_traceback(None)
            with self._turns.alone():
                if self._changes == changes:  # no other thread has given up something meanwhile
                    self._give_up(failure, side)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Threads work at the same time, but where weights move: then one at a time."""
        if self.offload == "none":
            with self._turns.together():
                if self.offload == "none":
                    yield
                    return
        with self._turns.alone():
            yield

    def _give_up(self, failure: Exception, side: Callable[[], int]) -> None:
        self._changes += 1
        if not isinstance(failure, torch.OutOfMemoryError):
            self._work_without_compiler()
            self.on_notice(
                f"--compile failed, continuing without it, slower: {compiler_s_reason(failure)}"
            )
            return
        saving = self._take(side())
        if saving is None:
            raise StdError(OUT_OF_MEMORY) from failure
        self.on_notice(f"the GPU is out of memory: {saving}")

    def _take(self, side: int) -> str | None:
        """Take the next saving and name it; None if there is none."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # other streams may still use what moves
            torch.cuda.empty_cache()
        if self.frames > 1:
            self.frames = 1
            return "continuing with one frame at a time in the VAE"
        smaller = [tile for tile in TILES if tile < min(side, self.tile or side)]
        if smaller:
            self._work_in_tiles(smaller[0])
            return (
                f"continuing with the VAE in tiles of {self.tile} pixels, which changes colours "
                f"a little"
            )
        if self.offload in ("group", "sequential"):
            return None
        self._offload("model" if self.offload == "none" else "sequential")
        return _OFFLOADED[self.offload]

    def state(self) -> dict[str, Any]:
        """The savings in force, for `restore`; JSON-ready."""
        return {
            "frames": self.frames,
            "tile": self.tile,
            "offload": self.offload,
            "compiled": self.compiled,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the savings that an interrupted run had taken, so that it continues with the frames
        that it would have made. Savings that are in force already stay."""
        with self._turns.alone():
            self.frames = state.get("frames", 1)
            if self.compiled and not state["compiled"]:
                self._work_without_compiler()
            if state["tile"] is not None and (self.tile is None or state["tile"] < self.tile):
                self._work_in_tiles(state["tile"])
            # group is never taken by a run: where the user gave it, both have it
            modes = ["none", "model", "group", "sequential"]
            if modes.index(state["offload"]) > modes.index(self.offload):
                self._offload(state["offload"])

    def _work_in_tiles(self, side: int) -> None:
        vae, self.tile = self.pipe.vae, side
        vae.enable_tiling()
        vae.tile_sample_min_size = side
        vae.tile_latent_min_size = side // self.pipe.vae_scale_factor

    def _work_without_compiler(self) -> None:
        self.compiled = False
        undo_compilation(self.pipe)

    def _offload(self, mode: Offload) -> None:
        self.offload = mode
        self._work_without_compiler()  # compiled blocks cannot be moved so
        with torch.inference_mode(False):  # the weights stay ordinary tensors
            enable_offload(self.pipe, mode, self.device)


def check_offload(offload: Offload, device: torch.device) -> None:
    """Raises InputError for a CPU, which has nothing to offload to, and for a GPU that does not
    have what the mode needs."""
    if offload != "none" and device.type == "cpu":
        raise InputError(
            f"--offload {offload} moves weights to a GPU, and this runs on the CPU: leave it out"
        )
    if offload == "group" and device.type != "cuda":
        raise InputError(
            "--offload group needs CUDA, whose streams copy while the GPU computes, and this runs "
            f"on {device.type}: use --offload sequential"
        )


def enable_offload(
    pipe: "StableDiffusionXLImg2ImgPipeline", offload: Offload, device: torch.device
) -> None:
    """Keep the weights in main memory: whole models, or layers, come to the device when it is their
    turn.

    In the mode group the next layer comes while one computes, on a stream of its own, from
    page-locked memory. The VAE stays on the device: it is small, and diffusers learns the order of
    layers from `forward`, which a VAE that encodes and decodes does not use.
    """
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        streams = device.type == "cuda"
        pipe.enable_group_offload(
            onload_device=device,
            offload_type="leaf_level",
            use_stream=streams,
            record_stream=streams,  # else the processor waits for the GPU after every layer
            exclude_modules="vae",
        )
