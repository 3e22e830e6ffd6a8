"""Finished runs, made quickly: a linear student of the routing recipe, and tiny language models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from distillctl import api, deciding, stages
from distillctl.backend import StudentRef
from distillctl.context import Context
from distillctl.store.files import write_json
from distillctl.types import Answer, Request
from distillctl.using import context_of

RECIPES = Path(__file__).parents[2] / "recipes"
QUESTIONS = ("why", "where is it", "who calls it", "what is that", "which one", "how",
             "when was it made", "whose")
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["label", "sure"], "properties": {
    "label": {"enum": ["code", "docs"]}, "sure": {"type": "boolean"}}}
TASKS = {
    "classification": {"kind": "classification", "labels": ["code", "docs", "skip"]},
    "structured": {"kind": "structured", "json_schema": SCHEMA},
    "text": {"kind": "text"},
}
_ANSWERS = {"classification": ("code", "docs", "skip"), "text": ("yes", "no", "it depends"),
            "structured": tuple(json.dumps({"label": label, "sure": sure})
                                for label, sure in (("code", True), ("docs", False), ("code", False)))}


def linear_run(workspace: Path) -> Context:
    """A linear student of the routing recipe."""
    done = api.run(RECIPES / "routing.yaml", backend="linear", overrides=["baseline=null"],
                   workspace=workspace)
    return reopened(done.dir, workspace)


def whole_run(workspace: Path, base: StudentRef) -> Context:
    """A run whose student is `base` with every weight trained for a few steps."""
    recipe = _tiny_recipe(workspace, base, "classification", {}, {
        "lora": None, "max_steps": 4, "batch_size": 4, "learning_rate": 1e-2})
    return reopened(api.run(recipe, workspace=workspace).dir, workspace)


def tiny_run(workspace: Path, base: StudentRef, kind: str = "classification", **evaluate: object) -> Context:
    """A run whose student is a random adapter on `base` (see support.tiny_students): all but its training is
    as in any run."""
    from support.tiny_students import tiny_student

    ctx = api.open_recipe(_tiny_recipe(workspace, base, kind, evaluate, {}), workspace=workspace)
    with api.working_on(ctx):
        from distillctl.pipeline import execute

        execute(ctx, "select")
        shutil.rmtree(ctx.path("student"), ignore_errors=True)
        student = tiny_student(base, ctx.path("student"))
        write_json(ctx.path("student.json"), student.as_json())
        stages.answer_learner(ctx, "student")
        deciding.evaluate_run(ctx)
    return reopened(ctx.rundir, workspace)


def _tiny_recipe(workspace: Path, base: StudentRef, kind: str, evaluate: Mapping[str, object],
                 train: Mapping[str, object]) -> Path:
    """A recipe of forty questions with a recorded teacher, in a folder of the workspace."""
    folder = workspace / "recipe"
    folder.mkdir(parents=True)
    rows = [{"id": f"q{n:02d}", "question": f"{QUESTIONS[n % 8]} {n}?"} for n in range(40)]
    answers = _ANSWERS[kind]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "teacher.jsonl").write_text("".join(
        json.dumps({"id": row["id"], "output": answers[n % len(answers)]}) + "\n"
        for n, row in enumerate(rows)))
    write_json(folder / "recipe.yaml", {  # JSON is YAML
        "name": f"tiny-{kind}", "task": {**TASKS[kind], "prompt": "Say where to look it up. {{ question }}"},
        "data": {"examples": "rows.jsonl", "near_duplicate": 1.0},
        "teacher": {"provider": "recorded", "outputs": "teacher.jsonl"}, "student": {"model": base.model},
        "backends": {"local": {"threads": 1, "precision": "fp32"}}, "train": train,
        "evaluate": {"base": False, "max_tokens": 24, **evaluate}})
    return folder / "recipe.yaml"


def reopened(rundir: api.RunDir, workspace: Path) -> Context:
    """The run as a command opens it."""
    return context_of(rundir, api.Workspace(workspace))


class Echo:
    """Answers at once: nothing is waited for but what a test is about."""

    identity: ClassVar[dict] = {}
    max_batch = 64
    replayed = False

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer("docs") for _ in requests]

    async def aclose(self) -> None: ...
