"""What a request takes on several devices: its units, how evenly they share the work, and what the
loss of a worker costs. Nothing is computed or written; the frames of videos are read once for their
cuts."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from std_cli.events import OnEvent, Plan, PlannedSpread
from std_cli.spread.devices import gpus_here, parse_devices
from std_cli.spread.pictures import chunks_of
from std_cli.spread.shards import parse_shard
from std_cli.spread.units import Unit, find_units, rounds, shared_out
from std_cli.stylize import video_run
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.videos import VideoRequest


def how_many(devices: str | None, shard: str | None) -> int | None:
    """The number of workers of --devices, or of jobs of --shard; None where neither is given.

    The GPUs need not be here. Raises InputError for what is neither, and for "all" on a machine
    without a GPU.
    """
    if devices is not None:
        wanted = parse_devices(devices)
        return wanted.count or len(gpus_here(wanted))
    return None if shard is None else parse_shard(shard, os.environ).of


def plan_spread(
    devices: int, on_event: OnEvent
) -> Callable[[VideoRequest | ImageRequest, Plan], None]:
    """What `plan_video` and `plan_images` call to add "spread" to their plan."""

    def add(request: VideoRequest | ImageRequest, plan: Plan) -> None:
        if isinstance(request, ImageRequest):
            plan["spread"] = _of_pictures(request, devices, plan)
            return
        if not plan["downloaded"]:
            plan["notes"].append("units are known when the model is downloaded")
            return
        plans = find_units(request, devices, None, on_event, resume=False)
        units = [unit for each in plans for unit in each.units]
        frames = sum(each.frames for each in plans)
        plan["spread"] = _of_videos(units, frames, devices, request, plan)

    return add


def _of_pictures(request: ImageRequest, devices: int, plan: Plan) -> PlannedSpread:
    """Pictures are counted as alike. A worker that is lost costs the picture that it is at."""
    chunks, pictures = chunks_of(request, devices), len(request.jobs)
    longest = max(sum(c.frames for c in part) for part in shared_out(chunks, devices))
    time = plan["time"]
    of_picture = None
    if time is not None and time["seconds"] is not None:
        of_picture = (time["seconds"] - time["load"]) / pictures
    sources = [job.source for job in request.jobs if isinstance(job.source, Path)]
    return {
        "devices": devices,
        "units": len(chunks),
        "pieces": 0,
        "computed": pictures,
        "speedup": round(pictures / longest, 2),
        "seconds": None
        if of_picture is None or time is None
        else round(longest * of_picture + time["load"], 1),
        "copied": sum(source.stat().st_size for source in sources),
        "lost": 1,
        "lost_seconds": None if of_picture is None else round(of_picture, 1),
    }


def _of_videos(
    units: list[Unit], frames: int, devices: int, request: VideoRequest, plan: Plan
) -> PlannedSpread:
    """Frames are counted as alike, but those of units that only decode what others denoised."""
    time = plan["time"]
    of_frame = time["seconds"] / frames if time and time["seconds"] is not None else None
    of_decoding = time["decode"] if time else 0.0
    longest, computed = 0.0, 0
    for together in rounds(units):
        share = max(sum(u.frames for u in part) for part in shared_out(together, devices))
        passes = bool(together[0].of)
        longest += share * (of_decoding if passes else of_frame or 1.0)
        computed += 0 if passes else sum(unit.frames for unit in together)
    of_shot = Counter((unit.output, unit.shot) for unit in units if not unit.of)
    alone = frames * (of_frame or 1.0)
    begun = min(video_run.SEGMENT, max(unit.frames for unit in units))
    return {
        "devices": devices,
        "units": len(units),
        "pieces": sum(count for count in of_shot.values() if count > 1),
        "computed": computed,
        "speedup": round(alone / longest, 2),
        "seconds": None if of_frame is None or time is None else round(longest + time["load"], 1),
        "copied": devices * sum(job.source.stat().st_size for job in request.jobs),
        "lost": begun,
        "lost_seconds": None if of_frame is None else round(begun * of_frame, 1),
    }
