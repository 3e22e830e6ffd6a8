"""`predict --engine vllm`: a student in vLLM (github.com/vllm-project/vllm), on an NVIDIA GPU, or on this
machine's processor with vLLM's build for processors.

vLLM is given the token ids that our encoder makes, and the adapter beside the base rather than merged. A
label set is scored as in `scoring`, by the probability of whole answers: for each of their beginnings one
request for one token asks for the log probabilities of the tokens that go on from there; the prompt before
it is in vLLM's prefix cache. Written against vLLM 0.33.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distillctl.backend import StudentRef
from distillctl.errors import MissingExtra, Problem, StudentError, UsageError
from distillctl.recipe.models import EvaluateSpec
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Finish
from distillctl_local.encode import Encoder
from distillctl_local.frozen import refuse
from distillctl_local.generate import SEPARATORS, Generated
from distillctl_local.models import base_digest, facts_at_hand, load_tokenizer, model_folder
from distillctl_local.predictor import CausalPredictor, answers_of, identity_of_mode, weights_of
from distillctl_local.safety import CONFIG, check_adapter

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what max_lora_rank takes
TOKENS_AT_ONCE = 128  # most that one request may ask the log probability of
_FINISHES: dict[str | None, Finish] = {"stop": "stop", "length": "length"}

Node = tuple[int, ...]  # the tokens of an answer that are there already


class VllmPredictor(CausalPredictor):
    """Answers with a model in vLLM."""

    max_batch = 512


class VllmScorer:
    """Scores one label set. answers: each label's tokens with the end token."""

    def __init__(self, llm: LLM, adapter: LoRARequest | None, answers: Sequence[Sequence[int]]) -> None:
        self._llm = llm
        self._adapter = adapter
        self._answers = [tuple(answer) for answer in answers]
        self._asked = questions(self._answers)

    def log_probabilities(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """As `LabelScorer.log_probabilities`."""
        from vllm import SamplingParams

        settings = [SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=tokens, detokenize=False)
                    for _, tokens in self._asked]
        done = iter(self._llm.generate(
            [{"prompt_token_ids": [*prompt, *node]} for prompt in prompts for node, _ in self._asked],
            settings * len(prompts), use_tqdm=False, lora_request=self._adapter))
        rows = []
        for _ in prompts:
            found: dict[tuple[Node, int], float] = {}
            for node, tokens in self._asked:
                told = next(done).outputs[0].logprobs[0]
                found |= {(node, token): told[token].logprob for token in tokens}
            rows.append(totals(self._answers, found))
        return torch.tensor(rows).log_softmax(-1)


