"""How alike two texts are, by kept libraries: ROUGE-L, chrF, static embeddings, in [0, 1]."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

Likeness = Literal["rouge_l", "chrf", "embedding"]
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


def embedding(text: str, reference: str, model: str) -> float:
    """Cosine of two texts' static embeddings (model2vec: the mean of their tokens' vectors), 0 where it is
    below. Words that mean the same are alike; word order counts for nothing. model: a folder or a Hub id.

    Needs the extra `embedding`. Raises whatever loading raises; see `TextTask.check_ready`.
    """
    import numpy as np

    one, other = load_embedder(model).encode([text, reference])
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return min(1.0, max(0.0, float(one @ other) / norms)) if norms else 0.0


@cache
def load_embedder(model: str) -> Any:
    """The static embedding model in a folder or of a Hub id, from the cache where it is there."""
    from model2vec import StaticModel  # 0.7 s

    return StaticModel.from_pretrained(model, force_download=False, max_length=None)


def missing_extra(similarity: Likeness) -> str | None:
    """The extra whose package a likeness needs and that is not installed; imports nothing."""
    package, extra = {"chrf": ("sacrebleu", "text"), "embedding": ("model2vec", "embedding")}.get(
        similarity, (None, None))
    return extra if package and find_spec(package) is None else None


LIKENESS_NAMES: dict[Likeness, str] = {
    "rouge_l": "ROUGE-L", "chrf": "chrF", "embedding": "a cosine of embeddings"}


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF  # 0.2 s to import

    return CHRF()
