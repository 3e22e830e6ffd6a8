"""What a provider's batch API offers the collection (`distillctl/batches.py`): requests now, answers within
a day, at half the price.

A service makes single calls and reads single lines; loops, clocks, money and persistence are the core's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from distillctl.backend import Capabilities, JobHandle, JobService
from distillctl.predictors.http import Refused, failure, refusal
from distillctl.prices import PricePoint, prompt_tokens_at_most
from distillctl.types import JSON, Answer, CallFailed, Request

BOOKS = "teacher"
NAMES = ("openai-batch", "anthropic-batch")
CAPABILITIES = Capabilities(task_kinds=frozenset(), books=BOOKS)
REQUEST_TIMEOUT = 300.0  # seconds; a whole batch travels in one request
MOST_RESULTS = 4 << 30  # bytes

Outcome = Answer | CallFailed
"""What became of one request of a batch."""


@dataclass(frozen=True)
class BatchJob:
    """What `jobs.py` hands to a service: requests by the id under which each answer comes back."""

    requests: Mapping[str, Request]


class BatchService(JobService, Protocol):
    """A provider's batches. `stage` and `submit` take a `BatchJob`; a batch whose requests were all worked
    on, failed, or expired has "succeeded"; "failed" is one that was refused as a whole."""

    most_requests: ClassVar[int]
    most_bytes: ClassVar[int]
    identity: Mapping[str, JSON]  # of the predictor: its answers are these answers
    price: PricePoint | None  # of a request in a batch
    max_tokens: int

    def size(self, id: str, request: Request) -> int:
        """Bytes that a request takes in a batch."""
        ...

    def download(self, handle: JobHandle, into: Path) -> None:
        """Write the results of a batch that has ended, as the provider's JSON lines, to the file `into`.
        Raises Unreachable, Gone, BackendError."""
        ...

    def outcome(self, row: Mapping[str, JSON], token: str) -> tuple[str, Outcome]:
        """One line of the results: the request's id and what became of it. token: of the batch. Raises
        ValueError for a line that is none."""
        ...

    def close(self) -> None:
        """Give back connections; the next call opens new ones."""
        ...


def max_cost(service: BatchService, request: Request) -> float | None:
    """The most that one answer can cost, US dollars; None where no price is known."""
    return service.price and service.price.cost(prompt_tokens_at_most(request.messages), service.max_tokens)


def errored(status: int, body: JSON, key_name: str | None) -> Outcome:
    """What an error status of one request means: a failed call, or the answer that a filter gave."""
    try:
        return failure(status, body, {}, key_name)
    except Refused as refused:
        return refusal(refused, None)


def counts_text(done: int, failed: int, total: int) -> str:
    """A batch's own counts for people; nothing while it is not known how many there are."""
    if not total:
        return ""
    return f"{done}/{total} requests done" + (f", {failed} failed" if failed else "")


def numbers(counts: JSON, *names: str) -> list[int]:
    """Some of a batch's counts; 0 for one that is missing or none."""
    given = counts if isinstance(counts, dict) else {}
    return [value if isinstance(value := given.get(name), int) and value >= 0 else 0 for name in names]


