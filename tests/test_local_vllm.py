"""`--engine vllm`: what is asked of vLLM and what becomes of its replies; where it runs, vLLM itself."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.tiny_students import tiny_base, tiny_student

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local import vllm_engine  # noqa: E402
from distillctl_local.predictor import load_student, open_local  # noqa: E402
from distillctl_local.vllm_engine import (  # noqa: E402
    adapter_name,
    open_vllm,
    predictor_in,
    questions,
    smallest_rank,
    totals,
)
from support import vllm_double  # noqa: E402

from distillctl.backend import StudentRef  # noqa: E402
from distillctl.errors import DistillctlError, StudentError, UsageError  # noqa: E402
from distillctl.recipe.models import ClassificationSpec, EvaluateSpec, StructuredSpec, TextSpec  # noqa: E402
from distillctl.task import Task, build_task  # noqa: E402
from distillctl.types import Answer, Predictor, Request  # noqa: E402

PROMPT = "Say where to look it up. {{ question }}"
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["label", "sure"], "properties": {
    "label": {"enum": ["code", "docs"]}, "sure": {"type": "boolean"}}}
LABELS = ["code", "co", "docs"]  # one begins another
TASKS = {
    "classification": build_task(ClassificationSpec(kind="classification", labels=LABELS, prompt=PROMPT)),
    "structured": build_task(StructuredSpec(kind="structured", json_schema=SCHEMA, prompt=PROMPT)),
    "text": build_task(TextSpec(kind="text", prompt=PROMPT)),
}
HOW = EvaluateSpec(max_tokens=40)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentRef, Path]:
    folder = tmp_path_factory.mktemp("student") / "adapter"
    return tiny_student(tiny_base(tmp_path_factory.mktemp("base")), folder), folder


def requests(task: Task, texts: Sequence[str] = ("why?", "where is it?", "who")) -> list[Request]:
    return [Request(text, task.render({"question": text})) for text in texts]


def ask(predictor: Predictor, asked: list[Request]) -> list[Answer]:
    return asyncio.run(predictor.answer(asked))


def here(student: tuple[StudentRef, Path], task: Task, asked: list[Request]) -> list[Answer]:
    with open_local(*student, task, HOW, precision="fp32", device="cpu") as predictor:
        return ask(predictor, asked)


@pytest.fixture
def there(student: tuple[StudentRef, Path], monkeypatch: pytest.MonkeyPatch):
    """A predictor on vLLM's double, and the double."""
    vllm_double.install(monkeypatch)

    def opened(task: Task, context: int = 512):
        model, encoder, identity, _ = load_student(*student, dtype=torch.float32, device="cpu")
        engine = vllm_double.Engine(model, encoder.tokenizer, context)
        return predictor_in(engine, None, encoder, task, HOW, identity), engine

    return opened


