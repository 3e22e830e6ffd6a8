"""Greedy answers in batches, on a shared prefix; free, or held to a JSON schema.

A schema's grammar is llguidance's (github.com/guidance-ai/llguidance): at every step only tokens remain
that some valid answer goes on with, and the end token only where the answer is complete. What the schema
leaves no choice in (names, quotes, separators) is not asked of the model token by token: it joins the next
pass. Separators are those of the training answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from distillctl.errors import Problem, StudentError
from distillctl.types import Finish
from distillctl_local.prompts import Prefixes
from distillctl_local.stream import Prefix, Rows, suits

ROWS = 128  # most answers at once
SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass
class Generated:
    """One answer: its tokens without the end token, and why it ended. limit: most tokens."""

    limit: int
    matcher: Any = None  # where a grammar holds the answer
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None  # None while it goes on

    def begin(self) -> list[int]:
        """The tokens that every answer begins with."""
        return self._add([])

    def take(self, token: int, stops: frozenset[int]) -> list[int]:
        """Add the model's next token, and those that can only follow it; returns them all."""
        if token in stops:
            self.finish = "stop"
            return []
        if self.matcher is not None and not self.matcher.consume_token(token):
            raise StudentError(Problem(f"the grammar engine failed: {self.matcher.get_error()}"))
        return self._add([token])

    def _add(self, tokens: list[int]) -> list[int]:
        complete = False
        if self.matcher is not None:
            forced = self.matcher.compute_ff_tokens()
            self.matcher.consume_tokens(forced)
            tokens = [*tokens, *forced]
            complete = self.matcher.is_stopped()  # nothing but the end can follow
        self.ids += tokens
        if len(self.ids) > self.limit or (len(self.ids) == self.limit and not complete):
            del self.ids[self.limit:]
            self.finish = "length"
        elif complete:
            self.finish = "stop"
        return tokens


class Grammar:
    """The answers that fit a JSON schema, as token masks for one tokenizer.

    Raises StudentError where the schema uses what the grammar engine does not know.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, vocabulary: int,
                 end_id: int) -> None:
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer

        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=end_id)
        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=SEPARATORS)
        if error := LLMatcher.validate_grammar(text, self._tokenizer):
            raise StudentError(Problem(f"answers cannot be held to this schema: {error}",
                                       field="task.json_schema"))
        self._start = LLMatcher(self._tokenizer, text)

    def matcher(self) -> Any:
        """A matcher at the beginning of an answer."""
        return self._start.deep_copy()

    @staticmethod
    def mask(logits: torch.Tensor, matchers: Sequence[Any]) -> None:
        """Put the logits [rows, vocabulary] of tokens that the rows' grammars do not allow at -infinity."""
        rows = [torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                for matcher in matchers]
        forbidden = torch.stack(rows) == 0
        logits[:, :forbidden.shape[1]].masked_fill_(forbidden.to(logits.device), float("-inf"))
        logits[:, forbidden.shape[1]:] = float("-inf")


class Generator:
    """Answers with one model. stops: tokens that end an answer. frozen: as for `Prefixes`."""

    def __init__(self, model: PreTrainedModel, stops: Sequence[int], grammar: Grammar | None = None,
                 frozen: Sequence[Prefix] = ()) -> None:
        self._model = model
        self._stops = frozenset(stops)
        self._grammar = grammar
        self._prefixes = Prefixes(model, frozen)
        self._streams = suits(model)

    def answer(self, prompts: Sequence[list[int]], limits: Sequence[int]) -> list[Generated]:
        """The likeliest next token, again and again, for each prompt (token ids).

        limits: most tokens of each answer.
        """
        answers = [Generated(limit, self._grammar and self._grammar.matcher()) for limit in limits]
        if not self._streams:
            for prompt, answer in zip(prompts, answers, strict=True):
                self._run([prompt], [answer], WholeRow(self._model))
            return answers

        def run(prefix: Prefix, numbers: list[int]) -> None:
            self._run([prompts[number][len(prefix):] for number in numbers],
                      [answers[number] for number in numbers], Rows(self._model, prefix, len(numbers)))

        self._prefixes.each(run, prompts, 0, ROWS)
        return answers

    @torch.inference_mode()
    def _run(self, prompts: Sequence[list[int]], answers: list[Generated], rows: Rows | WholeRow) -> None:
        chunks = [[*prompt, *answer.begin()] for prompt, answer in zip(prompts, answers, strict=True)]
        while live := [row for row, answer in enumerate(answers) if answer.finish is None]:
            if 2 * len(live) <= len(rows):  # ended rows cost little until they are the most
                rows.select(live)
                chunks, answers = [chunks[row] for row in live], [answers[row] for row in live]
                live = list(range(len(live)))
            logits = rows.extend([chunk if answer.finish is None else []
                                  for chunk, answer in zip(chunks, answers, strict=True)])[:, -1]
            if self._grammar:
                self._grammar.mask(logits, [answers[row].matcher for row in live])
            for row, token in zip(live, logits.argmax(-1).tolist(), strict=True):
                chunks[row] = answers[row].take(token, self._stops)


class WholeRow:
    """One row by itself with transformers' own cache: for models that passes of `Rows` do not suit."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)

    def __len__(self) -> int:
        return 1

    def extend(self, chunks: Sequence[Sequence[int]]) -> torch.Tensor:
        """As `Rows.extend`, for one chunk."""
        return self._model(input_ids=torch.tensor(chunks, device=self._model.device), use_cache=True,
                           past_key_values=self._cache, logits_to_keep=1).logits.float()

    def select(self, rows: Sequence[int]) -> None:
        """There is one row, and it stays."""
