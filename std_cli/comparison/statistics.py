"""Means with their intervals, differences to a baseline, and whether one is better at all.

A figure has a key (sample, seed): the sample is a pair of content and style, the seed that of the
noise. Both vary, so every mean has two intervals: over the samples, each averaged over its seeds
(would other pictures say the same?), and over the seeds, each averaged over its samples (would
other noise?). Samples that share a content or a style are not independent: their interval is
narrower than that of samples which are new in both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from std_cli.comparison.measures.base import Direction

Figures = Mapping[tuple[str, int], float]
"""{(sample, seed): a figure}."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and half of its confidence interval (Student's t)."""

    mean: float
    half: float | None
    """None of a single value, which has no interval."""
    count: int
    """Values that it is the mean of."""

    @property
    def apart_from_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Estimate:
    """The mean of a method's figures, or of their differences to a baseline's."""

    over_samples: Interval
    over_seeds: Interval

    @property
    def mean(self) -> float:
        return self.over_samples.mean

    @property
    def apart_from_zero(self) -> bool:
        """Whether 0 is outside the interval over samples and, of several seeds, outside the one
        over seeds."""
        seeds = self.over_seeds
        return self.over_samples.apart_from_zero and (seeds.count < 2 or seeds.apart_from_zero)


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of at least one value, with its interval."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Interval(mean, None, count)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance / count)
    return Interval(mean, half, count)


def estimate(figures: Figures, confidence: float = CONFIDENCE) -> Estimate | None:
    """Both intervals of a method's figures; None if it has none.

    Where a sample lacks a seed that others have, it is left out of the mean of every seed.
    """
    if not figures:
        return None
    samples = list(dict.fromkeys(sample for sample, _ in figures))
    seeds = list(dict.fromkeys(seed for _, seed in figures))
    complete = [sample for sample in samples if all((sample, seed) in figures for seed in seeds)]
    by_sample = [_mean([v for (s, _), v in figures.items() if s == sample]) for sample in samples]
    by_seed = [_mean([figures[sample, seed] for sample in complete]) for seed in seeds]
    return Estimate(
        interval(by_sample, confidence),
        interval(by_seed if complete else by_sample[:1], confidence),
    )


def difference(
    figures: Figures, baseline: Figures, confidence: float = CONFIDENCE
) -> Estimate | None:
    """What a method's figures are above the baseline's of the same sample and seed; None if they
    share none.

    A baseline without seeds (one figure for each sample) is compared to every seed.
    """
    single = {sample: value for (sample, _), value in baseline.items()}
    seeded = len(single) < len(baseline)
    pairs = {
        key: value - (baseline[key] if key in baseline else single[key[0]])
        for key, value in figures.items()
        if key in baseline or (not seeded and key[0] in single)
    }
    return estimate(pairs, confidence)


def winner(methods: Mapping[str, Figures], direction: Direction) -> str | None:
    """The method whose figures are better than those of every other one by more than the noise;
    None if there is none.

    The differences are paired, and their intervals are widened for the number of comparisons
    (Bonferroni), since of many methods that are alike one will always look best.
    """
    means = {name: e.mean for name, figures in methods.items() if (e := estimate(figures))}
    if direction == "none" or len(means) < 2:
        return None
    best = (max if direction == "higher" else min)(means, key=means.__getitem__)
    confidence = 1 - (1 - CONFIDENCE) / (len(means) - 1)
    for name in means.keys() - {best}:
        apart = difference(methods[best], methods[name], confidence)
        if apart is None or not apart.apart_from_zero or apart.mean * _sign(direction) <= 0:
            return None
    return best


def _sign(direction: Direction) -> int:
    return 1 if direction == "higher" else -1


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """The quantile above the median of Student's t with `freedom` degrees of freedom."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, freedom: int) -> float:
    """The probability that Student's t is between -t and t: Abramowitz and Stegun, 26.7.3 and
    26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside
