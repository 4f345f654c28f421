"""The memory that a request needs, and the settings with which it fits."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from std_cli.config import VideoSettings
from std_cli.diffusion.devices import free_memory, has_arithmetic, torch_dtype
from std_cli.diffusion.memory import (
    BYTES,
    MARGIN,
    PROCESS,
    SDXL,
    activation_bytes,
    largest_layer,
    loading_bytes,
    model_parameters,
    network_configs,
    offload_parts,
    weight_bytes,
)
from std_cli.diffusion.vae import computes_in_bf16, is_wide
from std_cli.events import Picks, PlannedMemory
from std_cli.media.fit import MULTIPLE
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest
from std_cli.weights.motion import HOTSHOT_CONFIG

if TYPE_CHECKING:
    import torch

HELD = 24
"""Frames of the source, and as many of the result, that a video holds at once in RGB, between its
decoder and its encoder. Measured as resident memory on a CPU: 22 of the source and 24 of the
result at 3840 x 2160 with 8-bit H.264."""
SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Shares of the working size's sides that are tried, the first that fits is taken."""


@dataclass
class MemoryNeeds:
    """Bytes that a request needs on a device; main memory is counted as well where that is the
    device's."""

    request: ImageRequest | VideoRequest
    device: "torch.device"
    working: tuple[int, int]
    """The largest (width, height) that the network sees."""
    window: int
    """Frames of a window; 1 of pictures."""
    _by_dtype: dict[str, tuple[dict[str, int], dict[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = self.request.files
        motion = self.request.motion if isinstance(self.request, VideoRequest) else None
        self._unet, self._vae = network_configs(files)
        self._motion: dict[str, Any] | None = motion.config if motion else None
        self.parameters = model_parameters(files, motion)
        sdxl = self._unet["block_out_channels"] == HOTSHOT_CONFIG["block_out_channels"]
        if motion is None and self.window > 1 and sdxl:  # an adapter that is not downloaded
            self._motion = HOTSHOT_CONFIG
            self.parameters["motion"] = SDXL["motion"]
        self.free, self.total = free_memory(self.device)

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """The --offload modes that the device has."""
        if self.device.type == "cpu":
            return ("none",)
        streams = ("group",) if self.device.type == "cuda" else ()
        return ("none", "model", *streams, "sequential")

    @property
    def batch(self) -> int:
        """Windows at once that the request asks for; 1 where the run chooses."""
        settings = self.request.s
        return (settings.batch or 1) if isinstance(settings, VideoSettings) else 1

    def parts(self, dtype: str, batch: int, share: float = 1.0) -> dict[str, dict[str, int]]:
        """{offload mode: {part: bytes}} at the moment at which the device holds most, with `batch`
        windows at once, of frames of `share` of the area."""
        weights, activations = self._sizes(dtype)
        video = isinstance(self.request, VideoRequest)
        parts = offload_parts(
            weights,
            {part: int(size * share) for part, size in activations.items()},  # linear in the area
            batch=batch,
            encoders_leave=video and self.device.type == "cuda",
            together=video and self.device.type == "cpu",
            layer=largest_layer(self.request.files) * BYTES[dtype],
        )
        if self.device.type == "cpu":
            more = {"process": PROCESS}
            if isinstance(self.request, VideoRequest):
                more["frames"] = max(map(_frame_bytes, self.request.jobs), default=0)
            return {mode: held | more for mode, held in parts.items()}
        return parts

    def needed(self, dtype: str, mode: str, batch: int, share: float = 1.0) -> int:
        """Bytes at most; on a CPU those while the model is loaded count, too."""
        held = sum(self.parts(dtype, batch, share)[mode].values())
        if self.device.type == "cpu":
            return max(held, loading_bytes(self.parameters, dtype) + PROCESS)
        return held

    def event(self, dtype: str) -> PlannedMemory:
        """What a plan says of the request as it is."""
        import psutil

        weights, activations = self._sizes(dtype)
        parts = self.parts(dtype, self.batch)
        return {
            "free": self.free,
            "total": self.total,
            "main_free": psutil.virtual_memory().available,
            "weights": weights,
            "activations": activations,
            "modes": {mode: self.needed(dtype, mode, self.batch) for mode in self.modes},
            "parts": {mode: parts[mode] for mode in self.modes},
            "loading": loading_bytes(self.parameters, dtype),
        }

    def pick(self, dtype: str) -> Picks | None:
        """The first settings that fit: as asked for; fewer windows at once; more offloading; on a
        CPU bf16; a smaller size. None if nothing fits."""
        settings = self.request.s
        offloads = [
            mode
            for mode in self.modes[self.modes.index(settings.offload) :]
            if mode != "group" or settings.offload == mode  # it was never measured
        ]
        dtypes = [dtype]
        if self.device.type == "cpu" and dtype == "fp32" and settings.dtype == "auto":
            dtypes.append("bf16")
        room = self.free / MARGIN
        for share in SHARES:
            for kind in dtypes:
                for mode in offloads:
                    if self.needed(kind, mode, 1, share**2) <= room:
                        return self._picks(dtype, kind, mode, share)
        return None

    def _picks(self, asked: str, dtype: str, mode: str, share: float) -> Picks:
        """The picks with which the request fits, with as many windows at once as fit. asked: the
        precision that the request would run in."""
        settings, room = self.request.s, self.free / MARGIN
        batches = range(self.batch, 0, -1)
        chosen = isinstance(settings, VideoSettings) and settings.batch is None
        if chosen and self.device.type == "cuda":
            batches = range(settings.steps, 0, -1)  # as a run chooses it
        batch = next(b for b in batches if self.needed(dtype, mode, b, share**2) <= room)
        size = [max(64, int(side * share) // MULTIPLE * MULTIPLE) for side in self.working]
        flags = []
        if dtype != asked:
            flags.append(f"--dtype {dtype}")
        if mode != settings.offload:
            flags.append(f"--offload {mode}")
        if batch < self.batch:
            flags.append(f"--batch {batch}")
        if share < 1:
            both = isinstance(settings.size, tuple)
            flags.append(f"--size {size[0]}x{size[1]}" if both else f"--size {max(size)}")
        return {
            "device": str(self.device),
            "dtype": dtype,
            "offload": mode,
            "batch": batch,
            "size": size,
            "flags": " ".join(flags),
        }

    def _sizes(self, dtype: str) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by part: (weights, activations)."""
        if dtype not in self._by_dtype:
            # as a run would choose them, but for the weights, which may allow fp16 all the same
            in_fp32 = dtype == "fp16" and is_wide(self._vae) and not computes_in_bf16(self.device)
            work = dtype if has_arithmetic(self.device, torch_dtype(dtype)) else "fp32"
            weights = weight_bytes(self.parameters, dtype, in_fp32 and work == dtype)
            activations = activation_bytes(
                self._unet,
                self._vae,
                self.working,
                dtype=work,
                motion_config=self._motion,
                frames=self.window,
                guided=self.request.s.cfg > 1,
                vae_in_fp32=in_fp32,
            )
            self._by_dtype[dtype] = weights, activations
        return self._by_dtype[dtype]


def _frame_bytes(job: Job) -> int:
    """Bytes of the frames, outside of the networks, that a video holds at once."""
    pixels = job.clip.width * job.clip.height + job.target.width * job.target.height
    return HELD * 3 * pixels
