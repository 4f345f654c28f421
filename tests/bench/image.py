"""`stylize_image` against the plain diffusers snippet, on the same pictures:
`python -m tests.bench.image`.

A process each, a second of one and a second of the other in turn. Prints seconds per picture (the
first, and the median of the others), the whole process's, the share of the time that is not UNet or
VAE, and the peak RSS.
"""

import argparse
import json
import resource
import sys
import time
from functools import partial

import numpy as np

from tests.bench.turns import in_turns


def photos(count, side):
    from PIL import Image
    from skimage import data

    return [
        Image.fromarray(data.astronaut()).resize((side, side)).rotate(90 * i) for i in range(count)
    ]


class Clock:
    """Prints a line when the pipeline is loaded and one after each picture; at the end, facts."""

    def __init__(self):
        self.inside = 0.0  # seconds in UNet and VAE

    def loaded(self, pipe):
        for owner, name in ((pipe.unet, "forward"), (pipe.vae, "encode"), (pipe.vae, "decode")):
            setattr(owner, name, partial(self._timed, getattr(owner, name)))
        self.begin = time.perf_counter()
        self.tick()

    def _timed(self, call, *a, **k):
        begin = time.perf_counter()
        try:
            return call(*a, **k)
        finally:
            self.inside += time.perf_counter() - begin

    def tick(self):
        print("done", flush=True)

    def facts(self):
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps(
                {"outside": 1 - self.inside / (time.perf_counter() - self.begin), "rss": rss}
            )
        )


def snippet(pictures, reference, clock):
    """The snippet as a user would write it: load, then one call per picture, the reference given
    each time."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline, TCDScheduler

    from std_cli.weights.resolve import resolve_model

    folder = resolve_model("tiny").base
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.scheduler = TCDScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="leading", steps_offset=1
    )
    pipe.load_ip_adapter(
        str(folder),
        subfolder="ip_adapter",
        weight_name="ip-adapter-plus_tiny.safetensors",
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale(1.0)
    pipe.set_progress_bar_config(disable=True)
    clock.loaded(pipe)
    for picture in pictures:
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
        clock.tick()


def ours(pictures, reference, clock):
    from std_cli.stylize import stylizer

    load = stylizer.load_pipeline

    def hooked(*a):
        pipeline = load(*a)
        clock.loaded(pipeline.pipe)
        return pipeline

    stylizer.load_pipeline = hooked
    work = {
        "lora": "none",
        "steps": 8,
        "cfg": 3.0,
        "dtype": "fp32",
        "palette": 0.0,
    }  # the snippet's
    for _ in stylizer.stylize_images(
        pictures, reference, model="tiny", size=pictures[0].size, output_size="model", **work
    ):
        clock.tick()


def measure(which, count, side):
    from PIL import Image

    reference = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8))
    clock = Clock()
    {"snippet": snippet, "ours": ours}[which](photos(count, side), reference, clock)
    clock.facts()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--one", choices=["snippet", "ours"])
    p.add_argument("--count", type=int, default=8)
    p.add_argument("--side", type=int, default=256)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    if a.one:
        return measure(a.one, a.count, a.side)
    found = {"snippet": [], "ours": []}
    for i in range(a.rounds):
        one = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.bench.image",
            "--count",
            str(a.count),
            "--side",
            str(a.side),
        ]
        names = list(found)[:: 1 if i % 2 else -1]
        for which, lines in in_turns({which: [*one, "--one", which] for which in names}).items():
            *times, facts = lines
            load, *pictures = np.diff([0.0, *(t for t, _ in times)])
            parts = {
                "load": load,
                "first": pictures[0],
                "warm": np.median(pictures[1:]),
                "all": times[-1][0],
            }
            found[which].append(parts | json.loads(facts[1]))
    print(f"{a.count} pictures of {a.side} x {a.side}, 8 steps, CPU, median of {a.rounds}")
    print(
        f"{'':10}{'load s':>9}{'first s':>9}{'warm s':>9}{'all s':>9}{'outside':>9}{'RSS MiB':>9}"
    )
    for which, rounds in found.items():
        load, first, warm, whole, outside, rss = (
            np.median([r[k] for r in rounds]) for k in rounds[0]
        )
        print(f"{which:10}{load:9.2f}{first:9.3f}{warm:9.3f}{whole:9.2f}{outside:9.1%}{rss:9.0f}")
    for key in ("warm", "all", "rss"):
        ratios = [o[key] / s[key] for o, s in zip(found["ours"], found["snippet"], strict=True)]
        print(
            f"ours / snippet, {key}: {np.median(ratios):.3f} ({min(ratios):.3f} to "
            f"{max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
