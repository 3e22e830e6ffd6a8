"""Intervals and tests against published values, against each other, and at the ends of their range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from distillctl.evaluate import stats
from tests.support.paired import bonett_price, newcombe

# Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8:
# complete response before and after consolidation therapy, and airway hyper-responsiveness
CAVO = (59, 6, 16, 80)
BENTUR = (1, 1, 7, 12)

quick = settings(deadline=None, max_examples=60)
pairs = st.integers(1, 400).flatmap(lambda n: st.integers(0, n).flatmap(
    lambda n10: st.tuples(st.just(n10), st.integers(0, n - n10), st.just(n))))


class TestOneShare:
    @pytest.mark.parametrize(("k", "n", "low", "high"), [
        # Newcombe, Stat. Med. 1998, 17:857, table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
    def test_wilson_is_as_published(self, k, n, low, high):
        assert stats.wilson(k, n) == pytest.approx((low, high), abs=5e-5)

    @pytest.mark.parametrize(("k", "n", "low", "high"), [
        (13, 16, 0.5435, 0.9595), (10, 10, 0.6915, 1.0), (0, 10, 0.0, 0.3085), (81, 263, 0.2527, 0.3676)])
    def test_clopper_pearson_is_as_published(self, k, n, low, high):
        assert stats.clopper_pearson(k, n) == pytest.approx((low, high), abs=5e-5)

    @quick
    @given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
           st.sampled_from([0.8, 0.95, 0.99]))
    def test_both_agree_with_scipy(self, counts, level):
        k, n = counts
        result = scipy_stats.binomtest(k, n)
        assert stats.wilson(k, n, level) == pytest.approx(
            tuple(result.proportion_ci(level, "wilson")), abs=1e-9)
        assert stats.clopper_pearson(k, n, level) == pytest.approx(
            tuple(result.proportion_ci(level, "exact")), abs=1e-9)

    @quick
    @given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_wilson_holds_the_share_has_width_and_mirrors(self, counts):
        k, n = counts
        low, high = stats.wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert low < high
        assert stats.wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)

    @pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5)])
    @pytest.mark.parametrize("interval", [stats.wilson, stats.clopper_pearson])
    def test_what_is_no_share_is_refused(self, interval, k, n):
        with pytest.raises(ValueError, match="is not a share"):
            interval(k, n)


class TestPairedDifference:
    @pytest.mark.parametrize(("table", "low", "high", "digits"), [
        (CAVO, -0.1240, -0.0054, 4), (BENTUR, -0.517, -0.026, 3)])
    def test_tango_is_as_published(self, table, low, high, digits):
        found = stats.tango(table[1], table[2], sum(table))
        assert tuple(round(bound, digits) for bound in found) == (low, high)

    def test_the_cross_checks_are_as_published(self):
        assert newcombe(*CAVO) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
        assert bonett_price(6, 16, 161) == pytest.approx((-0.1195, -0.0032), abs=5e-5)

    @pytest.mark.parametrize(("n10", "n01"), [(0, 0), (20, 5), (5, 20), (60, 0), (0, 60), (13, 13)])
    def test_three_methods_agree_on_many_items(self, n10, n01):
        found = stats.tango(n10, n01, 1000)
        assert found == pytest.approx(newcombe(500, n10, n01, 500 - n10 - n01), abs=0.005)
        assert found == pytest.approx(bonett_price(n10, n01, 1000), abs=0.005)

    @pytest.mark.parametrize("n", [1, 5, 50, 73, 1000])
    def test_without_discordant_pairs_the_width_is_known_and_not_zero(self, n):
        bound = stats.z_value() ** 2 / (n + stats.z_value() ** 2)
        assert stats.tango(0, 0, n) == pytest.approx((-bound, bound), abs=1e-12)

    @pytest.mark.parametrize("n", [1, 5, 50])
    def test_all_pairs_discordant_one_way(self, n):
        low, high = stats.tango(n, 0, n)
        assert high == 1
        assert 0 < 1 - low < 2
        assert stats.tango(0, n, n) == pytest.approx((-1, -low))

    @quick
    @given(pairs)
    def test_holds_the_estimate_stays_in_range_and_mirrors(self, counts):
        n10, n01, n = counts
        low, high = stats.tango(n10, n01, n)
        assert -1 <= low <= (n10 - n01) / n <= high <= 1
        assert high - low > 1e-6
        assert stats.tango(n01, n10, n) == pytest.approx((-high, -low), abs=1e-9)

    @quick
    @given(pairs)
    def test_its_bounds_are_where_the_score_statistic_is_z(self, counts):
        n10, n01, n = counts
        statistic = lambda d: float(stats._tango_statistic(np.float64(d), n10, n01, n))  # noqa: E731
        low, high = stats.tango(n10, n01, n)
        if low > -1:
            assert statistic(low) == pytest.approx(stats.z_value(), abs=1e-5)
        if high < 1:
            assert statistic(high) == pytest.approx(-stats.z_value(), abs=1e-5)

    @quick
    @given(pairs)
    def test_the_score_statistic_falls(self, counts):
        n10, n01, n = counts
        values = stats._tango_statistic(np.linspace(-0.999, 0.999, 400), n10, n01, n)
        assert (np.diff(values) <= 1e-6).all()

    @quick
    @given(pairs)
    def test_more_confidence_is_wider(self, counts):
        narrow, wide = stats.tango(*counts, level=0.8), stats.tango(*counts, level=0.99)
        assert wide[0] <= narrow[0]
        assert narrow[1] <= wide[1]

    @pytest.mark.parametrize(("n10", "n01", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
    def test_what_are_no_counts_of_pairs_is_refused(self, n10, n01, n):
        with pytest.raises(ValueError, match="are not counts of pairs"):
            stats.tango(n10, n01, n)


class TestMcNemar:
    @pytest.mark.parametrize(("n10", "n01", "exact", "mid"), [
        (6, 16, 0.052479, 0.034690), (1, 7, 0.0703125, 0.0390625), (0, 0, 1, 1), (0, 1, 1, 0.5)])
    def test_is_as_published(self, n10, n01, exact, mid):
        assert stats.mcnemar_exact(n10, n01) == pytest.approx(exact, abs=5e-7)
        assert stats.mcnemar_mid_p(n10, n01) == pytest.approx(mid, abs=5e-7)

    @quick
    @given(st.integers(0, 500), st.integers(0, 500))
    def test_agrees_with_the_binomial_test_and_is_above_mid_p(self, n10, n01):
        exact = stats.mcnemar_exact(n10, n01)
        if n10 + n01:
            assert exact == pytest.approx(scipy_stats.binomtest(n10, n10 + n01).pvalue, rel=1e-9)
        assert 0 <= stats.mcnemar_mid_p(n10, n01) <= exact <= 1
        assert stats.mcnemar_mid_p(n10, n01) == pytest.approx(stats.mcnemar_mid_p(n01, n10))


class TestHolm:
    def test_is_as_worked_out_by_hand(self):
        assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_nothing_to_adjust(self):
        assert stats.holm([]) == []

    @quick
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_never_lowers_keeps_order_and_stays_a_probability(self, p):
        adjusted = stats.holm(p)
        assert all(a <= b <= 1 for a, b in zip(p, adjusted, strict=True))
        assert [b for _, b in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)


class TestQuantile:
    def test_median_of_100_is_the_published_pair_of_order_statistics(self):
        # David and Nagaraja, Order Statistics (2003), 7.1: the 40th and the 61st
        assert stats.quantile_interval(list(range(1, 101)), 0.5) == (40, 61)

    @pytest.mark.parametrize(("q", "n", "known"), [(0.5, 5, False), (0.5, 6, True), (0.95, 58, False),
                                                   (0.95, 59, True), (0.5, 0, False), (0.5, 1, False)])
    def test_is_unknown_where_no_interval_has_the_level(self, q, n, known):
        assert (stats.quantile_interval(list(range(n)), q) is not None) == known

    @pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
    @pytest.mark.parametrize("n", [59, 60, 72, 73, 100, 400])
    def test_covers_at_its_level_whatever_the_distribution(self, q, n):
        low, high = stats.quantile_interval(list(range(1, n + 1)), q)
        below = scipy_stats.binom(n, q).cdf
        assert below(high - 1) - below(low - 1) >= 0.95

    @quick
    @given(st.lists(st.floats(0, 1e3), min_size=6, max_size=80))
    def test_holds_the_median(self, values):
        low, high = stats.quantile_interval(values, 0.5)
        assert low <= np.median(values) <= high


class TestItemsThatBelongTogether:
    def test_independent_items_have_no_effect(self):
        assert stats.design_effect([1, 0, 1, 1, 0], ["a", "b", "c", "d", "e"]) == 1

    def test_copies_count_once(self):
        values = [1, 0, 1, 1, 0, 0, 1, 0] * 4
        groups = list(range(8)) * 4
        assert stats.design_effect(values, groups) == pytest.approx(4, rel=0.2)

    def test_without_variation_each_group_counts_as_one_item(self):
        assert stats.design_effect([1] * 20, [i // 5 for i in range(20)]) == 5

    def test_one_group_is_one_item(self):
        assert stats.design_effect([1, 0, 1, 0], ["a"] * 4) == 4

    def test_values_that_balance_within_groups_are_not_taken_for_more_items(self):
        assert stats.design_effect([1, 0] * 10, [i // 2 for i in range(20)]) == 1


class TestHitsAboveChance:
    def test_it_is_the_z_of_a_permutation_test(self):
        rng = np.random.default_rng(1)
        expected, said = rng.integers(0, 3, 80), rng.integers(0, 4, 80)  # 3: no valid answer
        said[:15] = expected[:15]
        table = [[int(((expected == i) & (said == j)).sum()) for j in range(4)] for i in range(3)]
        hits = np.array([(rng.permutation(expected) == said).sum() for _ in range(20_000)])
        z = ((expected == said).sum() - hits.mean()) / hits.std()
        assert stats.hits_above_chance(table) == pytest.approx(z, abs=0.06)

    def test_always_the_same_answer_hits_as_by_chance(self):
        assert stats.hits_above_chance([[97, 0, 0], [3, 0, 0]]) == 0

    def test_one_expected_label_tells_nothing(self):
        assert stats.hits_above_chance([[50, 0, 0], [0, 0, 0]]) is None
