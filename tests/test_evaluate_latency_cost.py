"""Latency, speed-up and cost: known where they are, unknown where they are not."""

from __future__ import annotations

import pytest

from distillctl.evaluate.cost import cost
from distillctl.evaluate.latency import latency, speedup
from distillctl.prices import PricePoint, Rate
from distillctl.types import Answer

PRICE = PricePoint(Rate(input=2.0, output=10.0, cached_input=0.5), "a price list", "2026-11-01")


def answer(tokens_in=1000, tokens_out=100, output="code", **more):
    return Answer(output, tokens_in=tokens_in, tokens_out=tokens_out, **more)


class TestLatency:
    def test_of_a_hundred_requests(self):
        found = latency([float(i) for i in range(1, 101)], "measured")
        assert (found.p50.value, found.p50.low, found.p50.high) == (50.5, 40, 61)
        assert found.p95.low <= found.p95.value <= found.p95.high
        assert (found.n, found.source) == (100, "measured")

    def test_of_none_is_unknown(self):
        assert latency([], "measured") is None

    @pytest.mark.parametrize(("n", "known"), [(58, False), (59, True)])
    def test_p95_is_unknown_of_too_few(self, n, known):
        assert (latency([1.0] * n, "measured").p95 is not None) == known

    def test_of_few_the_median_has_a_range_and_says_so(self):
        found = latency([1.0, 2.0, 9.0], "recorded")
        assert (found.p50.value, found.p50.low, found.p50.high) == (2, 1, 9)
        assert "too few" in found.p50.method


class TestSpeedup:
    def test_is_the_ratio_of_medians_with_an_interval(self):
        found = speedup([1.0 + i / 100 for i in range(50)], [0.1 + i / 1000 for i in range(50)])
        assert found.value == pytest.approx(10)
        assert found.low < 10 < found.high

    def test_of_a_slower_student_is_under_one(self):
        assert speedup([0.1] * 20, [0.4] * 20).value == pytest.approx(0.25)

    @pytest.mark.parametrize(("teacher", "student"), [
        ([], [0.1] * 50), ([1.0] * 50, []), ([1.0] * 5, [0.1] * 50), ([1.0] * 50, [0.1] * 5),
        ([1.0] * 50, [0.0] * 50)])
    def test_is_unknown_without_enough_timings_of_both(self, teacher, student):
        assert speedup(teacher, student) is None


class TestCost:
    def test_tokens_at_a_price_with_its_date(self):
        found = cost([answer(), answer(tokens_in=2000)], PRICE)
        assert found.usd_per_1000 == pytest.approx(1000 * ((0.002 + 0.001) + (0.004 + 0.001)) / 2)
        assert found.source == "tokens at a price list, 2026-11-01"

    def test_cached_tokens_at_their_own_price(self):
        assert cost([answer(tokens_cached=800)], PRICE).usd_per_1000 == pytest.approx(0.4 + 0.4 + 1.0)

    def test_what_was_recorded_where_there_is_no_price(self):
        found = cost([answer(cost_usd=0.002), answer(cost_usd=0.004)], None)
        assert found.usd_per_1000 == pytest.approx(3)
        assert found.source == "recorded with the answers"

    def test_what_was_recorded_where_tokens_are_missing(self):
        assert cost([answer(tokens_in=None, cost_usd=0.002)], PRICE).usd_per_1000 == pytest.approx(2)

    @pytest.mark.parametrize("answers", [
        [], [answer(output=None)], [answer(tokens_in=None), answer()], [answer(tokens_in=None, cost_usd=1.0),
                                                                     answer(tokens_in=None)]])
    def test_is_unknown_and_never_zero(self, answers):
        assert cost(answers, PRICE) is None

    def test_a_free_answer_costs_nothing_because_it_says_so(self):
        assert cost([answer(cost_usd=0.0)], None).usd_per_1000 == 0

    def test_failed_requests_do_not_make_it_unknown(self):
        failed = Answer(None, "failed", error="timeout")
        assert cost([answer(), failed], PRICE) == cost([answer()], PRICE)
