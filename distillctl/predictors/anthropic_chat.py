"""A predictor for Anthropic's Messages API (https://platform.claude.com/docs/en/api/messages)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from distillctl.predictors.http import (
    Refused,
    ask,
    clean,
    echoed_model,
    header_value,
    http_client,
    refusal,
    token_count,
    unusable,
)
from distillctl.prices import PaidByToken, PricePoint
from distillctl.recipe.provider_schema import for_anthropic
from distillctl.secrets import Secret
from distillctl.types import JSON, Answer, CallFailed, Finish, Request

ANTHROPIC_URL = "https://api.anthropic.com"
_WITH_TEMPERATURE = "2023-06-01"
_FINISH: dict[JSON, Finish] = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "refusal": "refusal"}


class AnthropicPredictor(PaidByToken):
    """Answers one request by one message. The arguments are those of `OpenAIPredictor`.

    System turns become the `system` parameter. The API has no seed, and since version 2026-10-21 no
    temperature; with one, the request is sent under the version before, which older models still answer.
    """

    max_batch = 1
    replayed = False

    def __init__(self, model: str, *, api_key: Secret, base_url: str | None = None,
                 temperature: float | None = None, max_tokens: int = 1024, timeout: float = 60.0,
                 price: PricePoint | None = None, json_schema: Mapping[str, Any] | None = None) -> None:
        self.identity: Mapping[str, JSON] = {
            "provider": "anthropic", "base_url": (base_url or ANTHROPIC_URL).rstrip("/"), "model": model,
            "temperature": temperature, "max_tokens": max_tokens,
            **({} if json_schema is None else {"json_schema": json_schema})}
        self.price = price
        self.max_tokens = max_tokens
        self._api_key = api_key
        self._timeout = timeout
        self._json_schema = json_schema
        self._client: Any = None
        self._temperature = temperature
        self.extra_headers = {} if temperature is None else {"anthropic-version": _WITH_TEMPERATURE}

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        import anthropic

        (request,) = requests
        started = time.perf_counter()
        try:
            body = await ask(anthropic, lambda: self._create(request), self._api_key.name)
        except Refused as refused:
            return [refusal(refused, time.perf_counter() - started)]
        return [self.read(body, time.perf_counter() - started, self.price)]

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent to the server for one request, as JSON; `extra_headers` go with it."""
        system = "\n\n".join(m["content"] for m in request.messages if m["role"] == "system")
        return {"model": self.identity["model"], "max_tokens": self.max_tokens,
                "messages": [dict(m) for m in request.messages if m["role"] != "system"],
                **({"system": system} if system else {}), **self._output_config,
                **({} if self._temperature is None else {"temperature": self._temperature})}

    @cached_property
    def _output_config(self) -> dict[str, JSON]:
        import anthropic

        if self._json_schema is None:
            return {}
        schema = anthropic.transform_schema(for_anthropic(self._json_schema))
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}

    async def _create(self, request: Request) -> Any:
        import anthropic

        if self._client is None:
            self._client = anthropic.AsyncAnthropic(
                base_url=str(self.identity["base_url"]), api_key=header_value(self._api_key), max_retries=0,
                timeout=self._timeout, http_client=http_client(self._timeout))
        body = self.body(request)
        # the SDK has no parameter of this name any more
        extra = {name: body.pop(name) for name in ("temperature",) if name in body}
        try:
            return await self._client.messages.with_raw_response.create(
                # given for each call: the SDK otherwise refuses a large max_tokens without streaming
                timeout=self._timeout, **body, extra_body=extra or None,
                extra_headers=self.extra_headers or None)
        except anthropic.BadRequestError as error:
            if self._temperature is not None and "temperature" in str(error):
                raise CallFailed("setup", "this model takes no temperature: set teacher.temperature "
                                          "to null") from None
            if "output_config" in str(error):
                raise CallFailed("setup", f"structured output was refused: {error.message[:200]}; set "
                                          "teacher.structured_output to false") from None
            raise

    def read(self, body: Mapping[str, JSON], latency: float | None, price: PricePoint | None) -> Answer:
        """The answer in a server's reply. latency: seconds, where it was timed. Raises CallFailed."""
        try:
            blocks = body["content"]
            output = clean("".join(b["text"] for b in blocks if b["type"] == "text")) or None
            finish = _FINISH.get(body["stop_reason"])
        except (KeyError, TypeError):
            raise unusable("the reply has no content and stop_reason") from None
        if finish is None:
            raise unusable(f"unknown stop_reason {str(body['stop_reason'])[:50]!r}")
        if finish == "stop" and not (output and output.strip()):
            finish = "empty"
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        # input_tokens leaves out what was read from or written to the cache
        given = token_count(usage.get("input_tokens"))
        read = token_count(usage.get("cache_read_input_tokens") or 0)
        written = token_count(usage.get("cache_creation_input_tokens") or 0)
        tokens_in = None if None in (given, read, written) else given + read + written
        tokens_out = token_count(usage.get("output_tokens"))
        cost = None
        if price is not None and written == 0:  # writing the cache has a price of its own
            cost = price.cost(tokens_in, tokens_out, read)
        return Answer(
            output, finish, tokens_in=tokens_in, tokens_cached=None if tokens_in is None else read,
            tokens_out=tokens_out, latency_s=latency, cost_usd=cost, model=echoed_model(body),
            error="stop_reason refusal" if finish == "refusal" else None)
