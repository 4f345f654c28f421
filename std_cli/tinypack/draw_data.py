"""Training data for `std distill` on the embedded pack:
`python -m std_cli.tinypack.draw_data FOLDER`.

FOLDER/scenes has scenes and metadata.jsonl (captions), FOLDER/clips moving ones, FOLDER/styles
style references. Each file follows from the seed and its number alone.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from std_cli.tinypack.scenes import Array, Rng

FRAMES = 32
CLIP_SIZE = 128


def _picture(x: "Array") -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def _caption(rng: "Rng") -> str:
    """Return a caption like those of the pack's training: it says little, because the style comes
    from the reference."""
    return str(rng.choice(["a picture", "a plain picture", "a photo"]))


def _write_clip(frames: "Array", path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=12, options={"crf": "12"})
        stream.width = stream.height = CLIP_SIZE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # repeats bit for bit
        for frame in frames:
            rgb = (frame * 255).round().astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        file.mux(stream.encode())


def _reported(kind: str, count: int) -> Iterator[int]:
    """The numbers below `count`; each tenth of them that is done is a line on stderr."""
    for i in range(count):
        yield i
        if (i + 1) * 10 // count > i * 10 // count:
            print(f"{kind}: {i + 1} of {count}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack.draw_data", description="Draw training data."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--clips", type=int, default=0)
    parser.add_argument("--styles", type=int, default=120)
    options = parser.parse_args()
    if find_spec("scipy") is None:
        sys.exit("error: scipy is not installed, which draws them: pip install 'std-cli[distill]'")
    from std_cli.tinypack import styles
    from std_cli.tinypack.moving_scenes import moving_scene
    from std_cli.tinypack.scenes import scene, vary

    for kind, count in (
        ("scenes", options.scenes),
        ("clips", options.clips),
        ("styles", options.styles),
    ):
        folder = options.folder / kind
        rows = []
        if count:
            folder.mkdir(parents=True, exist_ok=True)
        for i in _reported(kind, count):
            rng = np.random.default_rng((options.seed, len(kind), i))
            name = f"{i:05d}.{'mp4' if kind == 'clips' else 'png'}"
            rows.append({"file_name": name, "text": _caption(rng)})
            if kind == "clips":
                _write_clip(moving_scene(rng, FRAMES, CLIP_SIZE).plain, folder / name)
            elif kind == "scenes":
                _picture(vary(scene(rng), rng)).save(folder / name)
            else:
                _picture(styles.stylize(vary(scene(rng), rng), styles.random_style(rng), rng)).save(
                    folder / name
                )
        if rows and kind != "styles":
            lines = "".join(f"{json.dumps(row)}\n" for row in rows)
            (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
