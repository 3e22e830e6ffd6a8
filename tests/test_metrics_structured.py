"""Scores of JSON answers: by field, by object, by schema."""

from __future__ import annotations

import pytest

from distillctl.evaluate import metrics
from distillctl.evaluate.evaluate import evaluate
from tests.support.evaluating import entrant, given, predictions, structured

PLAIN = structured()


def scores(outputs, expected, task=PLAIN):
    scored = metrics.score(task, predictions(task, outputs), expected)
    return metrics.structured_scores(task, scored, expected, None)


def test_unreadable_and_missing_answers_are_no_valid_objects():
    found = scores([{"file": "a"}, "no JSON", '{"lines": 1}', None], [{"file": "a"}] * 4)
    assert (found.schema_valid.k, found.schema_valid.n) == (1, 4)


def test_an_exact_object_allows_no_tolerance_where_the_accuracy_does():
    task = structured(lines={"score": "number", "tolerance": 2}, title={"score": "text", "threshold": 0.5})
    expected = [{"file": "a", "lines": 3, "title": "a leak in it"}] * 2
    outputs = [expected[0], {"file": "a", "lines": 4, "title": "a leak"}]
    assert metrics.score(task, predictions(task, outputs), expected).right == [True, True]
    assert scores(outputs, expected, task).exact_object.k == 1


def test_an_exact_object_looks_at_scored_fields_alone():
    task = structured(title={"score": "ignore"})
    found = scores([{"file": "a", "title": "other", "lines": 9}], [{"file": "a", "title": "x"}], task)
    assert found.exact_object.k == 1


def test_field_f1_counts_lost_invented_and_wrong_values():
    # expected a value 5 times, said one 5 times, 3 of them right
    expected = [{"file": "a", "lines": 1}, {"file": "b", "lines": 2}, {"file": "c", "lines": None}]
    outputs = [{"file": "a", "lines": 1}, {"file": "x"}, {"file": "c", "lines": 7}]
    assert scores(outputs, expected).field_f1.value == pytest.approx(2 * 3 / (5 + 5))


def test_a_right_null_is_no_found_value():
    assert scores([{"file": "x"}], [{"file": "a", "lines": None}]).field_f1.value == 0


def test_an_unreadable_answer_loses_every_expected_field():
    found = scores([{"file": "a", "lines": 1}, "oops"], [{"file": "a", "lines": 1}] * 2)
    assert found.field_f1.value == pytest.approx(2 * 2 / (2 + 4))


def test_without_any_value_the_f1_is_unknown():
    assert scores(["oops"], [{"lines": None}]).field_f1 is None


@pytest.mark.parametrize("output", [{"file": "a"}, {"file": "b"}])
def test_field_f1_never_claims_certainty(output):
    found = scores([output] * 20, [{"file": "a"}] * 20).field_f1
    assert found.low < found.high
    assert "bootstrap" not in found.method.split(",")[0]


def test_the_metrics_hold_them_for_everybody():
    expected = [{"file": "a"}] * 4
    found = evaluate(given(expected, entrant("teacher", expected, PLAIN),
                           entrant("student", [*expected[:2], {"file": "x"}, "oops"], PLAIN), task=PLAIN))
    assert {one.name: (one.structured.schema_valid.k, one.structured.exact_object.k)
            for one in found.evaluations} == {"teacher": (4, 4), "student": (3, 2)}
    assert all(one.text is None for one in found.evaluations)
