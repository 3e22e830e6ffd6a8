"""The cascade: what a threshold does on test, and the evaluation with one from dev."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from support.evaluating import LABELLING, answers, examples, falling, given, gold, logs, predictions

from distillctl.evaluate.cascade import Sure, Upkeep, bound, measure
from distillctl.evaluate.evaluate import Entrant, evaluate
from distillctl.evaluate.results import Throughput
from distillctl.prices import PricePoint, Rate
from distillctl.recipe.models import CascadeSpec, EconomicsSpec


class TestMeasure:
    def test_the_whole_is_the_student_where_it_is_sure_and_the_teacher_elsewhere(self):
        test = [*[Sure(0.9, True, False)] * 3, *[Sure(0.9, False, True)] * 2, *[Sure(0.1, False, True)] * 4,
                Sure(None, False, False)]
        found = measure(test, 0.5, 0.05)
        assert (found.answered.k, found.alone.k, found.alone.n, found.accuracy.k) == (5, 3, 5, 7)
        assert found.drop.value == pytest.approx(-0.1)
        assert found.drop.method == "Tango"
        assert found.alone_at_least < found.alone.share.value

    def test_cost_and_latency_are_of_student_and_of_what_is_deferred(self):
        found = measure(falling(), 0.5, 0.05, Upkeep(1.0, 10.0, 0.1, 2.0))
        assert found.usd_per_1000 == pytest.approx(1 + 0.5 * 10)
        assert found.latency_s == pytest.approx(0.1 + 0.5 * 2)

    def test_what_is_unknown_of_one_is_unknown_of_the_whole(self):
        found = measure(falling(), 0.5, 0.05, Upkeep(1.0, None, None, 2.0))
        assert found.usd_per_1000 is None and found.latency_s is None

    @pytest.mark.parametrize(("test", "upkeep", "worth"), [
        (falling(), Upkeep(), True), (falling(), Upkeep(6.0, 10.0), False),
        (falling(sure=0.4), Upkeep(), False),
        ([Sure(0.1, False, True)] * 90 + [Sure(0.9, True, True)] * 10, Upkeep(), False)],
        ids=["good", "dearer-than-the-teacher", "loses-too-much", "answers-too-little"])
    def test_whether_it_is_worth_it(self, test, upkeep, worth):
        assert measure(test, 0.5, 0.05, upkeep).worth_it is worth

    def test_nothing_answered_has_no_accuracy_of_its_own(self):
        found = measure(falling(), 1.0, 0.05)
        assert found.alone is None and found.alone_at_least is None
        assert not found.worth_it and "answers none" in found.sentence

    @pytest.mark.parametrize(("wrong", "said"), [
        (0, ": within the 5.0 that may be lost."), (20, ": within the 5.0 that may be lost, not settled."),
        (40, ": more than the 5.0 that may be lost.")])
    def test_it_says_whether_test_shows_what_dev_promised(self, wrong, said):
        test = [Sure(0.9, i >= wrong, True) for i in range(500)]
        assert measure(test, 0.5, 0.05).sentence.endswith(said)

    def test_every_point_of_the_curve_has_its_cost_and_latency(self):
        curve = measure(falling(), 0.5, 0.05, Upkeep(1.0, 10.0, 0.1, 2.0)).curve
        assert (curve[0].usd_per_1000, curve[0].latency_s) == (10.0, 2.0)
        assert (curve[-1].usd_per_1000, curve[-1].latency_s) == pytest.approx((1.0, 0.1))

    def test_the_curve_goes_from_the_teacher_alone_to_the_student_alone(self):
        curve = measure(falling(500), 0.5, 0.05).curve
        assert (curve[0].share, curve[0].accuracy, curve[0].threshold) == (0, 1, None)
        assert (curve[-1].share, curve[-1].accuracy) == (1, 0.6)
        assert [p.share for p in curve] == sorted(p.share for p in curve)
        assert 50 < len(curve) <= 103

    def test_groups_loosen_the_bound(self):
        flags = [i // 10 % 5 > 0 for i in range(100)]
        assert bound(flags, [i // 10 for i in range(100)]) < bound(flags)


class TestInTheEvaluation:
    def run(self, n_dev=200, **more):
        draw = random.Random(3)
        expected = gold(200)
        sure = [0.4 + 0.59 * draw.random() for _ in expected]
        said = answers(expected, [s > 0.6 or draw.random() < 0.3 for s in sure])
        stated = [logs(label, s) for label, s in zip(said, sure, strict=True)]
        student = Entrant("student", "student", "m", predictions(LABELLING, said, stated=stated),
                          predictions(LABELLING, said[:n_dev], stated=stated[:n_dev]),
                          throughput=Throughput(per_second=10, at_once=8))
        asked = predictions(LABELLING, expected, tokens_in=100, tokens_out=1)
        longer = [replace(one, answer=replace(one.answer, tokens_in=1000)) if s < 0.75 else one
                  for one, s in zip(asked, sure, strict=True)]
        teacher = Entrant("teacher", "teacher", "t", longer, predictions(LABELLING, expected[:n_dev]),
                          price=PricePoint(Rate(1.0, 0.0), "a list"))
        return evaluate(given(expected, teacher, student, dev=examples(expected[:n_dev]), **more))

    def test_a_student_that_is_not_ready_may_be_worth_it_for_a_part(self):
        metrics = self.run()
        assert metrics.verdict.word == "not ready"
        assert metrics.cascade.chosen_on == "dev" and metrics.cascade.worth_it
        assert any(step.startswith("Use it for a part") for step in metrics.verdict.next_steps)

    def test_the_recipes_threshold_is_taken_as_it_is(self):
        found = self.run(cascade=CascadeSpec(threshold=0.75)).cascade
        assert (found.threshold, found.chosen_on, found.level, found.steps) == (0.75, "recipe", None, [])

    def test_a_threshold_from_dev_comes_with_the_steps_to_it(self):
        found = self.run().cascade
        assert (found.chosen_on, found.level, found.dev_n) == ("dev", 0.95, 200)
        assert [step.at_most <= 0.05 for step in found.steps] == [True] * (len(found.steps) - 1) + [False]
        assert found.steps[-2].threshold >= found.threshold > found.steps[-1].threshold

    def test_a_stricter_level_lets_the_student_answer_less(self):
        shares = [self.run(cascade=CascadeSpec(level=level)).cascade.answered.share.value
                  for level in (0.5, 0.9, 0.99)]
        assert shares == sorted(set(shares), reverse=True)

    def test_too_few_dev_items_are_named_with_how_many_would_do(self):
        metrics = self.run(n_dev=50)
        assert metrics.cascade is None
        assert "cannot" not in metrics.no_cascade and "70 items could" in metrics.no_cascade

    def test_the_teachers_cost_is_that_of_the_deferred_items(self):
        spec = EconomicsSpec(hardware_usd_per_hour=3.6)
        alone = self.run(economics=spec, cascade=CascadeSpec(threshold=0.0))
        assert alone.cascade.usd_per_1000 == pytest.approx(0.1)
        made = self.run(economics=spec)
        deferred = 1 - made.cascade.answered.share.value
        assert made.cascade.threshold < 0.75  # so that only long prompts are deferred
        assert made.cascade.usd_per_1000 == pytest.approx(0.1 + deferred * 1.0)
        assert made.evaluations[0].cost.usd_per_1000 < 0.9

    def test_without_probabilities_there_is_none(self):
        expected = gold(60)
        bare = [Entrant(role, role, "m", predictions(LABELLING, expected), predictions(LABELLING, expected))
                for role in ("teacher", "student")]
        assert evaluate(given(expected, *bare, dev=examples(expected))).cascade is None
