"""Recordings, and how a recipe's teacher is opened."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.chat import prompt, prompts

from distillctl.errors import DataError, MissingExtra, UsageError
from distillctl.predictors import open_teacher, teacher_price
from distillctl.predictors.recorded import RecordedPredictor
from distillctl.recipe.models import AnthropicTeacher, OpenAITeacher, RecordedTeacher


def recording(folder: Path, *lines: str) -> Path:
    path = folder / "teacher.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def answers(predictor: RecordedPredictor, count: int):
    return asyncio.run(predictor.answer(prompts(count)))


def test_a_recording_gives_its_answers_by_id(tmp_path):
    path = recording(tmp_path, '{"id": "row-1", "output": "docs"}', "",
                     '{"id": "row-0", "output": "code", "tokens_in": 12, "tokens_out": 1, "latency_s": 0.5, '
                     '"cost_usd": 0.001, "model": "big", "note": "ignored"}')
    predictor = RecordedPredictor(path, model="some model")
    first, second, third = answers(predictor, 3)
    assert (first.output, first.tokens_in, first.latency_s, first.cost_usd, first.model) == (
        "code", 12, 0.5, 0.001, "big")
    assert (second.output, second.tokens_in, second.latency_s, second.model) == (
        "docs", None, None, "some model")
    assert (third.finish, third.output) == ("failed", None)
    assert predictor.missing(["row-0", "row-7"]) == ["row-7"]


def test_a_blank_output_is_an_empty_answer_and_a_recorded_finish_stays(tmp_path):
    path = recording(tmp_path, '{"id": "row-0", "output": " "}', '{"id": "row-1", "output": null}',
                     '{"id": "row-2", "output": "cut", "finish": "length"}')
    assert [a.finish for a in answers(RecordedPredictor(path), 3)] == ["empty", "empty", "length"]


def test_the_identity_follows_the_content(tmp_path):
    one = RecordedPredictor(recording(tmp_path, '{"id": "a", "output": "x"}')).identity
    two = RecordedPredictor(recording(tmp_path, '{"id": "a", "output": "y"}')).identity
    assert one != two


@pytest.mark.parametrize(("line", "what"), [
    ("not json", "not JSON"), ("[1]", "JSON object"), ('{"output": "x"}', "`id`"),
    ('{"id": "b"}', "`output`"),
    ('{"id": "b", "output": 7}', "`output`"), ('{"id": "b", "output": "x", "tokens_in": -1}', "`tokens_in`"),
    ('{"id": "b", "output": "x", "tokens_out": 1.5}', "`tokens_out`"),
    ('{"id": "b", "output": "x", "latency_s": NaN}', "`latency_s`"),
    ('{"id": "b", "output": "x", "cost_usd": "free"}', "`cost_usd`"),
    ('{"id": "b", "output": "x", "finish": "done"}', "`finish`"),
    ('{"id": "a", "output": "x"}', "line 1")])
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, what):
    path = recording(tmp_path, '{"id": "a", "output": "x"}', line)
    with pytest.raises(DataError, match=r"teacher\.jsonl:2") as caught:
        RecordedPredictor(path)
    assert what in str(caught.value)


def test_all_bad_rows_are_named_at_once_up_to_a_limit(tmp_path):
    path = recording(tmp_path, *["nonsense"] * 30)
    with pytest.raises(DataError) as caught:
        RecordedPredictor(path)
    assert "teacher.jsonl:20:" in str(caught.value) and "and 10 more" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}"])
def test_a_file_without_answers_is_an_error(tmp_path, content):
    path = tmp_path / "teacher.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"teacher\.jsonl"):
        RecordedPredictor(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        RecordedPredictor(tmp_path / "nothing.jsonl")


# --- open_teacher ---

def openai_teacher(**fields) -> OpenAITeacher:
    return OpenAITeacher(provider="openai", model="gpt-4.1-mini", **fields)


def test_a_recorded_teacher_is_found_from_the_recipe(tmp_path):
    recording(tmp_path, '{"id": "row-1", "output": "docs"}')
    spec = RecordedTeacher(provider="recorded", outputs="teacher.jsonl")
    predictor = open_teacher(spec, lambda name: tmp_path / name)
    answer, = asyncio.run(predictor.answer([prompt(1)]))
    assert answer.output == "docs" and predictor.replayed


def test_a_missing_key_names_the_variable_and_the_way_without_one():
    with pytest.raises(UsageError) as caught:
        open_teacher(openai_teacher(api_key_env="MY_KEY"), Path)
    assert "MY_KEY" in str(caught.value) and "recorded" in str(caught.value)


def test_an_own_server_needs_no_key():
    predictor = open_teacher(openai_teacher(api_key_env=None, base_url="http://127.0.0.1:9/v1"), Path)
    assert predictor.identity["base_url"] == "http://127.0.0.1:9/v1"


def test_a_missing_sdk_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("distillctl.predictors.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'distillctl\[anthropic\]'"):
        open_teacher(AnthropicTeacher(provider="anthropic", model="claude"), Path)


def test_the_price_is_the_recipes_before_the_tables():
    table = teacher_price(openai_teacher())
    own = teacher_price(openai_teacher(price={"input": 7.0, "output": 9.0}))
    assert table.source.startswith("genai-prices") and table.date
    assert (own.rate.input, own.source) == (7.0, "the recipe")


def test_the_price_of_an_own_server_is_unknown():
    assert teacher_price(openai_teacher(base_url="http://127.0.0.1:8000/v1")) is None


def test_importing_the_predictors_imports_no_sdk():
    code = ("import json, sys, distillctl.collect, distillctl.predictors.openai_chat, "
            "distillctl.predictors.anthropic_chat, distillctl.stability, distillctl.select; "
            "heavy = ('openai', 'anthropic', 'httpx2', 'genai_prices', 'torch', 'numpy'); "
            "print(json.dumps([m for m in heavy if m in sys.modules]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
