"""The bootstrap against scipy's, at its ends, and the ratio of medians."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from distillctl.evaluate import stats


def ratio(sums):
    return sums[:, 0] / sums[:, 1]


def test_agrees_with_scipys_bca_on_a_mean():
    values = np.random.default_rng(1).beta(2, 5, 80)
    found = stats.bootstrap(np.column_stack([values, np.ones(80)]), ratio)
    theirs = scipy_stats.bootstrap((values,), np.mean, n_resamples=10_000, rng=np.random.default_rng(2))
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.003)


def test_agrees_with_scipys_bca_on_a_skewed_ratio():
    rng = np.random.default_rng(3)
    over, under = rng.exponential(1, 60), rng.exponential(1, 60) + 0.2
    found = stats.bootstrap(np.column_stack([over, under]), ratio)
    theirs = scipy_stats.bootstrap((over, under), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
                                   vectorized=True, n_resamples=10_000, rng=np.random.default_rng(4))
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_drawing_alike_units_together_is_drawing_them_one_by_one():
    flags = np.array([1.0] * 150 + [0.0] * 50)
    found = stats.bootstrap(np.column_stack([flags, np.ones(200)]), ratio)
    theirs = scipy_stats.bootstrap((flags,), np.mean, n_resamples=10_000, rng=np.random.default_rng(5))
    assert found == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)


def test_the_same_data_give_the_same_interval_in_any_order():
    units = np.column_stack([np.random.default_rng(6).random(50), np.ones(50)])
    assert stats.bootstrap(units, ratio) == stats.bootstrap(units[::-1], ratio)


def test_no_spread_gives_no_width_which_is_why_shares_do_not_use_it():
    assert stats.bootstrap(np.ones((30, 2)), ratio) == (1, 1)


def test_many_units_are_drawn_in_parts(monkeypatch):
    units = np.column_stack([np.random.default_rng(7).random(40), np.ones(40)])
    whole = stats.bootstrap(units, ratio)
    monkeypatch.setattr(stats, "_CELLS_AT_ONCE", 40 * 999)
    assert stats.bootstrap(units, ratio) == pytest.approx(whole, abs=1e-12)


def test_ratio_of_medians_agrees_with_scipys_percentile_interval():
    rng = np.random.default_rng(8)
    slow, fast = rng.lognormal(0, 0.3, 60), rng.lognormal(-2, 0.2, 60)
    theirs = scipy_stats.bootstrap((slow, fast), lambda a, b, axis: np.median(a, axis) / np.median(b, axis),
                                   vectorized=True, n_resamples=10_000, method="percentile",
                                   rng=np.random.default_rng(9))
    assert stats.median_ratio(slow, fast) == pytest.approx(tuple(theirs.confidence_interval), rel=0.02)


def test_ratio_of_medians_covers_the_true_one():
    rng = np.random.default_rng(10)
    hits = 0
    for _ in range(60):
        low, high = stats.median_ratio(rng.lognormal(0, 0.4, 50), rng.lognormal(-1, 0.4, 50))
        hits += low <= np.e <= high
    assert hits >= 53  # 95 % of 60 is 57; under 53 happens once in 40
