"""What the motion adapter and the filter along the motion do on a clip:
`python -m tests.bench.motion CLIP --style R`.

The clip is stylized twice at the same settings, frame by frame (`--motion none`) and with the
model's own adapter, and each of the two then filtered as `--steady` does it. Flicker as
`std stylize video` reports it (the source's own, too, which no style should have to hide),
colour and texture distance to the reference, seam ratio.
"""

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli import stylize_video
from std_cli.comparison.measures import Sample
from std_cli.comparison.measures.clips import Flicker
from std_cli.config import VideoSettings
from std_cli.diffusion.windows import window_starts
from std_cli.media.measures import colour_distance, texture_distance
from std_cli.media.palette import rounded
from std_cli.media.video.clip import Seen
from std_cli.media.video.opening import open_clip
from std_cli.media.video.quality import Quality
from std_cli.media.video.read import read_frames
from std_cli.media.video.steady import Steady


def measured(sources, results, reference, window, overlap):
    """(flicker, colour distance, texture distance, seam ratio)."""
    starts = window_starts(len(results), window, window - overlap)
    joints, quality = {*starts, *(start + window for start in starts)}, Quality()
    for i, (source, result) in enumerate(zip(sources, results, strict=True)):
        quality.add(source, result, joint=i in joints, shot=1)
    pictures = results[::4]
    colour, texture = (
        np.mean([d(x, reference) for x in pictures]) for d in (colour_distance, texture_distance)
    )
    return quality.figures["flicker"] or 0.0, colour, texture, quality.figures["seam_ratio"] or 0.0


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
    p.add_argument("--steady", type=float, default=VideoSettings.model_fields["steady"].default)
    a = p.parse_args()
    reference = np.asarray(Image.open(a.style).convert("RGB"))
    frames = [
        f.rgb
        for f in read_frames(open_clip(a.clip), start=Fraction(repr(a.start)), max_frames=a.frames)
    ]
    first, sources = None, []
    print(f"{'motion':8}{'steady':>7}{'flicker':>9}{'colour':>8}{'texture':>9}{'seams':>7}")
    for motion in a.motion:
        events = []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.mkv"
            stylize_video(
                a.clip, a.style, out, model=a.model, motion=motion, size=a.size,
                output_size="model", codec="ffv1",
                max_frames=a.frames, start=Fraction(repr(a.start)), cuts="off", steady=0.0,
                on_event=events.append,
                overlap=a.overlap if motion != "none" else None,
            )  # fmt: skip
            results = [f.rgb for f in read_frames(open_clip(out))]
        shape = results[0].shape[1::-1]
        if not sources:
            sources = [
                np.asarray(Image.fromarray(f).resize(shape, Image.Resampling.LANCZOS))
                for f in frames
            ]
            own = Flicker().compute(Sample(sources, reference, sources))
            print(f"{'source':15}{own:9.3f}")
        windows = [
            next(e for e in events if e["event"] == "start")["settings"][k]
            for k in ("window", "overlap")
        ]
        for strength in (0.0, a.steady):
            steady = Steady(strength)
            if strength:
                cover = np.full(sources[0].shape[:2], 255, np.uint8)
                results = [
                    rounded(steady(Seen(s, cover, 1, 0.04), r.astype(np.float32)))
                    for s, r in zip(sources, results, strict=True)
                ]
            row = measured(sources, results, reference, *windows)
            first = first or row
            shares = "".join(f"{y / x - 1:+9.1%}" for x, y in zip(first[:3], row, strict=False))
            print(
                f"{motion:8}{strength:7.2f}{row[0]:9.3f}{row[1]:8.2f}{row[2]:9.3f}{row[3]:7.3f}{shares}",
                flush=True,
            )


if __name__ == "__main__":
    main()
