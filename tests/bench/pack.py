"""Does the embedded pack stylize? Figures: `python -m tests.bench.pack`.

Photographs: scikit-image's astronaut, chelsea, coffee, and any --photo. References: the styles in
examples/ and any
--style. Colour and texture are relative to the photograph itself: 1 is no nearer to the reference
than it was.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from std_cli import stylize_image
from tests.measures import colour_quantiles, edge_correlation, texture_energies

EXAMPLES = Path(__file__).parents[2] / "examples"
TARGETS = {"colour": 0.6, "texture": 0.9, "edges": 0.5}


def square(picture, side):
    """The middle square, side x side."""
    n = min(picture.size)
    x, y = (picture.width - n) // 2, (picture.height - n) // 2
    return (
        picture.convert("RGB")
        .crop((x, y, x + n, y + n))
        .resize((side, side), Image.Resampling.LANCZOS)
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--photo", type=Path, nargs="*", default=[])
    p.add_argument("--style", type=Path, nargs="*", default=[])
    p.add_argument("--side", type=int, default=256)
    p.add_argument("--model", default="tiny")
    p.add_argument("--cfg", type=float)
    p.add_argument("--eta", type=float)
    p.add_argument("--seed", type=int)
    a = p.parse_args()
    options = {"model": a.model, "cfg": a.cfg, "eta": a.eta, "seed": a.seed, "size": a.side}
    photos = {
        n: square(Image.fromarray(getattr(data, n)()), a.side)
        for n in ("astronaut", "chelsea", "coffee")
    }
    photos |= {f.stem: square(Image.open(f), a.side) for f in a.photo}
    styles = {
        f.stem: square(Image.open(f), a.side)
        for f in [*a.style, *sorted(EXAMPLES.glob("style-*.png"))]
    }
    outputs = {
        s: dict(zip(photos, stylize_image(list(photos.values()), ref, **options), strict=True))
        for s, ref in styles.items()
    }

    print(f"{'style':24}{'photo':16}{'colour':>8}{'texture':>9}{'edges':>7}  nearest reference")
    rows, hits = [], 0
    looks = {s: (colour_quantiles(ref), texture_energies(ref)) for s, ref in styles.items()}

    def far(picture, style):
        return np.array([np.abs(x - y).mean() for x, y in zip(picture, looks[style], strict=True)])

    # colour and texture on one footing: each divided by its mean over pairs of different references
    unit = np.mean([far(looks[x], y) for x in styles for y in styles if x != y], 0)
    before = {n: (colour_quantiles(p), texture_energies(p)) for n, p in photos.items()}
    for style in styles:
        for name, photo in photos.items():
            out = outputs[style][name]
            after = (colour_quantiles(out), texture_energies(out))
            row = (*(far(after, style) / far(before[name], style)), edge_correlation(out, photo))
            nearest = min(styles, key=lambda s: (far(after, s) / unit).sum())
            hits += nearest == style
            rows.append(row)
            whose = "own" if nearest == style else nearest
            print(f"{style:24}{name:16}{row[0]:8.2f}{row[1]:9.2f}{row[2]:7.2f}  {whose}")
    table = np.array(rows)
    for i, (name, target) in enumerate(TARGETS.items()):
        good = table[:, i] >= target if name == "edges" else table[:, i] <= target
        mean, median = table[:, i].mean(), np.median(table[:, i])
        print(
            f"{name:8} mean {mean:.2f}, median {median:.2f}, target {target} met in "
            f"{good.mean():.0%}"
        )
    print(f"nearest to its own reference: {hits} of {len(rows)}")


if __name__ == "__main__":
    main()
