"""Runs of a small task whose answer follows from one word of the question, with a really trained linear
student."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

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


def small_run(folder: Path, teacher: Callable[[dict], str], expected: Callable[[dict], str | None],
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
