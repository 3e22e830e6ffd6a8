"""What a provider's batch API offers the collection (`distillctl/batches.py`): requests now, answers within
a day, at half the price.

A service makes single calls and reads single lines; loops, clocks, money and persistence are the core's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from distillctl.backend import Capabilities, JobEvent, JobHandle, JobService, JobState, Snapshot
from distillctl.errors import Problem
from distillctl.hosted import Failed, fingerprint, unreachable
from distillctl.predictors.http import Refused, failure, header_value, refusal
from distillctl.prices import PaidByToken, PricePoint
from distillctl.sdk_calls import Calls, is_name
from distillctl.secrets import Secret
from distillctl.types import JSON, Answer, CallFailed, Request

if TYPE_CHECKING:
    from distillctl.predictors.anthropic_chat import AnthropicPredictor
    from distillctl.predictors.openai_chat import OpenAIPredictor

BOOKS = "teacher"
NAMES = ("openai-batch", "anthropic-batch")
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

    def max_cost(self, request: Request) -> float | None:
        """The most that one answer can cost, US dollars; None where no price is known."""
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


class Batches(PaidByToken, ABC):
    """What the services of this project share: the account, and what is asked about one batch.

    predictor: says what is asked and reads the answers. price: of a request in a batch.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(task_kinds=frozenset(), books=BOOKS)
    sdk_name: ClassVar[str]  # the module
    after: ClassVar[str]  # the parameter that asks for the next page of a listing

    def __init__(self, predictor: OpenAIPredictor | AnthropicPredictor, key: Secret | None,
                 price: PricePoint | None) -> None:
        self.identity = predictor.identity
        self.price = price
        self.max_tokens = predictor.max_tokens
        self._predictor, self._key = predictor, key
        self._url = str(self.identity["base_url"])
        self._client: Any = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def cancel(self, handle: JobHandle) -> None:
        if not is_name(handle.job_id):
            return
        try:
            self._calls.call(self._batches.with_raw_response.cancel, handle.job_id)
        except Failed as failed:
            self._calls.raise_for_account(failed)
            if failed.status not in (400, 404, 409, 422):  # those: it has ended, or is not there
                raise unreachable(failed) from failed

    @abstractmethod
    def _open(self) -> Any:
        """The SDK's client."""

    @property
    @abstractmethod
    def _batches(self) -> Any:
        """The SDK's resource."""

    @property
    def _sdk(self) -> Any:
        if self._client is None:
            self._client = self._open()
        return self._client

    @property
    def _connection(self) -> dict[str, Any]:
        """The arguments of either SDK's client: an explicit address, because no environment variable may send
        the data elsewhere than `plan` says; no retries, because a create is sent once."""
        import httpx2

        return {"api_key": header_value(self._key), "base_url": self._url, "max_retries": 0,
                "timeout": REQUEST_TIMEOUT,
                "http_client": httpx2.Client(follow_redirects=False, timeout=REQUEST_TIMEOUT)}

    @property
    def _calls(self) -> Calls:
        return Calls(import_module(self.sdk_name), lambda failed: Problem(
            f"{self._host} refuses the key: {failed}", field="teacher.api_key_env",
            value=self._key and self._key.name, hint="check the key and its rights"), self.after)

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc

    @property
    def _account(self) -> str:
        return fingerprint(self._host, self._key.reveal() if self._key else "")

    def _batch(self, handle: JobHandle) -> dict[str, Any] | None:
        if not is_name(handle.job_id):
            return None
        return self._calls.read(self._batches.with_raw_response.retrieve, handle.job_id)

    def _lost(self, handle: JobHandle) -> Snapshot:
        return Snapshot("lost", "404", f"{self._host} has no batch {handle.job_id} for account "
                        f"{self._account}; it was made with {handle.account}")


def snapshot(state: JobState, word: str, done: int, failed: int, total: int, message: str = "") -> Snapshot:
    """A batch as one look saw it. message: why it was refused, else its counts are told; done: that
    succeeded."""
    if total and not message:
        message = f"{done}/{total} requests done" + (f", {failed} failed" if failed else "")
    event = JobEvent(f"{word} {done} {failed}", time.time(), f"{word}: {message}" if message else word,
                     data={"done": done + failed, "total": total})
    return Snapshot(state, word, message, (event,))


def errored(status: int, body: JSON, key_name: str | None) -> Outcome:
    """What an error status of one request means: a failed call, or the answer that a filter gave."""
    try:
        return failure(status, body, {}, key_name)
    except Refused as refused:
        return refusal(refused, None)


def numbers(counts: JSON, *names: str) -> list[int]:
    """Some of a batch's counts; 0 for one that is missing or none."""
    given = counts if isinstance(counts, dict) else {}
    return [value if isinstance(value := given.get(name), int) and value >= 0 else 0 for name in names]


