"""Greedy answers in batches, on a shared prefix; free, or held to a JSON schema.

A schema's grammar is llguidance's (github.com/guidance-ai/llguidance): at every step only tokens remain
that some valid answer goes on with, and the end token only where the answer is complete. The separators
are those of the training answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from distillctl.errors import Problem, StudentError
from distillctl.types import Finish
from distillctl_local.prompts import Prefix, Prefixes, by_length, pad_rests

ROWS = 64
TOKENS = 8192  # most padded tokens in the first pass


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens without the end token, why it ended, and how many tokens were generated."""

    ids: list[int]
    finish: Finish
    tokens: int


class Grammar:
    """The answers that fit a JSON schema, as token masks for one tokenizer.

    Raises StudentError where the schema uses what the grammar engine does not know.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vocabulary: int,
                 end_id: int) -> None:
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=end_id)
        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={
            "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "})
        if error := LLMatcher.validate_grammar(text, self._tokenizer):
            raise StudentError(Problem(f"answers cannot be held to this schema: {error}",
                                       field="task.json_schema"))
        self._start = LLMatcher(self._tokenizer, text)

    def matcher(self) -> Any:
        """A matcher at the beginning of an answer."""
        return self._start.deep_copy()


class Generator:
    """Answers with one model. stops: tokens that end an answer."""

    def __init__(self, model: PreTrainedModel, stops: Sequence[int], grammar: Grammar | None = None,
                 prefixes: Prefixes | None = None) -> None:
        self._model = model
        self._stops = frozenset(stops)
        self._grammar = grammar
        self._prefixes = prefixes or Prefixes(model)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[Generated]:
        """The likeliest next token, again and again, for each prompt (token ids).

        limits: most tokens of each answer.
        """
        answers: dict[int, Generated] = {}
        for prefix, numbers in self._prefixes.split(prompts):
            for batch in by_length(prompts, numbers, len(prefix), ROWS, TOKENS):
                found = self._batch([prompts[number] for number in batch],
                                    [limits[number] for number in batch], prefix)
                answers.update(zip(batch, found, strict=True))
        return [answers[number] for number in range(len(prompts))]

    def _batch(self, prompts: Sequence[Sequence[int]], limits: Sequence[int],
               prefix: Prefix) -> list[Generated]:
        device = self._model.device
        rests = pad_rests(prompts, len(prefix), device)
        running = list(range(len(prompts)))
        outputs: list[list[int]] = [[] for _ in prompts]
        finishes: list[Finish] = ["length"] * len(prompts)
        matchers = [self._grammar.matcher() for _ in prompts] if self._grammar else None
        cache = prefix.cache(len(prompts)) if len(prefix) else DynamicCache()
        ids, positions = rests.ids, rests.positions
        mask = torch.cat([rests.real.new_ones(len(prompts), len(prefix)), rests.real], 1).long()
        while running:
            logits = self._model(input_ids=ids, attention_mask=mask, position_ids=positions,
                                 past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            if matchers:
                for row, number in enumerate(running):
                    allowed = torch.frombuffer(bytearray(matchers[number].compute_logit_bias()), dtype=torch.uint8)
                    logits[row, :len(allowed)].masked_fill_(allowed.to(device) == 0, float("-inf"))
            chosen = logits.argmax(-1).tolist()
            kept = []
            for row, (number, token) in enumerate(zip(running, chosen, strict=True)):
                if token in self._stops:
                    finishes[number] = "stop"
                    continue
                outputs[number].append(token)
                if matchers:
                    matchers[number].consume_token(token)
                    if matchers[number].is_stopped():  # nothing can follow but the end
                        finishes[number] = "stop"
                        continue
                if len(outputs[number]) < limits[number]:
                    kept.append(row)
            if len(kept) < len(running):
                if not kept:
                    break
                rows = torch.tensor(kept, device=device)
                cache.batch_select_indices(rows)
                mask, positions = mask[rows], positions[rows]
                running = [running[row] for row in kept]
                chosen = [chosen[row] for row in kept]
            ids = torch.tensor(chosen, device=device)[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], 1)
        return [Generated(output, finish, len(output) + (finish == "stop"))
                for output, finish in zip(outputs, finishes, strict=True)]
