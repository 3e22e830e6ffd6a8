"""The recipe's `evaluate`, `verdict`, `economics` and `budget` blocks: what is compared, what is good enough,
what it costs and may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from distillctl.recipe.judge_models import JudgeSpec
from distillctl.recipe.strict import PositiveFloat, PositiveInt, Share, Strict
from distillctl.recipe.teacher_models import Price

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LatencySpec(Strict):
    """Latency is timed one request at a time, after a warm-up, on the same items for all."""

    items: Annotated[int, Field(ge=1, le=10_000)] = 60
    """How many test items are timed."""
    warmup: Annotated[int, Field(ge=0, le=1000)] = 5
    """How many requests before that are not counted."""


class CascadeSpec(Strict):
    """The student answers where it is sure, the teacher elsewhere."""

    threshold: Share | None = None
    """Least probability of its own answer with which the student answers; null: it is chosen on dev, as the
    loosest with which the whole keeps within `verdict.max_drop` of the teacher."""
    level: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95
    """One-sided confidence with which dev must show that."""

    @model_validator(mode="after")
    def _one_way(self) -> CascadeSpec:
        if self.threshold is not None and "level" in self.model_fields_set:
            raise ValueError("level is for choosing a threshold on dev; delete it, or delete threshold")
        return self


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
    cascade: CascadeSpec | None = None
    """null: the threshold is chosen on dev, at the level that `cascade.level` has by default."""
    judge: JudgeSpec | None = None
    """A model that compares the student's answers with the teacher's, for a `text` task. Shown, once its
    agreement with the gold answers is known; it has no part in the verdict."""
    slices: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default=[], max_length=10)
    """Fields of the examples by whose values student and teacher are compared apart."""

    @field_validator("slices")
    @classmethod
    def _once(cls, slices: list[str]) -> list[str]:
        if len(set(slices)) < len(slices):
            raise ValueError("names a field twice; delete one of the two")
        return slices


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


class TokenCounts(Strict):
    """Tokens of a usual request."""

    input: PositiveInt
    """Of the whole prompt."""
    output: PositiveInt
    """Of the answer."""
    cached_input: Annotated[int, Field(ge=0)] = 0
    """Of the part of the prompt that the provider has cached."""


class TeacherCost(Strict):
    """What the teacher costs, where its answers do not say it: above all for a recording."""

    model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """The model's name in the price table."""
    price: Price | None = None
    """Its price; overrides the table."""
    tokens: TokenCounts | None = None
    """Tokens of a usual request, where the answers have none."""
    batch: bool = False
    """Its requests can wait for a batch, which costs half, as at OpenAI, Anthropic and Google."""


class EconomicsSpec(Strict):
    """What the student would save. What is not known stays unknown."""

    requests_per_day: PositiveInt | None = None
    """How many requests come on a day."""
    teacher: TeacherCost = TeacherCost()
    """What the teacher costs, where its answers do not say it."""
    student_price: Price | None = None
    """What a hosted student's tokens cost; overrides the price that came with its answers."""
    endpoint_usd_per_minute: Amount | None = None
    """Price of a hosted student's endpoint, paid whether it is asked or not; overrides the one that came with
    it."""
    hardware_usd_per_hour: Amount | None = None
    """Price of the machine on which a student of your own was timed."""
    always_on: bool = False
    """That machine is paid round the clock, not only while it answers."""
    training_usd: Amount | None = None
    """What getting the student cost; null: what was spent on it, also by other runs that it shares answers
    with."""

    @model_validator(mode="after")
    def _one_way(self) -> EconomicsSpec:
        if self.student_price is not None and self.endpoint_usd_per_minute is not None:
            raise ValueError("prices the student by the token and by the minute; delete student_price or "
                             "endpoint_usd_per_minute")
        return self


class BudgetSpec(Strict):
    """The most that one run may spend on calls, training and serving together, in US dollars."""

    max_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Nothing is begun that could go beyond it."""
