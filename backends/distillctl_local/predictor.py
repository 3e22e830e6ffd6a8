"""A student, or its untrained base, in memory: answers prompts by scoring labels or by generating."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from distillctl.backend import StudentRef
from distillctl.errors import Problem, StudentError
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import safe_join
from distillctl.task import Task
from distillctl.types import JSON, Answer, Message, Request
from distillctl_local.encode import Encoder
from distillctl_local.frozen import prefixes_in
from distillctl_local.hardware import choose, freed_memory_kept
from distillctl_local.models import base_digest, facts_of, load_base, load_tokenizer, source_of
from distillctl_local.safety import (
    check_adapter,
    check_digests,
    check_student_model_folder,
    read_header,
)
from distillctl_local.settings import LocalSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from distillctl_local.generate import Generated
    from distillctl_local.stream import Prefix

CANARY: list[Message] = [{"role": "user", "content": "Say which of two roads is the shorter one, and why."}]


class Scorer(Protocol):
    def log_probabilities(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """As `LabelScorer.log_probabilities`."""
        ...


class Writer(Protocol):
    def answer(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[Generated]:
        """As `Generator.answer`."""
        ...


class CausalPredictor:
    """Answers with a causal LM: `computes` scores the task's labels where the identity's mode is "score",
    else it generates. context: tokens that prompt and answer may have together. encoder: makes prompts of
    messages; another may take its place."""

    max_batch = 64
    replayed = False

    def __init__(self, computes: Scorer | Writer, context: int, encoder: Encoder, task: Task,
                 how: EvaluateSpec, identity: Mapping[str, JSON]) -> None:
        self.identity = identity
        self._name = str(identity["model"])
        self.encoder = encoder
        self._context = context
        self._lock = threading.Lock()  # one pass at a time: the kept prefixes change in it
        self._max_tokens = how.max_tokens
        self._scorer: Scorer | None = None
        self._generator: Writer | None = None
        if identity["mode"] == "score":
            self._scorer = computes
            self._labels = list(task.labels)
            self._answers = answers_of(encoder, task)
        else:
            self._generator = computes

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request. latency_s is that of the whole batch."""
        return await asyncio.to_thread(self._answer, list(requests))

    async def aclose(self) -> None:
        """The weights go with `open_local`'s block."""

    def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        with self._lock:
            started = time.perf_counter()
            prompts: dict[int, list[int]] = {}
            failed: dict[int, str] = {}
            for number, request in enumerate(requests):
                try:
                    prompts[number] = self.encoder.prompt(request.messages)
                except StudentError as error:  # costs nobody else's answer
                    failed[number] = error.problems[0].what
            room = max(map(len, self._answers)) - 1 if self._scorer else 1
            fitting = [number for number, prompt in prompts.items() if len(prompt) + room <= self._context]
            given = [prompts[number] for number in fitting]
            limits = [requests[number].max_tokens or self._max_tokens for number in fitting]
            found = dict(zip(fitting, self._score(given) if self._scorer else self._generate(given, limits),
                             strict=True))
            took = time.perf_counter() - started
        return [self._finished(prompts.get(number), found.get(number) or failed.get(number), took)
                for number in range(len(requests))]

    def _finished(self, prompt: list[int] | None, found: Mapping[str, Any] | str | None,
                  took: float) -> Answer:
        """found: what was computed, or why nothing was; None for a prompt that is too long."""
        size = None if prompt is None else len(prompt)
        if found is None:
            found = f"the prompt has {size} tokens, the model reads {self._context}"
        if isinstance(found, str):
            found = {"output": None, "finish": "failed", "error": found}
        return Answer(**found, tokens_in=size, latency_s=took, model=self._name)

    def _score(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        if not prompts:
            return []
        found = []
        for row in self._scorer.log_probabilities(prompts):
            best = int(row.argmax())
            found.append({"output": self._labels[best], "tokens_out": len(self._answers[best]),
                          "label_logprobs": dict(zip(self._labels, row.tolist(), strict=True))})
        return found

    def _generate(self, prompts: list[list[int]], wanted: list[int]) -> list[dict[str, Any]]:
        limits = [min(most, self._max_tokens, self._context - len(prompt))
                  for prompt, most in zip(prompts, wanted, strict=True)]
        found = []
        for answer in self._generator.answer(prompts, limits) if prompts else ():
            text = self.encoder.tokenizer.decode(answer.ids, skip_special_tokens=True)
            finish = "empty" if answer.finish == "stop" and not text.strip() else answer.finish
            found.append({"output": text, "finish": finish,
                          "tokens_out": len(answer.ids) + (answer.finish == "stop")})
        return found


class LocalPredictor(CausalPredictor):
    """Answers with a model in this process."""

    def __init__(self, model: PreTrainedModel, encoder: Encoder, task: Task, how: EvaluateSpec,
                 identity: Mapping[str, JSON], frozen: Sequence[Prefix] = ()) -> None:
        """frozen: prefixes that the base alone computed, which are then the only ones."""
        from distillctl_local.generate import Generator, Grammar
        from distillctl_local.scoring import LabelScorer

        if identity["mode"] == "score":
            computes: Scorer | Writer = LabelScorer(model, answers_of(encoder, task), frozen)
        else:
            grammar = None
            if task.json_schema is not None:
                vocabulary = model.config.get_text_config().vocab_size
                grammar = Grammar(task.json_schema, encoder.tokenizer, vocabulary, encoder.end_id)
            computes = Generator(model, encoder.stops, grammar, frozen)
        super().__init__(computes, facts_of(model.config).context, encoder, task, how, identity)


def answers_of(encoder: Encoder, task: Task) -> list[list[int]]:
    """The token ids of each label as an answer, with the end token."""
    return [encoder.completion(task.target(label)) for label in task.labels]


@contextmanager
def open_local(student: StudentRef, folder: Path, task: Task, how: EvaluateSpec, *, device: str = "auto",
               precision: str = "auto", threads: int | None = None) -> Iterator[LocalPredictor]:
    """A predictor for a student on this machine, its memory freed at the end of the block.

    student: an adapter in `folder`, a whole model in `folder`, or (kind "model" without a path) a base
    model by alias, Hub id or folder. device, precision, threads: as in `LocalSettings`, but for a whole model
    that is stored in fp32: it answers in fp32. In bf16 an answer may depend in its last digits on what else
    is in the batch. Raises StudentError, also for an adapter
    that is unsafe, damaged, made for another base or without effect.
    """
    import torch

    if student.kind == "hosted":
        raise StudentError(Problem("is answered by its provider, not on this machine", value=student.model))
    with freed_memory_kept():
        before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        try:
            device, dtype = _chosen(LocalSettings(device=device, precision=precision))
            model, encoder, identity, frozen = load_student(student, folder, dtype=dtype, device=device)
            if model.dtype is torch.bfloat16:
                from distillctl_local.precision import multiply_in_bf16

                multiply_in_bf16(model)
                frozen = [prefix.float() for prefix in frozen]
            predictor = LocalPredictor(model, encoder, task, how, identity | identity_of_mode(task, how),
                                       frozen)
            del model
            yield predictor
        finally:
            predictor = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            torch.set_num_threads(before)


def identity_of_mode(task: Task, how: EvaluateSpec) -> dict[str, JSON]:
    """How a predictor answers, as a part of its identity."""
    if task.kind == "classification" and not how.generate:
        return {"mode": "score", "labels": list(task.labels)}
    return {"mode": "generate", "max_tokens": how.max_tokens, "json_schema": task.json_schema}


def _chosen(settings: LocalSettings) -> tuple[str, torch.dtype]:
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise StudentError(Problem("there is no CUDA device", field="backends.local.device", value="cuda",
                                   hint="set it to auto or cpu"))
    return choose(settings)


def is_stored_in_fp32(files: Path) -> bool:
    """Whether a checked model's folder has a matrix in fp32: every bit of it may have been learnt."""
    return any(info.dtype == "F32" and len(info.shape) > 1
               for path in files.glob("*.safetensors") for info in read_header(path).values())


def weights_of(student: StudentRef, folder: Path) -> tuple[Path, str, str | None, bool]:
    """Where a student's files are, the model that is to be loaded and its revision, and whether that model is
    stored in fp32 as its own. A whole model's folder is checked. Raises StudentError."""
    files = safe_join(folder, student.path or ".")
    if student.kind != "model" or student.path is None:
        return files, student.model, student.data.get("revision"), False
    check_digests(files, student.files)
    check_student_model_folder(files)
    return files, str(files), None, is_stored_in_fp32(files)


class Loaded(NamedTuple):
    """A student as one plain model, its adapter merged. frozen: prefixes that the base alone computed."""

    model: PreTrainedModel
    encoder: Encoder
    identity: dict[str, JSON]
    frozen: list[Prefix]


def load_student(student: StudentRef, folder: Path, *, dtype: torch.dtype, device: str) -> Loaded:
    """A student of this precision, or in fp32 (see `open_local`). Raises StudentError."""
    import torch

    files, name, revision, in_fp32 = weights_of(student, folder)
    if in_fp32:
        dtype = torch.float32
    encoder = Encoder(load_tokenizer(name, revision))
    canary = encoder.prompt(CANARY)  # a chat template that is refused is refused before weights are read
    model = load_base(name, revision, dtype=dtype, device=device, attention="eager")  # `stream` has its own
    identity: dict[str, JSON] = {
        "backend": student.backend, "model": student.model, "base": base_digest(name, revision),
        "files": dict(student.files), "device": device, "products": str(dtype).removeprefix("torch.")}
    frozen: list[Prefix] = []
    if student.kind == "adapter":
        from distillctl_local.merge import merge_adapter
        from distillctl_local.stream import compute_prefix

        facts = facts_of(model.config, source=source_of(student.model))
        check_adapter(files, student.files, facts)
        frozen = [compute_prefix(model, ids) for ids in prefixes_in(student, facts.vocab, facts.context)]
        merge_adapter(model, files, canary)
    if frozen:
        identity["frozen_prefixes"] = [prefix.ids for prefix in frozen]
    return Loaded(model, encoder, identity, frozen)
