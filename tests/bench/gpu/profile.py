"""Slice of profiles: what the device does, kernel by kernel, and for how much of the time."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity

from tests.bench.gpu import pictures, videos
from tests.bench.gpu.bench import Bench
from tests.bench.gpu.rows import Facts, Row, digits


def rows(bench: Bench) -> Iterator[Row]:
    name, steps, cfg, _ = pictures.kinds(bench.scale)[0]
    yield Row(f"a picture, {name}", partial(_picture, bench, steps, cfg))
    clip = bench.scale.clips[0]
    yield Row(videos.title(clip, "auto"), partial(_video, bench))


def _picture(bench: Bench, steps: int, cfg: float) -> Facts:
    stylizer = bench.stylizer(dtype=bench.runs_in("fp16"))
    side = bench.scale.side
    look = {"steps": steps, "cfg": cfg, "size": (side, side), "output_size": "model"}
    [picture] = bench.photos(1)

    def work() -> None:
        stylizer.image(picture, bench.style, **look)

    return _profiled(bench, "picture", work)


def _video(bench: Bench) -> Facts:
    stylizer = bench.stylizer(dtype=bench.runs_in("fp16"), motion="auto")
    clip = bench.scale.clips[0]
    source, out = bench.clip(clip.size, bench.scale.frames), bench.out / "out.mp4"

    def work() -> None:
        how = {"overwrite": True, "resume": False, "batch": 4, **videos.settings(clip)}
        stylizer.video(source, bench.style, out, **how)

    return _profiled(bench, "video", work)


def _profiled(bench: Bench, name: str, work: Callable[[], None]) -> Facts:
    """The table of the work in `profile-NAME.txt`, and the share of the time during which the
    device works. The profiler slows the processor down: without it the share is higher."""
    cuda = bench.device.type == "cuda"
    work()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    begin = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        work()
    seconds = time.perf_counter() - begin
    found = profile.key_averages()
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    file = bench.out / f"profile-{name}.txt"
    file.write_text(found.table(sort_by=by, row_limit=60), encoding="utf-8")
    facts: Facts = {"seconds": round(seconds, 3), "file": file.name}
    if cuda:
        busy = sum(each.self_device_time_total for each in found) / 1e6  # microseconds
        facts["device busy"] = digits(busy / seconds)
    return facts
