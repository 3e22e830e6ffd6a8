"""Scores by the kind of task, against scikit-learn where it has them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as theirs

from distillctl.evaluate import intervals, metrics
from tests.support.evaluating import LABELLING, LABELS, predictions, structured, text


def drawn(n=200, accuracy=0.7, seed=0):
    rng = np.random.default_rng(seed)
    expected = [str(label) for label in rng.choice(LABELS, n)]
    answered = [label if rng.random() < accuracy else str(rng.choice(LABELS)) for label in expected]
    return expected, answered


def macro(expected, answered, groups=None):
    accuracy = intervals.count([e == a for e, a in zip(expected, answered, strict=True)])
    return metrics.macro_f1(LABELS, expected, answered, groups, accuracy.share)


class TestLabels:
    def test_per_label_scores_and_macro_f1_are_scikit_learns(self):
        expected, answered = drawn()
        precision, recall, f1, support = theirs.precision_recall_fscore_support(
            expected, answered, labels=list(LABELS))
        found = metrics.label_scores(metrics.confusion(LABELS, expected, answered))
        assert [one.precision for one in found] == pytest.approx(list(precision))
        assert [one.recall for one in found] == pytest.approx(list(recall))
        assert [one.f1 for one in found] == pytest.approx(list(f1))
        assert [one.support for one in found] == list(support)
        assert macro(expected, answered).value == pytest.approx(
            theirs.f1_score(expected, answered, average="macro"))

    def test_an_invalid_answer_lowers_recall_and_is_no_label_of_its_own(self):
        expected, answered = ["code", "code", "docs"], ["code", None, "docs"]
        table = metrics.confusion(LABELS, expected, answered)
        assert table.columns[-1] == "(no valid answer)"
        assert table.counts == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
        code = metrics.label_scores(table)[0]
        assert (code.precision, code.recall) == (1, 0.5)
        assert macro(expected, answered).value == pytest.approx((2 / 3 + 1) / 2)

    def test_what_is_not_defined_is_unknown(self):
        code, docs, skip = metrics.label_scores(metrics.confusion(LABELS, ["code"], ["docs"]))
        assert (code.precision, code.recall, code.f1) == (None, 0, 0)
        assert (docs.precision, docs.recall, docs.f1) == (0, None, 0)
        assert (skip.precision, skip.recall, skip.f1) == (None, None, None)

    def test_a_label_that_is_never_expected_nor_said_does_not_count(self):
        assert macro(["code", "docs"], ["code", "docs"]).value == 1

    def test_macro_f1_has_an_interval_around_it(self):
        found = macro(*drawn())
        assert found.low < found.value < found.high
        assert "bootstrap" in found.method

    @pytest.mark.parametrize("answered", [["code"] * 30, ["docs"] * 30, [None] * 30])
    def test_macro_f1_never_claims_certainty(self, answered):
        found = macro(["code"] * 30, answered)
        assert found.low < found.high
        assert found.low <= found.value <= found.high
        assert "bootstrap" not in found.method.split(",")[0]

    def test_groups_are_drawn_whole(self):
        expected, answered = drawn(40)
        alone = macro(expected * 5, answered * 5)
        grouped = macro(expected * 5, answered * 5, [*range(40)] * 5)
        assert grouped.value == alone.value
        assert grouped.high - grouped.low > 1.7 * (alone.high - alone.low)


class TestFields:
    task = structured(lines={"score": "number", "tolerance": 2}, title={"score": "ignore"})

    def test_each_field_is_scored_over_the_items_that_expect_it(self):
        expected = [{"file": "a.py", "lines": 10}, {"file": "b.py"}, {"file": "c.py", "lines": 5}]
        answers = predictions(self.task, [
            {"file": "a.py", "lines": 12}, {"file": "x.py"}, {"file": "c.py", "lines": 9}])
        scored = metrics.score(self.task, answers, expected)
        assert scored.right == [True, False, False]
        parts = metrics.part_means(scored, None)
        assert list(parts) == ["file", "lines"]
        assert parts["file"].value == pytest.approx(2 / 3)
        assert parts["lines"].value == 0.5
        assert parts["lines"].method == "Wilson"

    @pytest.mark.parametrize("output", [None, "", "no JSON", '{"lines": 3}', "[1]"])
    def test_an_answer_that_cannot_be_read_has_every_field_wrong(self, output):
        scored = metrics.score(self.task, predictions(self.task, [output]), [{"file": "a.py", "lines": 3}])
        assert scored.right == [False]
        assert scored.parts == [{"file": 0.0, "lines": 0.0}]
        assert metrics.invalid(scored, None).k == 1


class TestChecks:
    def test_a_missing_answer_keeps_no_limit_and_avoids_no_term(self):
        task = text(max_words=5)
        scored = metrics.score(task, [None, *predictions(task, [None])],
                               [{"must_not_include": ["please"]}] * 2)
        assert scored.parts == [{"must_not_include": 0.0, "max_words": 0.0}] * 2
        assert scored.right == [False, False]

    def test_each_check_has_its_share(self):
        task = text(max_words=3)
        answers = predictions(task, ["backup size", "the size of the backup", "other"])
        parts = metrics.part_means(metrics.score(task, answers, [{"must_include": ["size"]}] * 3), None)
        assert parts["must_include"].value == pytest.approx(2 / 3)
        assert parts["max_words"].value == pytest.approx(2 / 3)


class TestMeans:
    def test_shares_of_wholes_use_wilson(self):
        assert intervals.mean([1.0, 0.0, 1.0]).method == "Wilson"

    def test_partial_scores_use_the_bootstrap(self):
        found = intervals.mean([0.2, 0.9, 0.5, 0.7, 0.4])
        assert found.value == pytest.approx(0.54)
        assert found.low < 0.54 < found.high
        assert "bootstrap" in found.method


class TestSameAnswer:
    @pytest.mark.parametrize(("one", "other", "same"), [
        ("code", "Code.", True), ("code", "docs", False), ("code", "dunno", False), ("dunno", "docs", False),
        ("dunno", " dunno ", True), ("dunno", "no idea", False), (None, None, False), ("", "", False),
        (None, "dunno", False)])
    def test_labels(self, one, other, same):
        first, second = predictions(LABELLING, [one, other])
        assert metrics.same_answer(LABELLING, first, second, "skip") == same

    def test_a_missing_answer_is_the_same_as_nothing(self):
        first, = predictions(LABELLING, ["code"])
        assert not metrics.same_answer(LABELLING, first, None, "code")
        assert not metrics.same_answer(LABELLING, None, None, "code")

    @pytest.mark.parametrize(("one", "other", "same"), [
        ({"file": "a", "title": "x"}, {"file": "a", "title": "y"}, True),
        ({"file": "a", "lines": 3}, {"file": "a", "lines": 4}, True),
        ({"file": "a", "lines": 3}, {"file": "a", "lines": 9}, False),
        ({"file": "a", "lines": 3}, {"file": "a"}, False),
        ({"file": "a"}, {"file": "a", "lines": 3}, False),
        ({"file": "a"}, {"file": "b"}, False)])
    def test_objects_by_the_fields_that_are_scored(self, one, other, same):
        task = structured(lines={"score": "number", "tolerance": 2}, title={"score": "ignore"})
        first, second = predictions(task, [one, other])
        expected = {"file": "z", "lines": 1, "title": "t"}
        assert metrics.same_answer(task, first, second, expected) == same
        assert metrics.same_answer(task, second, first, expected) == same

    @pytest.mark.parametrize(("one", "other", "settings", "same"), [
        ("Backup size!", "backup size", {}, True), ("backup size now", "backup size", {}, False),
        ("backup size now", "backup size", {"min_similarity": 0.7}, True),
        ("one two three four", "one two three four", {"max_words": 2}, True)])
    def test_texts_by_their_words_or_by_likeness(self, one, other, settings, same):
        task = text(**settings)
        first, second = predictions(task, [one, other])
        assert metrics.same_answer(task, first, second, {"text": "something else"}) == same
