"""The trajectory bank: where teacher trajectories wait to be gone on with, instead of being started anew.

Each entry holds (x_0, x_t, c, n) of one sample together, as the paper has it (STD, arXiv 2412.18945).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Conditions = dict[str, Tensor]
"""What a network is told beside (x, t), each (B, ...)."""


@dataclass(frozen=True)
class Entry:
    x0: Tensor  # (...), the clean sample
    x: Tensor  # (...), at index n of its teacher trajectory
    c: Conditions  # each (...)
    n: int


class Bank:
    """A fixed number of slots, each empty or with an Entry. On the CPU, whatever the device of what comes in."""

    def __init__(self, length: int, retire_at: int = 1) -> None:
        """An entry whose index falls to `retire_at` or below leaves."""
        self.slots: list[Entry | None] = [None] * length
        self.retire_at = retire_at

    def draw(self, count: int, rate: float, generator: torch.Generator) -> list[int | None]:
        """For each of `count` samples the slot to go on with, with probability `rate`, or None: a fresh one.

        Slots are drawn uniformly among those with an entry, none twice.
        """
        taken = (torch.rand(count, generator=generator) < rate).tolist()
        order = torch.randperm(len(self.slots), generator=generator).tolist()
        filled = iter([i for i in order if self.slots[i] is not None])
        return [next(filled, None) if take else None for take in taken]

    def put(self, slot: int | None, entry: Entry) -> None:
        """Store what became of the entry of `slot`, or a new one (slot None) where a slot is free, else drop it."""
        if slot is None:
            slot = next((i for i, held in enumerate(self.slots) if held is None), None)
        if slot is not None:
            self.slots[slot] = _on_cpu(entry) if entry.n > self.retire_at else None

    @property
    def indices(self) -> list[int]:
        """The index n of every entry."""
        return [held.n for held in self.slots if held is not None]

    def state_dict(self) -> list[dict[str, Any] | None]:
        return [dict(vars(held)) if held is not None else None for held in self.slots]

    def load_state_dict(self, state: list[dict[str, Any] | None]) -> None:
        self.slots = [Entry(**held) if held is not None else None for held in state]


def _on_cpu(e: Entry) -> Entry:
    """A copy in memory of its own: a row of a batch would keep the whole batch alive, and save all of it."""
    x0, x = (v.detach().to("cpu", copy=True) for v in (e.x0, e.x))
    return Entry(x0, x, {k: v.detach().to("cpu", copy=True) for k, v in e.c.items()}, e.n)


def stack(rows: list[Entry], device: torch.device) -> tuple[Tensor, Tensor, Conditions, Tensor]:
    """(x_0, x_t, c, n), each (B, ...), of B entries."""
    c = {name: torch.stack([row.c[name].to(device) for row in rows]) for name in rows[0].c}
    x0, x = (torch.stack([getattr(row, name).to(device) for row in rows]) for name in ("x0", "x"))
    return x0, x, c, torch.tensor([row.n for row in rows])
