"""Scores of a label set: the probability of each label's whole answer, in one forward pass.

The answers (label tokens and the end token) form a trie. Its inner nodes follow the prompt in the same
pass, each seeing the prompt and its own ancestors alone, so that every label is scored exactly: also
labels that begin alike, or of which one is the beginning of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distillctl_local.parallel import threads_for
from distillctl_local.prompts import Prefixes
from distillctl_local.stream import Prefix, Rows, Tail, suits

LOGITS = 64_000_000  # most logits at once: 256 MB in fp32


@dataclass(frozen=True)
class Trie:
    """The inner nodes of a label set's answers, and the edges out of them.

    tail: the inner nodes but the root. edge_nodes, edge_tokens: an edge leaves node `edge_nodes` (0 is the
    root, the prompt's end) with a token. paths: [labels, edges], 1 where an edge is on a label's path.
    """

    tail: Tail
    edge_nodes: list[int]
    edge_tokens: list[int]
    paths: torch.Tensor

    @property
    def nodes(self) -> int:
        """How many nodes have edges, the root among them."""
        return len(self.tail.ids) + 1


def build_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """The trie of token sequences, none of them the beginning of another: each is closed by the end token.
    Raises ValueError for two alike."""
    if len({tuple(answer) for answer in answers}) < len(answers):
        raise ValueError("two labels have the same tokens")
    inner = sorted({tuple(answer[:length]) for answer in answers for length in range(len(answer))},
                   key=lambda node: (len(node), node))
    nodes = {node: number for number, node in enumerate(inner)}
    edges = sorted({tuple(answer[:length + 1]) for answer in answers for length in range(len(answer))})
    numbers = {edge: number for number, edge in enumerate(edges)}
    sees = torch.tensor([[later[:len(one)] == one for one in inner[1:]] for later in inner[1:]],
                        dtype=torch.bool).view(len(inner) - 1, len(inner) - 1)
    paths = torch.zeros(len(answers), len(edges))
    for label, answer in enumerate(answers):
        for length in range(len(answer)):
            paths[label, numbers[tuple(answer[:length + 1])]] = 1.0
    return Trie(Tail([node[-1] for node in inner[1:]], [len(node) for node in inner[1:]], sees),
                [nodes[edge[:-1]] for edge in edges], [edge[-1] for edge in edges], paths)


class LabelScorer:
    """Scores one label set with one model. answers: each label's tokens with the end token. frozen:
    as for `Prefixes`."""

    def __init__(self, model: PreTrainedModel, answers: Sequence[Sequence[int]],
                 frozen: Sequence[Prefix] = ()) -> None:
        self._model = model
        self._answers = [list(answer) for answer in answers]
        self._trie = build_trie(answers)
        self._prefixes = Prefixes(model, frozen)
        self._vocab = model.config.get_text_config().vocab_size
        self._streams = suits(model)

    def log_probabilities(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """Natural-log probability of each label, [prompts, labels] on the CPU, normalised over the
        labels. prompts: token ids."""
        if not self._streams:
            found = torch.stack([plain_scores(self._model, prompt, self._answers) for prompt in prompts])
            return found.log_softmax(-1).cpu()

        def score(prefix: Prefix, numbers: list[int]) -> torch.Tensor:
            return self._score([prompts[number][len(prefix):] for number in numbers], prefix)

        scores = torch.empty(len(prompts), len(self._answers))
        rows = max(1, LOGITS // (self._trie.nodes * self._vocab))
        for numbers, found in self._prefixes.each(score, prompts, self._trie.nodes - 1, rows):
            scores[numbers] = found
        return scores.log_softmax(-1)

    @torch.inference_mode()
    def _score(self, rests: Sequence[list[int]], prefix: Prefix) -> torch.Tensor:
        """Log probability of each label's answer, [prompts, labels] on the CPU. rests: what each prompt has
        behind the prefix."""
        trie = self._trie
        with threads_for(sum(map(len, rests)) + len(rests) * len(trie.tail.ids)):
            logits = Rows(self._model, prefix, len(rests)).extend(rests, keep=trie.nodes, tail=trie.tail)
        totals = torch.stack([row.logsumexp(-1) for row in logits])  # all at once they leave the caches
        edges = logits[:, trie.edge_nodes, trie.edge_tokens] - totals[:, trie.edge_nodes]
        return (edges @ trie.paths.t().to(edges.device)).cpu()


@torch.inference_mode()
def plain_scores(model: PreTrainedModel, prompt: Sequence[int],
                 answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log probability of each answer after the prompt, computed one by one; not normalised."""
    found = []
    for answer in answers:
        ids = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer)).logits[0].float()
        found.append(logits.log_softmax(-1)[range(len(answer)), list(answer)].sum())
    return torch.stack(found)
