"""Slices of memory and of exactness: offloading next to what a plan estimates, runs on a GPU that
is too small, half precision against fp32."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bench.gpu import machine, pictures, videos
from tests.bench.gpu.bench import Bench, on_loaded
from tests.bench.gpu.rows import Facts, Row


def offload_rows(bench: Bench) -> Iterator[Row]:
    name, steps, cfg, _ = pictures.kinds(bench.scale)[1]
    clip = bench.scale.clips[len(bench.scale.clips) // 2]
    modes = ("none",) if bench.device.type == "cpu" else ("none", "model", "group", "sequential")
    for mode in modes:
        yield Row(
            f"pictures, {name}, --offload {mode}",
            partial(pictures.own, bench, steps, cfg, "fp16", offload=mode),
        )
    for mode in modes:
        yield Row(
            f"{videos.title(clip, 'auto')}, --offload {mode}",
            partial(videos.own, bench, clip, "auto", 1, offload=mode),
        )


# --- out of memory -----------------------------------------------------------------------------


def small_gpu_rows(bench: Bench) -> Iterator[Row]:
    yield Row("fewer windows at once", partial(_fewer_windows, bench))
    yield Row("the VAE in tiles", partial(_smaller_picture, bench, "tiles"))
    yield Row("--offload model", partial(_smaller_picture, bench, "model"))
    yield Row("--offload sequential", partial(_smaller_picture, bench, "sequential"))


def limits(weights: dict[str, int], activations: dict[str, int]) -> dict[str, int]:
    """Bytes of a GPU on which a picture needs each of the savings."""
    all_weights = sum(weights.values())
    vae = max(activations["vae_encode"], activations["vae_decode"])
    return {
        # more than the UNet's step takes, less than the VAE's
        "tiles": all_weights + activations["unet"] + max(0, vae - activations["unet"]) // 2,
        "model": int(0.9 * all_weights),
        "sequential": int(0.8 * weights["unet"]),
    }


def _smaller_picture(bench: Bench, saving: str) -> Facts:
    """A picture that is made with a saving, against the one that is made without."""
    side = bench.scale.tiled_side
    dtype = bench.runs_in("fp16")
    look = {
        "size": (side, side),
        "output_size": "model",
        "steps": bench.scale.few_steps,
        "cfg": 1.0,
    }
    with bench.stylizer(dtype=dtype) as stylizer:
        whole = stylizer.image(bench.photos(1, side)[0], bench.style, **look)
    bench.close()
    needs = bench.picture_needs(side, guided=False)
    memory = needs.event(dtype)
    limit = limits(memory["weights"], memory["activations"])[saving]
    notices: list[str] = []
    with small(bench, limit, saving), machine.Peak(bench.device) as peak:
        [result] = bench.stylizer(dtype=dtype).images(
            bench.photos(1, side),
            bench.style,
            on_event=lambda e: notices.append(e["message"]) if e["event"] == "notice" else None,
            **look,
        )
    bench.close()
    return _taken(bench, limit, notices) | peak.facts() | difference(whole, result)


def _fewer_windows(bench: Bench) -> Facts:
    """A video with more windows at once than fit."""
    clip, batch = bench.scale.clips[0], bench.scale.batches[-1]
    dtype = bench.runs_in("fp16")
    needs, _ = bench.video_needs(clip.size, bench.scale.frames, clip.steps, clip.cfg, "auto")
    limit = int(needs.needed(dtype, "none", 2) * 1.05)
    bench.close()
    notices: list[str] = []
    with small(bench, limit, "windows"), machine.Peak(bench.device) as peak:
        [result] = bench.stylizer(dtype=dtype, motion="auto").video(
            bench.clip(clip.size, bench.scale.frames),
            bench.style,
            bench.out / "out.mp4",
            overwrite=True,
            resume=False,
            batch=batch,
            on_event=lambda e: notices.append(e["message"]) if e["event"] == "notice" else None,
            **videos.settings(clip),
        )
    bench.close()
    return _taken(bench, limit, notices) | peak.facts() | {"fps": result["fps"]}


def _taken(bench: Bench, limit: int, notices: list[str]) -> Facts:
    """What a run on a small GPU reported. Raises RuntimeError if it had memory enough: the row
    shows nothing then."""
    memory = [notice for notice in notices if "out of memory" in notice]
    if not memory:
        raise RuntimeError(f"nothing ran out of memory at {limit / machine.GIB:.2f} GiB")
    facts: Facts = {"limit GiB": round(limit / machine.GIB, 3)}
    return (facts if bench.device.type == "cuda" else {}) | {"notices": memory}


@contextmanager
def small(bench: Bench, limit: int, saving: str) -> Iterator[None]:
    """A GPU with `limit` bytes; on a CPU networks that run out of memory where that GPU would."""
    with ExitStack() as stack:
        if bench.device.type == "cuda":
            stack.enter_context(machine.memory_limit(bench.device, limit))
        else:
            stack.enter_context(_offload_to_the_cpu())
            stack.enter_context(on_loaded(partial(_run_short, saving)))
        yield


def _run_short(saving: str, pipeline: Any) -> None:
    """Makes the networks of a pipeline on a CPU run out of memory until the saving is taken."""
    savings, unet, vae = pipeline.savings, pipeline.pipe.unet, pipeline.pipe.vae
    if saving == "windows":
        _fail_while(unet, lambda x: len(x) > 1)
    elif saving == "tiles":
        _fail_while(vae.decoder, lambda x: savings.tile is None)
    else:
        _fail_while(unet, lambda x: savings.offload not in (saving, "sequential"))


def _fail_while(module: Any, short: Callable[[torch.Tensor], bool]) -> None:
    forward = module.forward

    def failing(first: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if short(first):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(first, *arguments, **options)

    module.forward = failing


@contextmanager
def _offload_to_the_cpu() -> Iterator[None]:
    """diffusers asks accelerate for "cpu:0", which a tensor that is on the CPU never answers to:
    without the number."""
    import accelerate

    real = accelerate.cpu_offload
    accelerate.cpu_offload = lambda model, device, **o: real(model, torch.device("cpu"), **o)
    try:
        yield
    finally:
        accelerate.cpu_offload = real


# --- precision ---------------------------------------------------------------------------------


def precision_rows(bench: Bench) -> Iterator[Row]:
    for name, steps, cfg, _ in pictures.kinds(bench.scale):
        for dtype in ("fp16", "bf16"):
            yield Row(
                f"{name}, {dtype} against fp32", partial(_precision, bench, steps, cfg, dtype)
            )


def _precision(bench: Bench, steps: int, cfg: float, dtype: str) -> Facts:
    exact = bench.out / "precision" / f"{steps}-{cfg:g}-fp32-{bench.scale.name}.png"
    if not exact.exists():
        exact.parent.mkdir(exist_ok=True)
        with machine.tf32(False):
            _picture(bench, steps, cfg, "fp32").save(exact)
    result = _picture(bench, steps, cfg, dtype)
    result.save(exact.with_name(exact.name.replace("fp32", dtype)))
    return difference(Image.open(exact), result)


def _picture(bench: Bench, steps: int, cfg: float, dtype: str) -> Image.Image:
    side = bench.scale.side
    return bench.stylizer(dtype=dtype).image(
        bench.photos(1)[0],
        bench.style,
        steps=steps,
        cfg=cfg,
        size=(side, side),
        output_size="model",
    )


def difference(one: Image.Image | Path, other: Image.Image) -> Facts:
    """How far two pictures are from each other, in levels of 255 and as PSNR in dB."""
    a, b = (np.asarray(picture, np.float64) for picture in (one, other))
    square = float(np.square(a - b).mean())
    facts: Facts = {"most levels": int(np.abs(a - b).max()), "equal": square == 0}
    return facts | ({"PSNR dB": round(10 * float(np.log10(255**2 / square)), 2)} if square else {})
