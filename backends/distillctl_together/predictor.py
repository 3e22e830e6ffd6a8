"""A predictor for a dedicated deployment, asked through Together's SDK.

The API: https://docs.together.ai/reference/chat-completions-1. It is OpenAI's but for log-probabilities: they
are asked for by number, and come as lists beside the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distillctl.predictors.http import Refused, ask, header_value, refusal
from distillctl.predictors.openai_chat import OpenAIPredictor
from distillctl.secrets import Secret
from distillctl.task import Task
from distillctl.types import JSON, Answer, Request
from distillctl_together.settings import TogetherSettings

_ALTERNATIVES = 20  # the most that `logprobs` allows
_MOST_BYTES = 8 * 1024 * 1024  # of a reply


class Meter:
    """Shares out what a server costs by the hour among the answers: each gets the time in which it, and no
    earlier one, was worked on, so that answers at the same time do not pay twice.

    usd: what the answers so far have been given.
    """

    def __init__(self, usd_per_hour: float | None) -> None:
        self.usd_per_hour = usd_per_hour
        self.usd = 0.0
        self._until = 0.0

    def charge(self, started: float, ended: float) -> float | None:
        """The cost of an answer, from when to when it was worked on, in seconds of one clock."""
        if self.usd_per_hour is None:
            return None
        cost = max(0.0, ended - max(started, self._until)) / 3600 * self.usd_per_hour
        self._until = max(self._until, ended)
        self.usd += cost
        return cost


class TogetherPredictor(OpenAIPredictor):
    """Answers one request by one chat completion.

    student: whose answers these are, whatever deployment gives them. endpoint: the name to ask.
    """

    def __init__(self, student: str, endpoint: str, settings: TogetherSettings, key: Secret, task: Task,
                 max_tokens: int, meter: Meter) -> None:
        super().__init__(student, base_url=settings.url, api_key=key, max_tokens=max_tokens,
                         timeout=settings.timeout, json_schema=task.json_schema, labels=task.labels)
        self.identity: Mapping[str, JSON] = {**self.identity, "provider": "together"}
        self._student, self._endpoint, self._meter = student, endpoint, meter
        self._parameters = {"model": endpoint, "temperature": 0.0}
        if task.json_schema is not None:
            self._parameters["response_format"] = {
                "type": "json_schema", "json_schema": {"name": "answer", "schema": dict(task.json_schema)}}
        if task.labels:
            self._parameters["logprobs"] = _ALTERNATIVES

    @property
    def usd_per_hour(self) -> float | None:
        """What the deployment costs, asked or not."""
        return self._meter.usd_per_hour

    def max_cost(self, request: Request) -> float | None:
        """What the server costs for as long as one request may take."""
        per_hour = self._meter.usd_per_hour
        return None if per_hour is None else per_hour * self._timeout / 3600

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        import together

        (request,) = requests
        started = time.perf_counter()
        try:
            body = await ask(together, lambda: self._create(request), self._api_key and self._api_key.name)
            ended = time.perf_counter()
            answer = self.read(_as_openai(body), ended - started, None)
        except Refused as refused:
            ended = time.perf_counter()
            answer = refusal(refused, ended - started)
        model = self._student if answer.model == self._endpoint else answer.model
        return [replace(answer, cost_usd=self._meter.charge(started, ended), model=model)]

    async def _create(self, request: Request) -> Any:
        import httpx
        import together

        if self._client is None:
            self._client = together.AsyncTogether(
                base_url=str(self.identity["base_url"]), api_key=header_value(self._api_key), max_retries=0,
                timeout=self._timeout, http_client=httpx.AsyncClient(
                    follow_redirects=False, timeout=self._timeout, headers={"Accept-Encoding": "identity"},
                    event_hooks={"response": [_guard]}))
        return await self._client.chat.completions.with_raw_response.create(
            messages=list(request.messages), max_tokens=self.max_tokens, **self._parameters)


def _as_openai(body: Mapping[str, Any]) -> dict[str, Any]:
    """A reply with its log-probabilities in OpenAI's shape. `top_logprobs` comes as one object for each
    token or, as the SDK's types say, as one object."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return dict(body)
    given = choices[0].get("logprobs")
    top = given.get("top_logprobs") if isinstance(given, dict) else None
    first = top[0] if isinstance(top, list) and top else top
    shaped = None
    if isinstance(first, dict):
        shaped = {"content": [{"top_logprobs": [
            {"token": token, "logprob": value} for token, value in first.items()]}]}
    return {**body, "choices": [{**choices[0], "logprobs": shaped}, *choices[1:]]}


async def _guard(response: Any) -> None:
    """Refuse a compressed body, and one that says it is huge: a small reply can hide a huge one."""
    import httpx

    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx.DecodingError("the body is compressed, although that was not asked for")
    if int(response.headers.get("content-length") or 0) > _MOST_BYTES:
        raise httpx.DecodingError(f"the body is larger than {_MOST_BYTES} bytes")
