"""The pictures in examples/: one scene and six style references, `python -m std_cli.tinypack.examples FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli.tinypack import styles
from std_cli.tinypack.scenes import Array, scene

SCENE = 16
STYLES = {"halftone": 1, "woodcut": 5, "painted": 10, "watercolour": 6, "stained": 7, "oil": 3}  # kind -> seed


def _save(x: Array, path: Path) -> None:
    Image.fromarray((x * 255).round().astype(np.uint8)).save(path, optimize=True)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    _save(scene(np.random.default_rng(SCENE)), folder / "scene.png")
    for kind, seed in STYLES.items():
        r = np.random.default_rng(seed)
        picture = scene(r)
        _save(styles.stylize(picture, styles.random_style(r, kind), r), folder / f"style-{kind}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