@pytest.mark.parametrize("kind", TASKS)
def test_vllm_is_asked_so_that_it_answers_as_the_local_predictor(
        kind: str, student: tuple[StudentRef, Path], there) -> None:
    task = TASKS[kind]
    predictor, _ = there(task)
    for one, other in zip(ask(predictor, requests(task)), here(student, task, requests(task)), strict=True):
        assert (one.output, one.finish, one.tokens_in, one.tokens_out) == (
            other.output, other.finish, other.tokens_in, other.tokens_out)
        assert one.label_logprobs == pytest.approx(other.label_logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", ["structured", "text"])
@pytest.mark.parametrize("limit", [1, 7, 8])
def test_an_answer_is_cut_where_the_local_predictor_cuts_it(
        kind: str, limit: int, student: tuple[StudentRef, Path], there) -> None:
    task = TASKS[kind]
    asked = [Request("1", task.render({"question": "why?"}), max_tokens=limit)]
    (one,), (other,) = ask(there(task)[0], asked), here(student, task, asked)
    assert (one.output, one.finish) == (other.output, other.finish)


def test_the_prompt_is_the_encoders_tokens(student: tuple[StudentRef, Path], there) -> None:
    task = TASKS["text"]
    predictor, engine = there(task)
    (asked,) = requests(task, ["<|im_end|> is text"])
    ask(predictor, [asked])
    encoder = load_student(*student, dtype=torch.float32, device="cpu").encoder
    assert engine.prompts == [encoder.prompt(asked.messages)]


@pytest.mark.parametrize("kind", ["classification", "text"])
def test_a_prompt_that_does_not_fit_costs_no_other_its_answer(kind: str, there) -> None:
    task = TASKS[kind]
    predictor, _ = there(task, context=100)
    short, long = ask(predictor, requests(task, ["why?", "why? " * 30]))
    assert short.error is None
    assert long.finish == "failed" and "the model reads 99" in long.error


def test_every_token_of_every_answer_is_asked_for_after_those_before_it() -> None:
    answers = [(1, 2, 9), (1, 9), (3, 9)]
    asked = questions(answers)
    assert asked == [((), [1, 3]), ((1,), [2, 9]), ((1, 2), [9]), ((3,), [9])]
    logs = {((), 1): -1.0, ((), 3): -2.0, ((1,), 2): -0.5, ((1,), 9): -4.0, ((1, 2), 9): -0.25,
            ((3,), 9): -8.0}
    assert totals(answers, logs) == [-1.75, -5.0, -10.0]


def test_more_tokens_than_a_request_may_ask_for_are_asked_in_two() -> None:
    first, second, *_ = questions([(number, 999) for number in range(200)])
    assert (first, second) == (((), list(range(128))), ((), list(range(128, 200))))


@pytest.mark.parametrize(("rank", "taken"), [(1, 1), (2, 8), (16, 16), (65, 128), (512, 512)])
def test_the_smallest_rank_that_takes_the_adapter_is_asked_for(rank: int, taken: int) -> None:
    assert smallest_rank(rank) == taken


def test_a_rank_beyond_vllms_is_refused() -> None:
    with pytest.raises(StudentError, match="up to rank 512, got 513"):
        smallest_rank(513)


def test_another_adapter_has_another_name_and_number() -> None:
    files = {"adapter_config.json": "sha256:1", "adapter_model.safetensors": "sha256:2"}
    name, number = adapter_name(files)
    assert (name, number) == adapter_name(dict(reversed(files.items())))
    assert name.startswith("distillctl-") and 0 < number < 2**31
    other, other_number = adapter_name({**files, "adapter_model.safetensors": "sha256:3"})
    assert other != name and other_number != number


def test_a_build_for_gpus_without_one_says_so(
        student: tuple[StudentRef, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_double.install(monkeypatch)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="needs a GPU"), open_vllm(*student, TASKS["text"], HOW):
        pass


def vllm_runs() -> bool:
    """Whether vLLM is here and has what it is built for."""
    try:
        vllm_engine.check_here()
    except DistillctlError:
        return False
    return True


@pytest.mark.skipif(not vllm_runs(), reason="needs vLLM, and an NVIDIA GPU or its build for processors")
@pytest.mark.parametrize("kind", TASKS)
def test_vllm_answers_nearly_as_the_local_predictor(kind: str, tmp_path: Path) -> None:
    """On the model that DISTILLCTL_VLLM_MODEL names, else on the demo's; both in bf16."""
    from distillctl_local.models import model_folder

    name = os.environ.get("DISTILLCTL_VLLM_MODEL", "smollm2-135m")
    base = StudentRef("local", "model", str(model_folder(name)))
    made = tiny_student(base, tmp_path / "adapter", size=0.02)
    task = TASKS[kind]
    asked = requests(task, [f"who calls number {n}?" for n in range(16)])
    with open_local(made, tmp_path / "adapter", task, HOW, precision="bf16") as predictor:
        wanted = ask(predictor, asked)
    with open_vllm(made, tmp_path / "adapter", task, HOW) as predictor:
        found = ask(predictor, asked)
    assert sum(a.output == b.output for a, b in zip(found, wanted, strict=True)) >= 14
    for one, other in zip(found, wanted, strict=True):  # bf16 moves what is unlikely by more than a half
        assert probabilities(one) == pytest.approx(probabilities(other), abs=0.05)


def probabilities(answer: Answer) -> dict[str, float]:
    return {label: math.exp(logprob) for label, logprob in (answer.label_logprobs or {}).items()}
