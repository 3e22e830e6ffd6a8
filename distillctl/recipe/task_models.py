"""The recipe's `task` block: what is asked, what an answer looks like, how it is scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distillctl.evaluate.text_scores import Likeness, missing_extra
from distillctl.recipe.strict import PositiveInt, Share, Strict


class _Prompted(Strict):
    prompt: Annotated[str, Field(min_length=1, max_length=200_000)]
    """Jinja2 template of the user turn; the example's fields are its variables, an undefined one is an
    error."""
    system: Annotated[str, Field(max_length=200_000)] | None = None
    """Text of a system turn before it, taken as it is."""


class ClassificationSpec(_Prompted):
    """The answer is one of a few labels."""

    kind: Literal["classification"]
    """One of a few labels."""
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=2)]
    """Every label, as the model writes it."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str]) -> list[str]:
        folded = [label.strip().casefold() for label in labels]
        twice = sorted({label for label in folded if folded.count(label) > 1})
        if twice:
            raise ValueError(f"must differ by more than case and spaces, not so: {', '.join(twice)}; "
                             "rename or delete one")
        return labels


FieldScoring = Literal["exact", "number", "set", "bag", "list", "text", "ignore"]


class FieldSpec(Strict):
    """How one field of a structured answer is scored."""

    score: FieldScoring = "exact"
    """exact; number (within `tolerance`); set (a list, order and repeats ignored); bag (a list, order
    ignored, repeats counted); list (in order); text (ROUGE-L F1 of at least `threshold`); ignore."""
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Largest absolute difference that still counts as right, for `number`."""
    threshold: Share = 0.5
    """Smallest ROUGE-L F1 that still counts as right, for `text`."""


class StructuredSpec(_Prompted):
    """The answer is one JSON object that fits a JSON Schema."""

    kind: Literal["structured"]
    """One JSON object that fits a schema."""
    json_schema: dict[str, Any] | str
    """The JSON Schema of the answer, or the path of a file that holds it."""
    fields: dict[str, FieldSpec] = Field(default={})
    """Scoring by top-level field; a field not named here is scored `exact` where an expected value
    exists."""


class TextSpec(_Prompted):
    """The answer is free text, checked by terms, length and likeness."""

    kind: Literal["text"]
    """Free text."""
    min_words: PositiveInt | None = None
    """An answer with fewer words is wrong."""
    max_words: PositiveInt | None = None
    """An answer with more words is wrong."""
    similarity: Likeness = "rouge_l"
    """How likeness to an expected `text` is measured: rouge_l (words in common, in order) or chrf (runs of
    letters in common; for languages with many word forms or without blanks; needs the extra `text`) or
    embedding (meaning, word by word; needs `embedding_model` and the extra `embedding`)."""
    embedding_model: Annotated[str | None, Field(max_length=300, exclude_if=lambda it: it is None)] = None
    """A static embedding model for model2vec: a folder or a Hub id, such as minishlab/potion-base-8M."""
    min_similarity: Share | None = None
    """Smallest likeness to the expected `text` that counts as right; without it, where a `text` is expected
    and no terms are, the answers must be equal after normalisation."""

    @field_validator("similarity")
    @classmethod
    def _installed(cls, similarity: Likeness) -> Likeness:
        if extra := missing_extra(similarity):
            raise ValueError(f"needs a package that is not installed; pip install 'distillctl[{extra}]', or "
                             "use rouge_l")
        return similarity

    @model_validator(mode="after")
    def _some_length(self) -> TextSpec:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError("min_words is above max_words, so every answer would be wrong; make it the "
                             "smaller of the two")
        return self

    @model_validator(mode="after")
    def _model_where_embedded(self) -> TextSpec:
        if (self.similarity == "embedding") != (self.embedding_model is not None):
            raise ValueError("similarity: embedding and embedding_model need each other; give both, or none")
        return self


TaskSpec = Annotated[ClassificationSpec | StructuredSpec | TextSpec, Field(discriminator="kind")]
