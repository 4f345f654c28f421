"""What a command would take, without its result: `std plan`, and --dry-run of the stylize commands.

The request is checked as for a run and nothing is downloaded. An estimate is one event, JSON-ready:
"plan", with

    task, model, downloaded, lora, motion, device, device_name, dtype, steps, guided, window,
    overlap inputs      one dictionary for each: input, output, width, height, working, frames,
    shots, windows, evaluations,
                seconds (null without a probe), disk (bytes of the result)
    frames, shots, windows, evaluations    of all inputs; null where one is not known
    memory      free, total (bytes of the device), main_free (of main memory), weights and
    activations (bytes by part),
                modes ({offload: bytes at most}, those that the device has), parts (of each of them:
                {part: bytes} at that moment), loading (main memory at most)
    disk        free, needed (work folder and result at most), where
    time        null, or seconds, load, encode, evaluation, decode: the last three of one frame,
    window, frame fits        whether the request as it is fits into the free memory
    picks       null, or device, dtype, offload, batch, size and flags, the settings that fit
    notes       what the figures leave out
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from std_cli.config import VideoSettings
from std_cli.diffusion.memory import (
    MARGIN,
    SDXL,
    activation_bytes,
    loading_bytes,
    model_parameters,
    network_configs,
    offload_parts,
    weight_bytes,
)
from std_cli.errors import InputError, NotDownloaded
from std_cli.media.pictures import MULTIPLE, fit_to, seen
from std_cli.stylize.frames import source_frames
from std_cli.stylize.pictures import (
    Event,
    ImageRequest,
    OnEvent,
    prepare_images,
    read_source,
    source_name,
)
from std_cli.stylize.pictures import load_pipeline as load_images
from std_cli.stylize.video_run import Job
from std_cli.stylize.videos import VideoRequest, prepare_video
from std_cli.stylize.videos import load_pipeline as load_video
from std_cli.weights.hub import without_downloads
from std_cli.weights.motion import HOTSHOT_CONFIG

if TYPE_CHECKING:
    import torch

    from std_cli.diffusion.pipeline import Pipeline

SLOW = 10.0
"""Seconds of a step that is not worth to be timed again."""
COUNTED = 2000
"""Frames of the longest video whose shots are counted: it is decoded for that."""
BITS_PER_PIXEL = {
    "h264": 0.5, "hevc": 0.35, "av1": 0.3, "vp9": 0.35, "prores": 3.5, "ffv1": 14, "png": 14,
    "gif": 5, "webp": 3,
}  # fmt: skip
"""Of a result at the default quality, a rough upper figure: brush strokes cost more bits than
camera pictures do."""
PICTURE_BITS = {".png": 16, ".webp": 3}
"""The same for pictures; jpg's, 4, for the others."""


@dataclass
class Found:
    """Finds what is on this machine, and remembers what is not."""

    missing: list[str]

    def __call__(self, resolve: Callable[..., Any], spec: str, *args: Any, **options: Any) -> Any:
        with without_downloads():
            try:
                return resolve(spec, *args, **options)
            except NotDownloaded:
                self.missing.append(f"{resolve.__name__.removeprefix('resolve_')} {spec}")
                return None


def plan_images(
    *args: Any, probe: bool = True, on_event: OnEvent = lambda event: None, **options: Any
) -> Event:
    """The plan of `stylize_images` with the same arguments; `probe`: load the model and time two
    steps.

    Raises the errors that it would raise before it loads a weight.
    """
    found = Found([])
    r = prepare_images(*args, find=found, **options)
    evaluations = r.s.steps * (2 if r.s.cfg > 1 else 1)
    inputs = [
        {
            "input": source_name(source),
            "output": str(target) if target else None,
            "width": working[0],
            "height": working[1],
            "working": list(working),
            "frames": 1,
            "shots": 1,
            "windows": 1,
            "evaluations": evaluations,
            "disk": _picture_bytes(target, working) if target else 0,
        }
        for source, target, working in zip(r.sources, r.targets, r.sizes, strict=True)
    ]
    p = _Planner(r, found.missing, max(r.sizes, key=_area), inputs, 1, 0, probe, on_event)
    return p.plan(None, r.targets[0], lambda device, dtype: _time_picture(p, r, device, dtype))


