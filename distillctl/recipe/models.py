"""The recipe: strict models of what a user may write, and nothing else.

Unknown keys, wrong types and values out of range are errors. The descriptions here are the reference:
`distillctl schema` exports them as JSON Schema. No behaviour lives in this file beyond checks that need
several fields at once; what follows "; " in their words is the advice.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
ENV_NAME = r"^[A-Z][A-Z0-9_]{0,127}$"

Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


# --- task ---------------------------------------------------------------------------------------------


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


FieldScoring = Literal["exact", "number", "set", "list", "text", "ignore"]


class FieldSpec(Strict):
    """How one field of a structured answer is scored."""

    score: FieldScoring = "exact"
    """exact; number (within `tolerance`); set (order and repeats ignored); list (in order); text (ROUGE-L
    F1 of at least `threshold`); ignore."""
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
    fields: dict[str, FieldSpec] = {}
    """Scoring by top-level field; a field not named here is scored `exact` where an expected value
    exists."""


class TextSpec(_Prompted):
    """The answer is free text, checked by terms, length and likeness."""

    kind: Literal["text"]
    """Free text."""
    max_words: PositiveInt | None = None
    """An answer with more words is wrong."""
    min_similarity: Share | None = None
    """Smallest ROUGE-L F1 against the expected `text` that counts as right; without it, where a `text`
    is expected and no terms are, the answers must be equal after normalisation."""


TaskSpec = Annotated[ClassificationSpec | StructuredSpec | TextSpec, Field(discriminator="kind")]


# --- data ---------------------------------------------------------------------------------------------


class SplitFiles(Strict):
    """A file per split."""

    train: str
    """The teacher answers these, and the student learns from the right ones."""
    dev: str
    """Thresholds and checkpoints are chosen on these."""
    test: str
    """Measured once, at the end; never trained on and never chosen on."""


class SplitShares(Strict):
    """Shares of one file; which row goes where is decided by a hash of its content, per label."""

    train: Share = 0.6
    """Share that the teacher answers and the student learns from."""
    dev: Share = 0.15
    """Share on which thresholds and checkpoints are chosen."""
    test: Share = 0.25
    """Share that is measured at the end; never trained on and never chosen on."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed gives another split."""

    @model_validator(mode="after")
    def _whole(self) -> SplitShares:
        if abs(self.train + self.dev + self.test - 1) > 1e-6:
            raise ValueError(f"train + dev + test must be 1, they are {self.train + self.dev + self.test:g}; "
                             "for example {train: 0.6, dev: 0.15, test: 0.25}")
        if min(self.train, self.test) <= 0:
            raise ValueError("train and test must be above 0; nothing is learnt or measured without")
        return self


class DataSpec(Strict):
    """Where the examples are."""

    examples: str | SplitFiles
    """A JSONL, CSV or Parquet file, or one per split."""
    expected: str | dict[str, str] | None = None
    """The field with the gold answer; for `structured` and `text` a mapping of answer field (or `text`,
    `must_include`, `must_not_include`) to the field that holds it. Absent: no gold answers exist."""
    id: str | None = None
    """The field with a row's id; without it `id` where every row has one, else a hash of the row."""
    group: str | None = None
    """Rows with the same value here stay in one split (a conversation, a customer)."""
    split: SplitShares | str = SplitShares()
    """Shares, or the path of a JSON file {"train": [ids], "dev": [ids], "test": [ids]}."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Jaccard similarity of inputs (word 3-shingles) from which two rows in different splits are a leak."""


# --- teacher ------------------------------------------------------------------------------------------


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


class _LiveTeacher(Strict):
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
    stability: Stability | None = None
    """Measure first whether the teacher agrees with itself; null: do not."""


class OpenAITeacher(_LiveTeacher):
    """Any server that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, Ollama, OpenRouter."""

    provider: Literal["openai"]
    """Chat completions, at OpenAI or at `base_url`."""
    base_url: str | None = None
    """None: OpenAI. Plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for a server without one."""


class AnthropicTeacher(_LiveTeacher):
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


class RecordedTeacher(Strict):
    """Answers that were collected earlier."""

    provider: Literal["recorded"]
    """A file of earlier answers."""
    outputs: str
    """JSONL of {"id", "output"} and, where known, tokens_in, tokens_out, latency_s, cost_usd, model."""
    model: Annotated[str, Field(max_length=300)] | None = None
    """What gave the answers, for the report."""


TeacherSpec = Annotated[OpenAITeacher | AnthropicTeacher | RecordedTeacher, Field(discriminator="provider")]


# --- student and training -----------------------------------------------------------------------------


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
    """Names of the layers to adapt; None: every linear layer but the output head."""


DEFAULT_EPOCHS = 3


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
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_length: PositiveInt = 2048
    """Tokens of prompt and answer together; a longer row is an error, never cut."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the adapter's first weights and of the order of the rows."""
    lora: LoraSpec = LoraSpec()
    """The adapter that is trained in place of all weights."""

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


# --- evaluation, verdict, budget ----------------------------------------------------------------------


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
    backends: dict[str, dict[str, Any]] = {}
    """Settings per backend, so that switching is one word; checked by the backend itself."""
    baseline: Annotated[str, Field(pattern=NAME)] | None = None
    """A second, cheap backend trained on the same rows and shown beside the student: `linear`."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """What is compared, and how latency is timed."""
    verdict: VerdictSpec = VerdictSpec()
    """When the student may take the teacher's place."""
    budget: BudgetSpec = BudgetSpec()
    """The most that one run may spend."""

    @field_validator("baseline")
    @classmethod
    def _second(cls, baseline: str | None, info: ValidationInfo) -> str | None:
        if baseline is not None and baseline == info.data.get("backend"):
            raise ValueError("is the backend itself; choose another, or delete the line")
        return baseline
