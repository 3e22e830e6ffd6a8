"""The cascade: how its threshold is chosen on dev, what is measured on test, and that its bound holds."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from support.evaluating import LABELLING, answers, examples, given, gold, logs, predictions

from distillctl.evaluate.cascade import MIN_DEV, Sure, Upkeep, bound, choose, measure
from distillctl.evaluate.evaluate import Entrant, evaluate
from distillctl.evaluate.results import Throughput
from distillctl.prices import PricePoint, Rate
from distillctl.recipe.models import CascadeSpec, EconomicsSpec


def falling(n: int = 100, sure: float = 0.6) -> list[Sure]:
    """The student is right where it is surer than 1 - sure, wrong below; the teacher is always right."""
    return [Sure((i + 0.5) / n, i >= (1 - sure) * n, True) for i in range(n)]


class TestChoice:
    def test_the_largest_share_within_the_drop_that_is_allowed(self):
        threshold = choose(falling(), 0.05)
        assert sum(one.answered(threshold) for one in falling()) == 65  # 60 right ones and five lost points

    @pytest.mark.parametrize(("max_drop", "answered"), [(0.0, 60), (0.1, 70), (0.4, 100)])
    def test_it_follows_the_recipes_margin(self, max_drop, answered):
        assert sum(one.answered(choose(falling(), max_drop)) for one in falling()) == answered

    def test_what_the_student_corrects_pays_for_what_it_loses(self):
        dev = [Sure(0.9, True, False)] * 10 + [Sure(0.5, False, True)] * 10 + [Sure(0.1, False, True)] * 80
        assert sum(one.answered(choose(dev, 0.0)) for one in dev) == 20

    def test_a_student_that_may_answer_everything_has_no_threshold_to_reach(self):
        assert choose([Sure(0.4, True, True)] * 50, 0.0) == 0.0

    def test_one_that_is_wrong_where_it_is_surest_has_none(self):
        assert choose([Sure(i / 100, False, True) for i in range(100)], 0.0) is None

    def test_few_dev_items_are_too_few_to_choose_by(self):
        few = falling(100)[-(MIN_DEV - 1):]
        assert choose(few, 0.05) is None
        assert choose(falling(MIN_DEV), 0.05) is not None

    def test_items_without_a_probability_go_to_the_teacher(self):
        dev = [*falling(50), *[Sure(None, False, True)] * 50]
        assert not any(one.answered(choose(dev, 1.0)) for one in dev[50:])

    def test_equal_probabilities_stay_together(self):
        dev = [Sure(0.8, i % 2 == 0, True) for i in range(50)]
        assert choose(dev, 0.1) is None

    def test_it_is_written_with_few_digits(self):
        dev = [Sure(0.912345, True, True)] * 40 + [Sure(0.7512345, False, True)] * 60
        assert choose(dev, 0.0) == 0.9


class TestMeasure:
    def test_the_whole_is_the_student_where_it_is_sure_and_the_teacher_elsewhere(self):
        test = [*[Sure(0.9, True, False)] * 3, *[Sure(0.9, False, True)] * 2, *[Sure(0.1, False, True)] * 4,
                Sure(None, False, False)]
        found = measure(test, 0.5, None, 0.05)
        assert (found.answered.k, found.alone.k, found.alone.n, found.accuracy.k) == (5, 3, 5, 7)
        assert found.drop.value == pytest.approx(-0.1)
        assert found.drop.method == "Tango"
        assert found.alone_at_least < found.alone.share.value

    def test_cost_and_latency_are_of_student_and_of_what_is_deferred(self):
        found = measure(falling(), 0.5, None, 0.05, Upkeep(1.0, 10.0, 0.1, 2.0))
        assert found.usd_per_1000 == pytest.approx(1 + 0.5 * 10)
        assert found.latency_s == pytest.approx(0.1 + 0.5 * 2)

    def test_what_is_unknown_of_one_is_unknown_of_the_whole(self):
        found = measure(falling(), 0.5, None, 0.05, Upkeep(1.0, None, None, 2.0))
        assert found.usd_per_1000 is None and found.latency_s is None

    @pytest.mark.parametrize(("test", "upkeep", "worth"), [
        (falling(), Upkeep(), True), (falling(), Upkeep(6.0, 10.0), False),
        (falling(sure=0.4), Upkeep(), False),
        ([Sure(0.1, False, True)] * 90 + [Sure(0.9, True, True)] * 10, Upkeep(), False)],
        ids=["good", "dearer-than-the-teacher", "loses-too-much", "answers-too-little"])
    def test_whether_it_is_worth_it(self, test, upkeep, worth):
        assert measure(test, 0.5, None, 0.05, upkeep).worth_it is worth

    def test_nothing_answered_has_no_accuracy_of_its_own(self):
        found = measure(falling(), 1.0, CascadeSpec(threshold=1.0), 0.05)
        assert found.alone is None and found.alone_at_least is None
        assert not found.worth_it and "answers none" in found.sentence
        assert found.chosen_on == "recipe"

    def test_the_curve_goes_from_the_teacher_alone_to_the_student_alone(self):
        curve = measure(falling(500), 0.5, None, 0.05).curve
        assert (curve[0].share, curve[0].accuracy, curve[0].threshold) == (0, 1, None)
        assert (curve[-1].share, curve[-1].accuracy) == (1, 0.6)
        assert [p.share for p in curve] == sorted(p.share for p in curve)
        assert 50 < len(curve) <= 103

    def test_groups_loosen_the_bound(self):
        flags = [i // 10 % 5 > 0 for i in range(100)]
        assert bound(flags, [i // 10 for i in range(100)]) < bound(flags)


def test_the_bound_holds_at_its_level_though_dev_chose_the_threshold():
    """2,000 tasks: choose on dev, bound on test; the truth at the chosen threshold lies under the bound in
    no more than 2.5 % of them, within Monte Carlo error."""
    rng = np.random.default_rng(5)
    failed = kept = 0
    for _ in range(2000):
        sure = rng.random((2, 200))
        right = rng.random((2, 200)) < 0.5 + 0.5 * sure
        dev, test = ([Sure(float(c), bool(s), True) for c, s in zip(*part, strict=True)]
                     for part in zip(sure, right, strict=True))
        threshold = choose(dev, 0.05)
        at = [one.student for one in test if one.answered(threshold)] if threshold is not None else []
        if at:
            kept += 1
            failed += bound(at) > 0.5 + 0.5 * (threshold + 1) / 2  # the true accuracy above the threshold
    assert kept > 1900
    level = 0.025
    assert failed / kept <= level + 3 * (level * (1 - level) / kept) ** 0.5
    assert failed > 0  # a bound that never fails is no bound of this level


class TestInTheEvaluation:
    def run(self, **more):
        draw = random.Random(3)
        expected = gold(200)
        sure = [0.4 + 0.59 * draw.random() for _ in expected]
        said = answers(expected, [s > 0.6 or draw.random() < 0.3 for s in sure])
        stated = [logs(label, s) for label, s in zip(said, sure, strict=True)]
        student = Entrant("student", "student", "m", predictions(LABELLING, said, stated=stated),
                          predictions(LABELLING, said, stated=stated),
                          throughput=Throughput(per_second=10, at_once=8))
        asked = predictions(LABELLING, expected, tokens_in=100, tokens_out=1)
        longer = [replace(one, answer=replace(one.answer, tokens_in=1000)) if s < 0.75 else one
                  for one, s in zip(asked, sure, strict=True)]
        teacher = Entrant("teacher", "teacher", "t", longer, predictions(LABELLING, expected),
                          price=PricePoint(Rate(1.0, 0.0), "a list"))
        return evaluate(given(expected, teacher, student, dev=examples(expected), **more))

    def test_a_student_that_is_not_ready_may_be_worth_it_for_a_part(self):
        metrics = self.run()
        assert metrics.verdict.word == "not ready"
        assert metrics.cascade.chosen_on == "dev" and metrics.cascade.worth_it
        assert any(step.startswith("Use it for a part") for step in metrics.verdict.next_steps)

    def test_the_recipes_threshold_is_taken_as_it_is(self):
        assert self.run(cascade=CascadeSpec(threshold=0.75)).cascade.threshold == 0.75

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
