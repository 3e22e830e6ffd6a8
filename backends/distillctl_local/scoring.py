"""Scores of a label set: the probability of each label's whole answer, in one forward pass.

The answers (label tokens and the end token) form a trie. Its inner nodes follow the prompt in the same
pass, each seeing the prompt and its own ancestors alone, so that every label is scored exactly: also
labels that begin alike, or of which one is the beginning of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from distillctl_local.models import facts_of
from distillctl_local.prompts import Prefix, Prefixes, by_length, pad_rests

TOKENS = 8192  # most padded tokens in one pass
LOGITS = 64_000_000  # most logits in one pass: 256 MB in fp32


@dataclass(frozen=True)
class Trie:
    """The inner nodes of a label set's answers, and the edges out of them.

    tokens, parents: of each inner node but the root; a parent of -1 is the root (the prompt's end).
    edge_nodes, edge_tokens: an edge leaves node `edge_nodes` (0 is the root) with a token.
    paths: for each label, its edges.
    """

    tokens: list[int]
    parents: list[int]
    edge_nodes: list[int]
    edge_tokens: list[int]
    paths: list[list[int]]


def build_trie(answers: Sequence[Sequence[int]]) -> Trie:
    """The trie of token sequences, each closed by the end token."""
    trie = Trie([], [], [], [], [])
    nodes: dict[tuple[int, ...], int] = {(): 0}
    edges: dict[tuple[int, ...], int] = {}
    for answer in answers:
        path = []
        for length in range(1, len(answer) + 1):
            before, upto = tuple(answer[:length - 1]), tuple(answer[:length])
            if upto not in edges:
                edges[upto] = len(trie.edge_nodes)
                trie.edge_nodes.append(nodes[before])
                trie.edge_tokens.append(answer[length - 1])
                if length < len(answer):
                    nodes[upto] = len(trie.tokens) + 1
                    trie.tokens.append(answer[length - 1])
                    trie.parents.append(nodes[before] - 1)
            path.append(edges[upto])
        trie.paths.append(path)
    return trie


class LabelScorer:
    """Scores one label set with one model."""

    def __init__(self, model: PreTrainedModel, answers: Sequence[Sequence[int]],
                 prefixes: Prefixes | None = None) -> None:
        """answers: each label's tokens with the end token; no two alike."""
        if len({tuple(answer) for answer in answers}) < len(answers):
            raise ValueError("two labels have the same tokens")
        self._model = model
        self._answers = [list(answer) for answer in answers]
        self._trie = build_trie(answers)
        self._prefixes = prefixes or Prefixes(model)
        self._facts = facts_of(model.config)
        device = model.device
        self._depths = torch.tensor(_depths(self._trie.parents), dtype=torch.long, device=device)
        self._tokens = torch.tensor(self._trie.tokens, dtype=torch.long, device=device)
        self._sees = _sees(self._trie.parents).to(device)
        self._paths = torch.zeros(len(answers), len(self._trie.edge_nodes), device=device)
        for label, path in enumerate(self._trie.paths):
            self._paths[label, path] = 1.0

    @torch.inference_mode()
    def log_probabilities(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Natural-log probability of each label, [prompts, labels] on the CPU, normalised over the
        labels. prompts: token ids."""
        scores = torch.empty(len(prompts), len(self._answers))
        for prefix, numbers in self._prefixes.split(prompts):
            rows = max(1, LOGITS // ((len(self._trie.tokens) + 1) * self._facts.vocab))
            for batch in by_length(prompts, numbers, len(prefix) - len(self._trie.tokens), rows, TOKENS):
                these = [prompts[number] for number in batch]
                if self._exact(these):
                    found = self._score(these, prefix)
                else:
                    found = torch.stack([plain_scores(self._model, one, self._answers) for one in these])
                scores[batch] = found.cpu()
        return scores.log_softmax(-1)

    def _exact(self, prompts: Sequence[Sequence[int]]) -> bool:
        window = self._facts.sliding_window
        longest = max(map(len, prompts)) + len(self._trie.tokens)
        return not self._facts.linear_attention and (window is None or longest < window)

    def _score(self, prompts: Sequence[Sequence[int]], prefix: Prefix) -> torch.Tensor:
        """Log probability of each label's answer, [prompts, labels]."""
        rests = pad_rests(prompts, len(prefix), self._model.device)
        rows, nodes = len(prompts), len(self._trie.tokens)
        ids = torch.cat([rests.ids, self._tokens.expand(rows, -1)], 1)
        ends = rests.positions[:, -1:]
        positions = torch.cat([rests.positions, ends + self._depths], 1)
        logits = self._model(
            input_ids=ids, position_ids=positions, attention_mask=self._mask(rests.real, len(prefix)),
            past_key_values=prefix.cache(rows) if len(prefix) else DynamicCache(), use_cache=True,
            logits_to_keep=nodes + 1).logits.float()
        total = logits.logsumexp(-1)
        edge_nodes, edge_tokens = self._trie.edge_nodes, self._trie.edge_tokens
        edges = logits[:, edge_nodes, edge_tokens] - total[:, edge_nodes]
        return edges @ self._paths.t()

    def _mask(self, real: torch.Tensor, prefix: int) -> torch.Tensor:
        """What each position sees, [rows, 1, rest + nodes, prefix + rest + nodes], added to its scores."""
        rows, width = real.shape
        nodes = len(self._trie.tokens)
        size = width + nodes
        sees = torch.zeros(rows, size, prefix + size, dtype=torch.bool, device=real.device)
        sees[:, :, :prefix] = True
        causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
        sees[:, :width, prefix:prefix + width] = causal & real[:, None, :]
        sees[:, width:, prefix:prefix + width] = real[:, None, :]
        sees[:, width:, prefix + width:] = self._sees
        own = torch.arange(width, device=real.device)
        sees[:, own, prefix + own] = True  # padding sees itself, so that no row of the softmax is empty
        dtype = self._model.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=real.device)
        return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


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


def _depths(parents: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return depths


def _sees(parents: Sequence[int]) -> torch.Tensor:
    """Which nodes each node sees, [nodes, nodes]: its ancestors and itself."""
    sees = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return sees
