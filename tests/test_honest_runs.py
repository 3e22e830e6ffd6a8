"""What a run says of a copying student, a bad teacher and mixed-up labels: each really trained, in small."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from distillctl import api
from distillctl.store.files import write_json, write_jsonl

WHERE = {"function": "code", "class": "code", "readme": "docs", "guide": "docs", "weather": "skip",
         "poem": "skip"}
"""What a question is about, and where its answer is looked up."""
BAD = WHERE | {"poem": "docs"}  # a teacher that always errs on poems
FILLERS = ("please", "quickly", "today", "again", "somehow", "for me", "at last", "in short", "once more")
SIZES = {"train": 180, "dev": 90, "test": 90}


def rows(split: str) -> list[dict]:
    """Different questions, each about one thing."""
    draw = random.Random(split)
    subjects = list(WHERE)
    return [{"id": f"{split}{i}", "about": subjects[i % len(subjects)],
             "question": f"{draw.choice(FILLERS)} tell {draw.choice(FILLERS)} of the "
                         f"{subjects[i % len(subjects)]} number {split}{i}"} for i in range(SIZES[split])]


def run(folder: Path, teacher: Callable[[dict], str], expected: Callable[[dict], str | None],
        **more: object) -> api.Run:
    """Train a linear student. teacher, expected: what is said, and what is right, of a row."""
    for split in SIZES:
        write_jsonl(folder / f"{split}.jsonl", [
            {"id": row["id"], "question": row["question"], "label": expected(row)} for row in rows(split)])
    write_jsonl(folder / "teacher.jsonl", [{"id": row["id"], "output": teacher(row), "latency_s": 1.0}
                                           for split in SIZES for row in rows(split)])
    write_json(folder / "recipe.yaml", {  # JSON is YAML
        "name": "small", "task": {"kind": "classification", "labels": ["code", "docs", "skip"],
                                  "prompt": "Where to look it up?\n{{ question }}"},
        "data": {"examples": {split: f"{split}.jsonl" for split in SIZES}, "near_duplicate": 1.0,
                 "expected": "label" if expected(rows("test")[0]) else None},
        "teacher": {"provider": "recorded", "outputs": "teacher.jsonl"}, "student": {"model": "linear"},
        "backend": "linear", "evaluate": {"base": False, "latency": {"items": 20, "warmup": 1}}, **more})
    return api.run(folder / "recipe.yaml", workspace=folder)


def gold(row: dict) -> str:
    return WHERE[row["about"]]


def bad(row: dict) -> str:
    return BAD[row["about"]]


def mixed_up(row: dict) -> str:
    return random.Random(row["id"]).choice(["code", "docs", "skip"])


def labelled_by_teacher(row: dict) -> str:
    """Gold for dev and test alone, so that the teacher's mistakes stay in the training rows."""
    return bad(row) if row["id"].startswith("train") else gold(row)


def test_a_student_that_copies_its_teacher_has_no_compression_errors(tmp_path):
    versus = run(tmp_path, bad, labelled_by_teacher).metrics.comparisons[0]
    assert (versus.compression, versus.corrected, versus.both_wrong_differently) == (0, 0, 0)
    assert versus.inherited == sum(bad(row) != gold(row) for row in rows("test")) == 15
    assert versus.agreement.k == versus.n


def test_trained_on_gold_against_a_bad_teacher_the_teacher_is_the_bottleneck(tmp_path):
    done = run(tmp_path, bad, gold, controls=["gold"])
    levers = json.loads((done.dir.path / "levers.json").read_text(encoding="utf-8"))
    assert levers["conclusions"][0].startswith("The teacher is the bottleneck")
    assert levers["levers"][0]["accuracy"]["k"] > levers["student"]["k"] + 10
    assert "The teacher is the bottleneck" in (done.dir.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("teacher", "expected", "reason"), [
    (gold, mixed_up, "The expected answers are wrong or mixed up, or they do not follow from the prompt, so "
                     "that this is not a bounded task."),
    (mixed_up, lambda row: None, "What the teacher says does not follow from the prompt, so that this is not "
                                 "a bounded task, or its labels are mixed up")], ids=["expected", "teacher"])
def test_mixed_up_labels_are_not_ready_and_the_reason_is_named(tmp_path, teacher, expected, reason):
    verdict = run(tmp_path, teacher, expected).metrics.verdict
    assert verdict.word == "not ready"
    assert any(reason in one for one in verdict.reasons)
    assert "not a bounded task" in verdict.next_steps[0]
