"""The training set: groups of one reference and two targets in the same style, as shards of plain
and styled pictures.

A shard is `groups-NNNN.npz`: reference uint8 (G, 128, 128, 3); plain and styled uint8 (G, 2, 256,
256, 3); kind int (G,); caption (G, 2). Shard N follows from (seed, N) alone, so that an interrupted
run resumes.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from std_cli.tinypack import styles
from std_cli.tinypack.scenes import Array, S, scene, vary

GROUPS = 100  # in a shard
SCENES = 24  # drawn for a shard; each is used about twelve times, varied each time


def _bytes(x: Array) -> Array:
    return np.asarray((x * 255).round(), np.uint8)


def make_shard(folder: Path, seed: int, number: int) -> None:
    """Draw one shard; one that exists is kept."""
    path = folder / f"groups-{number:04d}.npz"
    if path.exists():
        return
    rng = np.random.default_rng((seed, number))
    scenes = [scene(rng) for _ in range(SCENES)]
    reference = []
    plain = []
    styled = []
    kinds = []
    captions = []
    for _ in range(GROUPS):
        style = styles.random_style(rng)
        order = rng.permutation(SCENES)
        ref = styles.stylize(vary(scenes[order[0]], rng), style, rng)
        # give some references other colours, which do not follow from the palette
        if rng.random() < 0.4:
            ref = styles.transport(ref, vary(scenes[order[3]], rng), rng.uniform(0.4, 1))
        for i in order[1:3]:
            x = vary(scenes[i], rng)
            y = styles.match(styles.stylize(x, style, rng), ref)
            plain.append(_bytes(x))
            styled.append(_bytes(y))
            captions.append(styles.caption(style, y, rng))
        reference.append(_bytes(ref.reshape(S // 2, 2, S // 2, 2, 3).mean((1, 3))))
        kinds.append(list(styles.KINDS).index(style.kind))
    part = path.with_suffix(".part.npz")
    shape = (GROUPS, 2, S, S, 3)
    np.savez(
        part,
        reference=np.stack(reference),
        plain=np.stack(plain).reshape(shape),
        styled=np.stack(styled).reshape(shape),
        kind=np.array(kinds),
        caption=np.array(captions).reshape(GROUPS, 2),
    )
    part.rename(path)


def make_shards(folder: Path, seed: int, count: int, workers: int) -> None:
    """Draw the shards 0 .. count - 1 in several processes."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(make_shard, folder, seed), range(count)))
