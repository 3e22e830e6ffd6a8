"""Stands in for vLLM where there is no GPU: the calls that we make of it, answered by transformers.

The classes have the names and fields of vLLM 0.33 that are used, and no others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class StructuredOutputsParams:
    json: dict[str, Any]


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    detokenize: bool
    stop_token_ids: list[int] = field(default_factory=list)
    logprob_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None


class Engine:
    """As `vllm.LLM`, of a model that is loaded already. prompts: every prompt that came."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        self.model_config = SimpleNamespace(max_model_len=context)
        self.prompts: list[list[int]] = []
        self._model = model
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def generate(self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], *,
                 use_tqdm: bool, lora_request: object) -> list[SimpleNamespace]:
        assert len(prompts) == len(sampling_params)
        self.prompts += [prompt["prompt_token_ids"] for prompt in prompts]
        return [SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], asked)])
                for prompt, asked in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: list[int], asked: SamplingParams) -> SimpleNamespace:
        if len(prompt) >= self.model_config.max_model_len:
            raise ValueError("longer than the maximum model length")
        matcher = self._matcher(asked.structured_outputs)
        ends = {*asked.stop_token_ids, self._tokenizer.eos_token_id}
        ids: list[int] = []
        told = []
        while True:
            logits = self._model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1].float()
            logs = logits.log_softmax(-1)
            if matcher is not None:
                allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                logits[allowed == 0] = float("-inf")
            ids.append(int(logits.argmax()))
            told.append({token: SimpleNamespace(logprob=float(logs[token]))
                         for token in [ids[-1], *(asked.logprob_token_ids or ())]})
            if matcher is not None:
                matcher.consume_token(ids[-1])
            if ids[-1] in ends or len(ids) == asked.max_tokens:
                finish = "stop" if ids[-1] in ends else "length"
                logprobs = told if asked.logprob_token_ids else None
                return SimpleNamespace(token_ids=ids, finish_reason=finish, logprobs=logprobs)

    def _matcher(self, held: StructuredOutputsParams | None) -> Any:
        if held is None:
            return None
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        words = from_tokenizer(self._tokenizer, n_vocab=self._model.config.vocab_size)
        return LLMatcher(words, LLMatcher.grammar_from_json_schema(
            json.dumps(held.json), defaults={"whitespace_flexible": True}))  # as its guidance backend has it


def install(patch: pytest.MonkeyPatch) -> None:
    """Have `import vllm` find this, built for GPUs."""
    package, inner, platforms = map(ModuleType, ("vllm", "vllm.sampling_params", "vllm.platforms"))
    package.SamplingParams = SamplingParams
    inner.StructuredOutputsParams = StructuredOutputsParams
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
    for module in (package, inner, platforms):
        patch.setitem(sys.modules, module.__name__, module)
