"""Do the intervals keep what they promise? Over every possible outcome of 50 and 200 items with its exact
probability, and over 2,000 simulated tasks of 1,000."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from distillctl.evaluate import stats
from distillctl.evaluate.metrics import label_units, macro_f1_of_sums
from distillctl.evaluate.results import Interval
from distillctl.evaluate.verdict import judge
from distillctl.recipe.models import VerdictSpec

SECOND_ONLY = 0.03  # share of items on which the student alone is right
DROPS = (0.0, 0.03, 0.05, 0.10)


@cache
def outcomes(n: int):
    """All pairs of discordant counts with Tango's bounds."""
    n10, n01 = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    possible = n10 + n01 <= n
    n10, n01 = n10[possible].astype(float), n01[possible].astype(float)
    return n10, n01, *stats.tango_bounds(n10, n01, n)


def drawn(n: int, drop: float, draws: int = 2000):
    """Simulated pairs of discordant counts with Tango's bounds."""
    shares = [SECOND_ONLY + drop, SECOND_ONLY, 1 - 2 * SECOND_ONLY - drop]
    counts = np.random.default_rng(11).multinomial(n, shares, draws).astype(float)
    return stats.tango_bounds(counts[:, 0], counts[:, 1], n)


def chance(n: int, drop: float, event) -> float:
    """Exact chance of `event(low, high)` when the true drop is `drop`."""
    n10, n01, low, high = outcomes(n)
    shares = [SECOND_ONLY + drop, SECOND_ONLY, 1 - 2 * SECOND_ONLY - drop]
    return float(multinomial.pmf(np.stack([n10, n01, n - n10 - n01], 1), n, shares) @ event(low, high))


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("drop", DROPS)
def test_tango_covers_at_its_level(n, drop):
    assert 0.945 <= chance(n, drop, lambda low, high: (low <= drop) & (drop <= high)) <= 0.975


@pytest.mark.parametrize("drop", DROPS)
def test_tango_covers_at_its_level_on_many_items(drop):
    low, high = drawn(1000, drop)
    assert ((low <= drop) & (drop <= high)).mean() == pytest.approx(0.95, abs=3 * 0.0049)


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("margin", [0.05, 0.10])
def test_a_student_just_at_the_margin_is_called_within_it_at_most_at_the_level(n, margin):
    assert chance(n, margin, lambda low, high: high < margin) <= 0.025


@pytest.mark.parametrize("margin", [0.05, 0.10])
def test_the_level_of_non_inferiority_holds_on_many_items(margin):
    _, high = drawn(1000, margin)
    assert (high < margin).mean() <= 0.025 + 3 * 0.0035


@pytest.mark.parametrize(("drop", "word"), [(0.05, "viable"), (0.10, "marginal"), (0.10, "not ready")])
def test_a_verdict_is_settled_wrongly_at_most_at_its_level(drop, word):
    """2,000 tasks of a student that loses just what the threshold allows: on either side of it, a settled
    verdict is right or wrong by chance alone, and each side is settled in at most 2.5 %."""
    n = 1500
    shares = [SECOND_ONLY + drop, SECOND_ONLY, 1 - 2 * SECOND_ONLY - drop]
    counts = np.random.default_rng(15).multinomial(n, shares, 2000).astype(float)
    lows, highs = stats.tango_bounds(counts[:, 0], counts[:, 1], n)
    fast = Interval(value=9, low=8, high=10, method="made up")
    found = [judge(VerdictSpec(), Interval(value=(a - b) / n, low=low, high=high, method="Tango"), fast, 0.1)
             for (a, b, _), low, high in zip(counts, lows, highs, strict=True)]
    settled = sum(one.settled and one.word == word for one in found) / 2000
    assert 0 < settled <= 0.025 + 3 * 0.0035


@pytest.mark.parametrize("n", [60, 150, 300])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.10])
@pytest.mark.parametrize("second_only", [0.0, 0.01, 0.05, 0.2])
def test_the_corrected_test_keeps_its_level_however_often_the_student_alone_is_right(n, margin, second_only):
    n10, n01, *_ = outcomes(n)
    within = stats.drop_within(n10, n01, n, margin, 0.95)
    shares = [second_only + margin, second_only, 1 - 2 * second_only - margin]
    assert multinomial.pmf(np.stack([n10, n01, n - n10 - n01], 1)[within], n, shares).sum() <= 0.05


def test_the_bound_of_a_drop_belongs_to_its_test():
    n10, n01, *_ = outcomes(50)
    at_most = stats.drop_at_most(n10, n01, 50, 0.9)
    for margin in (0.02, 0.051, 0.1, 0.33):
        np.testing.assert_array_equal(at_most <= margin, stats.drop_within(n10, n01, 50, margin, 0.9))


@pytest.mark.parametrize(("difference", "discordance", "bound"), [
    (0.0, 0.06, 0.05), (0.02, 0.08, 0.05), (0.0, 0.02, 0.05), (-0.02, 0.06, 0.05), (0.002, 0.002, 0.05),
    (0.07, 0.12, 0.10), (0.07, 0.12, 0.05), (0.2, 0.25, 0.10), (0.2, 0.2, 0.10)])
