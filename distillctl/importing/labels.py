"""Whether logged answers are labels, and which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

_MOST, _LONGEST, _EACH = 20, 40, 5


def folded(answer: str) -> str:
    """An answer as the task compares labels: without case, quotes and a final full stop."""
    return answer.strip().strip("\"'`*").rstrip(".").strip("\"'`*").strip().casefold()


def infer_labels(answers: Sequence[str]) -> list[str] | None:
    """The labels, each as it is most often written, the most frequent first; None where these answers are
    free text: more than 20 different ones, one of more than 40 characters, or fewer than 5 of each on
    average. Two at least."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        spellings[folded(answer)][answer.strip().strip("\"'`*").rstrip(".").strip("\"'`*").strip()] += 1
    if not 2 <= len(spellings) <= _MOST or len(answers) < _EACH * len(spellings):
        return None
    if any(not one or len(one) > _LONGEST or "\n" in one for one in spellings):
        return None
    often = sorted(spellings.values(), key=lambda found: -found.total())
    return [found.most_common(1)[0][0] for found in often]
