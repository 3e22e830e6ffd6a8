"""A student opened from its folder: what it answers, that it is the adapter's answer, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from support.tiny_students import tiny_base, tiny_student

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_local.models import load_base, load_tokenizer  # noqa: E402
from distillctl_local.predictor import open_local  # noqa: E402

from distillctl.backend import StudentRef  # noqa: E402
from distillctl.errors import StudentError  # noqa: E402
from distillctl.recipe.models import ClassificationSpec, EvaluateSpec, StructuredSpec, TextSpec  # noqa: E402
from distillctl.store.files import digest_tree  # noqa: E402
from distillctl.task import Task, build_task  # noqa: E402
from distillctl.types import Answer, Request  # noqa: E402

PROMPT = "Say where to look it up. {{ question }}"
SCHEMA = {"type": "object", "additionalProperties": False, "required": ["label", "sure"], "properties": {
    "label": {"enum": ["code", "docs"]}, "sure": {"type": "boolean"}}}
ROUTING = build_task(ClassificationSpec(
    kind="classification", labels=["code", "docs", "skip"], prompt=PROMPT))
REPORT = build_task(StructuredSpec(kind="structured", json_schema=SCHEMA, prompt=PROMPT))
PROSE = build_task(TextSpec(kind="text", prompt=PROMPT))
QUESTIONS = ("why?", "where is it, and who calls it?", "what", "who is it", "which of them")
FREE = EvaluateSpec(generate=True, max_tokens=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StudentRef:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def student(base: StudentRef, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentRef, Path]:
    folder = tmp_path_factory.mktemp("student") / "adapter"
    return tiny_student(base, folder), folder


def requests(texts: Sequence[str] = QUESTIONS, task: Task = ROUTING) -> list[Request]:
    return [Request(str(number), task.render({"question": text})) for number, text in enumerate(texts)]


def answers(ref: StudentRef, folder: Path, task: Task = ROUTING, how: EvaluateSpec | None = None,
            texts: Sequence[str] = QUESTIONS, **settings: object) -> list[Answer]:
    with open_local(ref, folder, task, how or EvaluateSpec(), precision="fp32", **settings) as predictor:
        return asyncio.run(predictor.answer(requests(texts, task)))


def identity(ref: StudentRef, folder: Path, task: Task = ROUTING, how: EvaluateSpec | None = None) -> str:
    with open_local(ref, folder, task, how or EvaluateSpec()) as predictor:
        return json.dumps(predictor.identity, sort_keys=True)


def test_a_label_is_the_likeliest_of_probabilities_that_add_up(student: tuple[StudentRef, Path]) -> None:
    for one in answers(*student):
        assert one.output == max(one.label_logprobs, key=one.label_logprobs.get)
        assert sum(map(math.exp, one.label_logprobs.values())) == pytest.approx(1, abs=1e-5)
        assert (one.finish, one.error) == ("stop", None)


def test_tokens_are_counted(student: tuple[StudentRef, Path]) -> None:
    one = answers(*student)[0]
    assert one.tokens_in > len("Say where to look it up. why?")
    assert one.tokens_out == len(one.output) + 1  # a byte a token, and the end


def test_one_by_one_gives_the_answers_of_the_batch(student: tuple[StudentRef, Path]) -> None:
    together = answers(*student)
    with open_local(*student, ROUTING, EvaluateSpec(), precision="fp32") as predictor:
        alone = [asyncio.run(predictor.answer([one]))[0] for one in requests()]
    assert [one.output for one in alone] == [one.output for one in together]


def test_bf16_products_give_nearly_the_probabilities_of_fp32(student: tuple[StudentRef, Path]) -> None:
    with open_local(*student, ROUTING, EvaluateSpec(), precision="bf16") as predictor:
        rough = asyncio.run(predictor.answer(requests()))
    for a, b in zip(rough, answers(*student), strict=True):
        assert a.label_logprobs == pytest.approx(b.label_logprobs, abs=1.0)


def test_the_answers_are_those_of_the_adapter_that_peft_loads(student: tuple[StudentRef, Path]) -> None:
    from distillctl_local.encode import Encoder
    from distillctl_local.scoring import plain_scores
    from peft import PeftModel

    ref, folder = student
    encoder = Encoder(load_tokenizer(ref.model))
    model = load_base(ref.model, dtype=torch.float32, device="cpu")
    model = PeftModel.from_pretrained(model, folder).eval().get_base_model()
    labels = [encoder.completion(label) for label in ROUTING.labels]
    for request, found in zip(requests(), answers(ref, folder), strict=True):
        wanted = plain_scores(model, encoder.prompt(request.messages), labels).log_softmax(-1)
        assert list(found.label_logprobs.values()) == pytest.approx(wanted.tolist(), abs=1e-3)


def test_rank_stabilised_adapters_are_scaled_as_peft_scales_them(base: StudentRef, tmp_path: Path) -> None:
    plain = answers(tiny_student(base, tmp_path / "a", lora_alpha=8), tmp_path / "a")
    stable = answers(tiny_student(base, tmp_path / "b", lora_alpha=4, use_rslora=True), tmp_path / "b")
    assert stable[0].label_logprobs == pytest.approx(plain[0].label_logprobs, abs=1e-5)  # 8 / 4 = 4 / √4


def test_the_untrained_base_answers_too(base: StudentRef, student: tuple[StudentRef, Path]) -> None:
    untrained = answers(base, Path("unused"))
    assert untrained[0].label_logprobs != answers(*student)[0].label_logprobs


def test_a_whole_model_in_the_folder_answers(base: StudentRef, tmp_path: Path) -> None:
    tiny_base(tmp_path / "student")
    whole = StudentRef("local", "model", "someone/model", "student", digest_tree(tmp_path / "student"))
    assert answers(whole, tmp_path)[0].label_logprobs == answers(base, tmp_path)[0].label_logprobs


def test_labels_are_generated_where_that_is_asked_for(student: tuple[StudentRef, Path]) -> None:
    found = answers(*student, how=FREE)
    assert {one.label_logprobs for one in found} == {None}
    assert all(one.tokens_out <= FREE.max_tokens for one in found)


def test_a_structured_task_gets_json_that_fits(student: tuple[StudentRef, Path]) -> None:
    for one in answers(*student, task=REPORT):
        assert one.finish == "stop"
        jsonschema.validate(json.loads(one.output), SCHEMA)
        assert REPORT.parse(one.output).problem is None


def test_free_text_that_is_cut_says_so(base: StudentRef) -> None:
    found = answers(base, Path("unused"), task=PROSE, how=EvaluateSpec(max_tokens=5))
    assert {(one.finish, one.tokens_out) for one in found} == {("length", 5)}


def test_a_request_may_want_a_shorter_answer_than_the_others(base: StudentRef) -> None:
    asked = [replace(one, max_tokens=most) for one, most in zip(requests(task=PROSE), (2, 99, None, 1, 3),
                                                                strict=True)]
    with open_local(base, Path("unused"), PROSE, EvaluateSpec(max_tokens=5), precision="fp32") as predictor:
        found = asyncio.run(predictor.answer(asked))
    assert [one.tokens_out for one in found] == [2, 5, 5, 1, 3]


def test_text_that_cannot_be_encoded_fails_alone(student: tuple[StudentRef, Path]) -> None:
    good, bad = answers(*student, how=EvaluateSpec(), texts=("why?", "half a pair: \ud800"))
    assert good.error is None
    assert "surrogate" in bad.error


@pytest.mark.parametrize("how", [EvaluateSpec(), FREE], ids=["scored", "generated"])
def test_a_prompt_beyond_the_context_fails_alone(student: tuple[StudentRef, Path], how: EvaluateSpec) -> None:
    good, long = answers(*student, how=how, texts=("why?", "why? " * 200))
    assert good.error is None
    assert (long.output, long.finish) == (None, "failed")
    assert "the model reads 512" in long.error


def test_identity_tells_students_modes_and_bases_apart(base: StudentRef, student: tuple[StudentRef, Path],
                                                       tmp_path: Path) -> None:
    other = tiny_student(base, tmp_path / "other", seed=1)
    found = [identity(base, tmp_path), identity(*student), identity(other, tmp_path / "other"),
             identity(*student, how=FREE), identity(*student, how=EvaluateSpec(generate=True, max_tokens=7)),
             identity(*student, task=REPORT)]
    assert len(set(found)) == len(found)


def test_identity_stays_when_the_folder_moves(base: StudentRef, tmp_path: Path) -> None:
    ref = tiny_student(base, tmp_path / "here")
    before = identity(ref, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert identity(ref, tmp_path / "there") == before


def test_threads_are_given_back(student: tuple[StudentRef, Path]) -> None:
    before = torch.get_num_threads()
    answers(*student, threads=before + 1)
    assert torch.get_num_threads() == before


def test_a_changed_adapter_is_refused(base: StudentRef, tmp_path: Path) -> None:
    ref = tiny_student(base, tmp_path / "a")
    tiny_student(base, tmp_path / "b", seed=1)
    with pytest.raises(StudentError, match="not as it was when the student was collected"):
        answers(ref, tmp_path / "b")


def test_a_file_too_many_is_refused(base: StudentRef, tmp_path: Path) -> None:
    ref = tiny_student(base, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StudentError, match="not among the files of this student"):
        answers(ref, tmp_path / "a")


def test_an_adapter_without_effect_is_refused(base: StudentRef, tmp_path: Path) -> None:
    ref = tiny_student(base, tmp_path / "a", size=1e-12)
    with pytest.raises(StudentError, match="changes nothing"):
        answers(ref, tmp_path / "a")


def test_an_adapter_of_another_width_is_refused(tmp_path: Path) -> None:
    wide = tiny_base(tmp_path / "wide", intermediate_size=96)
    ref = tiny_student(wide, tmp_path / "a")
    narrow = tiny_base(tmp_path / "narrow")
    with pytest.raises(StudentError, match="another base"):
        answers(replace(ref, model=narrow.model), tmp_path / "a")


def test_a_hosted_student_is_not_opened_here(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="by its provider"):
        answers(StudentRef("openai", "hosted", "ft:gpt"), tmp_path)


def test_a_path_out_of_the_folder_is_refused(base: StudentRef, tmp_path: Path) -> None:
    ref = replace(tiny_student(base, tmp_path / "a"), path="../elsewhere")
    with pytest.raises(Exception, match="leaves its folder"):
        answers(ref, tmp_path / "a")


def test_inference_imports_no_training_library(base: StudentRef) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from distillctl.backend import StudentRef
from distillctl.recipe.models import ClassificationSpec, EvaluateSpec
from distillctl.task import build_task
from distillctl.types import Request
from distillctl_local.predictor import open_local
assert "torch" not in sys.modules
task = build_task(ClassificationSpec(kind="classification", labels=["a", "b"], prompt="{{{{ q }}}}"))
with open_local(StudentRef("local", "model", {base.model!r}), Path("."), task, EvaluateSpec()) as predictor:
    asyncio.run(predictor.answer([Request("1", task.render({{"q": "why"}}))]))
sys.exit(", ".join(sorted({{"trl", "datasets", "peft"}} & set(sys.modules))) or None)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_real_model_scores_and_generates() -> None:
    ref = StudentRef("local", "model", "smollm2-135m")
    capital = "What is the capital of {{ question }}?"
    texts = ("France", "Japan", "Italy")
    cities = build_task(ClassificationSpec(
        kind="classification", labels=["Paris", "Tokyo", "Rome"], prompt=capital + " Answer with one word."))
    found = answers(ref, Path("unused"), cities, texts=texts)
    assert [one.output for one in found] == ["Paris", "Tokyo", "Rome"]
    place = {"type": "string", "maxLength": 40}
    schema = {"type": "object", "additionalProperties": False, "required": ["country", "capital"],
              "properties": {"country": place, "capital": place}}
    report = build_task(StructuredSpec(
        kind="structured", json_schema=schema, prompt=capital + " Answer in JSON with country and capital."))
    found = answers(ref, Path("unused"), report, EvaluateSpec(max_tokens=60), texts)
    assert [report.parse(one.output).problem for one in found] == [None] * 3
