"""What a student learns from its answers: every token, or the choice between labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from distillctl_local.data import Row

Loss = Callable[[torch.Tensor, Sequence[Row]], torch.Tensor]
"""Sum over the supervised tokens of some rows. logits: [tokens, vocabulary], fp32, row after row."""


def next_token(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Cross-entropy of every token of the answers."""
    return cross_entropy(logits, _targets(logits, rows), reduction="sum")


class LabelChoice:
    """Cross-entropy among the tokens that some label could go on with, plus a little of the rest.

    -log p(token) is -log p(token | one of the possible ones) - log p(one of the possible ones). The second
    part is large at first and soon learnt, but until then its gradient hides the first one's, on which the
    answer depends. It gets the weight OTHERS: enough that the student writes labels unasked too. That is
    OTHERS of the loss among all tokens and the rest of the loss among the possible ones.
    """

    OTHERS = 0.1

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        """labels: the token ids of each, end token included."""
        after: dict[tuple[int, ...], set[int]] = {}
        for label in labels:
            for number, token in enumerate(label):
                after.setdefault(tuple(label[:number]), set()).add(token)
        width = max(map(len, after.values()))
        self._node = {start: number for number, start in enumerate(after)}
        self._possible = torch.tensor([[*tokens, *[-1] * (width - len(tokens))]
                                       for tokens in map(sorted, after.values())])

    def __call__(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        nodes = [self._node[tuple(row.completion[:number])]
                 for row in rows for number in range(len(row.completion))]
        possible = self._possible.to(logits.device)[nodes]
        targets = _targets(logits, rows)
        scores = logits.gather(1, possible.clamp(min=0)).masked_fill(possible < 0, float("-inf"))
        chosen = (possible == targets[:, None]).int().argmax(1)
        among = cross_entropy(scores, chosen, reduction="sum")
        return self.OTHERS * cross_entropy(logits, targets, reduction="sum") + (1 - self.OTHERS) * among


def _targets(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row.completion], device=logits.device)
