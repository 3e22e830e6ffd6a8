"""A teacher that is asked to keep to the task's JSON Schema."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from distillctl.check import check_recipe
from distillctl.errors import RecipeError
from distillctl.predictors import open_teacher
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import AnthropicTeacher, OpenAITeacher
from distillctl.recipe.provider_schema import openai_strict
from distillctl.testing.chat_server import ChatServer, Reply
from distillctl.types import CallFailed
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

        answer(spec, schema)
    return server.asked[0].body


def answer(spec, schema):
    async def go():
        predictor = open_teacher(spec, Path, schema)
        try:
            return (await predictor.answer([prompt(1)]))[0]
        finally:
            await predictor.aclose()

    return asyncio.run(go())


def test_the_schema_is_sent_where_the_recipe_asks():
    assert "response_format" not in asked(CLOSED)
    sent = asked(CLOSED, structured_output=True)["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == CLOSED
    assert sent["json_schema"]["strict"] is True


def test_a_schema_that_strict_mode_refuses_is_sent_without_it():
    loose = {"type": "object", "properties": {"a": {"type": "string"}}}
    sent = asked(loose, structured_output=True)
    assert sent["response_format"]["json_schema"]["schema"] == loose
    assert "strict" not in sent["response_format"]["json_schema"]


@pytest.mark.parametrize(("change", "why"), [
    ({"additionalProperties": True}, "must be false"), ({"required": []}, "`a` is not"),
    ({"type": ["object", "null"]}, "top must be"), ({"allOf": [{}]}, "know `allOf`"),
    ({"properties": {"a": {"enum": ["x"]}}}, r"\$.a: has no type"),
    ({"properties": {"a": {"type": "string", "maxLength": 3}}}, r"\$.a: .*`maxLength`"),
    ({"properties": {"a": {"type": "string", "format": "uri"}}}, "format 'uri'"),
    ({"properties": {"a": {"type": "array"}}}, "`items`"),
    ({"properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": True}}}}},
     r"\$.a\[\].b: must be a schema"),
    ({"properties": {"a": {"anyOf": [{"type": "string"}, {"not": {}}]}}}, r"anyOf\[1\].*`not`"),
    ({"properties": {"a": {"$ref": "#/$defs/x", "description": "y"}}}, "stand alone"),
    ({"properties": {"a": {"type": "string", "enum": [str(n) for n in range(1001)]}}}, "1001 enum values")])
def test_what_strict_mode_does_not_take_and_why(change, why):
    assert not openai_strict(CLOSED)[1]
    _, problems = openai_strict(CLOSED | change)
    assert re.search(why, "; ".join(problems))


def test_a_schema_nested_too_deep_is_not_taken():
    deep = {"type": "string"}
    for _ in range(11):
        deep = {"type": "object", "additionalProperties": False, "required": ["a"], "properties": {"a": deep}}
    assert "11 levels" in openai_strict(deep)[1][0]
    assert not openai_strict(deep["properties"]["a"])[1]


def test_annotations_are_left_out_and_objects_closed_so_that_strict_mode_takes_the_schema():
    open_one = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
                "required": ["default"], "properties": {"default": {"type": "string", "default": "x"}}}
    sent = asked(open_one, structured_output=True)["response_format"]["json_schema"]
    assert sent == {"name": "answer", "strict": True, "schema": {
        "type": "object", "required": ["default"], "properties": {"default": {"type": "string"}},
        "additionalProperties": False}}


def test_check_says_why_the_schema_is_only_a_wish(tmp_path):
    recipe = write_recipe(tmp_path, STRUCTURED.replace(*ASKED))
    (tmp_path / "data" / "examples.jsonl").write_text("".join(
        f'{{"id": "{number}", "text": "{word}", "label": "yes"}}\n' for number, word in
        enumerate(["abbey", "badge", "cabin", "dairy", "eagle", "fable", "gavel", "habit", "igloo"])))
    found = check_recipe(recipe)
    assert any("sent as a wish" in warning and "$.pages" in warning for warning in found.warnings)


def test_a_schema_that_a_server_refuses_all_the_same_stops_the_run_at_once():
    refusal = Reply(status=400, param="response_format", message="Invalid schema for response_format")
    with ChatServer(lambda asked: refusal) as server, pytest.raises(CallFailed) as caught:
        answer(OpenAITeacher(provider="openai", model="big", base_url=server.base_url, api_key_env=None,
                             structured_output=True), CLOSED)
    assert caught.value.kind == "setup"


# --- Anthropic ------------------------------------------------------------------------------------------


def claude(server, schema, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-ant-test")
    return answer(AnthropicTeacher(provider="anthropic", model="claude-test", api_key_env="TEST_KEY",
                                   base_url=server.anthropic_url, structured_output=True), schema)


def test_claude_is_held_to_the_schema_and_told_the_rest_in_words(monkeypatch):
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": {
        "a": {"type": ["string", "null"]}, "n": {"type": "integer", "minimum": 1},
        "k": {"enum": ["x", None]}}}
    with ChatServer(lambda asked: Reply('{"a": null, "n": 1}')) as server:
        assert claude(server, schema, monkeypatch).output == '{"a": null, "n": 1}'
    assert server.asked[0].body["output_config"] == {"format": {"type": "json_schema", "schema": {
        "type": "object", "additionalProperties": False, "properties": {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "n": {"type": "integer", "description": "{minimum: 1}"}, "k": {"enum": ["x", None]}}}}}


def test_a_claude_without_structured_output_stops_the_run_with_what_to_do(monkeypatch):
    refusal = Reply(status=400, message="output_config.format: not supported by this model")
    with ChatServer(lambda asked: refusal) as server, pytest.raises(CallFailed, match="to false") as caught:
        claude(server, CLOSED, monkeypatch)
    assert caught.value.kind == "setup"


@pytest.mark.parametrize(("properties", "why"), [
    ("{a: {$ref: '#/$defs/n'}}, $defs: {n: {type: object, properties: {n: {$ref: '#/$defs/n'}}}}",
     "leads back to itself"), ("{a: {description: anything}}", r"\$.a: has no type")])
def test_a_schema_that_anthropic_does_not_take_is_found_before_anything_is_sent(tmp_path, properties, why):
    recipe = STRUCTURED.replace("{answer: {type: string}, pages: {type: array}}", properties).replace(
        "expected: {answer: label}", "expected: {a: label}").replace(
        ASKED[0], ASKED[1].replace("openai", "anthropic"))
    with pytest.raises(RecipeError, match=why):
        load_recipe(write_recipe(tmp_path, recipe))


@pytest.mark.parametrize("name", ["evidence_summary", "bug_summary"])
def test_the_shipped_schemas_are_ones_that_strict_mode_takes(name):
    assert not openai_strict(load_recipe(RECIPES / f"{name}.yaml").task.json_schema)[1]


def test_only_a_structured_task_has_a_schema_to_ask_for(tmp_path):
    assert load_recipe(write_recipe(tmp_path, STRUCTURED.replace(*ASKED))).recipe.teacher.structured_output
    with pytest.raises(RecipeError, match=r"structured_output.*no meaning for a classification"):
        load_recipe(write_recipe(tmp_path, GOOD.replace(*ASKED)))
