"""What all slices share: the folder of the results, the model, the device, what is loaded."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from std_cli import Stylizer
from std_cli.stylize.memory_needs import MemoryNeeds
from std_cli.stylize.pictures import prepare_images
from std_cli.stylize.videos import prepare_video
from std_cli.stylize.workload import video_input
from tests.bench.gpu import machine, work
from tests.bench.gpu.model import write_lora
from tests.bench.gpu.rows import Facts, Rows, digits
from tests.bench.gpu.scale import Scale
from tests.bench.video import make_clip

T = TypeVar("T")
SLICE_OF_RATES = "matmul"


def start_std(*arguments: object, env: Mapping[str, str] | None = None) -> Any:
    """`std ARGUMENTS` in a process of its own, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "std_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


@dataclass(eq=False)
class Bench:
    out: Path
    """Where rows, clips and results are written."""
    model: Path
    device: torch.device
    scale: Scale
    rows: Rows
    start: Callable[..., Any] = start_std
    """Starts the command line in a process; returns what a `subprocess.Popen` is."""
    in_process: bool = False
    """Whether training is measured in this process, not in one of its own."""
    _held: tuple[object, Any] | None = None
    _rates: dict[str, float] = field(default_factory=dict)

    # --- inputs ---

    @cached_property
    def style(self) -> Image.Image:
        return photo(512 if not self.scale.narrow else 96, 0)

    def photos(self, count: int, side: int | None = None) -> list[Image.Image]:
        side = side or self.scale.side
        return [photo(side, 1 + i) for i in range(count)]

    def clip(self, size: tuple[int, int], frames: int) -> Path:
        """A clip of so many frames; made once."""
        path = self.out / "inputs" / f"{size[0]}x{size[1]}-{frames}.mp4"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            draft = path.with_suffix(".part.mp4")
            make_clip(draft, frames, size)
            draft.rename(path)
        return path

    def picture_file(self, name: str, side: int, number: int) -> Path:
        path = self.out / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        photo(side, number).save(path)
        return path

    @cached_property
    def lora(self) -> Path:
        """A LoRA of rank 16 for the attention of the model's UNet, with random weights."""
        path = self.out / "inputs" / "random-lora.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_lora(self.model, path)
        return path

    # --- std at work ---

    def runs_in(self, dtype: str) -> str:
        """The precision in which a row of `dtype` runs: few CPUs compute in half precision at any
        speed, and there the rows are a trial of the bench alone."""
        return "fp32" if self.device.type == "cpu" else dtype

    def load_options(self, **more: object) -> dict[str, Any]:
        """Options of std for the model of the bench on its device."""
        return {"model": str(self.model), "lora": "none", "device": str(self.device), **more}

    def hold(self, key: object, load: Callable[[], T]) -> T:
        """What `load` returns; kept for the rows that ask for the same next, and freed before
        anything else is loaded."""
        if self._held is None or self._held[0] != key:
            self.close()
            self._held = key, load()
        held: T = self._held[1]
        return held

    def stylizer(self, **load: object) -> Stylizer:
        """A Stylizer with these options."""
        options = self.load_options(**load)
        return self.hold(("Stylizer", options), lambda: Stylizer(**options))

    def close(self) -> None:
        """Free what is loaded."""
        if self._held is not None and isinstance(self._held[1], Stylizer):
            self._held[1].close()
        self._held = None
        machine.free(self.device)

    # --- figures ---

    def rate(self, dtype: str) -> float:
        """The measured FLOP per second of matrix products: the row's, else measured now."""
        if dtype not in self._rates:
            row = self.rows.find(SLICE_OF_RATES, dtype) or {}
            known = row.get("TFLOP/s")
            self._rates[dtype] = (
                known * 1e12
                if isinstance(known, float)
                else machine.matmul_rate(self.scale.matrix, dtype, self.device, self.scale.seconds)
            )
        return self._rates[dtype]

    def speed(self, flop: float, seconds: float, dtype: str) -> Facts:
        """The work of a row in the precision `dtype`, and its share of the measured rate."""
        rate, ran = flop / seconds, self.runs_in(dtype)
        facts: Facts = {
            "TFLOP": digits(flop / 1e12),
            "TFLOP/s": digits(rate / 1e12),
            "share": digits(rate / self.rate(ran)),
        }
        return facts | ({"ran in": ran} if ran != dtype else {})

    @cache  # noqa: B019  a bench lives as long as its process
    def picture_needs(self, side: int, guided: bool, offload: str = "none") -> MemoryNeeds:
        """What a plan estimates of pictures."""
        request = prepare_images(
            self.photos(1, side),
            self.style,
            size=(side, side),
            cfg=6.0 if guided else 1.0,
            **self.load_options(offload=offload),
        )
        return MemoryNeeds(request, self.device, (side, side), 1)

    @cache  # noqa: B019
    def video_needs(
        self, size: tuple[int, int], frames: int, steps: int, cfg: float, motion: str
    ) -> tuple[MemoryNeeds, int]:
        """What a plan estimates of a clip, and its evaluations of the UNet."""
        request = prepare_video(
            self.clip(size, frames),
            self.style,
            self.out,
            size=size,
            output_size="model",
            steps=steps,
            cfg=cfg,
            cuts="off",
            existing="note",
            **self.load_options(motion=motion),
        )
        stride = request.window - request.overlap
        [job] = request.jobs
        planned = video_input(job, request.s, request.window, stride, lambda message: None)
        evaluations = planned["evaluations"]
        assert evaluations is not None
        return MemoryNeeds(request, self.device, size, request.window), evaluations

    def picture_flop(self, side: int, steps: int, guided: bool) -> int:
        """FLOP of one picture: encoding, all steps, decoding."""
        each = work.unet_flop(self.model, (side, side))
        return steps * (2 if guided else 1) * each + sum(work.vae_flop(self.model, (side, side)))

    # --- processes ---

    @contextmanager
    def process(self, *arguments: object, env: Mapping[str, str] | None = None) -> Iterator[Any]:
        """`std ARGUMENTS`; ended when the block is left."""
        process = self.start(*arguments, env=env)
        try:
            yield process
        finally:
            _end(process)


def _end(process: Any) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def photo(side: int, number: int) -> Image.Image:
    """Coarse noise, smoothed: as hard for the network as any picture."""
    coarse = np.random.default_rng(number).integers(
        0, 256, (max(4, side // 16), max(4, side // 16), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@contextmanager
def on_loaded(act: Callable[[Any], None]) -> Iterator[None]:
    """Inside, `act` gets each pipeline of std as soon as it is loaded."""
    from std_cli.stylize import stylizer

    load = stylizer.load_pipeline

    def hooked(*arguments: Any) -> Any:
        pipeline = load(*arguments)
        act(pipeline)
        return pipeline

    stylizer.load_pipeline = hooked  # type: ignore[assignment]
    try:
        yield
    finally:
        stylizer.load_pipeline = load
