"""What a command would take, without its result: `std plan`, and --dry-run of the stylize commands.

The request is checked as for a run, and nothing is downloaded. An estimate is one event,
JSON-ready, with the keys of `events.Plan`. `workload` counts the work, `memory_needs` estimates
the memory, and `probe` measures the time.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from std_cli.diffusion.devices import device_name
from std_cli.diffusion.memory import MARGIN
from std_cli.errors import InputError, NotDownloaded, OutputExists, counted
from std_cli.events import OnEvent, Plan, PlannedInput, PlannedTime, ResolvedSetting
from std_cli.storage.scratch import Scratch
from std_cli.stylize.defaults import Origin, resolved
from std_cli.stylize.memory_needs import MemoryNeeds
from std_cli.stylize.options import ImageOptions, VideoOptions
from std_cli.stylize.outputs import Existing, existing_rule
from std_cli.stylize.pictures import ImageRequest, Output, prepare_images
from std_cli.stylize.probe import time_picture, time_windows
from std_cli.stylize.request import Input, Style
from std_cli.stylize.videos import VideoRequest, prepare_video, stage_threads
from std_cli.stylize.workload import COUNTED, area, part_bytes, picture_inputs, video_input
from std_cli.weights.hub import without_downloads

if TYPE_CHECKING:
    pass

Count = Literal["frames", "shots", "windows", "evaluations", "disk"]
Measure = Callable[[], PlannedTime]


@dataclass
class Found:
    """Finds what is on this machine, and remembers what is not."""

    missing: list[str] = field(default_factory=list)

    def __call__(self, resolve: Callable[..., Any], spec: str, *args: Any, **options: Any) -> Any:
        with without_downloads():
            try:
                return resolve(spec, *args, **options)
            except NotDownloaded:
                self.missing.append(f"{resolve.__name__.removeprefix('resolve_')} {spec}")
                return None

    def notes(self) -> list[str]:
        """What a plan says of what is missing."""
        return [
            f"{what} is not downloaded"
            if "lora" in what
            else f"{what} is not downloaded: estimated as SDXL's"
            for what in self.missing
        ]


def plan_images(
    inputs: Input | Sequence[Input],
    style: Style | Sequence[Style],
    output: Output = None,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = False,
    probe: bool = True,
    origins: Mapping[str, Origin] | None = None,
    on_event: OnEvent = lambda event: None,
    spread: Callable[[ImageRequest, Plan], None] | None = None,
    **options: Unpack[ImageOptions],
) -> Plan:
    """The plan of `stylize_images` with the same arguments; `probe`: load the model and time two
    steps. origins: where the options come from, by name. spread: adds what the request takes on
    several devices.

    Raises the errors that it would raise before it loads a weight, but for outputs that exist,
    which are a note.
    """
    with Scratch(on_event) as scratch:
        found, existing = Found(), _rule(overwrite, skip_existing)
        request = prepare_images(
            inputs,
            style,
            output,
            scratch=scratch,
            existing=existing,
            keep_going=keep_going,
            find=found,
            **options,
        )
        _check_any(request)
        working = max((job.working for job in request.jobs), key=area)
        notes = [*request.notices, *found.notes(), *_left_out(request)]
        settings = _resolved(request, options, origins)
        inputs_planned = picture_inputs(request)
        planner = _Planner(request, settings, found.missing, working, inputs_planned, 1, 0, notes)
        plan = planner.plan(
            request.jobs[0].target,
            probe,
            on_event,
            lambda: time_picture(request, working, notes.append),
        )
        if spread is not None:
            spread(request, plan)
        return cast(Plan, scratch.shown(plan))


def plan_video(
    inputs: str | Path | Sequence[str | Path],
    style: Style | Sequence[Style],
    output: str | Path = ".",
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_going: bool = True,
    probe: bool = True,
    origins: Mapping[str, Origin] | None = None,
    on_event: OnEvent = lambda event: None,
    spread: Callable[[VideoRequest, Plan], None] | None = None,
    **options: Unpack[VideoOptions],
) -> Plan:
    """The plan of `stylize_video` with the same arguments, but for those of its work folder; other
    parameters as of `plan_images`."""
    with Scratch(on_event) as scratch:
        found, existing = Found(), _rule(overwrite, skip_existing)
        request = prepare_video(
            inputs,
            style,
            output,
            scratch=scratch,
            existing=existing,
            keep_going=keep_going,
            find=found,
            **options,
        )
        _check_any(request)
        planned = []
        notices = []
        for job in request.jobs:
            name = job.source.name
            on_event({"event": "progress", "stage": "count", "input": job.name})
            heard = list(job.extras.notices)
            stride = request.window - request.overlap
            planned.append(video_input(job, request.s, request.window, stride, heard.append))
            notices += [notice if name in notice else f"{name}: {notice}" for notice in heard]
        working = max((job.working for job in request.jobs), key=area)
        notes = [*request.notices, *found.notes()]
        if any(each["shots"] is None for each in planned):
            notes.append(
                f"shots of videos of more than {COUNTED} frames are not counted: each has one or "
                "more"
            )
        notes += _left_out(request)
        threads = stage_threads(request)
        if threads is not None:
            notes.append(
                f"on this CPU each stage takes {counted(threads, 'thread')}: the environment "
                "variable OMP_NUM_THREADS sets another number"
            )
        notes += notices
        planner = _Planner(
            request,
            _resolved(request, options, origins),
            found.missing,
            working,
            planned,
            request.window,
            request.overlap,
            notes,
        )
        plan = planner.plan(
            request.jobs[0].target.path,
            probe,
            on_event,
            lambda: _time_windows(request, working, threads, notes.append),
        )
        if spread is not None:
            spread(request, plan)
        return cast(Plan, scratch.shown(plan))


def _time_windows(
    request: VideoRequest,
    working: tuple[int, int],
    threads: int | None,
    on_notice: Callable[[str], None],
) -> PlannedTime:
    from std_cli.diffusion.threads import torch_threads

    with torch_threads(threads):
        return time_windows(request, working, on_notice)


def _resolved(
    request: ImageRequest | VideoRequest,
    given: Mapping[str, object],
    origins: Mapping[str, Origin] | None,
) -> dict[str, ResolvedSetting]:
    files = request.files
    pack, pack_name = (files.pack, f"{files.base}/std.json") if files else ({}, "")
    return resolved(request.s, given, origins or {}, pack, pack_name)


def _rule(overwrite: bool, skip_existing: bool) -> Existing:
    rule = existing_rule(overwrite, skip_existing)
    return "note" if rule == "refuse" else rule


def _check_any(request: ImageRequest | VideoRequest) -> None:
    """Raises an error if nothing is left to stylize."""
    if request.jobs:
        return
    if not request.failed:
        raise OutputExists("nothing is left to stylize: all outputs exist (--skip-existing)")
    what = "pictures" if isinstance(request, ImageRequest) else "videos"
    raise InputError(
        f"none of the {len(request.failed)} {what} can be stylized: {request.failed[0]['message']}"
    )


def _left_out(request: ImageRequest | VideoRequest) -> list[str]:
    return [f"{error['input']} is left out: {error['message']}" for error in request.failed]


@dataclass
class _Planner:
    """What both kinds of request have in common."""

    request: ImageRequest | VideoRequest
    settings: dict[str, ResolvedSetting]
    missing: list[str]
    """What is not downloaded."""
    working: tuple[int, int]
    """The largest (width, height) that the network sees."""
    inputs: list[PlannedInput]
    window: int
    overlap: int
    notes: list[str]

    def plan(self, output: Path | None, probe: bool, on_event: OnEvent, measure: Measure) -> Plan:
        """The whole plan; `measure` loads the model and times it."""
        from std_cli.diffusion.devices import choose_device, choose_dtype, name_dtype
        from std_cli.diffusion.out_of_memory import check_offload

        request, settings = self.request, self.request.s
        video = isinstance(request, VideoRequest)
        motion = request.motion if isinstance(request, VideoRequest) else None
        device = choose_device(settings.device)
        check_offload(settings.offload, device)
        dtype = choose_dtype(settings.dtype, device)
        on_event({"event": "progress", "stage": "load", "model": settings.model})
        needs = MemoryNeeds(request, device, self.working, self.window)
        memory = needs.event(name_dtype(dtype))
        fits = memory["modes"][settings.offload] * MARGIN <= memory["free"]
        if memory["loading"] > memory["main_free"]:
            self.notes.append(
                "loading takes more main memory than is free: close other programs, or expect "
                "swapping"
            )
        picks = needs.pick(name_dtype(dtype))
        seconds = self._time(probe, fits, measure)
        size = self._sum("disk")
        raw = (
            max(map(part_bytes, request.jobs), default=0)
            if isinstance(request, VideoRequest)
            else 0
        )
        where = next(p for p in Path(output or ".").absolute().parents if p.is_dir())
        return {
            "event": "plan",
            "task": "video" if video else "image",
            "model": settings.model,
            "downloaded": request.files is not None and not self.missing,
            "lora": request.lora.name if request.lora else None,
            "motion": motion.name if motion else None,
            "device": str(device),
            "device_name": device_name(device),
            "dtype": name_dtype(dtype),
            "steps": settings.steps,
            "guided": settings.cfg > 1,
            "window": self.window,
            "overlap": self.overlap,
            "inputs": self.inputs,
            "frames": self._sum("frames"),
            "shots": self._sum("shots"),
            "windows": self._sum("windows"),
            "evaluations": self._sum("evaluations"),
            "memory": memory,
            "disk": {
                "free": shutil.disk_usage(where).free,
                # of a video the parts, and the result that they are joined to; the frames at hand
                "needed": size * (2 if video else 1) + raw if size is not None else None,
                "where": str(where),
            },
            "time": seconds,
            "fits": fits,
            "picks": picks,
            "settings": self.settings,
            "notes": self.notes,
        }

    def _sum(self, name: Count) -> int | None:
        """Of all inputs; None where one is not known."""
        total = 0
        for each in self.inputs:
            value = each[name]
            if value is None:
                return None
            total += value
        return total

    def _time(
        self,
        probe: bool,
        fits: bool,
        measure: Measure,
    ) -> PlannedTime | None:
        """Seconds of all, from a measured step; also entered into each of the inputs."""
        reason = "" if probe else "by --no-probe"
        if self.missing:
            reason = f"until {', '.join(self.missing)} is downloaded"
        elif probe and not fits:
            reason = "as the request does not fit"
        for each in self.inputs:
            each["seconds"] = None
        if reason:
            self.notes.append(f"no time measured, {reason}")
            return None
        took = measure()
        total: float | None = took["load"]
        for each in self.inputs:
            frames, windows = each["frames"], each["windows"]
            if frames is None or windows is None:
                total = None
                continue
            s = self.request.s
            # the measured step is a guided one where there are any
            evaluations = s.steps + len(s.unconditional_steps)
            steps = evaluations / 2 if s.guided_steps else s.steps
            whole = frames * (took["encode"] + took["decode"])
            whole += windows * steps * took["evaluation"]
            seconds = round(whole * area(each["working"]) / area(self.working), 3)
            each["seconds"] = seconds
            total = total + seconds if total is not None else None
        self.notes.append(
            "time without reading and writing"
            + ("" if total is not None else "; not of all videos")
        )
        took["seconds"] = round(total, 3) if total is not None else None
        return took
