"""`shared_prefix: frozen`: the base alone computes what prompts begin with, in training and in answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_models import FAMILIES, save_tiny_model, tiny_model
from support.tiny_students import tiny_base, tiny_student

torch = pytest.importorskip("torch", reason="needs the `local` extra")
from distillctl_hf_jobs.settings import HfJobsSettings  # noqa: E402
from distillctl_local import full, lora, shard  # noqa: E402
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.export import export  # noqa: E402
from distillctl_local.frozen import IN_STUDENT  # noqa: E402
from distillctl_local.losses import next_token  # noqa: E402
from distillctl_local.models import facts_of, load_base, load_tokenizer  # noqa: E402
from distillctl_local.predictor import open_local  # noqa: E402
from distillctl_local.prefix import accumulate, compute_once  # noqa: E402
from distillctl_local.settings import LocalSettings  # noqa: E402
from distillctl_local.sharing import (  # noqa: E402
    choose_prefixes,
    prefixes_of,
    share_prefixes,
    tokens_per_step,
)
from distillctl_local.stream import compute_prefix  # noqa: E402
from distillctl_local.vllm_engine import open_vllm  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from test_local_training_job import Desk, succeed_though_killed_at  # noqa: E402
from test_local_training_prefix import ALL, assert_same, gradients, make_rows  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from distillctl.errors import StudentError, UsageError  # noqa: E402
from distillctl.export import ExportJob  # noqa: E402
from distillctl.recipe.models import EvaluateSpec, LoraSpec, TrainSpec  # noqa: E402
from distillctl.store.files import digest_tree, read_jsonl  # noqa: E402
from distillctl.types import Message, Request  # noqa: E402

FROZEN = LocalSettings(shared_prefix="frozen")


def behind_the_base(wrapped: PeftModel, prefix: list[int], rest: list[int]) -> torch.Tensor:
    """Logits [rest, vocabulary] of transformers and PEFT: the prefix by the base, the rest by both."""
    model, cache = wrapped.get_base_model(), DynamicCache()
    with torch.no_grad(), wrapped.disable_adapter():
        model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True)
    return model(input_ids=torch.tensor([rest]), past_key_values=cache, use_cache=True).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [0, 2])
def test_gradients_are_those_of_an_adapter_behind_the_base(family: str, layers: int) -> None:
    model = tiny_model(family, num_hidden_layers=4)
    wrapped = get_peft_model(model, LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj", "qkv_proj"],
        layers_to_transform=list(range(layers, 4)))).train()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    rows = share_prefixes(make_rows(8, kinds=2), 8)
    supervised = sum(len(row.completion) for row in rows)
    total = 0.0
    for row in rows:
        logits = behind_the_base(wrapped, row.ids[:row.prefix], row.ids[row.prefix:-1])
        part = cross_entropy(logits[-len(row.completion):], torch.tensor(row.completion), reduction="sum")
        (part / supervised).backward()
        total += part.item() / supervised
    wanted = gradients(wrapped)
    with wrapped.disable_adapter():
        frozen = [compute_prefix(model, prefix) for prefix in prefixes_of(rows)]
    assert lora.fuse(wrapped) > 0
    known = compute_once(model, rows, layers, ALL, frozen)
    assert accumulate(model, rows, 60, next_token, known=known) == pytest.approx(total, rel=1e-5)
    assert_same(gradients(wrapped), wanted)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory):
    """A desk with a job that ended, the collected student and its folder."""
    desk = Desk(tmp_path_factory.mktemp("trained"), model, shared_prefix="frozen", keep="best")
    desk.job = replace(desk.job, dev_file=desk.job.train_file)
    assert desk.until(desk.submit()).state == "succeeded", desk.events()
    folder = tmp_path_factory.mktemp("student")
    (handle,) = desk.backend.find("one")
    return desk, desk.backend.collect(handle, folder), folder


def asked(desk: Desk) -> list[list[Message]]:
    """Prompts of the training rows, and one that begins in another way."""
    rows = [row["messages"] for row in read_jsonl(desk.job.train_file)][:5]
    return [*rows, [{"role": "user", "content": "Where is the parser?"}]]


def test_answers_are_those_of_an_adapter_behind_the_base(trained, model: str) -> None:
    desk, student, folder = trained
    (prefix,) = student.data[IN_STUDENT]
    encoder = Encoder(load_tokenizer(model))
    wrapped = PeftModel.from_pretrained(load_base(model, dtype=torch.float32, device="cpu"), folder)
    wanted = []
    for messages in asked(desk):
        prompt = encoder.prompt(messages)
        shared = prompt[:len(prefix)] == prefix
        scores = []
        for label in desk.job.task.labels:
            ids = encoder.completion(desk.job.task.target(label))
            whole = [*prompt, *ids[:-1]]
            logits = (behind_the_base(wrapped, prefix, whole[len(prefix):]) if shared
                      else wrapped(input_ids=torch.tensor([whole])).logits[0])
            logs = logits[-len(ids):].log_softmax(-1)
            scores.append(logs[range(len(ids)), ids].sum())
        wanted.append(torch.stack(scores).log_softmax(-1))
    with open_local(student, folder, desk.job.task, EvaluateSpec(), precision="fp32") as predictor:
        assert predictor.identity["frozen_prefixes"] == [prefix]
        found = asyncio.run(predictor.answer([Request(str(n), one) for n, one in enumerate(asked(desk))]))
    for answer, scores in zip(found, wanted, strict=True):
        assert list(answer.label_logprobs.values()) == pytest.approx(scores.tolist(), abs=1e-4)


def test_the_adapter_of_a_killed_trainer_is_the_unkilled_ones(trained, model: str, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, model, shared_prefix="frozen", keep="best")
    desk.job = replace(desk.job, dev_file=desk.job.train_file)
    succeed_though_killed_at(monkeypatch, "before-checkpoint-mark:2", desk)
    assert digest_tree(desk.jobs_folder() / "result") == digest_tree(trained[0].jobs_folder() / "result")


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf", "ollama", "vllm"])
def test_it_cannot_be_exported(trained, tmp_path: Path, form: str) -> None:
    desk, student, folder = trained
    with pytest.raises(StudentError, match="the base alone computes"):
        export(ExportJob(student, folder, desk.job.task, EvaluateSpec(), "a/b", form, "f32"), tmp_path)


def test_vllm_does_not_answer_for_it(trained) -> None:
    desk, student, folder = trained
    with (pytest.raises(StudentError, match="vLLM cannot answer for it"),
          open_vllm(student, folder, desk.job.task, EvaluateSpec())):
        pass


@pytest.mark.parametrize("prefixes", ["1, 2", [1, 2], [[]], [["1"]], [[-1]], [[512]], [[1] * 600]])
def test_prefixes_that_are_none_are_refused(trained, tmp_path: Path, prefixes: object) -> None:
    base = tiny_base(tmp_path / "base")
    student = replace(tiny_student(base, tmp_path / "student"), data={IN_STUDENT: prefixes})
    with (pytest.raises(StudentError, match=r"frozen_prefixes.*no lists of the base's tokens"),
          open_local(student, tmp_path / "student", trained[0].job.task, EvaluateSpec())):
        pass


def test_a_step_saves_the_prefix_too() -> None:
    rows = share_prefixes(make_rows(), 7)
    assert tokens_per_step(rows, 7) - tokens_per_step(rows, 7, frozen=True) == 40


class TestWhereItIsRefused:
    facts = facts_of(tiny_model("llama").config)

    def test_prompts_that_do_not_begin_alike(self) -> None:
        rows = [*make_rows(1), *make_rows(1, seed=3)]
        with pytest.raises(UsageError, match=r"shared_prefix.*do not begin alike.*frozen"):
            choose_prefixes(rows, self.facts, TrainSpec(), FROZEN)

    def test_dropout_is_none_of_the_reasons(self) -> None:
        """No part of the adapter is in the prefix."""
        _, told = choose_prefixes(make_rows(), self.facts, TrainSpec(lora=LoraSpec(dropout=0.1)), FROZEN)
        assert "which the base alone computes, once" in told

    def test_every_weight_trained(self) -> None:
        (problem,) = full.problems(TrainSpec(lora=None), FROZEN)
        assert problem.field == "backends.local.shared_prefix"

    def test_a_divided_base(self) -> None:
        (problem,) = shard.problems(LocalSettings(shared_prefix="frozen", shard=True, devices=2), TrainSpec())
        assert "the base alone computes" in problem.what

    def test_a_job_elsewhere(self) -> None:
        with pytest.raises(ValueError, match="shared_prefix: frozen is for backend: local"):
            HfJobsSettings(trainer=FROZEN)
