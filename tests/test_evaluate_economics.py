"""Economics: what things cost, when the student pays back, and what stays unknown."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from support.evaluating import LABELLING, entrant, given, gold, predictions

from distillctl.evaluate.cost import server, teacher_cost
from distillctl.evaluate.economics import Paid, economics
from distillctl.evaluate.evaluate import Entrant, evaluate
from distillctl.evaluate.latency import latency
from distillctl.evaluate.results import Cost, Throughput
from distillctl.prices import PricePoint, Rate
from distillctl.recipe.models import EconomicsSpec, TeacherCost, TokenCounts
from distillctl.types import Answer

PRICE = PricePoint(Rate(2.0, 8.0, 0.5), "a list", "2026-11-01")


BILL = Paid(90.0, "a bill")
MACHINE = {"hardware_usd_per_hour": 1.0, "always_on": True}


TEN = Throughput(per_second=10, at_once=8)


def by_time(spec, throughput=TEN, **more):
    """What 1,000 requests cost on what is paid by time; None where that is not known."""
    found = server(spec, "student", throughput, **more)
    return found and found.cost(spec.requests_per_day)


def found(spec=None, *, teacher=1.0, student=0.1, paid=BILL, throughput=None, hourly=None, **more):
    """Economics at these costs of 1,000 requests."""
    expected = gold(6)
    metrics = evaluate(given(expected, entrant("teacher", expected, **more), entrant("student", expected)))
    t, s = metrics.evaluations
    costs = [None if usd is None else Cost(usd_per_1000=usd, source="test") for usd in (teacher, student)]
    return economics(spec or EconomicsSpec(), t.model_copy(update={"cost": costs[0]}),
                     s.model_copy(update={"cost": costs[1], "throughput": throughput,
                                          "usd_per_hour": hourly}), paid)


class TestCosts:
    def test_tokens_that_were_cached_cost_less(self):
        answers = [Answer("x", tokens_in=1000, tokens_cached=800, tokens_out=100)]
        assert teacher_cost(answers, PRICE, TeacherCost()).usd_per_1000 == pytest.approx(
            (200 * 2 + 800 * 0.5 + 100 * 8) / 1e3)

    def test_a_recording_without_tokens_takes_those_of_the_recipe_and_says_so(self):
        spec = TeacherCost(tokens=TokenCounts(input=1000, output=100))
        made = teacher_cost([Answer("x")], PRICE, spec)
        assert made.usd_per_1000 == pytest.approx(2.8)
        assert "as the recipe says" in made.source
        assert teacher_cost([Answer("x")], PRICE, TeacherCost()) is None
        assert teacher_cost([Answer("x")], None, spec) is None

    def test_a_batch_costs_half(self):
        answers = [Answer("x", tokens_in=1000, tokens_out=0)]
        assert teacher_cost(answers, PRICE, TeacherCost(batch=True)).usd_per_1000 == pytest.approx(1.0)

    def test_the_cached_part_of_the_recipes_tokens_is_said(self):
        spec = TeacherCost(tokens=TokenCounts(input=1000, output=100, cached_input=800))
        made = teacher_cost([Answer("x")], PRICE, spec)
        assert made.usd_per_1000 == pytest.approx((200 * 2 + 800 * 0.5 + 100 * 8) / 1e3)
        assert "800 of them cached" in made.source and "2026-11-01" in made.source

    def test_own_hardware_by_its_throughput(self):
        spec = EconomicsSpec(hardware_usd_per_hour=3.6)
        assert by_time(spec).usd_per_1000 == pytest.approx(0.1)
        assert by_time(spec, None) is None
        assert by_time(EconomicsSpec()) is None

    @pytest.mark.parametrize(("volume", "usd", "busy"), [
        (24_000, 1.0, "2.8 %"), (96_000, 0.25, "11.1 %"), (1_000_000, 0.048, "57.9 %")])
    def test_a_machine_that_is_always_on_is_shared_by_the_days_requests(self, volume, usd, busy):
        spec = EconomicsSpec(hardware_usd_per_hour=1.0, always_on=True, requests_per_day=volume)
        made = by_time(spec)  # 864,000 a day: a million needs two
        assert made.usd_per_1000 == pytest.approx(usd)
        assert f"busy {busy} of the time" in made.source

    def test_an_endpoint_by_its_minutes_at_the_volume(self):
        spec = EconomicsSpec(endpoint_usd_per_minute=0.05, requests_per_day=36_000)
        made = by_time(spec, None, latency=latency([1.2] * 60, "measured"))
        assert made.usd_per_1000 == pytest.approx(2.0)  # 72 dollars a day
        assert "1 for 36,000 requests a day, busy 50.0 % of the time" in made.source
        assert by_time(EconomicsSpec(endpoint_usd_per_minute=0.05)) is None

    def test_an_endpoint_that_must_answer_several_at_once_says_so(self):
        spec = EconomicsSpec(endpoint_usd_per_minute=0.05, requests_per_day=100_000)
        assert "takes 2 at once" in by_time(spec, None, latency=latency([1.2] * 60, "measured")).source

    def test_the_recipe_overrides_what_the_endpoint_costs(self):
        assert by_time(EconomicsSpec(requests_per_day=24_000), None, usd_per_hour=2.0).usd_per_1000 == 2.0
        spec = EconomicsSpec(requests_per_day=24_000, endpoint_usd_per_minute=0.05)
        assert by_time(spec, None, usd_per_hour=2.0).usd_per_1000 == pytest.approx(3.0)
        assert by_time(EconomicsSpec(student_price={"input": 1, "output": 1}), None, usd_per_hour=2.0) is None

    def test_two_ways_of_paying_for_a_student_are_refused(self):
        with pytest.raises(ValidationError, match="by the token and by the minute"):
            EconomicsSpec(student_price={"input": 1, "output": 1}, endpoint_usd_per_minute=0.05)


class TestBreakEven:
    def test_in_requests_and_days(self):
        first = found(EconomicsSpec(requests_per_day=50_000)).scenarios[0]
        assert (first.pays, first.break_even_requests, first.break_even_days) == (True, 100_000, 2.0)

    def test_the_days_need_a_volume(self):
        made = found()
        assert made.scenarios[0].break_even_days is None
        assert any("economics.requests_per_day" in line for line in made.unknown)

    def test_a_dearer_student_never_pays(self):
        made = found(teacher=0.1, student=1.0)
        assert (made.scenarios[0].pays, made.scenarios[0].break_even_requests) == (False, None)
        assert "save nothing, it is dearer than the teacher" in made.sentence

    def test_what_if_the_prices_were_others(self):
        made = {one.name: one for one in found(teacher=1.0, student=0.4).scenarios}
        assert made["the teacher at half its price, as in a batch"].break_even_requests == 900_000
        assert made["the student at half its price"].break_even_requests == 112_500
        assert made["the student at twice its price"].break_even_requests == 450_000

    def test_unknown_training_leaves_break_even_unknown_and_not_zero(self):
        made = found(paid=Paid(None, "one bill is missing"))
        assert made.scenarios[0].pays and made.scenarios[0].break_even_requests is None
        assert "so is the break-even" in made.sentence
        assert any("one bill is missing" in line for line in made.unknown)


class TestAlwaysOn:
    def test_it_pays_from_a_volume_on(self):
        made = found(EconomicsSpec(**MACHINE), throughput=TEN)
        assert made.scenarios[0].pays_above_per_day == 24_000
        assert made.scenarios[0].pays is None
        assert "from 24,000 requests a day on" in made.sentence

    @pytest.mark.parametrize(("volume", "pays"), [(23_000, False), (48_000, True)])
    def test_the_volume_decides(self, volume, pays):
        made = found(EconomicsSpec(**MACHINE, requests_per_day=volume),
                     throughput=TEN).scenarios[0]
        assert made.pays is pays
        if pays:  # 48 dollars for the teacher, 24 for the machine: 90 are back after 3.75 days
            assert made.break_even_days == pytest.approx(3.75)

    def test_one_that_could_not_even_answer_so_many_never_pays(self):
        made = found(EconomicsSpec(**MACHINE), throughput=Throughput(per_second=0.1, at_once=1))
        assert made.scenarios[0].pays_above_per_day is None
        assert "not pay at any volume" in made.sentence

    def test_the_curve_is_flat_until_a_second_machine_is_needed(self):
        made = found(EconomicsSpec(**MACHINE, requests_per_day=100_000),
                     throughput=TEN)
        costs = {point.requests_per_day: point.student_usd for point in made.curve}
        assert costs[min(costs)] == costs[100_000] == 24.0
        assert costs[max(costs)] == 12 * 24.0  # ten million a day


    def test_an_endpoint_says_first_from_which_volume_it_pays(self):
        made = found(EconomicsSpec(requests_per_day=96_000), student=0.25, hourly=1.0)
        assert made.sentence.startswith(
            "A machine that is always on ($24.00 a day) pays from 24,000 requests a day on. If the student")
        assert any("any number of requests" in line for line in made.assumed)


class TestUnknown:
    def test_nothing_is_drawn_or_guessed(self):
        made = found(teacher=None, student=None, replayed=True)
        assert made.curve == [] and made.scenarios[0].pays is None and len(made.scenarios) == 1
        assert "is unknown, because the cost of the teacher and of the student is" in made.sentence
        assert any("economics.teacher.tokens" in line for line in made.unknown)

    def test_each_gap_names_the_field_that_would_fill_it(self):
        hosted = found(student=None).unknown
        own = found(student=None, throughput=Throughput(per_second=5, at_once=2)).unknown
        assert any("economics.student_price" in line for line in hosted)
        assert any("economics.hardware_usd_per_hour" in line for line in own)
        assert any("teacher.price" in line for line in found(teacher=None).unknown)


def test_an_evaluation_has_the_costs_of_its_recipe():
    expected = gold(10)
    teacher = Entrant("teacher", "teacher", "r", predictions(LABELLING, expected), price=PRICE, replayed=True)
    student = entrant("student", expected, throughput=TEN)
    spec = EconomicsSpec(hardware_usd_per_hour=3.6,
                         teacher=TeacherCost(tokens=TokenCounts(input=1000, output=100)))
    metrics = evaluate(given(expected, teacher, student, economics=spec, paid=Paid(2.7, "a bill")))
    assert [one.cost.usd_per_1000 for one in metrics.evaluations] == pytest.approx([2.8, 0.1])
    assert metrics.economics.scenarios[0].break_even_requests == 1000
    assert "What the recording cost when it was made is not counted." in metrics.economics.assumed
    assert metrics.economics.from_recipe == ["1,000 tokens in and 100 out", "a machine at $3.60 an hour"]


def test_what_was_measured_is_not_called_an_assumption():
    assert found().from_recipe == []
