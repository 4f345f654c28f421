"""What the motion adapter does on a clip: `python -m tests.bench.motion CLIP --style REF`.

The clip is stylized twice at the same settings, frame by frame (`--motion none`) and with the model's own adapter.
Flicker by DIS optical flow from the source (levels of 255; the source's own, too, which no style should have to hide),
colour and texture distance to the reference, seam ratio.
"""

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli import stylize_video
from std_cli.video.read import open_clip, read_frames
from tests.measures import colour_distance, flicker, texture_distance


def main():
    p = argparse.ArgumentParser()
    p.add_argument("clip", type=Path)
    p.add_argument("--style", type=Path, required=True)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--frames", type=int, default=32)
    p.add_argument("--start", type=float, default=0.0)
    p.add_argument("--model", default="tiny")
    p.add_argument("--overlap", type=int)
    p.add_argument("--motion", nargs="*", default=["none", "auto"])
    a = p.parse_args()
    reference = Image.open(a.style).convert("RGB")
    found = {}
    print(f"{'motion':8}{'flicker':>9}{'colour':>8}{'texture':>9}{'seams':>7}")
    for motion in a.motion:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.mkv"
            [told] = stylize_video(
                a.clip, a.style, out, model=a.model, motion=motion, size=a.size, output_size="model", codec="ffv1",
                max_frames=a.frames, start=Fraction(repr(a.start)), cuts="off",
                overlap=a.overlap if motion != "none" else None,
            )  # fmt: skip
            results = [f.rgb for f in read_frames(open_clip(out))]
        frames = read_frames(open_clip(a.clip), start=Fraction(repr(a.start)), max_frames=a.frames)
        shape = results[0].shape[1::-1]
        sources = [np.asarray(Image.fromarray(f.rgb).resize(shape, Image.Resampling.LANCZOS)) for f in frames]
        if not found:
            print(f"{'source':8}{flicker(sources, sources):9.3f}")
        pictures = [Image.fromarray(r) for r in results[::4]]
        row = (
            flicker(sources, results),
            np.mean([colour_distance(x, reference) for x in pictures]),
            np.mean([texture_distance(x, reference) for x in pictures]),
            told["seam_ratio"] or 0.0,
        )
        found[motion] = row
        print(f"{motion:8}{row[0]:9.3f}{row[1]:8.2f}{row[2]:9.3f}{row[3]:7.3f}", flush=True)
    first, last = found[a.motion[0]], found[a.motion[-1]]
    names = ("flicker", "colour", "texture")
    print(
        f"{a.motion[-1]} / {a.motion[0]}: "
        + ", ".join(f"{n} {y / x:.3f}" for n, x, y in zip(names, first, last, strict=False))
    )


if __name__ == "__main__":
    main()