def test_the_items_that_are_needed_settle_it_as_often_as_they_should(difference, discordance, bound):
    n = stats.items_needed(difference, discordance, bound)
    n10, n01 = (discordance + difference) / 2, (discordance - difference) / 2
    counts = np.random.default_rng(12).multinomial(n, [n10, n01, 1 - discordance], 2000).astype(float)
    low, high = stats.tango_bounds(counts[:, 0], counts[:, 1], n)
    settled = high <= bound if difference < bound else low > bound
    assert 0.77 <= settled.mean() <= 0.87


@pytest.mark.parametrize(("difference", "discordance"), [(0.0, 0.06), (0.02, 0.10), (0.13, 0.2)])
def test_the_items_that_are_needed_are_found_from_what_was_observed_within_its_error(difference, discordance):
    """2,000 pilots of 400 items: what they name is right in the middle, and the figures for the two ends of
    the drop's interval have the true one between them as often as the interval has the true drop."""
    n10, n01 = (discordance + difference) / 2, (discordance - difference) / 2
    counts = np.random.default_rng(14).multinomial(400, [n10, n01, 1 - discordance], 2000).astype(float)
    low, high = stats.tango_bounds(counts[:, 0], counts[:, 1], 400)
    true = stats.items_needed(difference, discordance, 0.05)
    named, covered = [], 0
    slack = 0.75  # the share of discordant pairs has an error of its own
    for (first, second, _), lower, upper in zip(counts, low, high, strict=True):
        apart = (first + second + 2) / 402
        named.append(stats.items_needed((first - second) / 400, apart, 0.05) or np.inf)
        if lower < 0.05 < upper:  # at the bound itself no number would do: everything above the nearer end
            ends = [stats.items_needed(end, apart, 0.05) for end in (lower, upper)]
            covered += (ends[0] if difference < 0.05 else ends[1]) * slack <= true
        else:
            ends = sorted(stats.items_needed(end, apart, 0.05) for end in (lower, upper))
            covered += slack * ends[0] <= true <= ends[1] / slack
    assert np.median(named) == pytest.approx(true, rel=0.15)
    assert covered / 2000 >= 0.945


def test_no_number_of_items_tells_a_difference_from_itself():
    assert stats.items_needed(0.05, 0.1, 0.05) is None


@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_wilson_covers_near_its_level_and_clopper_pearson_at_least_at_it(n, share):
    k = np.arange(n + 1)
    weights = binom.pmf(k, n, share)
    wilson = np.array([stats.wilson(i, n) for i in k])
    exact = np.array([stats.clopper_pearson(int(i), n) for i in k])
    covered = lambda bounds: ((bounds[:, 0] <= share) & (share <= bounds[:, 1])) @ weights  # noqa: E731
    assert 0.93 <= covered(wilson) <= 0.97
    assert covered(exact) >= 0.95


def test_effective_counts_cover_where_items_come_in_groups():
    """60 groups of 5 items that are alike in 80 %: without allowing for it, one in five intervals misses."""
    rng = np.random.default_rng(13)
    groups = np.repeat(np.arange(60), 5)
    aware, blind = 0, 0
    for _ in range(400):
        of_group = rng.random(60) < 0.8
        flags = np.where(rng.random(300) < 0.8, of_group[groups], rng.random(300) < 0.8)
        effect = stats.design_effect(flags, groups)
        low, high = stats.wilson(flags.sum() / effect, 300 / effect)
        aware += low <= 0.8 <= high
        low, high = stats.wilson(flags.sum(), 300)
        blind += low <= 0.8 <= high
    assert aware / 400 >= 0.92
    assert blind / 400 <= 0.85


def test_the_bootstrap_of_a_paired_drop_in_f1_covers_near_its_level(monkeypatch):
    """400 tasks of 200 items and three labels: the teacher errs on 5 %, the student on 15 %, each to another
    label by chance. With 1,000 draws a task, which is enough to tell."""
    monkeypatch.setattr(stats, "DRAWS", 1000)
    labels, rng = ("a", "b", "c"), np.random.default_rng(16)
    hits = 0
    for _ in range(400):
        expected = rng.integers(0, 3, 200)
        said = [np.where(rng.random(200) < wrong, (expected + rng.integers(1, 3, 200)) % 3, expected)
                for wrong in (0.05, 0.15)]
        units = [label_units(labels, [labels[i] for i in expected], [labels[i] for i in who]).reshape(200, -1)
                 for who in said]
        low, high = stats.bootstrap(np.column_stack(units), lambda sums: macro_f1_of_sums(
            sums[:, :9]) - macro_f1_of_sums(sums[:, 9:]))
        hits += low <= 0.10 <= high  # equally frequent labels and errors: F1 is the accuracy
    assert 0.92 <= hits / 400 <= 0.98
