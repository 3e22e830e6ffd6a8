"""The official SDK with its retries off, and what became of a call.

Replies are read from the JSON itself: compatible servers leave out what the SDK's models promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from distillctl import hosted, registry
from distillctl.backend import BackendEnv, Unreachable
from distillctl.errors import BackendError, MissingExtra, Problem
from distillctl.hosted import checked_secret, fingerprint, unreachable
from distillctl.retry import parse_retry_after
from distillctl_openai.settings import OpenAISettings

if TYPE_CHECKING:
    import openai

PAGE = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}")  # of a job, a file or a model, for a path


class Failed(hosted.Failed):
    """A call without a usable reply, and the service's word for why."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None,
                 retry_after: float | None = None) -> None:
        super().__init__(message, status, retry_after)
        self.code = code


class Service:
    """One service as one account sees it. Opens a connection at the first call; `close` ends it."""

    def __init__(self, settings: OpenAISettings, env: BackendEnv) -> None:
        self._settings, self._env = settings, env
        self._client: Any = None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def sdk(self) -> openai.OpenAI:
        """The SDK's client. Raises MissingExtra, BackendError without a key."""
        if self._client is None:
            if missing := registry.needs("openai", "openai"):
                raise MissingExtra.of(missing)
            import httpx2
            import openai

            # OPENAI_ORG_ID and OPENAI_PROJECT_ID are for OpenAI alone
            omitted = None if self._settings.is_openai else {
                "OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
            self._client = openai.OpenAI(
                # an explicit address: OPENAI_BASE_URL must not send the data elsewhere than `plan` says
                api_key=self._key(), base_url=self._settings.base_url or "https://api.openai.com/v1",
                max_retries=0, timeout=self._settings.timeout, default_headers=omitted,
                http_client=httpx2.Client(follow_redirects=False, timeout=self._settings.timeout))
        return self._client

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The JSON object that one call of `sdk….with_raw_response.…` brings. Raises Failed."""
        import httpx2
        import openai

        try:
            response = method(*args, **kwargs).http_response
        except openai.APIStatusError as error:
            raise _failed(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Failed(f"{type(cause).__name__}: {cause}") from None
        except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Failed("the reply is no JSON object: " + " ".join(response.text.split())[:200])
        return body

    def read(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Like `call`, for a question: None where there is no such thing. Raises Unreachable, or
        BackendError where the key is refused."""
        try:
            return self.call(method, *args, **kwargs)
        except Failed as failed:
            if failed.status == 404:
                return None
            raise_for_account(failed, self._settings)
            raise unreachable(failed) from failed

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
            after = {"after": rows[-1]["id"]}

    def _key(self) -> str:
        name = self._settings.api_key_env
        if name is None:
            return "none"  # the SDK insists on something
        return checked_secret(self._env, name, "backends.openai.api_key_env", key_problem(self._settings))


def account(settings: OpenAISettings, env: BackendEnv) -> str:
    """A fingerprint of the address and the key."""
    key = env.secret(settings.api_key_env) if settings.api_key_env else None
    return fingerprint(settings.host, key or '')


def is_name(text: object) -> bool:
    """Whether `text` can be the name of something at the service, and stands in a path as it is."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def key_problem(settings: OpenAISettings) -> Problem:
    """There is no key."""
    return Problem(
        f"the environment variable {settings.api_key_env} is not set", field="backends.openai.api_key_env",
        hint=f"export {settings.api_key_env}=..., or `distillctl sandbox openai` to rehearse without one")


def raise_for_account(failed: Failed, settings: OpenAISettings) -> None:
    """BackendError where it is the key that was refused."""
    if failed.status in (401, 403):
        raise BackendError(Problem(
            f"{settings.host} refuses the key: {failed}", where="backend 'openai'",
            field="backends.openai.api_key_env", value=settings.api_key_env,
            hint="check the key, its project and its rights")) from failed


def _failed(error: openai.APIStatusError) -> Failed:
    body = error.body if isinstance(error.body, dict) else {}
    fields = body["error"] if isinstance(body.get("error"), dict) else body
    text = _word(fields.get("message")) or " ".join(error.response.text.split())[:300] or "no reason given"
    return Failed(text, error.status_code, _word(fields.get("code")),
                  parse_retry_after(error.response.headers.get("retry-after")))


def _word(value: object) -> str | None:
    return value[:2000] if isinstance(value, str) else None
