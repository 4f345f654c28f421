"""Slices of single networks: products of matrices, the UNet alone, the VAE alone."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL

from std_cli.diffusion import vae as own_vae
from std_cli.diffusion.windows import Wavefront
from std_cli.stylize.load import load_pipeline
from std_cli.stylize.videos import prepare_video
from tests.bench.gpu import machine, work
from tests.bench.gpu.bench import Bench
from tests.bench.gpu.machine import DTYPES
from tests.bench.gpu.rows import Facts, Goal, Row, digits

DECODE_GOAL = Goal("ms", 30)


def matmul_rows(bench: Bench) -> Iterator[Row]:
    for dtype in ("fp16", "bf16", "fp32", "tf32"):
        yield Row(dtype, partial(_matmul, bench, dtype))


def _matmul(bench: Bench, dtype: str) -> Facts:
    if dtype == "tf32" and bench.device.type == "cpu":
        return {"note": "a CPU has no TF32"}
    side = bench.scale.matrix
    rate = machine.matmul_rate(side, dtype, bench.device, bench.scale.seconds)
    return {"side": side, "TFLOP/s": digits(rate / 1e12)}


# --- the VAE -----------------------------------------------------------------------------------


def vae_rows(bench: Bench) -> Iterator[Row]:
    largest = bench.scale.vae_sides[-1]
    for side in bench.scale.vae_sides:
        for dtype in ("fp16", "bf16", "fp32"):
            goal = DECODE_GOAL if side == largest and dtype != "fp32" else None
            for batch in (1, 4):
                name = f"{side} x {side}, {dtype}, batch {batch}"
                yield Row(f"encode {name}", partial(_vae, bench, "encode", side, dtype, batch))
                yield Row(
                    f"decode {name}",
                    partial(_vae, bench, "decode", side, dtype, batch),
                    goal if batch == 1 else None,
                )


def compiled_vae_rows(bench: Bench) -> Iterator[Row]:
    side = bench.scale.vae_sides[-1]
    for dtype in ("fp16", "bf16"):
        yield Row(
            f"VAE, decode {side} x {side}, {dtype}, batch 1, torch.compile",
            partial(_vae, bench, "decode", side, dtype, 1, compile=True),
            DECODE_GOAL,
        )


def _vae(
    bench: Bench, part: str, side: int, dtype: str, batch: int, compile: bool = False
) -> Facts:
    """One call for a batch of pictures; the milliseconds are those of one picture."""
    bench.close()
    kind = DTYPES[bench.runs_in(dtype)]
    vae = AutoencoderKL.from_pretrained(bench.model / "vae", dtype=kind).to(bench.device)
    if bench.device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
    if compile:
        vae.decode = torch.compile(vae.decode)
    pixels = torch.rand(batch, 3, side, side, device=bench.device) * 2 - 1
    with torch.inference_mode(), machine.Peak(bench.device) as peak:
        latents = own_vae.encode(vae, pixels)
        call = (
            partial(own_vae.encode, vae, pixels)
            if part == "encode"
            else partial(own_vae.decode, vae, torch.randn_like(latents))
        )
        finite = bool(torch.isfinite(call()).all())
        spent = machine.seconds_of(call, bench.device, bench.scale.seconds) / batch
    encoding, decoding = work.vae_flop(bench.model, (side, side))
    return {
        "ms": digits(1000 * spent),
        **bench.speed(encoding if part == "encode" else decoding, spent, dtype),
        **peak.facts(),
        "finite": finite,
    }


def vae_precision_rows(bench: Bench) -> Iterator[Row]:
    yield Row("a run in fp16", partial(_chosen, bench))


def _chosen(bench: Bench) -> Facts:
    """What a run in fp16 takes for the VAE, and how long it takes to find out."""
    bench.close()
    vae = AutoencoderKL.from_pretrained(bench.model / "vae", dtype=torch.float16)
    begin = time.perf_counter()
    chosen = own_vae.choose_precision(vae, bench.device)
    return {"precision": str(chosen), "seconds": round(time.perf_counter() - begin, 3)}


# --- the loop ----------------------------------------------------------------------------------


def loop_rows(bench: Bench) -> Iterator[Row]:
    for motion in ("none", "auto"):
        yield Row(f"the loop of a video, --motion {motion}", partial(_loop, bench, motion))


def _loop(bench: Bench, motion: str) -> Facts:
    """The denoising loop where CUDA makes an error of everything that waits for the GPU."""
    clip = bench.scale.clips[0]
    pipeline, conditions, window = _video_pipeline(bench, motion, clip.size, "fp16", False)
    frames = 2 * window
    latents = torch.randn(frames, *conditions.latent_shape).to(bench.device, pipeline.dtype)

    def run() -> int:
        predict, step = (partial(f, conditions) for f in (pipeline.predict, pipeline.step))
        wave = Wavefront(window, max(1, window // 2), bench.scale.few_steps, predict, step, 2)
        done = 0
        for latent in latents:
            wave.push(pipeline.add_noise(conditions, latent))
            done += sum(len(finished) for finished in wave.work())
        wave.end()
        return done + sum(len(finished) for finished in wave.work())

    run()  # kernels are chosen and loaded
    cuda = bench.device.type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    try:
        if cuda:
            torch.cuda.set_sync_debug_mode("error")
        done = run()
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode(before)
    if done != frames:
        raise RuntimeError(f"{done} of {frames} frames came out")
    return {"frames": done, "waits": 0} if cuda else {"frames": done, "note": "not a GPU"}


# --- the UNet ----------------------------------------------------------------------------------


def unet_rows(bench: Bench) -> Iterator[Row]:
    clip = bench.scale.clips[0]
    square = (bench.scale.side, bench.scale.side)
    for dtype in ("fp16", "bf16"):
        for batch in bench.scale.batches:
            name = f"{square[0]} x {square[1]}, {dtype}, batch {batch}"
            yield Row(f"UNet {name}", partial(_unet, bench, "none", square, dtype, batch))
    for batch in bench.scale.batches:
        name = f"{clip.size[0]} x {clip.size[1]}, fp16, {batch} windows"
        yield Row(f"motion UNet {name}", partial(_unet, bench, "auto", clip.size, "fp16", batch))


def compiled_unet_rows(bench: Bench) -> Iterator[Row]:
    square = (bench.scale.side, bench.scale.side)
    yield Row(
        f"UNet {square[0]} x {square[1]}, fp16, batch 1, --compile",
        partial(_unet, bench, "none", square, "fp16", 1, compile=True),
    )


def _unet(
    bench: Bench,
    motion: str,
    size: tuple[int, int],
    dtype: str,
    batch: int,
    compile: bool = False,
) -> Facts:
    """One evaluation of a batch of windows without guidance, as videos call it; the milliseconds
    are those of one window, which is one frame without the motion adapter."""
    pipeline, conditions, window = _video_pipeline(bench, motion, size, dtype, compile)
    channels, height, width = conditions.latent_shape
    latents = torch.randn(batch, channels, window, height, width)
    latents = latents.to(bench.device, pipeline.dtype)
    frames = [range(window)] * batch

    def call() -> Any:
        return pipeline.predict(conditions, latents, [0] * batch, frames)

    with machine.Peak(bench.device) as peak:
        spent = machine.seconds_of(call, bench.device, bench.scale.seconds) / batch
    flop = work.unet_flop(bench.model, size, window, motion != "none")
    return {
        "ms": digits(1000 * spent),
        **bench.speed(flop, spent, dtype),
        **peak.facts(),
    }


def _video_pipeline(
    bench: Bench, motion: str, size: tuple[int, int], dtype: str, compile: bool
) -> tuple[Any, Any, int]:
    """(pipeline, conditions, frames of a window)."""
    request = prepare_video(
        bench.clip(size, 1),
        bench.style,
        bench.out,
        size=size,
        output_size="model",
        steps=bench.scale.few_steps,
        cfg=1.0,
        existing="note",
        **bench.load_options(motion=motion, dtype=bench.runs_in(dtype), compile=compile),
    )

    pipeline = bench.hold(
        ("pipeline", motion, dtype, compile), lambda: load_pipeline(request, lambda message: None)
    )
    return pipeline, pipeline.prepare(request.s, request.schedule, size), request.window
