"""The recipe's `student` and `train` blocks: which model learns, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distillctl.recipe.strict import PositiveFloat, PositiveInt, Strict


class StudentSpec(Strict):
    """The model that learns."""

    model: Annotated[str, Field(min_length=1, max_length=500)]
    """A Hub id, a local folder, or a packaged alias (`smollm2-135m`)."""
    revision: Annotated[str, Field(max_length=100)] | None = None
    """Commit, tag or branch on the Hub."""


class LoraSpec(Strict):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the update; more can learn more and costs more."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that is dropped while training."""
    targets: list[str] | None = None
    """Names of the layers to adapt; None: every linear layer but the output head and a mixture's experts."""


DEFAULT_EPOCHS = 3
_HIGHEST_FULL_RATE = 1e-4  # what is usual for full fine-tuning ends here, and an adapter's begins


class TrainSpec(Strict):
    """How the student is trained, in terms that every backend translates or says it cannot."""

    epochs: Annotated[int, Field(ge=1, le=100)] | None = None
    """Passes over the training rows; 3 where neither this nor `max_steps` is given."""
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Optimiser steps; instead of epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Highest step size of the optimiser."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rows per optimiser step."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_length: PositiveInt = 2048
    """Tokens of prompt and answer together; a longer row is an error, never cut."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the adapter's first weights and of the order of the rows."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[], max_length=20)
    """Train the student again with each of these, to show how far its figure depends on chance."""
    lora: LoraSpec | None = LoraSpec()
    """The adapter that is trained in place of all weights; null: every weight is trained (full fine-tuning),
    which wants a tenth of an adapter's learning rate."""

    @property
    def rate_warning(self) -> str | None:
        """What to say, where every weight is trained, of a learning rate that is an adapter's."""
        if self.lora is not None or self.learning_rate <= _HIGHEST_FULL_RATE:
            return None
        usual = min(self.learning_rate / 10, _HIGHEST_FULL_RATE)
        return (f"train.learning_rate {self.learning_rate:g} is an adapter's: with every weight trained a "
                f"tenth of it or less is usual, here {usual:g}, or the model may lose what it knew")

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("epochs") is None and given.get("max_steps") is None:
            return {**given, "epochs": DEFAULT_EPOCHS}
        return given

    @field_validator("max_steps")
    @classmethod
    def _one_length(cls, max_steps: int | None, info: ValidationInfo) -> int | None:
        if max_steps is not None and info.data.get("epochs") is not None:
            raise ValueError("stands beside `epochs`, and training has one length; delete one of them, or "
                             "make it null")
        return max_steps
