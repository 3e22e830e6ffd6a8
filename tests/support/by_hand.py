"""Finished runs of any kind of task whose students' answers are written down by the test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from distillctl import api
from distillctl.context import Context
from distillctl.deciding import evaluate_run
from distillctl.pipeline import execute
from distillctl.select import predictions_of, requests_of
from distillctl.store.files import write_json, write_jsonl
from distillctl.types import JSON, Answer

TIMING = {"latencies_s": [], "source": "measured", "replayed": False, "throughput": None}


def run_by_hand(workspace: Path, task: Mapping[str, JSON], expected: Mapping[str, str] | str | None,
                rows: Sequence[Mapping[str, JSON]], teacher: Mapping[str, str],
                student: Mapping[str, str]) -> Context:
    """A run on `rows`, each with a "split" that says where it goes, "id", "question" and what is expected.

    teacher: an output for every row; student: for the dev and test rows, a missing one is no answer.
    """
    folder = workspace / "recipe"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        write_jsonl(folder / f"{split}.jsonl",
                    [{k: v for k, v in row.items() if k != "split"} for row in rows if row["split"] == split])
    write_jsonl(folder / "teacher.jsonl", [{"id": one, "output": said} for one, said in teacher.items()])
    data = {"examples": {split: f"{split}.jsonl" for split in ("train", "dev", "test")},
            "near_duplicate": 1.0}
    write_json(folder / "recipe.yaml", {  # JSON is YAML
        "name": "by-hand", "task": {"prompt": "Say it. {{ question }}", **task},
        "data": data | ({"expected": expected} if expected else {}),
        "teacher": {"provider": "recorded", "outputs": "teacher.jsonl"},
        "student": {"model": "smollm2-135m"}, "evaluate": {"base": False}})
    ctx = api.open_recipe(folder / "recipe.yaml", workspace=workspace)
    with api.working_on(ctx):
        execute(ctx, "select")
        for split in ("dev", "test"):
            requests = [one for one in requests_of(ctx.task, ctx.examples(split)) if one.id in student]
            said = predictions_of(ctx.task, requests, [Answer(student[one.id]) for one in requests])
            write_jsonl(ctx.path(f"predictions/student.{split}.jsonl"), [one.as_json() for one in said])
        for who in ("teacher", "student"):
            write_json(ctx.path(f"timings/{who}.json"), TIMING | {"replayed": who == "teacher"})
        evaluate_run(ctx)
    return ctx


def object_of(**fields: JSON) -> str:
    return json.dumps(fields)
