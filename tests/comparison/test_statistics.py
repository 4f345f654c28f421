"""Means, intervals and winners, against numbers worked out by hand and scipy."""

import numpy as np
import pytest
from scipy import stats

from std_cli.comparison.statistics import (
    difference,
    estimate,
    interval,
    student_quantile,
    winner,
)


def test_students_quantiles_are_scipys():
    for freedom in (1, 2, 3, 4, 5, 10, 11, 47, 200):
        for probability in (0.9, 0.975, 0.9995):
            wanted = stats.t.ppf(probability, freedom)
            assert student_quantile(probability, freedom) == pytest.approx(wanted, rel=1e-9)


def test_an_interval_by_hand():
    """Mean 3, deviation sqrt(2), of 3 values: 4.303 sqrt(2) / sqrt(3)."""
    found = interval([3 - 3**0.5, 3.0, 3 + 3**0.5])
    assert found.mean == pytest.approx(3) and found.count == 3
    assert found.half == pytest.approx(4.30265 * 3**0.5 / 3**0.5, rel=1e-5)
    assert interval([7.0]).half is None and not interval([7.0]).apart_from_zero
    values = np.random.default_rng(0).normal(2, 1, 20)
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert interval(list(values)).half == pytest.approx((high - low) / 2)


def test_samples_and_seeds_have_an_interval_each():
    """Sample a has 1 and 3, b has 5 and 7: means of samples 2 and 6, of seeds 3 and 5."""
    found = estimate({("a", 0): 1, ("a", 1): 3, ("b", 0): 5, ("b", 1): 7})
    assert found.mean == 4 and found.over_samples == interval([2, 6])
    assert found.over_seeds == interval([3, 5])
    # c lacks a seed: it counts among the samples, and in no mean of a seed
    more = estimate({("a", 0): 1, ("a", 1): 3, ("b", 0): 5, ("b", 1): 7, ("c", 0): 10})
    assert more.over_samples == interval([2, 6, 10]) and more.over_seeds == interval([3, 5])
    assert estimate({}) is None


def test_differences_are_paired():
    """Samples differ by tens and methods by one: only the pairs show it."""
    r = np.random.default_rng(0)
    level = r.normal(0, 30, 12)
    one = {(str(i), s): level[i] + r.normal(0, 0.1) for i in range(12) for s in (0, 1)}
    two = {key: value + 1 + r.normal(0, 0.1) for key, value in one.items()}
    found = difference(two, one)
    assert found.mean == pytest.approx(1, abs=0.1) and found.apart_from_zero
    assert not estimate(two).apart_from_zero
    # a baseline without seeds stands against every seed; what has no partner is left out
    single = {(sample, 0): value for (sample, seed), value in one.items() if seed == 0}
    assert difference(two, single).over_seeds.count == 2
    assert difference({("x", 0): 1.0}, one) is None


def test_no_winner_inside_the_noise():
    r = np.random.default_rng(1)

    def method(mean, noise=1.0):
        return {(str(i), s): mean + r.normal(0, noise) for i in range(10) for s in (0, 1, 2)}

    alike = {f"method {i}": method(5) for i in range(8)}
    assert winner(alike, "higher") is None and winner(alike, "lower") is None
    better = alike | {"ours": method(9, 0.1)}
    assert winner(better, "higher") == "ours"
    assert winner(better, "none") is None and winner(better, "lower") is None
    assert winner({"ours": method(9)}, "higher") is None
    assert winner({"a": {("x", 0): 1.0}, "b": {("x", 0): 9.0}}, "higher") is None


def test_of_methods_that_are_alike_one_seldom_wins():
    r = np.random.default_rng(2)
    named = 0
    for _ in range(60):
        methods = {str(m): {(str(i), 0): r.normal() for i in range(8)} for m in range(6)}
        named += winner(methods, "higher") is not None
    assert named <= 6


def test_a_winner_must_win_with_every_seed_too():
    """Far better with one seed, a little worse with the other: over the samples it wins, over the
    seeds nobody knows."""
    ours = {(str(i), s): 9.0 if s else -0.1 for i in range(10) for s in (0, 1)}
    theirs = {key: 0.01 * int(key[0]) for key in ours}
    found = difference(ours, theirs)
    assert found.over_samples.apart_from_zero and not found.over_seeds.apart_from_zero
    assert winner({"ours": ours, "theirs": theirs}, "higher") is None
