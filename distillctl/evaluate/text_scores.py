"""How alike two texts are, by kept libraries: ROUGE-L and chrF, in [0, 1]."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

Likeness = Literal["rouge_l", "chrf"]
_WORD = re.compile(r"\w+")


def normal(text: str) -> str:
    """A text for comparison: its words, lower-cased, with one blank between them."""
    return " ".join(_WORD.findall(text.casefold()))


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F1 of two texts over lower-cased words (Lin 2004, aclanthology W04-1013).

    The F1 of the longest common subsequence, 2·LCS/(m+n), is the normalised indel similarity.
    """
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(_WORD.findall(text.casefold()), _WORD.findall(reference.casefold()))


def chrf(text: str, reference: str) -> float:
    """chrF2 of one text (Popović 2015, aclanthology W15-3049), as sacrebleu computes it by default; case
    counts. Needs the extra `text`."""
    return _chrf_scorer().sentence_score(text, [reference]).score / 100


def chrf_available() -> bool:
    """Whether the library behind `chrf` is installed; does not import it."""
    return find_spec("sacrebleu") is not None


LIKENESS_NAMES: dict[Likeness, str] = {"rouge_l": "ROUGE-L", "chrf": "chrF"}
LIKENESS: dict[Likeness, Callable[[str, str], float]] = {"rouge_l": rouge_l, "chrf": chrf}


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF  # 0.2 s to import

    return CHRF()
