"""Training data for `std distill` on the embedded pack:
`python -m std_cli.tinypack.draw_data FOLDER`.

FOLDER/scenes has scenes and metadata.jsonl (captions), FOLDER/clips moving ones, FOLDER/styles
style references. Each file follows from the seed and its number alone.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from std_cli.tinypack import styles
from std_cli.tinypack.moving_scenes import clip
from std_cli.tinypack.scenes import Array, Rng, scene, vary

FRAMES, CLIP_SIZE = 32, 128


def _picture(x: Array) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def _caption(r: Rng) -> str:
    """As the pack was trained: mostly nothing, for the reference tells the style."""
    return str(r.choice(["a picture", "a plain picture", "a photo"]))


def _write_clip(frames: Array, path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=12, options={"crf": "12"})
        stream.width = stream.height = CLIP_SIZE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # repeats bit for bit
        for frame in frames:
            rgb = (frame * 255).round().astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        file.mux(stream.encode())


def main() -> None:
    p = argparse.ArgumentParser(
        prog="python -m std_cli.tinypack.draw_data", description="Draw training data."
    )
    p.add_argument("folder", type=Path)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--scenes", type=int, default=400)
    p.add_argument("--clips", type=int, default=0)
    p.add_argument("--styles", type=int, default=120)
    a = p.parse_args()
    for kind, count in (("scenes", a.scenes), ("clips", a.clips), ("styles", a.styles)):
        folder, rows = a.folder / kind, []
        if count:
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            r = np.random.default_rng((a.seed, len(kind), i))
            name = f"{i:05d}.{'mp4' if kind == 'clips' else 'png'}"
            rows.append({"file_name": name, "text": _caption(r)})
            if kind == "clips":
                _write_clip(clip(r, FRAMES, CLIP_SIZE).plain, folder / name)
            elif kind == "scenes":
                _picture(vary(scene(r), r)).save(folder / name)
            else:
                _picture(styles.stylize(vary(scene(r), r), styles.random_style(r), r)).save(
                    folder / name
                )
        if rows and kind != "styles":
            lines = "".join(f"{json.dumps(row)}\n" for row in rows)
            (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
