"""The linear classifier: what it looks at, how it is fitted, and how it lies on disk.

Four TF-IDF views of a prompt: its words (1-2) and its characters within words (2-5), of the whole and
again of its last line, where templates usually put what is asked. Lines that every training prompt has
are the template's; they tell nothing and are left out. Multinomial logistic regression (scikit-learn,
L-BFGS) on top. On disk: arrays as safetensors, words and settings as JSON; no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from distillctl.errors import Problem, StorageError, StudentError
from distillctl.store.files import atomic_write, read_json, write_json
from distillctl.types import JSON, Message

FORMAT = 1
VOCABULARY = "vocabulary.json"
WEIGHTS = "weights.safetensors"
VIEWS = (("all", "word", (1, 2)), ("all", "char_wb", (2, 5)),
         ("last", "word", (1, 2)), ("last", "char_wb", (2, 5)))
FLOOR = 1e-9  # probability of a label that no training row had


class LinearModel:
    """A fitted classifier. labels: those of the training rows, in the order of the weights' rows."""

    def __init__(self, labels: Sequence[str], template: frozenset[str], views: list[TfidfVectorizer],
                 weights: np.ndarray, intercept: np.ndarray) -> None:
        self.labels = list(labels)
        self._template = template
        self._views = views
        self._weights = weights  # (labels, features), float32, row-major: safetensors keeps no other order
        self._intercept = intercept  # (labels,), float32

    def log_probabilities(self, prompts: Sequence[Sequence[Message]], labels: Sequence[str]) -> np.ndarray:
        """Natural-log probability of each of `labels` for each prompt, shape (prompts, labels)."""
        scores = _features(self._views, prompts, self._template) @ self._weights.T + self._intercept
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        shares = np.full((len(prompts), len(labels)), FLOOR)
        for column, label in enumerate(self.labels):
            shares[:, labels.index(label)] = np.maximum(scores[:, column], FLOOR)
        return np.log(shares / shares.sum(axis=1, keepdims=True))

    def save(self, into: Path) -> None:
        """Write the two files; the same model gives the same bytes."""
        into.mkdir(parents=True, exist_ok=True)
        write_json(into / VOCABULARY, {
            "format": FORMAT, "labels": self.labels, "template": sorted(self._template),
            "terms": [list(view.get_feature_names_out()) for view in self._views]})
        arrays = {f"idf.{n}": view.idf_.astype(np.float32) for n, view in enumerate(self._views)}
        with atomic_write(into / WEIGHTS, "wb") as file:
            file.write(save({"weights": self._weights, "intercept": self._intercept, **arrays}))

    @classmethod
    def load(cls, folder: Path) -> LinearModel:
        """Read what `save` wrote. Raises StudentError where the files do not fit together."""
        try:
            words = read_json(folder / VOCABULARY)
            arrays = load_file(folder / WEIGHTS)
            if words["format"] != FORMAT:
                raise ValueError(f"format {words['format']}, this version reads {FORMAT}")
            if len(words["terms"]) != len(VIEWS):
                raise ValueError(f"{len(words['terms'])} vocabularies, {len(VIEWS)} are needed")
            views = [_vectorizer(n, terms) for n, terms in enumerate(words["terms"])]
            for n, view in enumerate(views):
                view.idf_ = arrays[f"idf.{n}"].astype(np.float64)
            shape = (len(words["labels"]), sum(map(len, words["terms"])))
            if arrays["weights"].shape != shape or arrays["intercept"].shape != shape[:1]:
                raise ValueError(f"weights of shape {arrays['weights'].shape}, {shape} are needed")
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("a weight is not a number")
        except (StorageError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise StudentError(Problem(f"not a linear student: {error}", where=str(folder))) from error
        return cls(words["labels"], frozenset(words["template"]), views, arrays["weights"],
                   arrays["intercept"])


def fit(prompts: Sequence[Sequence[Message]], answers: Sequence[str], c: float) -> LinearModel:
    """Fit a classifier. Raises ValueError when there is nothing to tell apart."""
    if len(set(answers)) < 2:
        raise ValueError("all training rows have one label, there is nothing to tell apart")
    template = frozenset.intersection(*(frozenset(_text(prompt).split("\n")) for prompt in prompts))
    texts = [_varying(prompt, template) for prompt in prompts]
    views = [_vectorizer(n).fit(_viewed(n, texts)) for n in range(len(VIEWS))]
    features = _features(views, prompts, template)
    with threadpool_limits(1):  # its many small products are slower on more threads, far slower beside others
        fitted = LogisticRegression(C=c, max_iter=5000).fit(features, list(answers))
    weights, intercept = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row of weights, for the second class against the first
        weights, intercept = np.vstack([0 * weights, weights]), np.concatenate([0 * intercept, intercept])
    return LinearModel([str(label) for label in fitted.classes_], template, views,
                       np.ascontiguousarray(weights, np.float32), intercept.astype(np.float32))


def _vectorizer(n: int, terms: list[JSON] | None = None) -> TfidfVectorizer:
    _, analyzer, sizes = VIEWS[n]
    return TfidfVectorizer(analyzer=analyzer, ngram_range=sizes, sublinear_tf=True, vocabulary=terms)


def _features(views: list[TfidfVectorizer], prompts: Sequence[Sequence[Message]],
              template: frozenset[str]) -> Any:
    texts = [_varying(prompt, template) for prompt in prompts]
    return sparse.hstack([view.transform(_viewed(n, texts)) for n, view in enumerate(views)], format="csr")


def _viewed(n: int, texts: list[str]) -> list[str]:
    return texts if VIEWS[n][0] == "all" else [text.rpartition("\n")[2] for text in texts]


def _varying(prompt: Sequence[Message], template: frozenset[str]) -> str:
    return "\n".join(line for line in _text(prompt).split("\n") if line not in template).rstrip()


def _text(prompt: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in prompt)
