"""Single calls through an official SDK of OpenAI's or Anthropic's make, its retries off, and what became of
them.

Part of the public core. Replies are read from the JSON itself: compatible servers leave out what the SDKs'
models promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from distillctl.backend import Unreachable
from distillctl.errors import BackendError, Problem
from distillctl.hosted import Failed, answered, json_object, unreachable
from distillctl.retry import parse_retry_after

PAGE = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}")  # of a job, a file or a model, for a path


class Gone(BackendError):
    """What was to be downloaded is not there any more."""


class Calls:
    """Calls of one SDK.

    sdk: the `openai` or `anthropic` module (their errors have one shape). key_refused: what to tell where
    it is the key that was refused. after: the parameter that asks for the next page of a listing.
    """

    def __init__(self, sdk: Any, key_refused: Callable[[Failed], Problem], after: str = "after") -> None:
        self._sdk, self._key_refused, self._after = sdk, key_refused, after

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The JSON object that one call of `sdk….with_raw_response.…` brings. Raises Failed."""
        return json_object(self._sent(lambda: method(*args, **kwargs)).http_response)

    def read(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Like `call`, for a question: None where there is no such thing. Raises Unreachable, or
        BackendError where the key is refused."""
        return answered(lambda: self.call(method, *args, **kwargs), self.raise_for_account)

    def pages(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Every entry of a listing, page after page, each id once. Raises as `read`."""
        seen: set[str] = set()
        after: dict[str, str] = {}
        while True:
            page = self.read(method, *args, limit=PAGE, **after, **kwargs)
            rows = page.get("data") if page else None
            if not isinstance(rows, list):
                raise Unreachable("the listing cannot be read")
            new = {row["id"]: row for row in rows if isinstance(row, dict)
                   and isinstance(row.get("id"), str) and row["id"] not in seen}
            seen.update(new)
            yield from new.values()
            if not new or page.get("has_more") is False:
                return
            after = {self._after: rows[-1]["id"]}

    def download(self, into: IO[bytes], most: int, method: Callable[..., Any], /, *args: Any) -> None:
        """Write the body that a call of `sdk….with_streaming_response.…` brings, at most `most` bytes.
        Raises Unreachable, Gone, or BackendError where the key is refused or the body is larger."""
        def stream() -> None:
            size = 0
            with method(*args) as response:
                for piece in response.iter_bytes():
                    size += len(piece)
                    if size > most:
                        raise BackendError(Problem(f"a download is larger than {most} bytes"))
                    into.write(piece)
        try:
            self._sent(stream)
        except Failed as failed:
            self.raise_for_account(failed)
            if failed.status in (404, 410):
                raise Gone(Problem(f"is not there any more: {failed}")) from failed
            raise unreachable(failed) from failed

    def raise_for_account(self, failed: Failed) -> None:
        """BackendError where it is the key that was refused."""
        if failed.status in (401, 403):
            raise BackendError(self._key_refused(failed)) from failed

    def _sent(self, send: Callable[[], Any]) -> Any:
        import httpx2

        try:
            return send()
        except self._sdk.APIStatusError as error:
            raise _failed(error) from None
        except self._sdk.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Failed(f"{type(cause).__name__}: {cause}") from None
        except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None


def is_name(text: object) -> bool:
    """Whether `text` can be the name of something at the service, and stands in a path as it is."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _failed(error: Any) -> Failed:
    body = error.body if isinstance(error.body, dict) else {}
    fields = body["error"] if isinstance(body.get("error"), dict) else body
    text = _word(fields.get("message")) or " ".join(error.response.text.split())[:300] or "no reason given"
    return Failed(text, error.status_code, parse_retry_after(error.response.headers.get("retry-after")),
                  _word(fields.get("code")))


def _word(value: object) -> str | None:
    return value[:2000] if isinstance(value, str) else None
