"""The trajectory bank: where teacher trajectories wait to be continued, so that not every sample
starts a new one.

Each entry holds (x_0, x_t, c, n) of one sample together, as the paper has it (STD, arXiv
2412.18945).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

Conditions = dict[str, Tensor]
"""The inputs of a network in addition to (x, t), by name, each (B, ...): "states", "pooled",
"time_ids", and where they are used "text" and "style"."""


@dataclass(frozen=True)
class BankEntry:
    """One sample and how far its teacher trajectory has come, without a batch dimension."""

    x0: Tensor
    """The clean latents, (4, h, w), or (4, F, h, w) of a clip."""
    x: Tensor
    """The latents at index n of the trajectory, of the same shape."""
    c: Conditions
    """Its conditions."""
    n: int
    """The index on the solver's grid."""


class BankState(TypedDict):
    """A bank as plain data and tensors, for a checkpoint."""

    slots: list[dict[str, Any] | None]
    """The fields of each BankEntry."""
    used: int
    begun: int


class Bank:
    """A fixed number of slots, each empty or with a BankEntry. Tensors are kept on the CPU,
    whatever the device of those that come in."""

    def __init__(self, length: int, retire_at: int = 1, start: int | None = None) -> None:
        """An entry whose index falls to `retire_at` or below leaves.

        start: the index at which trajectories begin; the first entries are then staggered, see
        `lead`.
        """
        self.slots: list[BankEntry | None] = [None] * length
        self.retire_at = retire_at
        self.start = start
        self.used = 0
        """How many slots, from the first on, have had an entry before."""
        self.begun = 0
        """How many fresh samples were asked for so far."""

    def draw(self, count: int, rate: float, generator: torch.Generator) -> list[int | None]:
        """For each of `count` samples the slot to continue, with probability `rate`, or None: a
        fresh sample.

        Slots are drawn uniformly among those with an entry, none twice.
        """
        taken = (torch.rand(count, generator=generator) < rate).tolist()
        order = torch.randperm(len(self.slots), generator=generator).tolist()
        filled = iter([i for i in order if self.slots[i] is not None])
        slots = [next(filled, None) if take else None for take in taken]
        self.begun += slots.count(None)
        return slots

    def lead(self) -> int:
        """How many teacher steps further down the next new entry is to be stored.

        0, unless its slot has never had an entry: all trajectories begin at the same index, and
        without a lead the first ones would go down together, for hundreds of updates where a lane
        has several slots. The leads of slots 0, 1, 2, 3, 4... are 0, 1/2, 1/4, 3/4, 1/8... of the
        way (van der Corput's sequence), so that any number of slots in use covers the whole
        trajectory evenly.
        """
        slot = self._free()
        if self.start is None or slot is None or slot < self.used:
            return 0
        digits = f"{slot:b}"
        share = int(digits[::-1], 2) / 2 ** len(digits)
        return int(share * max(0, self.start - 1 - self.retire_at))

    def put(self, slot: int | None, entry: BankEntry) -> None:
        """Store what became of the entry of `slot`, or a new one (slot None) where a slot is free,
        else drop it."""
        if slot is None:
            slot = self._free()
        if slot is not None:
            self.slots[slot] = _on_cpu(entry) if entry.n > self.retire_at else None
            self.used = max(self.used, slot + 1)

    def held(self, slot: int) -> BankEntry:
        """The entry of a slot that `draw` chose."""
        entry = self.slots[slot]
        assert entry is not None
        return entry

    @property
    def indices(self) -> list[int]:
        """The index n of every entry."""
        return [held.n for held in self.slots if held is not None]

    def outline(self) -> "Bank":
        """A bank with the same indices and no tensors."""
        bank = Bank(len(self.slots), self.retire_at, self.start)
        bank.slots = [_outline(held.n) if held is not None else None for held in self.slots]
        bank.used, bank.begun = self.used, self.begun
        return bank

    def state_dict(self) -> BankState:
        slots = [dict(vars(held)) if held is not None else None for held in self.slots]
        return {"slots": slots, "used": self.used, "begun": self.begun}

    def load_state_dict(self, state: BankState) -> None:
        """Take what `state_dict` returned."""
        self.slots = [BankEntry(**held) if held is not None else None for held in state["slots"]]
        self.used = state["used"]
        self.begun = state["begun"]

    def _free(self) -> int | None:
        return next((i for i, held in enumerate(self.slots) if held is None), None)


class Forecast:
    """How many fresh samples a lane needs at each step to come, before any is read.

    Which samples come from the bank follows from the random numbers and the indices n alone, never
    from what the networks compute. So what the bank will supply need not be read.
    """

    def __init__(
        self,
        bank: Bank,
        count: int,
        rate: float,
        start: int,
        random: Callable[[int], torch.Generator],
    ) -> None:
        """bank: as it is before the first step asked for. count, rate: as for `Bank.draw`. start:
        the index at which trajectories begin. random: step -> the generator that the lane draws
        with."""
        self.bank = bank.outline()
        self.count = count
        self.rate = rate
        self.start = start
        self.random = random

    def fresh(self, step: int) -> int:
        """The number of fresh samples at `step`; to be asked once for each step, in order."""
        slots = self.bank.draw(self.count, self.rate, self.random(step))
        before = [_index(self.bank, slot, self.start) for slot in slots]
        for slot, n in zip(slots, before, strict=True):
            lead = self.bank.lead() if slot is None else 0
            self.bank.put(slot, _outline(n - 1 - lead))
        return slots.count(None)


def first_walk(bank: Bank) -> int:
    """Teacher steps that the leads of an empty bank's slots take in all."""
    bank = bank.outline()
    total = 0
    for _ in bank.slots:
        lead = bank.lead()
        total += lead
        bank.put(None, _outline((bank.start or 0) - 1 - lead))
    return total


def _index(bank: Bank, slot: int | None, start: int) -> int:
    held = bank.slots[slot] if slot is not None else None
    return held.n if held is not None else start


def _outline(n: int) -> BankEntry:
    return BankEntry(torch.empty(0), torch.empty(0), {}, n)


def _on_cpu(entry: BankEntry) -> BankEntry:
    """A copy in memory of its own: a row of a batch would keep the whole batch alive, and a
    checkpoint would store all of it."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True)

    conditions = {name: copy(value) for name, value in entry.c.items()}
    return BankEntry(copy(entry.x0), copy(entry.x), conditions, entry.n)


def stack(rows: list[BankEntry], device: torch.device) -> tuple[Tensor, Tensor, Conditions, Tensor]:
    """(x_0, x_t, c, n), each (B, ...), of B entries."""
    x0 = torch.stack([row.x0.to(device) for row in rows])
    x = torch.stack([row.x.to(device) for row in rows])
    c = {name: torch.stack([row.c[name].to(device) for row in rows]) for name in rows[0].c}
    return x0, x, c, torch.tensor([row.n for row in rows])
