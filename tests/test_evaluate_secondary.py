"""The metrics beside the accuracy: what the student loses in each, paired, and when that is a warning."""

from __future__ import annotations

import pytest

from distillctl.evaluate.evaluate import evaluate
from tests.support.evaluating import LABELLING, answers, entrant, given, gold, structured, text


def evaluated(expected, teacher, student, task=LABELLING):
    return evaluate(given(expected, entrant("teacher", teacher, task, seconds=1.0),
                          entrant("student", student, task, seconds=0.1), task=task))


@pytest.mark.parametrize(("task", "expected", "right", "wrong", "name"), [
    (LABELLING, gold(60), None, None, "Macro-F1"),
    (structured(), [{"file": "a", "lines": 3}] * 60, {"file": "a", "lines": 3}, {"file": "b", "lines": 3},
     "Field-F1"),
    (text(), [{"text": "one two three"}] * 60, "one two three", "one two four", "ROUGE-L")],
    ids=["labels", "objects", "texts"])
def test_the_drop_is_that_of_the_two_figures_and_its_interval_is_paired(task, expected, right, wrong, name):
    flags = [i % 5 > 0 for i in range(60)]
    said = answers(expected, flags) if right is None else [right if good else wrong for good in flags]
    metrics = evaluated(expected, expected if right is None else [right] * 60, said, task)
    teacher, student = metrics.evaluations
    figure = {"Macro-F1": lambda e: e.macro_f1, "Field-F1": lambda e: e.structured.field_f1,
              "ROUGE-L": lambda e: e.text.rouge_l}[name]
    drop = metrics.comparisons[0].other_drops[name]
    assert drop.value == pytest.approx(figure(teacher).value - figure(student).value)
    assert 0 < drop.low < drop.value < drop.high
    assert drop.high - drop.low < 1.05 * (figure(student).high - figure(student).low)


def test_two_that_answer_alike_are_not_alike_for_certain():
    expected = gold(60)
    drop = evaluated(expected, expected, expected).comparisons[0].other_drops["Macro-F1"]
    assert (drop.value, drop.method) == (0, "Tango of the accuracy, nothing to bootstrap")
    assert drop.low < 0 < drop.high


def test_each_field_has_its_own_drop():
    expected = [{"file": "a", "lines": 3}] * 60
    said = [{"file": "a", "lines": 3 if i % 2 else 4} for i in range(60)]
    drops = evaluated(expected, expected, said, structured()).comparisons[0].part_drops
    assert (drops["file"].value, drops["lines"].value) == (0, 0.5)
    assert drops["lines"].method == "Tango"


def test_a_rare_label_that_is_given_up_is_a_warning_though_the_accuracy_hardly_falls():
    expected = ["code"] * 288 + ["docs"] * 240 + ["skip"] * 12
    said = ["code"] * 288 + ["docs"] * 240 + ["code"] * 12
    verdict = evaluated(expected, expected, said).verdict
    assert verdict.word == "viable"
    assert any(reason.startswith("Macro-F1 falls by") for reason in verdict.reasons)
    assert not any("real traffic" in step for step in verdict.next_steps)


def test_without_a_gap_nothing_is_said():
    expected = gold(300)
    assert not any("falls by" in one for one in evaluated(expected, expected, expected).verdict.reasons)
