"""The recipe's `evaluate.judge` block: a model that compares the student's texts with the teacher's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillctl.recipe.strict import PositiveInt, Share, Strict
from distillctl.recipe.teacher_models import AnthropicServer, OpenAIServer


class _Judging(Strict):
    """What only a judge has."""

    items: PositiveInt = 100
    """How many test items are judged, each in both orders; on up to as many dev items where only one of the
    two answers passes the checks, the judge itself is measured."""
    min_agreement: Share = 0.7
    """The judge is not to be believed unless its agreement with the gold answers is at least this, by the
    lower end of its 95 % interval."""
    criteria: Annotated[str, Field(min_length=1, max_length=4000)] = (
        "The better answer is the one that does the task as it is worded, rightly and completely.")
    """What makes an answer better, in words to the judge."""


class OpenAIJudge(OpenAIServer, _Judging):
    """A judge behind OpenAI's chat completions."""


class AnthropicJudge(AnthropicServer, _Judging):
    """A judge behind Anthropic's Messages API."""


JudgeSpec = Annotated[OpenAIJudge | AnthropicJudge, Field(discriminator="provider")]
