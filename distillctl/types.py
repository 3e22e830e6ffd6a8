"""The plain values that pass between the parts: examples, requests, answers, predictions.

All are frozen, JSON-ready through `as_json`, and read back through `from_json`. A figure that is not
known is None, never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, TypedDict

JSON = Any  # None | bool | int | float | str | list[JSON] | dict[str, JSON]

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class Message(TypedDict):
    """One turn of a chat prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One input of the task and, where it is known, what is expected for it.

    `expected` is None where no gold answer exists; otherwise what the task kind scores against: a label,
    or a dict of named values for `structured` and `text`. `source` is "file:line".
    """

    id: str
    fields: Mapping[str, JSON]
    expected: JSON = None
    source: str = ""

    def as_json(self) -> dict[str, JSON]:
        return {"id": self.id, "fields": dict(self.fields), "expected": self.expected,
                "source": self.source}

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> Example:
        return cls(row["id"], row["fields"], row.get("expected"), row.get("source", ""))


Finish = Literal["stop", "length", "refusal", "empty", "failed"]
"""Why an answer ended: by itself, cut off by a length limit, refused or filtered, with nothing in it,
or never given. Only "stop" may be trained on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a predictor said to one request.

    label_logprobs: natural-log probability of each label's whole token sequence, normalised over the
    label set (they sum to one after exp); only from predictors that score labels.
    latency_s: wall time at the client, seconds. cost_usd: US dollars.
    model: the model id that the provider echoed. error: why there is no output.
    """

    output: str | None
    finish: Finish = "stop"
    label_logprobs: dict[str, float] | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    latency_s: float | None = None
    cost_usd: float | None = None
    model: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> Answer:
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered. `sample` tells repeated askings of the same prompt apart. max_tokens: of
    this answer, below the predictor's own limit; only a model on this machine keeps it, and a label is
    never cut."""

    id: str
    messages: Sequence[Message]
    sample: int = 0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer to one example, parsed by the task. `value` is None when `problem` says why."""

    id: str
    answer: Answer
    value: JSON = None
    problem: str | None = None
    sample: int = 0

    def as_json(self) -> dict[str, JSON]:
        return {"id": self.id, "sample": self.sample, "value": self.value, "problem": self.problem,
                "answer": self.answer.as_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> Prediction:
        return cls(row["id"], Answer.from_json(row["answer"]), row.get("value"), row.get("problem"),
                   row.get("sample", 0))


CallFailure = Literal["rate_limited", "transient", "bad_response", "rejected", "auth", "quota", "setup"]
"""rate_limited, transient, bad_response: may be tried again. rejected: this request never will be
answered, others may. auth, quota, setup (no such model, a parameter it refuses): no request will be
answered until the user acts."""


class CallFailed(Exception):
    """A predictor could not get an answer. It classifies; the caller decides about another try.

    retry_after: seconds that the provider asked to wait, where it did. maybe_billed: the provider may
    have answered, and billed, although nothing usable arrived (a time-out, a lost connection).
    """

    def __init__(self, kind: CallFailure, message: str, retry_after: float | None = None,
                 maybe_billed: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after
        self.maybe_billed = maybe_billed


class Predictor(Protocol):
    """Anything that answers prompts: the teacher, the base model, a student, a recording.

    identity: everything that determines an answer (provider, model, parameters, digests), JSON-ready,
    without secrets; answers are cached under it.
    max_batch: how many requests one `answer` call takes; 1 for an API.
    replayed: True where answers were recorded earlier and are not given now.
    """

    identity: Mapping[str, JSON]
    max_batch: int
    replayed: bool

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request, in order. One attempt: no retries inside.

        Raises CallFailed (about all of `requests`).
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and memory."""
        ...
