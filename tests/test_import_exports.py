"""Whole exports in the shapes that the tools document, imported into a recipe that `check` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.exports import CALLS, EXPORTS, SYSTEM

from distillctl.importing import import_log
from distillctl.recipe.load import load_recipe

FIGURES = {"tokens_in": 31, "tokens_out": 1, "latency_s": 0.75, "cost_usd": 0.0004}
KNOWN = {"openai-chat": set(), "openai-stored": {"tokens_in", "tokens_out"}, "csv": {"latency_s"}}
SKIPPED = {"langfuse": {"is a span, not a generation"}, "langsmith": {"is a chain run, not an llm run"},
           "litellm": {"was cut by LiteLLM", "is a call of the type aembedding"}}


@pytest.mark.parametrize("source", EXPORTS)
def test_every_call_becomes_an_example_with_its_figures(source: str, tmp_path: Path) -> None:
    name, content = EXPORTS[source]()
    (tmp_path / name).write_text(content)
    done = import_log(tmp_path / name, source, tmp_path / "out")
    assert (done.examples, set(done.labels)) == (len(CALLS), {"code", "docs", "skip"})
    recipe = load_recipe(tmp_path / "out/recipe.yaml")
    rows = [json.loads(line) for line in (tmp_path / "out/data/examples.jsonl").read_text().splitlines()]
    asked = [recipe.task.render(row) for row in rows]
    assert asked == [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
                     for question, _ in CALLS]
    answers = [json.loads(line) for line in (tmp_path / "out/data/teacher.jsonl").read_text().splitlines()]
    assert [row["output"] for row in answers] == [answer for _, answer in CALLS]
    known = KNOWN.get(source, set(FIGURES))
    assert {name: answers[0][name] for name in FIGURES if name in answers[0]} == {
        name: figure for name, figure in FIGURES.items() if name in known}
    assert source == "openai-chat" or answers[0]["model"] == "gpt-big-2026"
    reasons = {problem.what for problem in done.skipped}
    assert all(any(reason.startswith(wanted) for reason in reasons) for wanted in SKIPPED.get(source, ()))
    assert len(reasons) == len(SKIPPED.get(source, ()))
