"""Short training runs, and how they are compared."""

import json
import shutil

import torch

from std_cli.distill.config import make_config
from tests.micro import micro

SIZE = 64
TARGETS = ["to_q", "to_out.0", "proj_in", "conv1", "time_emb_proj"]


def a_config(source, output, **sections):
    """A run of 4 updates of 2 lanes on a grid of 20 points, with a discriminator on random
    features. sections: {key: value} in place of these."""
    given = {
        "run": {"output": str(output), "max_steps": 4, "save_every": 2, "validate_every": 4},
        "model": {"name": micro(), "device": "cpu"},
        "data": {"sources": [str(source)], "size": [SIZE, SIZE], "workers": 1, "held_out": 1},
        "lora": {"rank": 4, "alpha": 4, "targets": TARGETS},
        "distill": {
            "points": 20,
            "w_min": 1,
            "w_max": 5,
            "steps": 2,
            "unconditional_pooled": "empty",
        },
        "bank": {"length": 2},
        "adversarial": {"features": "random"},
        "optimizer": {
            "lr": 1e-3,
            "scale_lr": False,
            "warmup_steps": 1,
            "batch": 1,
            "accumulation": 2,
        },
    }
    for section, values in sections.items():
        given[section] = given.get(section, {}) | values
    return make_config(given)


def lines(folder):
    """metrics.jsonl, without what differs from run to run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("memory", "samples_per_second")} for row in rows
    ]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def copy_of(folder, to):
    shutil.copytree(folder, to)
    return to


# A CPU is slow in fp16: small pictures, one lane, no walk of the teacher before the first update,
# and no validation.
IN_HALF_PRECISION = {
    "model": {"dtype": "fp16"},
    "data": {"size": [32, 32], "held_out": 0},
    "bank": {"length": 1},
    "adversarial": {"features": "none"},
    "optimizer": {"accumulation": 1},
}
