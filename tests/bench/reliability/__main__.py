"""`python -m tests.bench.reliability`: kills, interruptions and damaged files, by seed, and what
came of them."""

import argparse
import tempfile
from pathlib import Path

from tests.bench.reliability.kills import WORKS, measure
from tests.micro import tiny_with_motion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=30, help="signals that videos get; the other kinds get a third"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(WORKS), choices=list(WORKS))
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as place:
        print(
            "| work | killed | resumed | equal | different | leftovers | hangs "
            "|\n|---|---|---|---|---|---|---|"
        )
        for kind in options.kinds:
            kills = options.kills if kind == "video" else max(1, options.kills // 3)
            c = measure(kind, kills, options.seed, Path(place), tiny_with_motion())
            numbers = (c.killed, c.resumed, c.equal, c.different, c.leftovers, c.hangs)
            print(f"| {kind} | {' | '.join(map(str, numbers))} |", flush=True)
            for text in c.wrong:
                print(f"  wrong: {text}")
            good &= c.good
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
