"""Slices: what they show, when one falls behind, and that looking at many does not cry wolf."""

from __future__ import annotations

import numpy as np
import pytest
from support.evaluating import answers, entrant, given, gold

from distillctl.errors import DataError
from distillctl.evaluate.evaluate import evaluate
from distillctl.evaluate.slices import ABSENT, MOST_VALUES, REST, check_fields, slices
from distillctl.types import Example


def items(values, name="difficulty"):
    return [Example(f"e{i}", {} if value is None else {name: value}) for i, value in enumerate(values)]


def test_each_value_has_its_own_figures():
    values = ["easy"] * 60 + ["hard"] * 40
    found = slices(items(values), ["difficulty"], [True] * 100, [i < 90 for i in range(100)], 0.05)
    assert [(s.value, s.student.k, s.student.n, s.teacher.k) for s in found] == [
        ("easy", 60, 60, 60), ("hard", 30, 40, 40)]
    assert found[1].drop.value == pytest.approx(0.25)
    assert [s.behind for s in found] == [False, True]


def test_few_items_are_shown_and_not_judged():
    found = slices(items(["a"] * 29 + ["b"] * 71), ["difficulty"], [True] * 100,
                   [i >= 29 for i in range(100)], 0.05)
    assert [(s.value, s.behind, s.p_holm is None) for s in found] == [("b", False, False), ("a", None, True)]


def test_a_slice_clearly_worse_than_the_rest_falls_behind_before_its_own_interval_says_so():
    values = ["a"] * 400 + ["b"] * 60
    teacher = [i >= 20 for i in range(460)]  # on the rest the student is five points better
    right = [True] * 400 + [i % 10 > 0 for i in range(60)]  # a drop of ten points on sixty items
    found = slices(items(values), ["difficulty"], teacher, right, 0.05)[1]
    assert found.drop.low < 0.05 < found.drop.value
    assert found.behind and found.p_worse < found.p_above


def test_worse_than_the_rest_is_no_alarm_within_the_margin():
    values = ["a"] * 3000 + ["b"] * 1000
    right = [True] * 3000 + [i % 33 > 0 for i in range(1000)]
    found = slices(items(values), ["difficulty"], [True] * 4000, right, 0.05)[1]
    assert found.p_holm < 0.001 and found.behind is False


def test_many_slices_raise_few_false_alarms():
    """Twenty slices of a student that loses exactly the margin everywhere: without Holm, an alarm in a third
    of the evaluations; with it in one of forty, so that four of twenty would be a surprise."""
    rng = np.random.default_rng(8)
    examples = items([i % 20 for i in range(3000)])
    alarms = sum(any(s.behind for s in slices(examples, ["difficulty"], [True] * 3000,
                                              (rng.random(3000) > 0.05).tolist(), 0.05)) for _ in range(20))
    assert alarms <= 3


def test_the_more_slices_are_looked_at_the_more_one_has_to_lose():
    """Twelve of eighty items lost say something of one slice in two, and nothing of one in twenty."""
    right = [i % 7 > 0 for i in range(80)] + [i % 25 > 0 for i in range(1520)]
    two, twenty = ([0] * 80 + [1] * 1520, [i // 80 for i in range(1600)])
    few, many = (next(s for s in slices(items(values), ["difficulty"], [True] * 1600, right, 0.05)
                      if s.value == "0") for values in (two, twenty))
    assert few.behind is True and many.behind is False


def test_values_of_every_kind_have_a_name_and_rare_ones_stand_together():
    found = slices(items([None, True, 3, ["x"]]), ["difficulty"], [True] * 4, [True] * 4, 0.05)
    assert {s.value for s in found} == {ABSENT, "true", "3", '["x"]'}
    many = slices(items(range(40)), ["difficulty"], [True] * 40, [True] * 40, 0.05)
    assert len(many) == MOST_VALUES + 1
    assert (many[-1].value, many[-1].student.n) == (REST, 20)


def test_groups_widen_a_slice():
    flags = [i // 10 % 4 > 0 for i in range(100)]
    alone, grouped = (slices(items(["a"] * 100), ["difficulty"], [True] * 100, flags, 0.05, groups)[0]
                      for groups in (None, [i // 10 for i in range(100)]))
    assert grouped.drop.high > alone.drop.high and grouped.p_above > alone.p_above


def test_an_unknown_field_is_named_with_those_that_there_are():
    with pytest.raises(DataError) as error:
        check_fields(items(["a"]), ["difficulty", "dificulty"])
    problem, = error.value.problems
    assert (problem.field, problem.value) == ("evaluate.slices[1]", "dificulty")
    assert "difficulty" in problem.hint


class TestInTheVerdict:
    def judged(self, hard_right):
        expected = gold(600)
        right = [i >= 50 or i % 10 < hard_right for i in range(600)]
        metrics = given(expected, entrant("teacher", expected, seconds=1.0),
                        entrant("student", answers(expected, right), seconds=0.1), slices=["part"])
        for i, example in enumerate(metrics.test):
            example.fields["part"] = "hard" if i < 50 else "easy"
        return evaluate(metrics)

    def test_a_slice_that_falls_behind_is_told_though_the_whole_looks_fine(self):
        metrics = self.judged(hard_right=6)
        assert metrics.verdict.word == "viable"
        assert any("Slice part = hard" in reason for reason in metrics.verdict.reasons)
        assert any("slices that fall behind" in step for step in metrics.verdict.next_steps)
        assert not any("beside the teacher" in step for step in metrics.verdict.next_steps)

    def test_a_student_without_a_weak_slice_is_not_warned_of(self):
        assert not any("Slice" in reason for reason in self.judged(hard_right=10).verdict.reasons)
