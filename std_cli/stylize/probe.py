"""The time that a request takes, measured: its model is loaded and put through a step or two."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from std_cli.events import PlannedTime
from std_cli.media.fit import fit_to, seen
from std_cli.stylize.load import load_pipeline
from std_cli.stylize.pictures import ImageRequest
from std_cli.stylize.request import read_source
from std_cli.stylize.videos import VideoRequest

if TYPE_CHECKING:
    from std_cli.diffusion.pipeline import Pipeline

SLOW = 10.0
"""Seconds. What took longer is not timed a second time, though the first time has preparations in
it."""


def time_picture(
    request: ImageRequest,
    working: tuple[int, int],
    on_notice: Callable[[str], None],
) -> PlannedTime:
    """Load the model, and stylize the picture of the size `working` in at most two steps."""
    begin = time.monotonic()
    pipeline = load_pipeline(request, on_notice)
    largest = next(job for job in request.jobs if job.working == working)
    source = read_source(largest.source, side=max(working))
    picture = seen(source, fit_to(*source.size, working))
    fewer = {"steps": min(2, request.s.steps), "cfg_steps": None, "cfg_every": 1}
    short = request.s.model_copy(update=fewer)
    load = _now(pipeline) - begin
    for _ in range(2):
        marks = [_now(pipeline)]

        def mark(number: int, marks: list[float] = marks) -> None:
            marks.append(_now(pipeline))

        pipeline.stylize(picture, short, request.schedule, mark)
        marks.append(_now(pipeline))
        if marks[-1] - marks[0] > SLOW:
            break
    step = marks[-2] - marks[-3]  # with one step this holds the encoder, too
    encode = max(0.0, marks[1] - marks[0] - step)
    return _times(load, encode, step, marks[-1] - marks[-2])


def time_windows(
    request: VideoRequest,
    working: tuple[int, int],
    on_notice: Callable[[str], None],
) -> PlannedTime:
    """Load the model, and put one window of frames of the size `working` through a step."""
    import torch
    from PIL import Image

    begin = time.monotonic()
    pipeline = load_pipeline(request, on_notice)
    conditions = pipeline.prepare(request.s, request.schedule, working)
    frame = Image.new("RGB", working, (128, 128, 128))
    load = _now(pipeline) - begin
    latent = pipeline.encode(frame)
    batch = request.s.batch or pipeline.windows_at_once(conditions, request.window)
    window = torch.stack([latent] * request.window, 1)
    windows = torch.stack([window] * batch)  # (B, C, F, h, w)
    numbers = [range(request.window)] * batch

    def seconds(run: Callable[[], object]) -> float:
        for _ in range(2):
            start = _now(pipeline)
            run()
            took = _now(pipeline) - start
            if took > SLOW:
                break
        return took

    return _times(
        load,
        seconds(lambda: pipeline.encode(frame)),
        seconds(lambda: pipeline.predict(conditions, windows, [0] * batch, numbers)) / batch,
        seconds(lambda: pipeline.decode(latent)),
    )


def _now(pipeline: "Pipeline") -> float:
    """The time when all work so far is done."""
    if pipeline.device.type == "cuda":
        import torch

        torch.cuda.synchronize(pipeline.device)
    return time.monotonic()


def _times(load: float, encode: float, evaluation: float, decode: float) -> PlannedTime:
    return {
        "seconds": None,
        "load": round(load, 4),
        "encode": round(encode, 4),
        "evaluation": round(evaluation, 4),
        "decode": round(decode, 4),
    }
