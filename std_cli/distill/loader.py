"""Training samples in shuffled order, decoded ahead by threads.

All that is random is a function of (seed, position), where positions 0, 1, 2... count samples over
all epochs and ranks. With micro-batches of b, the k-th sample that lane l of L takes has the
position (k // b L + l) b + k % b: where all samples are fresh, the lanes of an update have
neighbouring positions. A lane that takes fewer, as its bank supplies the others, still takes every
one of its positions in turn. A run resumes at the exact sample from each lane's k, and ranks share
the work by sharing the lanes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from PIL import Image

from std_cli.distill.dataset import Dataset, Sample
from std_cli.errors import InputError, StdError, counted

MIN_SEEN = 20
"""Files after which the share of bad ones counts."""
_MAX_DRAWS = 1000
_MAX_WAITING = 256
"""Micro-batches that wait at most; a bank may supply all samples for long."""
# Random streams of a seed, in addition to the samples' own (seed, position)
_ORDER, _REPLACEMENT = 1, 2


class Order:
    """Which sample comes at which position: each epoch has all of them, shuffled again."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        # two: lanes straddle the end of an epoch
        self._shuffled = lru_cache(2)(
            lambda epoch: np.random.default_rng((seed, epoch, _ORDER)).permutation(count)
        )

    def at(self, position: int) -> tuple[int, int]:
        """Position -> (epoch, index)."""
        epoch, i = divmod(position, self.count)
        return epoch, int(self._shuffled(epoch)[i])


@dataclass(frozen=True)
class Batch:
    """The fresh samples of a micro-batch, from none to all b of them."""

    pixels: torch.Tensor
    """(fresh, F, 3, H, W) float32 in [-1, 1]."""
    captions: list[str]
    original_size: torch.Tensor
    """(fresh, 2) int64: height, width."""
    crop: torch.Tensor
    """(fresh, 2) int64: top, left."""
    references: list[Image.Image] | None
    keys: list[str]
    positions: list[int]


