"""Slices of videos: every size with and without the motion adapter, with more and more windows at
once, next to a loop as one would write it on diffusers."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import av
import numpy as np

from std_cli.media.video.clip import Pixels, Seen
from std_cli.media.video.quality import Quality
from std_cli.media.video.steady import AHEAD, Steady
from tests.bench import video as plain_video
from tests.bench.gpu import machine, work
from tests.bench.gpu.bench import Bench
from tests.bench.gpu.rows import Facts, Goal, Row
from tests.bench.gpu.scale import Clip

GOALS = {"small": Goal("fps", 40, at_least=True), "large": Goal("fps", 2.5, at_least=True)}
"""Of videos with the motion adapter."""


def rows(bench: Bench, clip: Clip, motion: str) -> Iterator[Row]:
    goal = GOALS.get(clip.name) if motion == "auto" else None
    for batch in bench.scale.batches:
        name = f"{title(clip, motion)}, --batch {batch}"
        yield Row(name, partial(own, bench, clip, motion, batch), goal)
    name = f"{title(clip, motion)}, --batch not given"
    yield Row(name, partial(own, bench, clip, motion, None), goal)
    yield Row(f"{title(clip, motion)}, the plain loop", partial(_plain, bench, clip, motion))


def compiled_rows(bench: Bench) -> Iterator[Row]:
    clip = bench.scale.clips[0]
    for motion in ("none", "auto"):
        goal = GOALS.get(clip.name) if motion == "auto" else None
        name = f"{title(clip, motion)}, --batch 4, --compile"
        yield Row(name, partial(own, bench, clip, motion, 4, compile=True), goal)


def processor_rows(bench: Bench) -> Iterator[Row]:
    """What the processor does for each frame next to the GPU, which may be what bounds a video."""
    for clip in bench.scale.clips:
        size = f"{clip.size[0]} x {clip.size[1]}"
        goal = GOALS.get(clip.name)
        for ahead in (0, AHEAD):
            name = f"{size}, --steady, {ahead} frames ahead"
            yield Row(name, partial(_steady, bench, clip, ahead), goal)
        yield Row(f"{size}, the figures of quality", partial(_quality, bench, clip), goal)


def _frames(bench: Bench, clip: Clip) -> list[Pixels]:
    with av.open(str(bench.clip(clip.size, bench.scale.frames))) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def _steady(bench: Bench, clip: Clip, ahead: int) -> Facts:
    """The filter alone, its flows announced so many frames ahead, as by a run on a GPU."""
    frames, steady = _frames(bench, clip), Steady(0.75)
    cover = np.full(frames[0].shape[:2], 255, np.uint8)
    seen = [Seen(frame, cover, 0, 0.04) for frame in frames]
    levels = [frame[::-1].astype(np.float32) for frame in frames]
    begin = time.perf_counter()
    for i, each in enumerate(seen):
        for announced in seen[0 if i == 0 else i + ahead : i + ahead + 1] if ahead else ():
            steady.expect(announced)
        steady(each, levels[i])
    return _rate(len(frames), begin)


def _quality(bench: Bench, clip: Clip) -> Facts:
    frames, quality = _frames(bench, clip), Quality()
    begin = time.perf_counter()
    for frame in frames:
        quality.add(frame, frame[::-1], joint=False, shot=0)
    return _rate(len(frames), begin)


def _rate(frames: int, begin: float) -> Facts:
    seconds = time.perf_counter() - begin
    return {"fps": round(frames / seconds, 2), "ms": round(1000 * seconds / frames, 1)}


def title(clip: Clip, motion: str) -> str:
    width, height = clip.size
    guidance = f"CFG {clip.cfg:g}" if clip.cfg > 1 else "no CFG"
    adapter = "motion adapter" if motion == "auto" else "frame by frame"
    return f"{width} x {height}, {clip.steps} steps, {guidance}, fp16, {adapter}"


def settings(clip: Clip) -> dict[str, Any]:
    """Options of a clip for std."""
    return {
        "size": clip.size,
        "output_size": "model",
        "steps": clip.steps,
        "cfg": clip.cfg,
        "cuts": "off",
    }


def own(
    bench: Bench,
    clip: Clip,
    motion: str,
    batch: int | None,
    compile: bool = False,
    offload: str = "none",
) -> Facts:
    """A clip through a Stylizer that has made one before: a window of frames, or with --compile
    the whole clip, whose shapes are all compiled then."""
    frames = bench.scale.frames
    source = bench.clip(clip.size, frames)
    dtype = bench.runs_in("fp16")
    stylizer = bench.stylizer(dtype=dtype, motion=motion, compile=compile, offload=offload)
    notices: list[str] = []
    how = {"overwrite": True, "resume": False, "batch": batch, **settings(clip)}
    out = bench.out / "out.mp4"
    [before] = stylizer.video(source, bench.style, out, max_frames=frames if compile else 8, **how)
    with machine.Peak(bench.device) as peak:
        [result] = stylizer.video(
            source,
            bench.style,
            out,
            on_event=lambda e: notices.append(e["message"]) if e["event"] == "notice" else None,
            **how,
        )
    needs, evaluations = bench.video_needs(clip.size, frames, clip.steps, clip.cfg, motion)
    flop = evaluations * work.unet_flop(bench.model, clip.size, needs.window, motion != "none")
    flop += frames * sum(work.vae_flop(bench.model, clip.size))
    facts: Facts = {
        "fps": result["fps"],
        "frames": frames,
        "first seconds": before["seconds"],
        **bench.speed(flop, result["seconds"], "fp16"),
        **peak.facts(needs.needed(dtype, offload, batch) if batch is not None else None),
    }
    return facts | ({"notices": notices} if notices else {})


def _plain(bench: Bench, clip: Clip, motion: str) -> Facts:
    bench.close()
    source = bench.clip(clip.size, bench.scale.frames)
    options = settings(clip) | bench.load_options(dtype=bench.runs_in("fp16"), motion=motion)
    with machine.Peak(bench.device) as peak:
        seconds, outside = plain_video.plain(
            source, bench.style, bench.out / "plain.mp4", options, lambda: None
        )
    return {
        "fps": round(bench.scale.frames / seconds, 3),
        "frames": bench.scale.frames,
        **peak.facts(),
        "outside the networks": round(outside, 3),
    }
