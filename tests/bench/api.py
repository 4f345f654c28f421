"""What `Stylizer` saves: `python -m tests.bench.api`.

One process, the embedded model: pictures by one Stylizer, and by stylize_image for each, in turn.
"""

import argparse
import statistics
import time

from skimage import data

from std_cli import Stylizer, stylize_image


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.bench.api", description=__doc__)
    p.add_argument("--calls", type=int, default=5)
    p.add_argument("--size", type=int, default=256)
    p.add_argument("--model", default="tiny")
    given = p.parse_args()
    photo, style = data.astronaut(), data.coffee()
    look = {"size": given.size}

    def timed(call):  # type: ignore[no-untyped-def]
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    with Stylizer(model=given.model) as stylizer:
        stylizer.image(photo, style, **look)  # imports, and the first use of everything
        seconds = {"Stylizer": [], "stylize_image": []}
        for _ in range(given.calls):
            seconds["Stylizer"].append(timed(lambda: stylizer.image(photo, style, **look)))
            seconds["stylize_image"].append(
                timed(lambda: stylize_image(photo, style, model=given.model, **look))
            )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s a picture")
    print(f"ratio: {medians['stylize_image'] / medians['Stylizer']:.2f}")


if __name__ == "__main__":
    main()