class Loader:
    """Yields for each optimizer step from `start_step` on, without end, the batch of each of
    `lanes`, in their order.

    Use as a context manager, or call `close`. What comes does not depend on `workers`, how many
    threads read ahead (0: none). A file that cannot be used is replaced by another, chosen by
    (seed, position) alone, reported once through `on_notice`, and not opened again.
    """

    def __init__(
        self,
        data: Dataset,
        *,
        lanes: Sequence[int],
        lane_count: int,
        batch: int,
        start_step: int,
        seed: int,
        workers: int,
        fresh: Callable[[int, int], int] | None = None,
        taken: Mapping[int, int] | None = None,
        on_notice: Callable[[str], None] = lambda message: None,
        max_tries: int = 8,
        max_bad_share: float = 0.5,
    ) -> None:
        """fresh: (step, lane) -> how many of its `batch` samples are needed, asked once for each,
        in order; all if not given. taken: of each lane how many it took before `start_step`; batch
        * start_step if not given.
        max_tries: files newly found bad for one sample. max_bad_share: of the files seen, from
        MIN_SEEN of them on.

        Beyond either, iteration raises a StdError that names the first bad file.
        """
        if (
            len(set(lanes)) != len(lanes)
            or not lanes
            or not 0 <= min(lanes) <= max(lanes) < lane_count
        ):
            raise ValueError(f"lanes {lanes} of {lane_count}")
        self.data = data
        self.seed = seed
        self.on_notice = on_notice
        self.max_tries = max_tries
        self.max_bad_share = max_bad_share
        self.seen: set[str] = set()
        """Keys of the files opened for what was yielded so far."""
        self.failed: dict[str, str] = {}
        """{key of a file that cannot be used: the reason}, among those."""
        self._bad: dict[str, str] = {}  # as the threads find them, ahead of `failed`
        self._bad_references = 0
        """How many unreadable style references were reported."""
        self._order = Order(len(data.entries), seed)
        self._lanes = lanes
        self._lane_count = lane_count
        self._batch = batch
        self._start_step = start_step
        self._fresh = fresh or (lambda step, lane: batch)
        self._taken = dict(taken) if taken is not None else dict.fromkeys(lanes, batch * start_step)
        self._positions = self._micro_batches()
        self._pool = ThreadPoolExecutor(workers, "data") if workers else None
        self._ahead = batch + 2 * workers  # samples
        self._waiting: deque[tuple[list[int], list[Callable[[], _Outcome]]]] = deque()
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            while self._must_begin_more():
                positions = next(self._positions)
                self._waiting.append((positions, [self._begin(p) for p in positions]))
            positions, results = self._waiting.popleft()
            samples = [self._account(result()) for result in results]
        except BaseException:
            self.close()
            raise
        references = [s.reference for s in samples if s.reference is not None]
        (width, height), frames = self.data.size, self.data.frames
        pixels = [torch.from_numpy(s.pixels) for s in samples]
        return Batch(
            pixels=torch.stack(pixels) if pixels else torch.empty(0, frames, 3, height, width),
            captions=[s.caption for s in samples],
            original_size=torch.tensor([s.original_size for s in samples], dtype=torch.int64).view(
                -1, 2
            ),
            crop=torch.tensor([s.crop for s in samples], dtype=torch.int64).view(-1, 2),
            references=references or None,
            keys=[s.key for s in samples],
            positions=positions,
        )

    def close(self) -> None:
        """Stop the threads, after what they are reading now."""
        self._closed = True
        self._waiting.clear()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _micro_batches(self) -> Iterator[list[int]]:
        """The positions of each micro-batch's fresh samples."""
        batch = self._batch
        for step in itertools.count(self._start_step):
            for lane in self._lanes:
                first = self._taken[lane]
                self._taken[lane] += self._fresh(step, lane)
                yield [
                    (k // batch * self._lane_count + lane) * batch + k % batch
                    for k in range(first, self._taken[lane])
                ]

    def _must_begin_more(self) -> bool:
        """Whether too few samples are being read; micro-batches that need none are looked past, up
        to a limit."""
        if not self._waiting:
            return True
        reading = sum(len(positions) for positions, _ in self._waiting)
        return reading < self._ahead and len(self._waiting) < _MAX_WAITING

    def _begin(self, position: int) -> "Callable[[], _Outcome]":
        index = self._order.at(position)[1]
        if self._pool is None:
            return partial(self._read, position, index)
        return self._pool.submit(self._read, position, index).result

    def _read(self, position: int, index: int) -> "_Outcome":
        """In a thread. What it returns is a function of (seed, position): a file is bad whenever it
        is opened."""
        failed: list[tuple[str, str]] = []
        opened = 0
        rng = np.random.default_rng((self.seed, position))
        for attempt in range(_MAX_DRAWS):
            if attempt:
                rng = np.random.default_rng((self.seed, position, _REPLACEMENT, attempt))
                index = int(rng.integers(len(self.data.entries)))
            key = str(self.data.entries[index].path)
            if key in self._bad:
                failed.append((key, self._bad[key]))
                continue
            try:
                return _Outcome(self.data.read(index, rng), failed)
            except StdError as e:
                failed.append((key, str(e)))
                if isinstance(e, InputError):
                    self._bad[key] = str(e)
            opened += 1
            if opened == self.max_tries:
                break
        return _Outcome(None, failed)

    def _account(self, outcome: "_Outcome") -> Sample:
        """In the order of positions, so that when it complains does not depend on the threads."""
        for key, reason in outcome.failed:
            self.seen.add(key)
            if key not in self.failed:
                self.failed[key] = reason
                self.on_notice(f"left out: {reason}")
        for reason in list(self.data.bad_references.values())[self._bad_references :]:
            self._bad_references += 1
            self.on_notice(f"style reference left out: {reason}")
        if outcome.sample is not None:
            self.seen.add(outcome.sample.key)
        share = len(self.failed) / max(1, len(self.seen))
        if outcome.sample is None or (len(self.seen) >= MIN_SEEN and share > self.max_bad_share):
            raise StdError(
                f"{len(self.failed)} of {counted(len(self.seen), 'training file')} cannot be "
                f"used; check the data. The first: {next(iter(self.failed.values()))}"
            )
        return outcome.sample


@dataclass(frozen=True)
class _Outcome:
    sample: Sample | None
    failed: list[tuple[str, str]]
    """(key, reason) of the files tried before it."""


# --- what a dry run reports --------------------------------------------------------------------


@dataclass(frozen=True)
class DataReport:
    """What a data set holds, by its names and a sample of its files."""

    pictures: int
    clips: int
    captioned: float
    """Share of the files with a caption, those of both kinds."""
    skipped: dict[str, list[str]]
    """Names of what is not used, by reason."""
    sampled: int
    """The number of files that were read."""
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None
    """(width, height) of the smallest, the median and the largest of these by area; None if none
    could be read."""
    failed: dict[str, str]
    """{file that cannot be used: the reason}, among those."""


def check_data(data: Dataset, sample_count: int, seed: int = 0) -> DataReport:
    """Count the entries, and read a random sample of `sample_count` of them."""
    count = len(data.entries)
    chosen = np.random.default_rng(seed).choice(count, min(sample_count, count), replace=False)
    sizes, failed = [], {}
    for i in chosen:
        try:
            sample = data.read(int(i), np.random.default_rng((seed, int(i))))
            sizes.append((sample.original_size[1], sample.original_size[0]))
        except StdError as e:
            failed[str(data.entries[i].path)] = str(e)
    sizes.sort(key=lambda size: size[0] * size[1])
    return DataReport(
        pictures=sum(e.kind == "picture" for e in data.entries),
        clips=sum(e.kind == "clip" for e in data.entries),
        captioned=data.found.captioned,
        skipped=data.found.skipped,
        sampled=len(chosen),
        sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else None,
        failed=failed,
    )
