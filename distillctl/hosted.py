"""What backends share that train at a service: a call that failed, whose key it was, where data may go.

Part of the public core: a backend of your own may use it. Nothing here knows a provider.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from distillctl.backend import Ambiguous, BackendEnv, Rejected, TrainJob, Unreachable
from distillctl.errors import BackendError, DistillctlError, Problem

T = TypeVar("T")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_IN_DOUBT = frozenset({408, 499})  # 4xx that say nothing about what was done


class Failed(Exception):
    """A call without a usable reply. status: None where no whole reply arrived. retry_after: seconds. code:
    the service's word for why, where it has one."""

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None,
                 code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.code = status, retry_after, code

    @property
    def refused(self) -> bool:
        """Whether the service understood the request and did nothing."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in _IN_DOUBT


@contextmanager
def creating(refusal: Callable[[Failed], str]) -> Iterator[None]:
    """Around the one request that creates a paid job: what a failure in it says about the job.

    refusal: what is told of a request that the service refused. Raises Rejected where nothing was made (it
    was refused, or never sent for want of an SDK or a key), Ambiguous where nobody knows.
    """
    try:
        yield
    except DistillctlError as error:
        raise Rejected(str(error)) from error
    except Failed as failed:
        if failed.refused:
            raise Rejected(refusal(failed)) from failed
        raise Ambiguous(str(failed)) from failed


def unreachable(failed: Failed) -> Unreachable:
    """A question that could not be answered just now."""
    what = f"HTTP {failed.status}: {failed}" if failed.status else str(failed)
    return Unreachable(what, failed.retry_after)


def json_object(response: Any) -> dict[str, Any]:
    """The JSON object in a reply (of httpx's making, or httpx2's). Raises Failed for anything else."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Failed("the reply is no JSON object: " + " ".join(response.text.split())[:200])
    return body


def answered(ask: Callable[[], T], for_account: Callable[[Failed], None]) -> T | None:
    """What a question to a service brings; None where there is no such thing (404). for_account: raises
    BackendError where it is the key that was refused. Raises Unreachable for any other failure."""
    try:
        return ask()
    except Failed as failed:
        if failed.status == 404:
            return None
        for_account(failed)
        raise unreachable(failed) from failed


def fingerprint(*parts: str) -> str:
    """Names an account (its address, its key) without telling it."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:10]


def checked_secret(env: BackendEnv, name: str, field: str, missing: Problem) -> str:
    """The value of the environment variable `name`. Raises BackendError: with `missing` where it is not
    set, and where it holds what no HTTP header can, naming the recipe's `field`."""
    value = env.secret(name)
    if not value:
        raise BackendError(missing)
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise BackendError(Problem(f"the key in {name} holds characters that no key has", field=field,
                                   hint="set it again"))
    return value


def checked_address(url: str | None, named_by: str, example: str = "https://host") -> str | None:
    """A `base_url` of a recipe without a final slash. named_by: the setting that names the key.

    Raises ValueError for anything but https, or plain http to this machine, and for a key inside it.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (
            parts.scheme == "http" and parts.hostname in LOOPBACK)):
        raise ValueError(f"must be {example}, or plain http to this machine: keys and data travel there")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"holds more than an address; a key belongs into the variable that `{named_by}` "
                         "names")
    return url.rstrip("/")


def whole_epochs(job: TrainJob) -> int:
    """Passes over the rows, for a service that can be told nothing else about the training's length."""
    if job.train.epochs is not None:
        return job.train.epochs
    return max(1, math.ceil((job.train.max_steps or 1) * job.train.batch_size / max(1, job.rows)))
