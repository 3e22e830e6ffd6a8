"""Scores of a label set: the probability of each label when an answer is held to the set, in one pass.

The answers (label tokens and the end token) form a trie. Where it branches, the model's next-token
probabilities are taken among the tokens that go on; where it does not, there is nothing to decide. So
labels that begin differently are told apart at the prompt's end alone. Nodes farther down follow the
prompt in the same pass, each seeing the prompt and its own ancestors, so that labels that begin alike, or
of which one is the beginning of another, are scored exactly too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distillctl_local.models import facts_of
from distillctl_local.prompts import Prefixes, by_length
from distillctl_local.stream import Prefix, Rows, Tail

TOKENS = 4096  # most tokens in one pass


@dataclass(frozen=True)
class Branch:
    """A place where a label set's answers part. node: 0 is the prompt's end, others are the tail's.
    tokens: what can come next. paths: [labels, tokens], 1 where a token is on a label's path."""

    node: int
    tokens: list[int]
    paths: torch.Tensor


@dataclass(frozen=True)
class Trie:
    """tail: the nodes behind the prompt that have to be seen to decide, parents first."""

    tail: Tail
    branches: list[Branch]


def build_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """The trie of token sequences, none of them the beginning of another: each is closed by the end token.
    Raises ValueError for two alike."""
    if len({tuple(answer) for answer in answers}) < len(answers):
        raise ValueError("two labels have the same tokens")
    after: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for length, token in enumerate(answer):
            after.setdefault(tuple(answer[:length]), set()).add(token)
    parting = [node for node, tokens in after.items() if len(tokens) > 1]
    needed = sorted({node[:length] for node in parting for length in range(1, len(node) + 1)},
                    key=lambda node: (len(node), node))
    sees = torch.tensor([[later[:len(one)] == one for one in needed] for later in needed],
                        dtype=torch.bool).view(len(needed), len(needed))
    numbers = {node: number for number, node in enumerate([(), *needed])}
    branches = []
    for node in parting:
        tokens = sorted(after[node])
        paths = torch.tensor([[tuple(answer[:len(node) + 1]) == (*node, token) for token in tokens]
                              for answer in answers], dtype=torch.float32)
        branches.append(Branch(numbers[node], tokens, paths))
    return Trie(Tail([node[-1] for node in needed], [len(node) for node in needed], sees), branches)


class LabelScorer:
    """Scores one label set with one model. answers: each label's tokens with the end token."""

    def __init__(self, model: PreTrainedModel, answers: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._answers = [list(answer) for answer in answers]
        self._trie = build_trie(answers)
        self._prefixes = Prefixes(model)
        self._stateful = facts_of(model.config).linear_attention

    def log_probabilities(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Natural-log probability of each label, [prompts, labels] on the CPU; the labels' probabilities add
        up to one. prompts: token ids."""
        if self._stateful:
            return torch.stack([plain_scores(self._model, prompt, self._answers) for prompt in prompts]).cpu()
        scores = torch.empty(len(prompts), len(self._answers))
        for prefix, numbers in self._prefixes.split(prompts):
            extra = len(self._trie.tail.ids) - len(prefix)
            for batch in by_length(prompts, numbers, extra, len(numbers), TOKENS):
                scores[batch] = self._score([prompts[number] for number in batch], prefix).cpu()
        return scores

    @torch.inference_mode()
    def _score(self, prompts: Sequence[list[int]], prefix: Prefix) -> torch.Tensor:
        """Log probability of each label's answer, [prompts, labels]."""
        tail = self._trie.tail
        tokens = sorted({token for branch in self._trie.branches for token in branch.tokens})
        with head_of(self._model, tokens) as columns:
            logits = Rows(self._model, prefix, len(prompts)).extend(
                [prompt[len(prefix):] for prompt in prompts], keep=len(tail.ids) + 1, tail=tail)
        found = logits.new_zeros(len(prompts), len(self._answers))
        for branch in self._trie.branches:
            among = logits[:, branch.node, [columns[token] for token in branch.tokens]].log_softmax(-1)
            found += among @ branch.paths.t().to(among.device)
        return found


@contextmanager
def head_of(model: PreTrainedModel, tokens: Sequence[int]) -> Iterator[dict[int, int]]:
    """Let `model` compute the logits of these tokens alone, for as long as the block runs; gives each one's
    column. A head of an unusual kind computes all of them."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        yield {token: token for token in tokens}
        return
    small = torch.nn.Linear(head.in_features, len(tokens), bias=head.bias is not None, device="meta")
    small.weight = torch.nn.Parameter(head.weight[tokens], requires_grad=False)
    if head.bias is not None:
        small.bias = torch.nn.Parameter(head.bias[tokens], requires_grad=False)
    model.set_output_embeddings(small)
    try:
        yield {token: column for column, token in enumerate(tokens)}
    finally:
        model.set_output_embeddings(head)


@torch.inference_mode()
def plain_scores(model: PreTrainedModel, prompt: Sequence[int],
                 answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """The same for one prompt, with one pass of the whole prompt for every place where answers part."""
    found = torch.zeros(len(answers), device=model.device)
    for length in range(max(map(len, answers))):
        for node in {tuple(answer[:length]) for answer in answers if len(answer) > length}:
            labels = [label for label, answer in enumerate(answers) if tuple(answer[:length]) == node]
            tokens = sorted({answers[label][length] for label in labels})
            if len(tokens) > 1:
                ids = torch.tensor([[*prompt, *node]], device=model.device)
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
                among = dict(zip(tokens, logits[tokens].log_softmax(-1), strict=True))
                for label in labels:
                    found[label] += among[answers[label][length]]
    return found