def plan_video(
    *args: Any, probe: bool = True, on_event: OnEvent = lambda event: None, **options: Any
) -> Event:
    """The plan of `stylize_video` with the same arguments, but for those of its work folder."""
    found = Found([])
    r = prepare_video(*args, find=found, **options)
    if not r.jobs:
        raise InputError(
            f"none of the {len(r.failed)} videos can be stylized: {r.failed[0]['message']}"
        )
    inputs = [_count(job, r, on_event) for job in r.jobs]
    working = max((job.working for job in r.jobs), key=_area)
    p = _Planner(r, found.missing, working, inputs, r.window, r.overlap, probe, on_event)
    p.notes += [f"{e['input']} is left out: {e['message']}" for e in r.failed]
    p.notes += [f"{job.source.name}: {notice}" for job in r.jobs for notice in job.extras.notices]
    return p.plan(
        r, r.jobs[0].target.path, lambda device, dtype: _time_windows(p, r, device, dtype)
    )


# --- how much work -----------------------------------------------------------------------------


def _count(job: Job, r: VideoRequest, on_event: OnEvent) -> Event:
    """Frames, shots, windows and evaluations of one video, by decoding it if it is short."""
    from std_cli.diffusion.windows import window_starts

    t = job.target
    frames, shots = job.frames, None
    if frames is None or frames <= COUNTED:
        on_event({"event": "progress", "stage": "count", "input": job.source.name})
        read = source_frames(job.clip, r.s, job.cuts, end=COUNTED + 1)
        cuts = [frame.place.cut for frame in read]
        if not cuts:
            raise InputError(f"{job.source.name}: no frames between --start and --end: widen them")
        if len(cuts) <= COUNTED:
            frames, shots = len(cuts), sum(cuts)
    windows = None
    if frames is not None:
        begins = [i for i, cut in enumerate(cuts) if cut] if shots is not None else [0]
        lengths = [b - a for a, b in zip(begins, [*begins[1:], frames], strict=True)]
        windows = sum(len(window_starts(n, r.window, r.window - r.overlap)) for n in lengths)
    return {
        "input": job.source.name,
        "output": str(t.path),
        "width": t.width,
        "height": t.height,
        "working": list(job.working),
        "frames": frames,
        "shots": shots,
        "windows": windows,
        "evaluations": windows and windows * r.s.steps * (2 if r.s.cfg > 1 else 1),
        "disk": frames and int(frames * t.width * t.height * BITS_PER_PIXEL.get(t.codec, 1) / 8),
    }


def _picture_bytes(target: Path, size: tuple[int, int]) -> int:
    return int(_area(size) * PICTURE_BITS.get(target.suffix.lower(), 4) / 8)


def _area(size: Sequence[int]) -> int:
    return size[0] * size[1]


def _sum(inputs: list[Event], name: str) -> Any:
    values = [i[name] for i in inputs]
    return None if None in values else sum(values)


# --- the plan ----------------------------------------------------------------------------------


