"""Who is asked, how fast, at what price: the recipe's `teacher` block, and a judge's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distillctl.recipe.strict import ENV_NAME, NAME, PositiveFloat, PositiveInt, Share, Strict


class Stability(Strict):
    """Ask some prompts several times before anything is distilled."""

    items: PositiveInt = 50
    """How many prompts are asked repeatedly."""
    samples: Annotated[int, Field(ge=2, le=20)] = 3
    """How often each of them is asked."""
    min_agreement: Share = 0.9
    """Share of items with unanimous answers below which the run stops."""


class Price(Strict):
    """US dollars per million tokens; overrides the price table."""

    input: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the prompt."""
    output: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the answer."""
    cached_input: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of the part of the prompt that the provider had cached; null: as the rest of it."""


class Live(Strict):
    """A model that is asked now."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    """The model's name, as its provider spells it."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    """null leaves it to the provider (some models refuse a temperature)."""
    max_tokens: PositiveInt = 1024
    """Longest answer, in tokens; one that is cut off is never trained on."""
    seed: int | None = None
    """Sent to providers that take one."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 8
    """Most requests that are under way at once."""
    requests_per_minute: PositiveInt | None = None
    """Most requests begun in a minute; null: no limit of ours."""
    tokens_per_minute: PositiveInt | None = None
    """Most tokens of prompts and answers in a minute; null: no limit of ours."""
    timeout: PositiveFloat = 60.0
    """Seconds for one whole answer, however it arrives."""
    max_failures: Share = 0.05
    """Share of prompts that may stay unanswered; more stops the run."""
    price: Price | None = None
    """What its tokens cost, where the price table is wrong or has nothing."""


class _Teaching(Strict):
    """What only a teacher has."""

    collection: Annotated[str, Field(pattern=NAME)] | None = None
    """Name of this collection of answers, such as 2026-11. Another name asks everything again and makes a
    run of its own, beside the old one: what to do once `drift` finds the teacher changed."""
    structured_output: bool = False
    """Ask the provider to keep its answers to the task's JSON Schema, for a `structured` task. `check` says
    where OpenAI's strict mode would not take the schema; it is then sent as a wish only."""
    stability: Stability | None = None
    """Measure first whether the teacher agrees with itself; null: do not."""
    batch: bool = False
    """Ask through the provider's batch API: at half the price, and the answers come within a day."""


class OpenAIServer(Live):
    """Any server that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, OpenRouter."""

    provider: Literal["openai"]
    """Chat completions, at OpenAI or at `base_url`."""
    base_url: str | None = None
    """None: OpenAI. Plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for a server without one."""


class AnthropicServer(Live):
    """Anthropic's Messages API."""

    provider: Literal["anthropic"]
    """The Messages API."""
    base_url: str | None = None
    """None: Anthropic. Plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] = "ANTHROPIC_API_KEY"
    """Name of the environment variable that holds the key."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """Claude's API takes none since version 2026-10-21; where one is given, the request is sent under
    version 2023-06-01, which older models still answer."""


class OpenAITeacher(OpenAIServer, _Teaching):
    """A teacher behind OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, OpenRouter."""


class AnthropicTeacher(AnthropicServer, _Teaching):
    """A teacher behind Anthropic's Messages API."""


class RecordedTeacher(Strict):
    """Answers that were collected earlier."""

    provider: Literal["recorded"]
    """A file of earlier answers."""
    outputs: str
    """JSONL of {"id", "output"} and, where known, tokens_in, tokens_out, latency_s, cost_usd, model."""
    model: Annotated[str, Field(max_length=300)] | None = None
    """What gave the answers, for the report."""
    batch: bool = False
    """Never true: a recording is not asked."""

    @field_validator("batch")
    @classmethod
    def _asked(cls, batch: bool) -> bool:
        if batch:
            raise ValueError("a recording costs nothing, so there is nothing to ask in batches; delete it")
        return batch


TeacherSpec = Annotated[OpenAITeacher | AnthropicTeacher | RecordedTeacher, Field(discriminator="provider")]
