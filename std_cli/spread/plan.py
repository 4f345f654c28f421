"""What a video takes on several devices: its units, how evenly they share the work, and what the
loss of a worker costs. Nothing is computed or written; the videos' frames are read once for their
cuts."""

from collections import Counter
from collections.abc import Callable

from std_cli.events import OnEvent, Plan, PlannedSpread
from std_cli.spread.devices import Devices, gpus_here, parse_devices
from std_cli.spread.units import Unit, find_units, rounds, shared_out
from std_cli.stylize import video_run
from std_cli.stylize.videos import VideoRequest


def how_many(devices: Devices) -> int:
    """The number of workers that were asked for; the GPUs need not be here. Raises InputError for
    "all" on a machine without a GPU."""
    return devices.count or len(gpus_here(devices))


def plan_spread(given: str, on_event: OnEvent) -> Callable[[VideoRequest, Plan], None]:
    """What `plan_video` calls to add "spread" to its plan, for the devices of `--devices`."""
    devices = how_many(parse_devices(given))

    def add(request: VideoRequest, plan: Plan) -> None:
        if not plan["downloaded"]:
            plan["notes"].append("units are known when the model is downloaded")
            return
        plans = find_units(request, devices, None, on_event, resume=False)
        units = [unit for each in plans for unit in each.units]
        frames = sum(each.frames for each in plans)
        plan["spread"] = _spread(units, frames, devices, request, plan)

    return add


def _spread(
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
