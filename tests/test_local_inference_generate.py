"""Generated answers: the plain greedy ones, whatever the batch; those held to a schema fit it."""

from __future__ import annotations

import json

import jsonschema
import pytest
from support.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from support.tiny_students import STATEFUL

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.generate import Generated, Generator, Grammar  # noqa: E402

from distillctl.errors import StudentError  # noqa: E402

ENCODER = Encoder(tiny_tokenizer())
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["file", "severity", "lines", "found"],
    "properties": {
        "file": {"type": "string", "maxLength": 6}, "severity": {"enum": ["low", "high"]},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "found": {"type": "boolean"}}}


def prompts() -> list[list[int]]:
    return [ENCODER.prompt([{"role": "user", "content": "Report what you see, please: " + text}])
            for text in ("a", "a long line of text that says nothing", "bcd", "?", "the end")]


def plain_greedy(model, prompt: list[int], stops: set[int], limit: int) -> list[int]:
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + limit:
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt):]


def grammar(schema: dict = SCHEMA, vocabulary: int = 512) -> Grammar:
    return Grammar(schema, tiny_tokenizer(), vocabulary, ENCODER.end_id)


def text(answer: Generated) -> str:
    return tiny_tokenizer().decode(answer.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_plain_greedy_ones(family: str) -> None:
    model = tiny_model(family)
    found = Generator(model, [ENCODER.end_id]).answer(prompts(), [24] * 5)
    assert [one.ids for one in found] == [plain_greedy(model, one, {ENCODER.end_id}, 24) for one in prompts()]


@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_that_keeps_a_state_answers_right(family: str) -> None:
    model = tiny_model(family, **STATEFUL[family])
    found = Generator(model, [ENCODER.end_id]).answer(prompts(), [12] * 5)
    assert [one.ids for one in found] == [plain_greedy(model, one, {ENCODER.end_id}, 12) for one in prompts()]


@pytest.mark.parametrize("family", ["stablelm", "nemotron", "opt"])
def test_a_family_that_keeps_its_attention_to_itself_answers_right(family: str) -> None:
    model = tiny_model(family, word_embed_proj_dim=32)
    found = Generator(model, [ENCODER.end_id]).answer(prompts(), [12] * 5)
    assert [one.ids for one in found] == [plain_greedy(model, one, {ENCODER.end_id}, 12) for one in prompts()]


def test_rows_that_end_early_leave_the_others_as_they_are() -> None:
    model = tiny_model("qwen3")
    free = [plain_greedy(model, one, set(), 30) for one in prompts()]
    stops = {free[0][3], free[1][8], free[2][1]}
    found = Generator(model, sorted(stops)).answer(prompts(), [30] * 5)
    assert [one.ids for one in found] == [plain_greedy(model, one, stops, 30) for one in prompts()]
    assert {one.finish for one in found[:3]} == {"stop"}


def test_every_answer_has_its_own_limit() -> None:
    model = tiny_model("llama")
    limits = [1, 2, 70, 5, 9]  # beyond the first growth of a row's state
    found = Generator(model, []).answer(prompts(), limits)
    assert [one.finish for one in found] == ["length"] * 5
    assert [one.ids for one in found] == [
        plain_greedy(model, one, set(), limit) for one, limit in zip(prompts(), limits, strict=True)]


def test_a_window_shorter_than_the_rows_is_respected() -> None:
    model = tiny_model("gemma2", sliding_window=16)
    found = Generator(model, [ENCODER.end_id]).answer(prompts(), [12] * 5)
    assert [one.ids for one in found] == [plain_greedy(model, one, {ENCODER.end_id}, 12) for one in prompts()]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("seed", range(3))
def test_random_weights_write_answers_that_fit_the_schema(family: str, seed: int) -> None:
    found = Generator(tiny_model(family, seed), [ENCODER.end_id], grammar()).answer(prompts(), [120] * 5)
    assert {one.finish for one in found} == {"stop"}
    for one in found:
        jsonschema.validate(json.loads(text(one)), SCHEMA)


def test_names_and_separators_are_those_of_the_training_answers() -> None:
    for one in Generator(tiny_model("llama"), [ENCODER.end_id], grammar()).answer(prompts(), [120] * 5):
        value = json.loads(text(one))
        assert list(value) == list(SCHEMA["properties"])
        assert text(one).startswith('{"file": "')
        assert '", "severity": "' in text(one)


def test_what_the_schema_forces_needs_no_pass_of_its_own() -> None:
    model = tiny_model("llama")
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = Generator(model, [ENCODER.end_id], grammar()).answer(prompts()[:1], [120])
    assert len(passes) < len(found[0].ids) // 2


def test_a_wholly_forced_answer_needs_no_pass() -> None:
    model = tiny_model("llama")
    schema = {"const": {"ok": True}}
    found = Generator(model, [ENCODER.end_id], grammar(schema)).answer(prompts()[:1], [50])
    assert json.loads(text(found[0])) == {"ok": True}
    assert found[0].finish == "stop"


def test_an_answer_cut_by_its_limit_says_so() -> None:
    found = Generator(tiny_model("llama"), [ENCODER.end_id], grammar()).answer(prompts(), [9] * 5)
    assert [(one.finish, len(one.ids)) for one in found] == [("length", 9)] * 5


def test_rows_of_the_vocabulary_without_a_token_are_never_chosen() -> None:
    model = tiny_model("llama", vocab_size=600, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[300:] *= 50
    found = Generator(model, [ENCODER.end_id], grammar(vocabulary=600)).answer(prompts(), [120] * 5)
    assert all(max(one.ids) < 300 for one in found)


def test_a_schema_beyond_the_grammar_engine_is_refused_with_the_reason() -> None:
    with pytest.raises(StudentError, match="held to this schema"):
        grammar({"type": "object", "properties": {"x": {"not": {"type": "string"}}}})
