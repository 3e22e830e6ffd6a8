"""The recipe: strict models of what a user may write, and nothing else.

Unknown keys, wrong types and values out of range are errors. The descriptions here are the reference:
`distillctl schema` exports them as JSON Schema. No behaviour lives in this file beyond checks that need
several fields at once; what follows "; " in their words is the advice.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distillctl.recipe.data_models import (
    DataSpec,
    SplitFiles,
    SplitShares,
)
from distillctl.recipe.evaluation_models import (
    BudgetSpec,
    CascadeSpec,
    EconomicsSpec,
    EvaluateSpec,
    LatencySpec,
    TeacherCost,
    TokenCounts,
    VerdictSpec,
)
from distillctl.recipe.gate_models import GateSpec
from distillctl.recipe.judge_models import AnthropicJudge, JudgeSpec, OpenAIJudge
from distillctl.recipe.strict import ENV_NAME, NAME, PositiveFloat, PositiveInt, Share, Strict
from distillctl.recipe.task_models import (
    ClassificationSpec,
    FieldScoring,
    FieldSpec,
    StructuredSpec,
    TaskSpec,
    TextSpec,
)
from distillctl.recipe.teacher_models import (
    AnthropicTeacher,
    OpenAITeacher,
    Price,
    RecordedTeacher,
    Stability,
    TeacherSpec,
)
from distillctl.recipe.training_models import (
    DEFAULT_EPOCHS,
    LoraSpec,
    StudentSpec,
    TrainSpec,
)

__all__ = [
    "DEFAULT_EPOCHS",
    "ENV_NAME",
    "NAME",
    "AnthropicJudge",
    "AnthropicTeacher",
    "BudgetSpec",
    "CascadeSpec",
    "ClassificationSpec",
    "DataSpec",
    "EconomicsSpec",
    "EvaluateSpec",
    "FieldScoring",
    "FieldSpec",
    "GateSpec",
    "JudgeSpec",
    "LatencySpec",
    "LoraSpec",
    "OpenAIJudge",
    "OpenAITeacher",
    "PositiveFloat",
    "PositiveInt",
    "Price",
    "Recipe",
    "RecordedTeacher",
    "Share",
    "SplitFiles",
    "SplitShares",
    "Stability",
    "Strict",
    "StructuredSpec",
    "StudentSpec",
    "TaskSpec",
    "TeacherCost",
    "TeacherSpec",
    "TextSpec",
    "TokenCounts",
    "TrainSpec",
    "VerdictSpec",
]


class Recipe(Strict):
    """One task, from its prompt to its verdict."""

    name: Annotated[str, Field(pattern=NAME)]
    """Lower-case letters, digits, - and _; names the folder under runs/."""
    description: Annotated[str, Field(max_length=2000)] | None = None
    """A line for people; nothing reads it."""
    task: TaskSpec
    """What is asked, what an answer looks like (`kind`), and how it is scored."""
    data: DataSpec
    """Where the examples are, and how they are split."""
    teacher: TeacherSpec
    """Who gives the answers that the student learns from."""
    student: StudentSpec
    """Which model learns."""
    train: TrainSpec = TrainSpec()
    """How it learns, in terms that every backend translates."""
    backend: Annotated[str, Field(pattern=NAME)] = "local"
    """Who trains; `distillctl backends` lists what is installed."""
    backends: dict[str, dict[str, Any]] = Field(default={})
    """Settings per backend, so that switching is one word; checked by the backend itself."""
    baseline: Annotated[str, Field(pattern=NAME)] | None = None
    """A second, cheap backend trained on the same rows and shown beside the student: `linear`."""
    controls: Annotated[list[Literal["gold"]], Field(max_length=1)] = Field(default=[])
    """`[gold]`: train the same student on the gold answers too. Is the teacher what holds it back?"""
    curve: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(max_length=10)] = Field(default=[])
    """Train the same student on these shares of its rows too; 1 is the student itself. Would more data
    help?"""
    evaluate: EvaluateSpec = EvaluateSpec()
    """What is compared, and how latency is timed."""
    verdict: VerdictSpec = VerdictSpec()
    """When the student may take the teacher's place."""
    economics: EconomicsSpec = EconomicsSpec()
    """What the student would save, at your prices and volume."""
    budget: BudgetSpec = BudgetSpec()
    """The most that one run may spend."""
    gates: GateSpec = GateSpec()
    """What `distillctl gate` asks before a student may be deployed."""

    @field_validator("curve")
    @classmethod
    def _once(cls, curve: list[float]) -> list[float]:
        if len(set(curve)) < len(curve):
            raise ValueError("names a share twice; delete one of them")
        return curve

    @model_validator(mode="after")
    def _other_seeds(self) -> Recipe:
        seeds = [self.train.seed, *self.train.seeds]
        if len(set(seeds)) < len(seeds):
            raise ValueError("train.seeds names a seed twice, or that of train.seed, which is trained "
                             "anyway; delete it")
        return self

    @field_validator("baseline")
    @classmethod
    def _second(cls, baseline: str | None, info: ValidationInfo) -> str | None:
        if baseline is not None and baseline == info.data.get("backend"):
            raise ValueError("is the backend itself; choose another, or delete the line")
        return baseline