@dataclass
class _Planner:
    """What both kinds of request have in common."""

    r: ImageRequest | VideoRequest
    missing: list[str]
    working: tuple[int, int]
    """The largest."""
    inputs: list[Event]
    window: int
    overlap: int
    probe: bool
    on_event: OnEvent

    def __post_init__(self) -> None:
        self.notes = list(self.r.notices)
        self.notes += [
            f"{what} is not downloaded: reckoned as SDXL's"
            for what in self.missing
            if "lora" not in what
        ]
        self.notes += [f"{what} is not downloaded" for what in self.missing if "lora" in what]
        if any(i["shots"] is None for i in self.inputs):
            self.notes.append(
                f"shots of videos of more than {COUNTED} frames are not counted: each has one or "
                f"more"
            )

    def plan(
        self,
        video: VideoRequest | None,
        output: Path | None,
        measure: Callable[[Any, Any], dict[str, float]],
    ) -> Event:
        from std_cli.diffusion.out_of_memory import check_offload
        from std_cli.diffusion.pipeline import choose_device, choose_dtype, name_dtype

        r, s = self.r, self.r.s
        device = choose_device(s.device)
        check_offload(s.offload, device)
        dtype = choose_dtype(s.dtype, device)
        self.on_event({"event": "progress", "stage": "load", "model": s.model})
        memory, needs = self._memory(video, device, name_dtype(dtype))
        fits = memory["modes"][s.offload] * MARGIN <= memory["free"]
        if memory["loading"] > memory["main_free"]:
            self.notes.append(
                "loading takes more main memory than is free: close other programs, or expect "
                "swapping"
            )
        picks = self._pick(device, name_dtype(dtype), needs, memory)
        seconds = self._time(device, dtype, fits, measure)
        result_bytes = _sum(self.inputs, "disk")
        where = next(p for p in (Path(output or ".").absolute().parents) if p.is_dir())
        return {
            "event": "plan",
            "task": "image" if video is None else "video",
            "model": s.model,
            "downloaded": r.files is not None and not self.missing,
            "lora": r.lora.name if r.lora else None,
            "motion": video.motion.name if video and video.motion else None,
            "device": str(device),
            "device_name": device_name(device),
            "dtype": name_dtype(dtype),
            "steps": s.steps,
            "guided": s.cfg > 1,
            "window": self.window,
            "overlap": self.overlap,
            "inputs": self.inputs,
            **{
                name: _sum(self.inputs, name)
                for name in ("frames", "shots", "windows", "evaluations")
            },
            "memory": memory,
            "disk": {
                "free": shutil.disk_usage(where).free,
                # parts, and what they make
                "needed": result_bytes and result_bytes * (1 if video is None else 2),
                "where": str(where),
            },
            "time": seconds,
            "fits": fits,
            "picks": picks,
            "notes": self.notes,
        }

    @property
    def _batch(self) -> int:
        return (self.r.s.batch or 1) if isinstance(self.r.s, VideoSettings) else 1

    def _memory(
        self, video: VideoRequest | None, device: "torch.device", dtype: str
    ) -> tuple[Event, Callable[[str, str, int, float], int]]:
        """(what the event tells, bytes needed in a dtype, offload mode, batch, and at a share of
        the area)."""
        import psutil

        files, s = self.r.files, self.r.s
        unet, vae = network_configs(files)
        motion = video.motion.config if video and video.motion else None
        parameters = model_parameters(files, video.motion if video else None)
        if (
            motion is None
            and self.window > 1
            and unet["block_out_channels"] == HOTSHOT_CONFIG["block_out_channels"]
        ):
            motion, parameters["motion"] = HOTSHOT_CONFIG, SDXL["motion"]
        free, total = free_memory(device)
        leave = video is not None and device.type == "cuda"
        modes = ("none", "model", "sequential") if device.type != "cpu" else ("none",)
        known: dict[str, tuple[dict[str, int], dict[str, int]]] = {}

        def of(kind: str) -> tuple[dict[str, int], dict[str, int]]:
            if kind not in known:
                known[kind] = (
                    weight_bytes(
                        parameters, kind, kind == "fp16" and vae.get("force_upcast", True)
                    ),
                    activation_bytes(
                        unet,
                        vae,
                        self.working,
                        dtype=kind,
                        motion_config=motion,
                        frames=self.window,
                        guided=s.cfg > 1,
                    ),
                )
            return known[kind]

        cpu = device.type == "cpu"

        def held(kind: str, batch: int, share: float) -> dict[str, dict[str, int]]:
            weights, activations = of(kind)
            # linear in the area
            smaller = {part: int(size * share) for part, size in activations.items()}
            together = cpu and video is not None
            return offload_parts(
                weights, smaller, batch=batch, encoders_leave=leave, together=together
            )

        def needs(kind: str, offload: str, batch: int, share: float) -> int:
            on = sum(held(kind, batch, share)[offload].values())
            return max(on, loading_bytes(parameters, kind)) if cpu else on

        weights, activations = of(dtype)
        return {
            "free": free,
            "total": total,
            "main_free": psutil.virtual_memory().available,
            "weights": weights,
            "activations": activations,
            "modes": {mode: needs(dtype, mode, self._batch, 1.0) for mode in modes},
            "parts": {mode: held(dtype, self._batch, 1.0)[mode] for mode in modes},
            "loading": loading_bytes(parameters, dtype),
        }, needs

    def _pick(
        self,
        device: "torch.device",
        dtype: str,
        needs: Callable[[str, str, int, float], int],
        memory: Event,
    ) -> Event | None:
        """The first that fits: as asked for; fewer windows at once; more offloading; on a CPU bf16;
        a smaller size."""
        s, modes = self.r.s, list(memory["modes"])
        more = modes[modes.index(s.offload) :]
        dtypes = (
            [dtype, "bf16"]
            if device.type == "cpu" and dtype == "fp32" and s.dtype == "auto"
            else [dtype]
        )
        tries = [
            (kind, mode, share)
            for share in (1.0, 0.75, 0.5, 0.375, 0.25)
            for kind in dtypes
            for mode in more
        ]
        for kind, mode, share in tries:
            room = memory["free"] / MARGIN
            if needs(kind, mode, 1, share**2) > room:
                continue
            batches = range(self._batch, 0, -1)
            if isinstance(s, VideoSettings) and s.batch is None and device.type == "cuda":
                batches = range(s.steps, 0, -1)  # as a run chooses it
            batch = next(b for b in batches if needs(kind, mode, b, share**2) <= room)
            size = [max(64, int(side * share) // MULTIPLE * MULTIPLE) for side in self.working]
            flags = [f"--dtype {kind}"] * (kind != dtype) + [f"--offload {mode}"] * (
                mode != s.offload
            )
            flags += [f"--batch {batch}"] * (batch < self._batch)
            shape = f"{size[0]}x{size[1]}" if isinstance(s.size, tuple) else f"{max(size)}"
            flags += [f"--size {shape}"] * (share < 1)
            picks = {
                "device": str(device),
                "dtype": kind,
                "offload": mode,
                "batch": batch,
                "size": size,
            }
            return picks | {"flags": " ".join(flags)}
        return None

    def _time(
        self,
        device: "torch.device",
        dtype: "torch.dtype",
        fits: bool,
        measure: Callable[[Any, Any], dict[str, float]],
    ) -> Event | None:
        """Seconds of all, from a measured step; also into each of the inputs."""
        why = "" if self.probe else "by --no-probe"
        if self.missing:
            why = f"until {', '.join(self.missing)} is downloaded"
        elif self.probe and not fits:
            why = "as the request does not fit"
        for i in self.inputs:
            i["seconds"] = None
        if why:
            self.notes.append(f"no time measured, {why}")
            return None
        took = measure(device, dtype)
        for i in self.inputs:
            share = _area(i["working"]) / _area(self.working)
            if i["windows"] is not None:
                each = (
                    i["frames"] * (took["encode"] + took["decode"])
                    + i["windows"] * self.r.s.steps * took["evaluation"]
                )
                i["seconds"] = round(each * share, 3)
        total = _sum(self.inputs, "seconds")
        self.notes.append(
            "time without reading and writing"
            + ("" if total is not None else "; not of all videos")
        )
        return {"seconds": None if total is None else round(total + took["load"], 3), **took}


# --- the probe ---------------------------------------------------------------------------------


def _time_picture(
    p: _Planner, r: ImageRequest, device: "torch.device", dtype: "torch.dtype"
) -> dict[str, float]:
    """Load, and stylize the largest picture in at most two steps."""
    begin = time.monotonic()
    pipeline = load_images(r, device, dtype, p.notes.append)
    source = read_source(r.sources[r.sizes.index(p.working)], side=max(p.working))
    picture = seen(source, fit_to(*source.size, p.working))
    short = r.s.model_copy(update={"steps": min(2, r.s.steps)})
    load = _now(pipeline) - begin
    for _ in range(2):  # the first time much is prepared
        marks = [_now(pipeline)]

        def mark(number: int, marks: list[float] = marks) -> None:
            marks.append(_now(pipeline))

        pipeline.stylize(picture, short, r.schedule, mark)
        marks.append(_now(pipeline))
        if marks[-1] - marks[0] > SLOW:
            break
    step = marks[-2] - marks[-3]  # with one step this holds the encoder, too
    return _rounded(
        load=load,
        encode=max(0.0, marks[1] - marks[0] - step),
        evaluation=step,
        decode=marks[-1] - marks[-2],
    )


def _time_windows(
    p: _Planner, r: VideoRequest, device: "torch.device", dtype: "torch.dtype"
) -> dict[str, float]:
    """Load, and put one window of the largest video through a step."""
    import torch
    from PIL import Image

    begin = time.monotonic()
    pipeline = load_video(r, device, dtype, p.notes.append)
    conditions = pipeline.prepare(r.s, r.schedule, p.working)
    frame = Image.new("RGB", p.working, (128, 128, 128))
    load = _now(pipeline) - begin
    latent = pipeline.encode(frame)
    batch = r.s.batch or pipeline.windows_at_once(conditions, r.window)
    windows = torch.stack([torch.stack([latent] * r.window, 1)] * batch)  # (B, C, F, h, w)

    numbers = [range(r.window)] * batch

    def timed(work: Callable[[], object]) -> float:
        for _ in range(2):  # the first time much is prepared
            start = _now(pipeline)
            work()
            took = _now(pipeline) - start
            if took > SLOW:
                break
        return took

    def predicted() -> object:
        return pipeline.predict(conditions, windows, [0] * batch, numbers)

    return _rounded(
        load=load,
        encode=timed(lambda: pipeline.encode(frame)),
        evaluation=timed(predicted) / batch,
        decode=timed(lambda: pipeline.decode(latent)),
    )


def _now(pipeline: "Pipeline") -> float:
    """The time when all work so far is done."""
    if pipeline.device.type == "cuda":
        import torch

        torch.cuda.synchronize(pipeline.device)
    return time.monotonic()


def _rounded(**seconds: float) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


# --- the device --------------------------------------------------------------------------------


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
    """As its maker calls it."""
    import platform

    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{'Apple GPU' if device.type == 'mps' else platform.processor() or platform.machine()}"
