"""`stylize_video` against a loop as one would write it on diffusers: `python -m tests.bench.video`.

A process each, a second of one and a second of the other in turn. The plain loop reads the whole
clip, denoises window after window with the same motion UNet at the same overlap, blends the decoded
windows in pixels, and writes. Printed for each length: frames per second, the share of the time
that is not in UNet or VAE, peak RSS; then the ratios. All on the embedded pack, on generated clips,
on a CPU; tests.bench.gpu measures both on a GPU, with SDXL's shapes.
"""

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from std_cli.media.fit import working_size
from tests.bench.turns import in_turns
from tests.micro import tiny_with_motion


def make_clip(path, frames, size):
    """Coarse noise that pans: hard enough to encode, nothing to learn from."""
    import av
    from PIL import Image

    wide = np.random.default_rng(0).integers(
        0, 256, (size[1] // 8, size[0] // 2, 3), dtype=np.uint8
    )
    wide = np.asarray(
        Image.fromarray(wide).resize((size[0] * 4, size[1]), Image.Resampling.BICUBIC)
    )
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            x = (2 * i) % (size[0] * 3)
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, x : x + size[0]]))
                )
            )
        out.mux(stream.encode())


class Spent:
    """Wall time during which at least one thread is in UNet or VAE."""

    def __init__(self):
        self.seconds, self.inside, self.lock = 0.0, 0, threading.Lock()

    def wrap(self, owner, name):
        call = getattr(owner, name)

        def timed(*a, **k):
            with self.lock:
                if self.inside == 0:
                    self.since = time.perf_counter()
                self.inside += 1
            try:
                return call(*a, **k)
            finally:
                with self.lock:
                    self.inside -= 1
                    if self.inside == 0:
                        self.seconds += time.perf_counter() - self.since

        setattr(owner, name, timed)


def settings(a):
    size = {"size": tuple(a.size), "output_size": "model"}
    return {
        "model": tiny_with_motion(),
        "motion": "auto",
        "steps": a.steps,
        "device": "cpu",
        **size,
    }


def ours(source, reference, out, options, on_begin):
    """(seconds, share of them outside UNet and VAE) of std with these options, once the model is
    loaded, which `on_begin` is called for."""
    from std_cli import stylize_video
    from std_cli.diffusion.video_pipeline import VideoPipeline

    spent, prepare, begun = Spent(), VideoPipeline.prepare, []

    def hooked(self, *args):
        conditions = prepare(self, *args)
        for owner, name in (
            (self.pipe.unet, "forward"),
            (self.pipe.vae, "encode"),
            (self.pipe.vae, "decode"),
        ):
            spent.wrap(owner, name)
        begun.append(time.perf_counter())
        on_begin()
        return conditions

    VideoPipeline.prepare = hooked
    stylize_video(source, reference, out, cuts="off", **options)
    seconds = time.perf_counter() - begun[0]
    return seconds, 1 - spent.seconds / seconds


def plain(source, reference, out, options, on_begin):
    """As `ours`."""
    import av
    import torch
    from PIL import Image

    from std_cli.config import video_settings
    from std_cli.diffusion.devices import choose_device, choose_dtype
    from std_cli.diffusion.video_pipeline import VideoPipeline
    from std_cli.diffusion.windows import blend_weights, window_starts
    from std_cli.weights.motion import resolve_motion
    from std_cli.weights.resolve import resolve_model

    files = resolve_model(options["model"])
    s = video_settings(options, files.pack)
    motion = resolve_motion(s.motion, files)
    device, size = choose_device(s.device), options["size"]
    p = VideoPipeline(files, None, device, choose_dtype(s.dtype, device), motion=motion)
    p.set_style([reference], [1.0], 1.0, s.style_blocks)
    conditions = p.prepare(s, "quickstart", size)
    spent, begin = Spent(), time.perf_counter()
    on_begin()
    for owner, name in ((p.pipe.unet, "forward"), (p.pipe.vae, "encode"), (p.pipe.vae, "decode")):
        spent.wrap(owner, name)
    with av.open(str(source)) as file:
        frames = [f.to_image() for f in file.decode(video=0)]
    length = motion.window if motion else 1
    overlap = length // 2
    total, weight = (
        [np.zeros((size[1], size[0], 3), np.float32) for _ in frames],
        np.zeros(len(frames)),
    )
    for start in window_starts(len(frames), length, length - overlap):
        clip = frames[start : start + length]
        encoded = [p.encode(f.resize(size)) for f in clip]
        latents = torch.stack([p.add_noise(conditions, latent) for latent in encoded], 1)
        numbers = range(start, start + len(clip))
        for k in range(s.steps):
            prediction = p.predict(conditions, latents[None], [k], [numbers])[0]
            frames_first = (x.transpose(0, 1) for x in (prediction, latents))
            latents = p.step(conditions, *frames_first, k).transpose(0, 1)
        for i, w in enumerate(blend_weights(len(clip), overlap)):
            total[start + i] += p.decode(latents[:, i]).astype(np.float32) * w
            weight[start + i] += w
    with av.open(str(out), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for picture, w in zip(total, weight, strict=True):
            image = Image.fromarray((picture / w).round().astype(np.uint8))
            file.mux(stream.encode(av.VideoFrame.from_image(image)))
        file.mux(stream.encode())
    seconds = time.perf_counter() - begin
    return seconds, 1 - spent.seconds / seconds


def measure(a, frames):
    from PIL import Image

    reference = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.mp4"
        make_clip(source, frames, a.size)
        _, outside = {"plain": plain, "ours": ours}[a.one](
            source,
            reference,
            Path(folder) / "out.mp4",
            settings(a),
            lambda: print("begin", flush=True),
        )
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"outside": outside, "rss": rss}), flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--one", choices=["plain", "ours"])
    p.add_argument("--frames", type=int, nargs="+", default=[200, 1000])
    p.add_argument("--size", type=int, nargs=2, default=[128, 72])
    p.add_argument("--steps", type=int, default=4)
    a = p.parse_args()
    if working_size(*a.size, tuple(a.size), 0, False) != tuple(a.size):
        p.error(
            f"--size {a.size}: ours would work at another size than the plain loop: multiples of "
            f"8, 64 at least"
        )
    if a.one:
        return measure(a, a.frames[0])
    print(f"{a.size[0]} x {a.size[1]}, {a.steps} steps")
    print(f"{'frames':>7}{'':8}{'fps':>8}{'outside':>9}{'RSS MiB':>9}")
    all_found = {}
    one = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.bench.video",
        f"--steps={a.steps}",
    ]
    one += ["--size", *map(str, a.size), "--frames"]
    for frames in a.frames:
        commands = {which: [*one, str(frames), "--one", which] for which in ("plain", "ours")}
        for which, ((begin, _), (end, facts)) in in_turns(commands).items():
            m = all_found[which, frames] = {"fps": frames / (end - begin)} | json.loads(facts)
            print(
                f"{frames:7}  {which:6}{m['fps']:8.2f}{m['outside']:9.1%}{m['rss']:9.0f}",
                flush=True,
            )
    for frames in a.frames:
        ratio = all_found["ours", frames]["fps"] / all_found["plain", frames]["fps"]
        print(f"ours / plain, fps, {frames} frames: {ratio:.3f}")
    few, many = min(a.frames), max(a.frames)
    for which in ("plain", "ours"):
        ratio = all_found[which, many]["rss"] / all_found[which, few]["rss"]
        print(f"{which}, rss, {many} / {few} frames: {ratio:.3f}")


if __name__ == "__main__":
    main()
