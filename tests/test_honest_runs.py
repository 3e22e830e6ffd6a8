"""What a run says of a copying student, a bad teacher and mixed-up labels: each really trained, in small."""

from __future__ import annotations

import json
import random

import pytest
from support.small_runs import bad, gold, rows, small_run


def mixed_up(row: dict) -> str:
    return random.Random(row["id"]).choice(["code", "docs", "skip"])


def labelled_by_teacher(row: dict) -> str:
    """Gold for dev and test alone, so that the teacher's mistakes stay in the training rows."""
    return bad(row) if row["id"].startswith("train") else gold(row)


def test_a_student_that_copies_its_teacher_has_no_compression_errors(tmp_path):
    versus = small_run(tmp_path, bad, labelled_by_teacher).metrics.comparisons[0]
    assert (versus.compression, versus.corrected, versus.both_wrong_differently) == (0, 0, 0)
    assert versus.inherited == sum(bad(row) != gold(row) for row in rows("test")) == 15
    assert versus.agreement.k == versus.n


def test_trained_on_gold_against_a_bad_teacher_the_teacher_is_the_bottleneck(tmp_path):
    done = small_run(tmp_path, bad, gold, controls=["gold"])
    levers = json.loads((done.dir.path / "levers.json").read_text(encoding="utf-8"))
    assert levers["conclusions"][0].startswith("The teacher is the bottleneck")
    assert (levers["rows"], levers["levers"][0]["rows"]) == (150, 180)  # a wrong answer is no training row
    assert levers["levers"][0]["accuracy"]["k"] > levers["student"]["k"] + 10
    assert "The teacher is the bottleneck" in (done.dir.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("teacher", "expected", "reason"), [
    (gold, mixed_up, "The expected answers are wrong or mixed up, or they do not follow from the prompt, so "
                     "that this is not a bounded task."),
    (mixed_up, lambda row: None, "What the teacher says does not follow from the prompt, so that this is not "
                                 "a bounded task, or its labels are mixed up")], ids=["expected", "teacher"])
def test_mixed_up_labels_are_not_ready_and_the_reason_is_named(tmp_path, teacher, expected, reason):
    verdict = small_run(tmp_path, teacher, expected).metrics.verdict
    assert verdict.word == "not ready"
    assert any(reason in one for one in verdict.reasons)
    assert "not a bounded task" in verdict.next_steps[0]