class VllmGenerator:
    """Answers token by token. stops: tokens that end an answer; schema: what holds it."""

    def __init__(self, llm: LLM, adapter: LoRARequest | None, stops: Sequence[int],
                 schema: Mapping[str, Any] | None) -> None:
        self._llm = llm
        self._adapter = adapter
        self._stops = list(stops)
        # llguidance reads its options in the schema
        self._schema = None if schema is None else {**schema, "x-guidance": SEPARATORS}

    def answer(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[Generated]:
        """As `Generator.answer`."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        held = None if self._schema is None else StructuredOutputsParams(json=self._schema)
        more = 0 if held is None else 1  # room for the end token, which may be all that the schema leaves
        settings = [SamplingParams(temperature=0.0, max_tokens=limit + more, stop_token_ids=self._stops,
                                   structured_outputs=held, detokenize=False) for limit in limits]
        done = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings,
                                  use_tqdm=False, lora_request=self._adapter)
        return [self._generated(limit, one.outputs[0]) for limit, one in zip(limits, done, strict=True)]

    def _generated(self, limit: int, output: Any) -> Generated:
        ids, finish = list(output.token_ids), _FINISHES.get(output.finish_reason, "failed")
        if finish == "stop" and ids and ids[-1] in self._stops:
            ids.pop()
        return Generated(limit, ids=ids[:limit], finish=finish)


def questions(answers: Sequence[Node]) -> list[tuple[Node, list[int]]]:
    """What is to be asked of the model: after which tokens, the log probabilities of which. answers: none is
    the beginning of another. A place with more than a request takes is there several times."""
    inner = sorted({answer[:length] for answer in answers for length in range(len(answer))})
    found = []
    for node in inner:
        after = sorted({answer[len(node)] for answer in answers if answer[:len(node)] == node})
        found += [(node, after[start:start + TOKENS_AT_ONCE])
                  for start in range(0, len(after), TOKENS_AT_ONCE)]
    return found


def totals(answers: Sequence[Node], found: Mapping[tuple[Node, int], float]) -> list[float]:
    """The log probability of each answer, from that of each of its tokens after those before it."""
    return [sum(found[answer[:place], token] for place, token in enumerate(answer)) for answer in answers]


def smallest_rank(rank: int) -> int:
    """The smallest `max_lora_rank` that takes an adapter of this rank. Raises StudentError."""
    fitting = [known for known in RANKS if known >= rank]
    if not fitting:
        raise StudentError(Problem(f"vLLM takes adapters up to rank {RANKS[-1]}", value=rank,
                                   hint="export the student as merged"))
    return fitting[0]


def adapter_name(files: Mapping[str, str]) -> tuple[str, int]:
    """The name and number of an adapter with these files ("sha256:..." by name). vLLM keeps prompts'
    beginnings by an adapter's name: another student must have another."""
    digest = digest_json(dict(files)).removeprefix("sha256:")
    return f"distillctl-{digest[:16]}", 1 + int(digest[:7], 16)


def check_here() -> None:
    """Raises MissingExtra without vLLM, UsageError without a GPU, unless vLLM is built for processors."""
    if find_spec("vllm") is None:
        raise MissingExtra(Problem(
            "--engine vllm needs vLLM", hint="in an environment of its own, because it brings its own torch: "
                                             "pip install 'distillctl[local]' 'vllm==0.33.*'"))
    if torch.cuda.is_available():
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise UsageError(Problem("this vLLM needs a GPU, and torch sees none here", "--engine", value="vllm",
                                 hint="leave it out: the processor answers"))


@contextmanager
def open_vllm(student: StudentRef, folder: Path, task: Task, how: EvaluateSpec) -> Iterator[VllmPredictor]:
    """See `distillctl.engines.Opener`."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    refuse(student, "vLLM cannot answer for it")
    check_here()
    files, name, revision, in_fp32 = weights_of(student, folder)
    base = str(model_folder(name, revision))
    options: dict[str, Any] = {"dtype": "float32"} if in_fp32 else {}
    adapter = None
    if student.kind == "adapter":
        check_adapter(files, student.files, facts_at_hand(name, revision))
        adapter, options = _adapter(files, student)
    from vllm import LLM

    try:
        llm = LLM(model=base, max_model_len=-1, enable_prefix_caching=True,  # -1: as memory has room for
                  generation_config="vllm", structured_outputs_config={"backend": "guidance"}, **options)
    except (OSError, RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StudentError(Problem(f"vLLM cannot open it: {why}", str(files),
                                   hint="VLLM_LOGGING_LEVEL=INFO shows what vLLM says")) from None
    try:
        yield predictor_in(llm, adapter, Encoder(load_tokenizer(base)), task, how, {
            "backend": student.backend, "model": student.model, "base": base_digest(name, revision),
            "files": dict(student.files), "engine": "vllm"})
    finally:
        del llm
        gc.collect()


def predictor_in(llm: LLM, adapter: LoRARequest | None, encoder: Encoder, task: Task, how: EvaluateSpec,
                 identity: Mapping[str, JSON]) -> VllmPredictor:
    """A predictor that asks an engine which is running."""
    mode = identity_of_mode(task, how)
    if mode["mode"] == "score":
        computes: VllmScorer | VllmGenerator = VllmScorer(llm, adapter, answers_of(encoder, task))
    else:
        computes = VllmGenerator(llm, adapter, encoder.stops, task.json_schema)
    context = llm.model_config.max_model_len - 1  # a prompt may not fill it
    return VllmPredictor(computes, context, encoder, task, how, {**identity, **mode})


def _adapter(files: Path, student: StudentRef) -> tuple[LoRARequest, dict[str, Any]]:
    """The adapter as vLLM is asked for it, and what an engine needs to take it."""
    from vllm.lora.request import LoRARequest

    rank = json.loads((files / CONFIG).read_text(encoding="utf-8"))["r"]
    name, number = adapter_name(student.files)
    return LoRARequest(name, number, str(files.resolve())), {
        "enable_lora": True, "max_loras": 1, "max_lora_rank": smallest_rank(rank)}
