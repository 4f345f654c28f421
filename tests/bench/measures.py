"""Do the measures rank what is known, with their real weights? `python -m tests.bench.measures`.

Drawn pictures and a drawn clip of which it is known which result is better: each measure whose
weights are here says how often it ranks the best one before each other. `aesthetic`, `clip` and
`clip-direction` have no known order.
"""

import argparse

import numpy as np

from std_cli.comparison.measures import MEASURES
from tests.comparison.known_pairs import CLIP_ORDERS, ORDERS, clip_samples, known_pairs


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.bench.measures", description=__doc__)
    p.add_argument("--side", type=int, default=256, help="of the pictures, pixels")
    p.add_argument("--device", default="cpu")
    given = p.parse_args()
    pairs, clips = list(known_pairs(given.side)), clip_samples()
    for name, order in (ORDERS | CLIP_ORDERS).items():
        measure = MEASURES[name](given.device)
        if reason := measure.available():
            print(f"{name}: skipped: {reason}")
            continue
        samples = [[known.sample(made) for made in order] for known in pairs]
        if name in CLIP_ORDERS:
            samples = [[clips[made] for made in order]]
        values = np.array([[measure.compute(one) for one in row] for row in samples])
        sign = 1 if measure.direction == "higher" else -1
        shares = (sign * values[:, :1] > sign * values[:, 1:]).mean(0)
        ranked = ", ".join(
            f"{made} {share:.0%}" for made, share in zip(order[1:], shares, strict=True)
        )
        means = " ".join(f"{value:.3f}" for value in values.mean(0))
        print(f"{name}: {order[0]} before {ranked}; means {means}", flush=True)


if __name__ == "__main__":
    main()
