"""The recipe's `evaluate`, `verdict` and `budget` blocks: what is compared, what is good enough, what it
may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from distillctl.recipe.strict import PositiveFloat, PositiveInt, Share, Strict


class LatencySpec(Strict):
    """Latency is timed one request at a time, after a warm-up, on the same items for all."""

    items: Annotated[int, Field(ge=1, le=10_000)] = 60
    """How many test items are timed."""
    warmup: Annotated[int, Field(ge=0, le=1000)] = 5
    """How many requests before that are not counted."""


class EvaluateSpec(Strict):
    """What is compared."""

    base: bool = True
    """Also score the untrained student."""
    latency: LatencySpec = LatencySpec()
    """How latency is timed."""
    generate: bool = False
    """Let local students write their answer freely instead of scoring the labels."""
    max_tokens: PositiveInt = 512
    """Longest free answer of a student, in tokens."""


class VerdictSpec(Strict):
    """When the student may take the teacher's place. Drops are shares: 0.05 is five points."""

    max_drop: Share = 0.05
    """Largest drop against the teacher that is still viable."""
    marginal_drop: Share = 0.10
    """Largest drop that is still marginal; beyond it the student is not ready."""
    min_speedup: PositiveFloat = 2.0
    """Smallest ratio of the teacher's median latency to the student's that is viable."""

    @model_validator(mode="after")
    def _ordered(self) -> VerdictSpec:
        if self.marginal_drop < self.max_drop:
            raise ValueError("marginal_drop is below max_drop; make it the larger of the two")
        return self


class BudgetSpec(Strict):
    """The most that one run may spend on calls, training and serving together, in US dollars."""

    max_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Nothing is begun that could go beyond it."""
