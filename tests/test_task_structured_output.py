"""A teacher that is asked to keep to the task's JSON Schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distillctl.errors import RecipeError
from distillctl.predictors import open_teacher
from distillctl.predictors.strict_schema import takes_strict
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import OpenAITeacher
from distillctl.testing.chat_server import ChatServer
from tests.support.chat import prompt
from tests.support.recipe import GOOD, STRUCTURED, write_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
CLOSED = {"type": "object", "additionalProperties": False, "required": ["a"],
          "properties": {"a": {"type": ["string", "null"]}}}
ASKED = ("provider: recorded\n  outputs: data/teacher.jsonl", "provider: openai\n  model: big\n  "
         "structured_output: true")


def asked(schema, **settings):
    """The request that a teacher sends to a real server, over HTTP."""
    with ChatServer() as server:
        spec = OpenAITeacher(provider="openai", model="big", base_url=server.base_url, api_key_env=None,
                             **settings)

        async def go() -> None:
            predictor = open_teacher(spec, Path, schema)
            await predictor.answer([prompt(1)])
            await predictor.aclose()

        asyncio.run(go())
    return server.asked[0].body


def test_the_schema_is_sent_where_the_recipe_asks():
    assert "response_format" not in asked(CLOSED)
    sent = asked(CLOSED, structured_output=True)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == CLOSED
    assert sent["json_schema"]["strict"] is True


def test_a_schema_that_strict_mode_refuses_is_sent_without_it():
    sent = asked({"type": "object", "properties": {"a": {"type": "string"}}}, structured_output=True)
    assert "strict" not in sent["response_format"]["json_schema"]


@pytest.mark.parametrize("change", [
    {"additionalProperties": True}, {"required": []}, {"type": ["object", "null"]}, {"allOf": [{}]},
    {"properties": {"a": {"enum": ["x"]}}}, {"properties": {"a": {"type": "string", "maxLength": 3}}},
    {"properties": {"a": {"type": "array", "items": {"type": "object"}}}},
    {"properties": {"a": {"anyOf": [{"type": "string"}, {"not": {}}]}}}, {"properties": {"a": True}}])
def test_what_strict_mode_does_not_take(change):
    assert takes_strict(CLOSED)
    assert not takes_strict(CLOSED | change)


@pytest.mark.parametrize("name", ["evidence_summary", "bug_summary"])
def test_the_shipped_schemas_are_ones_that_strict_mode_takes(name):
    assert takes_strict(load_recipe(RECIPES / f"{name}.yaml").task.json_schema)


def test_only_a_structured_task_has_a_schema_to_ask_for(tmp_path):
    assert load_recipe(write_recipe(tmp_path, STRUCTURED.replace(*ASKED))).recipe.teacher.structured_output
    with pytest.raises(RecipeError, match=r"structured_output.*no meaning for a classification"):
        load_recipe(write_recipe(tmp_path, GOOD.replace(*ASKED)))
