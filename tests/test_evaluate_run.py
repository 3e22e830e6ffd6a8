"""A whole evaluation from predictions: who is right, who is to blame, what is refused, what is said."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from distillctl.errors import DataError
from distillctl.evaluate.evaluate import Entrant, evaluate
from distillctl.evaluate.results import Metrics, Throughput
from distillctl.prices import PricePoint, Rate
from tests.support.evaluating import (
    LABELLING,
    LABELS,
    answers,
    entrant,
    examples,
    given,
    gold,
    logs,
    predictions,
    structured,
    text,
)


def student_of(metrics: Metrics):
    return next(one for one in metrics.evaluations if one.role == "student")


class TestLedger:
    # expected, teacher, student, cell
    CASES = (
        ("code", "code", "code", None), ("code", "code", "docs", "compression"),
        ("code", "docs", "code", "corrected"), ("code", "docs", "docs", "inherited"),
        ("code", "docs", "skip", "both_wrong_differently"), ("code", "code", None, "compression"),
        ("code", None, "code", "corrected"), ("code", None, None, "both_wrong_differently"),
        ("code", "hm", "hm", "inherited"), ("code", "hm", "eh", "both_wrong_differently"),
        ("code", "docs", "hm", "both_wrong_differently"))

    def test_every_item_is_in_its_cell(self):
        expected, teacher, student, cells = zip(*self.CASES, strict=True)
        metrics = evaluate(given(expected, entrant("teacher", teacher), entrant("student", student)))
        found = metrics.comparisons[0]
        by_id = {item.id: item.cell for item in found.items}
        assert [by_id.get(f"e{i:04d}") for i in range(len(cells))] == list(cells)
        assert (found.both_right, found.compression, found.corrected, found.inherited,
                found.both_wrong_differently) == (1, 2, 2, 2, 4)

    def test_an_item_shows_what_was_asked_expected_and_said(self):
        stated = [logs("docs", 0.8)]
        student = Entrant("student", "student", "m", predictions(LABELLING, ["docs"], stated=stated))
        item, = evaluate(given(["code"], entrant("teacher", ["code"]), student)).comparisons[0].items
        assert (item.prompt, item.expected, item.teacher, item.student) == (
            "Q: question 0", "code", "code", "docs")
        assert item.student_confidence == pytest.approx(0.8)

    def test_what_could_not_be_read_is_shown_raw(self):
        item, = evaluate(given(["code"], entrant("teacher", ["code"]), entrant("student", ["It is code"]),
                               )).comparisons[0].items
        assert item.student == "It is code"

    def test_fields_of_a_wrong_object_are_shown(self):
        task = structured()
        metrics = evaluate(given(
            [{"file": "a", "title": "t"}], entrant("teacher", [{"file": "a", "title": "t"}], task),
            entrant("student", [{"file": "a", "title": "u"}], task), task=task))
        item, = metrics.comparisons[0].items
        assert item.parts == {"file": 1.0, "title": 0.0}
        assert student_of(metrics).parts["file"].value == 1

    def test_only_the_students_items_are_kept(self):
        metrics = evaluate(given(["code"], entrant("teacher", ["code"]), entrant("student", ["docs"]),
                                 entrant("base", ["docs"])))
        assert [(one.student, len(one.items)) for one in metrics.comparisons] == [("student", 1), ("base", 0)]

    @settings(deadline=None, max_examples=30)
    @forall(st.lists(st.tuples(*[st.sampled_from([*LABELS, "hm", None])] * 2), min_size=1, max_size=30))
    def test_the_counts_add_up(self, pairs):
        n = len(pairs)
        metrics = evaluate(given(gold(n), entrant("teacher", [t for t, _ in pairs]),
                                 entrant("student", [s for _, s in pairs])))
        versus, teacher, student = metrics.comparisons[0], *metrics.evaluations
        assert (versus.both_right + versus.compression + versus.corrected + versus.inherited
                + versus.both_wrong_differently) == n
        assert teacher.accuracy.k == versus.both_right + versus.compression
        assert student.accuracy.k == versus.both_right + versus.corrected
        assert versus.drop.value == pytest.approx(teacher.accuracy.share.value - student.accuracy.share.value)
        assert len(versus.items) == n - versus.both_right
        assert versus.inherited <= versus.agreement.k
        assert len(student.wrong) == n - student.accuracy.k
        assert sum(map(sum, student.confusion.counts)) == n
        assert sum(row[-1] for row in student.confusion.counts) == student.invalid.k


class TestDenominator:
    def test_missing_predictions_are_wrong_and_told(self):
        student = Entrant("student", "student", "m", predictions(LABELLING, ["code"] * 4)[:1])
        metrics = evaluate(given(["code"] * 4, entrant("teacher", ["code"] * 4), student))
        found = student_of(metrics)
        assert (found.n, found.accuracy.k, found.invalid.k) == (4, 1, 3)
        assert "student: 3 answers of 4 missing, counted as wrong." in metrics.notes

    def test_repeated_samples_do_not_count(self):
        once = predictions(LABELLING, ["code", "docs"])
        again = [dataclasses.replace(one, sample=1, value="skip") for one in once]
        student = Entrant("student", "student", "m", [*again, *once])
        assert student_of(evaluate(given(["code", "docs"], entrant("teacher", ["code", "docs"]), student),
                                   )).accuracy.k == 2

    def test_the_order_of_predictions_does_not_matter(self):
        expected = gold(30)
        outputs = answers(expected, [i % 3 > 0 for i in range(30)])
        mixed = predictions(LABELLING, outputs)
        random.Random(1).shuffle(mixed)
        one = evaluate(given(expected, entrant("teacher", expected), entrant("student", outputs)))
        other = evaluate(given(expected, entrant("teacher", expected),
                               Entrant("student", "student", "student-model", mixed)))
        assert one == other


class TestWithoutGold:
    def test_the_teacher_is_the_measure(self):
        metrics = evaluate(given([None] * 3, entrant("teacher", ["code", "docs", "skip"]),
                                 entrant("student", ["code", "docs", "docs"])))
        teacher, student = metrics.evaluations
        assert not metrics.gold
        assert (teacher.accuracy.k, student.accuracy.k) == (3, 2)
        assert metrics.comparisons[0].agreement.k == 2
        assert any("agreement with the teacher" in note for note in metrics.notes)

    def test_an_unreadable_teacher_is_nobodys_measure(self):
        metrics = evaluate(given([None] * 3, entrant("teacher", ["code", "hm", None]),
                                 entrant("student", ["code", "hm", "docs"])))
        assert [one.accuracy.k for one in metrics.evaluations] == [1, 1]
        assert any("no valid answer to 2 test items" in note for note in metrics.notes)

    def test_objects(self):
        task = structured(lines={"score": "number", "tolerance": 1})
        metrics = evaluate(given(
            [None] * 2, entrant("teacher", [{"file": "a", "lines": 3}, {"file": "b"}], task),
            entrant("student", [{"file": "a", "lines": 4}, {"file": "c"}], task), task=task))
        assert student_of(metrics).accuracy.k == 1
        assert student_of(metrics).parts["file"].value == 0.5

    def test_texts(self):
        task = text(min_similarity=0.6)
        metrics = evaluate(given(
            [None] * 2, entrant("teacher", ["the backup size", "the size"], task),
            entrant("student", ["backup size", "other words"], task), task=task))
        assert student_of(metrics).accuracy.k == 1


class TestTimesAndCosts:
    PRICE = PricePoint(Rate(1.0, 1.0), "a list")

    def test_what_is_known_of_an_entrant_is_kept(self):
        teacher = Entrant("teacher", "teacher", "gpt", predictions(
            LABELLING, ["code"] * 10, tokens_in=900, tokens_out=100), price=self.PRICE,
            latencies_s=[1.0] * 60, throughput=Throughput(per_second=5, at_once=8))
        student = entrant("student", ["code"] * 10, seconds=0.1, size_bytes=123)
        metrics = evaluate(given(["code"] * 10, teacher, student))
        found = metrics.evaluations[0]
        assert found.cost.usd_per_1000 == pytest.approx(1.0)
        assert found.throughput.at_once == 8
        assert found.latency.source == "measured"
        assert student_of(metrics).size_bytes == 123
        assert student_of(metrics).cost is None
        assert metrics.comparisons[0].speedup.value == pytest.approx(10)

    def test_the_latencies_of_a_recording_are_marked_as_recorded(self):
        recorded = Entrant("teacher", "teacher", "r", predictions(LABELLING, ["code"] * 60, latency_s=1.0),
                           replayed=True)
        metrics = evaluate(given(["code"] * 60, recorded, entrant("student", ["code"] * 60, seconds=0.1)))
        assert metrics.evaluations[0].latency.source == "recorded"
        assert any("latencies are as recorded" in note for note in metrics.notes)

    def test_a_recording_without_latency_and_cost_leaves_them_unknown(self):
        metrics = evaluate(given(["code"] * 60, entrant("teacher", ["code"] * 60, replayed=True),
                                 entrant("student", ["code"] * 60, seconds=0.1)))
        assert metrics.evaluations[0].latency is None
        assert metrics.comparisons[0].speedup is None
        assert metrics.verdict.on_quality_alone
        assert any("Unknown of it: latency and cost" in note for note in metrics.notes)

    def test_what_was_collected_at_concurrency_is_no_latency(self):
        live = Entrant("teacher", "teacher", "r", predictions(LABELLING, ["code"] * 60, latency_s=1.0))
        metrics = evaluate(given(["code"] * 60, live, entrant("student", ["code"] * 60, seconds=0.1)))
        assert metrics.evaluations[0].latency is None

    def test_a_replay_cannot_be_timed(self):
        with pytest.raises(ValueError, match="would time the replay"):
            entrant("teacher", ["code"], replayed=True, seconds=0.02)


class TestProbabilities:
    def test_the_temperature_of_dev_reaches_the_confidence_of_the_ledger(self):
        expected = gold(40)
        sure = [logs(label, 0.98) for label in answers(expected, [i % 4 > 0 for i in range(40)])]
        said = answers(expected, [i % 4 > 0 for i in range(40)])
        student = Entrant("student", "student", "m", predictions(LABELLING, said, stated=sure),
                          dev_predictions=predictions(LABELLING, said, stated=sure))
        metrics = evaluate(given(expected, entrant("teacher", expected), student, dev=examples(expected)))
        assert student_of(metrics).calibration.temperature > 1.5
        assert all(item.student_confidence < 0.9 for item in metrics.comparisons[0].items)

    def test_without_dev_they_are_shown_as_stated_and_that_is_told(self):
        student = Entrant("student", "student", "m", predictions(
            LABELLING, ["code"], stated=[logs("code", 0.9)]))
        metrics = evaluate(given(["code"], entrant("teacher", ["code"]), student))
        assert student_of(metrics).calibration.temperature is None
        assert any("fewer than 10 dev items" in note for note in metrics.notes)


class TestGroups:
    def test_items_that_belong_together_widen_every_interval(self):
        expected = gold(120)
        student = answers(expected, [i // 10 % 4 > 0 for i in range(120)])
        ids = [one.id for one in examples(expected)]
        runs = [evaluate(given(expected, entrant("teacher", expected), entrant("student", student),
                               groups=groups))
                for groups in (None, {one: i // 10 for i, one in enumerate(ids)})]
        alone, grouped = (run.comparisons[0].drop for run in runs)
        assert alone.value == grouped.value
        assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
        shares = [student_of(run).accuracy.share for run in runs]
        assert shares[1].high - shares[1].low > 2 * (shares[0].high - shares[0].low)
        assert any("120 test items come in 12 groups" in note for note in runs[1].notes)

    def test_groups_of_one_change_nothing(self):
        expected = gold(12)
        alone = {one.id: one.id for one in examples(expected)}
        entrants = entrant("teacher", expected), entrant("student", expected)
        assert evaluate(given(expected, *entrants, groups=alone)) == evaluate(given(expected, *entrants))


class TestDigest:
    def digest(self, expected, task=LABELLING, teacher=None):
        said = teacher or [e if isinstance(e, str | dict) else "x" for e in expected]
        return evaluate(given(expected, entrant("teacher", said, task), entrant("student", said, task),
                              task=task)).test_digest

    def test_is_the_same_whoever_answered(self):
        assert self.digest(["code", "docs"]) == self.digest(["code", "docs"], teacher=["skip", "hm"])

    def test_changes_with_what_is_expected(self):
        assert self.digest(["code", "docs"]) != self.digest(["code", "skip"])

    def test_changes_with_the_scoring_and_not_with_the_prompt(self):
        expected = [{"file": "a", "lines": 3}]
        loose = structured(lines={"score": "number", "tolerance": 2})
        assert self.digest(expected, structured()) != self.digest(expected, loose)
        reworded = structured()
        reworded.spec = reworded.spec.model_copy(update={"prompt": "other {{ q }}"})
        assert self.digest(expected, structured()) == self.digest(expected, reworded)

    def test_without_gold_changes_with_the_teacher(self):
        assert (self.digest([None, None], teacher=["code", "docs"])
                != self.digest([None, None], teacher=["code", "code"]))


class TestRefusals:
    TEACHER = entrant("teacher", ["code", "docs"])
    STUDENT = entrant("student", ["code", "docs"])

    def test_an_empty_test_split(self):
        with pytest.raises(DataError, match="the test split is empty"):
            evaluate(given([], self.TEACHER, self.STUDENT))

    def test_predictions_of_other_data(self):
        with pytest.raises(DataError, match=r"1 prediction of 'student' for ids that are not in the test"):
            evaluate(given(["code"], entrant("teacher", ["code"]), self.STUDENT))

    def test_two_predictions_for_one_item(self):
        twice = Entrant("student", "student", "m", [*predictions(LABELLING, ["code"])] * 2)
        with pytest.raises(DataError, match="'student' has two test predictions for one id"):
            evaluate(given(["code"], entrant("teacher", ["code"]), twice))

    def test_gold_for_some_items_only(self):
        with pytest.raises(DataError, match=r"data.jsonl:2.*1 of 2 test items have no expected answer"):
            evaluate(given(["code", None], self.TEACHER, self.STUDENT))

    def test_an_expected_answer_that_is_no_label(self):
        with pytest.raises(DataError, match="the expected answer is not one of the labels"):
            evaluate(given(["code", "dox"], self.TEACHER, self.STUDENT))

    def test_several_problems_at_once(self):
        with pytest.raises(DataError) as caught:
            evaluate(given(["code"], self.TEACHER, self.STUDENT))
        assert len(caught.value.problems) == 2

    @pytest.mark.parametrize("entrants", [
        (TEACHER,), (STUDENT,), (TEACHER, TEACHER, STUDENT), (TEACHER, STUDENT, STUDENT),
        (TEACHER, STUDENT, dataclasses.replace(STUDENT, role="base"))])
    def test_who_is_not_one_teacher_and_one_student_with_their_own_names(self, entrants):
        with pytest.raises(ValueError, match="one teacher, one student and distinct names"):
            evaluate(given(["code", "docs"], *entrants))


def test_metrics_survive_the_file():
    expected = gold(60)
    student = answers(expected, [i % 5 > 0 for i in range(60)])
    metrics = evaluate(given(expected, entrant("teacher", expected, seconds=1.0),
                             entrant("base", ["code"] * 60), entrant("student", student, seconds=0.1)))
    written = json.dumps(metrics.model_dump(mode="json"), allow_nan=False)
    assert Metrics.model_validate(json.loads(written)) == metrics


def test_the_same_predictions_give_the_same_metrics():
    expected = gold(60)
    student = answers(expected, [i % 5 > 0 for i in range(60)])
    once, again = (evaluate(given(expected, entrant("teacher", expected, seconds=1.0),
                                  entrant("student", student, seconds=0.1))) for _ in range(2))
    assert once == again


def test_importing_the_evaluator_loads_no_heavy_library():
    code = ("import sys, distillctl.evaluate.evaluate, distillctl.evaluate.compare; "
            "sys.exit(any(name in sys.modules for name in ('numpy', 'scipy', 'torch', 'jsonschema')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_of_an_error_has_its_cell_and_says_how_it_is_scored():
    task = structured(lines={"score": "number", "tolerance": 1}, title={"score": "ignore"})
    expected = [{"file": "a", "lines": 5, "title": "x"}] * 3
    teacher = [{"file": "a", "lines": 9}, {"file": "b", "lines": 6}, {"file": "a", "lines": 5}]
    student = [{"file": "b", "lines": 9}, {"file": "b", "lines": 5}, None]
    found = evaluate(given(expected, entrant("teacher", teacher, task), entrant("student", student, task),
                           task=task))
    assert [item.part_cells for item in found.comparisons[0].items] == [
        {"file": "compression", "lines": "inherited"}, {"file": "inherited"},
        {"file": "compression", "lines": "compression"}]
    assert found.how_scored == {"file": "exact", "lines": "a number within 1"}


@pytest.mark.parametrize(("settings", "part", "said"), [
    ({"min_words": 3}, "min_words", "at least 3 words"), ({}, "text", "equal after normalisation"),
    ({"min_similarity": 0.5}, "text", "ROUGE-L of at least 0.5"),
    ({}, "must_include", "has every required term")])
def test_a_check_of_a_text_says_what_makes_it_right(settings, part, said):
    assert text(**settings).how_scored(part) == said
