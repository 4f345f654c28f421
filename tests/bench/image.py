"""`stylize_image` beside the plain diffusers snippet, a process each, the same pictures: `python -m tests.bench.image`.

Prints seconds per picture (the first, and the median of the others), the whole process's, the share of the time that is
not UNet or VAE, and the peak RSS.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

import numpy as np


def photos(count, side):
    from PIL import Image
    from skimage import data

    return [Image.fromarray(data.astronaut()).resize((side, side)).rotate(90 * i) for i in range(count)]


def timed_parts(pipe):
    """Seconds in UNet and VAE, summed by hooks on the modules of a pipeline."""
    spent = {"seconds": 0.0}
    for owner, name in ((pipe.unet, "forward"), (pipe.vae, "encode"), (pipe.vae, "decode")):

        def wrapped(*a, call, **k):
            begin = time.perf_counter()
            try:
                return call(*a, **k)
            finally:
                spent["seconds"] += time.perf_counter() - begin

        setattr(owner, name, partial(wrapped, call=getattr(owner, name)))
    return spent


def snippet(pictures, reference):
    """The snippet as a user would write it: load, then one call per picture, the reference given each time."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler

    from std_cli.weights import resolve_model

    begin = time.perf_counter()
    folder = resolve_model("tiny").base
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading", steps_offset=1)
    pipe.load_ip_adapter(
        str(folder), subfolder="ip_adapter", weight_name="ip-adapter-plus_tiny.safetensors", image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale(1.0)
    pipe.set_progress_bar_config(disable=True)
    spent, times = timed_parts(pipe), [time.perf_counter() - begin]
    for picture in pictures:
        begin = time.perf_counter()
        pipe(
            prompt="",
            negative_prompt="",
            num_inference_steps=11,
            guidance_scale=3.0,
            strength=0.75,
            image=picture,
            ip_adapter_image=reference,
            generator=torch.Generator("cpu").manual_seed(0),
        )
        times.append(time.perf_counter() - begin)
    return times, spent["seconds"]


def ours(pictures, reference):
    from std_cli import pipeline, stylize_images

    found = {}
    stylize = pipeline.ImagePipeline.stylize

    def hooked(self, *a, **k):
        if "spent" not in found:
            found["spent"] = timed_parts(self.pipe)
        return stylize(self, *a, **k)

    pipeline.ImagePipeline.stylize = hooked
    times, begin = [], time.perf_counter()
    for event in _events(stylize_images, pictures, reference):
        if event["event"] == "progress" and event.get("step") == 0 and not times:
            times.append(time.perf_counter() - begin)
        if event["event"] == "result":
            times.append(event["seconds"])
    return times, found["spent"]["seconds"]


def _events(run, pictures, reference):
    events = []
    for _ in run(pictures, reference, model="tiny", size=pictures[0].size, on_event=events.append):
        yield from events
        events.clear()


def measure(which, count, side):
    from PIL import Image

    reference = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8))
    begin = time.perf_counter()
    times, inside = {"snippet": snippet, "ours": ours}[which](photos(count, side), reference)
    wall, work = time.perf_counter() - begin, sum(times[1:])
    print(
        json.dumps(
            {
                "load": times[0],
                "first": times[1],
                "warm": float(np.median(times[2:])),
                "total": wall,
                "outside": 1 - inside / work,
                "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--one", choices=["snippet", "ours"])
    p.add_argument("--count", type=int, default=8)
    p.add_argument("--side", type=int, default=256)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    if a.one:
        return measure(a.one, a.count, a.side)
    results = {"snippet": [], "ours": []}
    for i in range(a.rounds):  # in turn, the order changing, so that what else the machine does falls on both
        for which in ("snippet", "ours")[:: 1 if i % 2 else -1]:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.bench.image",
                "--one",
                which,
                "--count",
                str(a.count),
                "--side",
                str(a.side),
            ]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[which].append(json.loads(out.splitlines()[-1]))
    print(f"{a.count} pictures of {a.side} x {a.side}, 8 steps, CPU, median of {a.rounds}")
    print(f"{'':10}{'load s':>9}{'first s':>9}{'warm s':>9}{'all s':>9}{'outside':>9}{'RSS MiB':>9}")
    median = {w: {k: float(np.median([r[k] for r in rs])) for k in rs[0]} for w, rs in results.items()}
    for which, m in median.items():
        print(
            f"{which:10}{m['load']:9.2f}{m['first']:9.3f}{m['warm']:9.3f}{m['total']:9.2f}{m['outside']:9.1%}{m['rss']:9.0f}"
        )
    for key in ("warm", "total", "rss"):
        print(f"ours / snippet, {key}: {median['ours'][key] / median['snippet'][key]:.3f}")


if __name__ == "__main__":
    main()
