"""What every hosted predictor shares: the HTTP client, and what a failed call means."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from distillctl.retry import parse_retry_after
from distillctl.secrets import Secret, redact
from distillctl.types import JSON, Answer, CallFailed

if TYPE_CHECKING:
    import httpx2

MAX_BODY = 8 * 1024 * 1024  # bytes; an answer with 20 alternatives for each of 4,000 tokens fits
_MOST_TOKENS = 10_000_000  # a usage figure above this is no count
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}
_SETUP_CODES = {"unsupported_parameter", "unsupported_value", "model_not_found", "invalid_model"}


class Refused(Exception):
    """The provider's filter refused the prompt: an answer of its kind, not a failure."""


def http_client(timeout: float) -> httpx2.AsyncClient:
    """An HTTP client for one provider: no redirects (a prompt and a key go only where the recipe says),
    no compressed bodies (a small one can hide a huge one), bodies of at most `MAX_BODY` bytes.

    timeout: seconds for each of connecting, writing and reading; the whole call's deadline is the
    caller's.
    """
    import httpx2

    class Capped(httpx2.AsyncByteStream):
        def __init__(self, stream: httpx2.AsyncByteStream) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._stream:
                size += len(chunk)
                if size > MAX_BODY:
                    raise httpx2.DecodingError(f"the body is larger than {MAX_BODY} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def guard(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("the body is compressed, although that was not asked for")
        response.stream = Capped(response.stream)

    return httpx2.AsyncClient(
        timeout=timeout, follow_redirects=False, headers={"Accept-Encoding": "identity"},
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=512),
        event_hooks={"response": [guard]})


async def ask(sdk: Any, call: Callable[[], Awaitable[Any]], key_name: str | None) -> dict[str, JSON]:
    """The JSON object that one SDK call brings back.

    sdk: the `openai` or `anthropic` module (their errors have one shape); call: makes the request through
    `with_raw_response`; key_name: the variable that holds the key, for messages. Raises CallFailed, or
    Refused where a filter stopped the prompt.
    """
    import httpx2

    try:
        response = (await call()).http_response
    except sdk.APIStatusError as error:
        raise failure(error.status_code, error.body, error.response.headers, key_name) from None
    except sdk.APIConnectionError as error:
        raise lost(error.__cause__ or error) from None
    except (httpx2.RequestError, httpx2.InvalidURL, ssl.SSLError) as error:
        raise lost(error) from None
    except UnicodeError:
        raise CallFailed("rejected", "the prompt holds a lone surrogate, which no request can") from None
    try:
        body = response.json()
    except (ValueError, RecursionError):
        raise unusable(f"the body is not JSON: {_sample(response.text)}") from None
    if not isinstance(body, dict):
        raise unusable(f"the body is not a JSON object: {_sample(body)}")
    return body


def header_value(key: Secret | None) -> str:
    """The key, for a header; "none" for a server without one, because the SDKs insist on something."""
    if key is None:
        return "none"
    value = key.reveal()
    if not (value.isascii() and value.isprintable()):
        raise CallFailed("auth", f"the key in {key.name} holds characters that no key has: set it again")
    return value


def failure(status: int, body: JSON, headers: Mapping[str, str], key_name: str | None) -> CallFailed:
    """What an error status means. `body`: the parsed error body, with or without its "error" wrapper.

    Raises Refused for a prompt that a content filter stopped.
    """
    inner = body.get("error", body) if isinstance(body, dict) else body
    fields = inner if isinstance(inner, dict) else {}
    codes = {word for name in ("code", "type") if isinstance(word := fields.get(name), str)}
    text = f"HTTP {status}: {_sample(fields.get('message') or inner or 'no reason given')}"
    wait = parse_retry_after(headers.get("retry-after"))
    metadata = fields.get("metadata")
    if (status == 400 and "content_filter" in codes) or (
            status == 403 and isinstance(metadata, dict) and "flagged_input" in metadata):
        raise Refused(text)  # Azure's and OpenRouter's way of saying it
    if status == 402 or codes & _QUOTA_CODES or "credit balance is too low" in text.lower():
        return CallFailed("quota", text)
    if status in (401, 403):
        return CallFailed("auth", f"the key ({key_name or 'none was given'}) was refused: {text}")
    if status == 404 or 300 <= status < 400:
        hint = f"redirects to {_sample(headers.get('location'))}" if status != 404 else "model or address"
        return CallFailed("setup", f"not found ({hint}): {text}")
    if status == 429:
        return CallFailed("rate_limited", text, wait)
    if status in (408, 409, 425) or status >= 500:
        return CallFailed("transient", text, wait)
    setting = codes & _SETUP_CODES or fields.get("param") == "response_format"
    return CallFailed("setup" if setting else "rejected", text)


def lost(error: BaseException) -> CallFailed:
    """What a broken connection means: whether the provider may have worked (and billed) all the same."""
    import httpx2

    text = f"{type(error).__name__}: {_sample(str(error) or 'no reason given')}"
    if isinstance(error, httpx2.DecodingError):
        return unusable(text)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return CallFailed("setup", text)
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    return CallFailed("transient", text, maybe_billed=not unsent)


def unusable(why: str) -> CallFailed:
    """A reply that says it succeeded but cannot be used."""
    return CallFailed("bad_response", why, maybe_billed=True)


def refusal(error: Refused, latency_s: float | None) -> Answer:
    """The answer for a prompt that the provider's filter refused."""
    return Answer(None, "refusal", latency_s=latency_s, error=str(error))


def token_count(value: JSON) -> int | None:
    """A usage figure, None where it is missing or cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        return None
    return value


def clean(text: str) -> str:
    """`text` that can be written as UTF-8: lone surrogates, which JSON escapes allow, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def echoed_model(body: Mapping[str, JSON]) -> str | None:
    """The model that the provider says answered, at most 200 characters."""
    model = body.get("model")
    return clean(model[:200]) if isinstance(model, str) and model else None


def _sample(value: object) -> str:
    """A short, one-line, redacted piece of what a provider sent, for a message."""
    return clean(" ".join(redact(str(value)).split())[:300])
