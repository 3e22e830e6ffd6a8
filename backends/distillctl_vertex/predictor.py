"""A predictor for Gemini on Vertex AI, tuned (at its endpoint) or not.

The API: https://docs.cloud.google.com/gemini-enterprise-agent-platform/reference/models/inference. Asked
through google-genai without retries; the reply is read from the JSON itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillctl.predictors.http import (
    Refused,
    clean,
    failure,
    http_client,
    lost,
    refusal,
    token_count,
    unusable,
)
from distillctl.predictors.openai_chat import label_logprobs
from distillctl.prices import PaidByToken, PricePoint
from distillctl.types import JSON, Answer, CallFailed, Finish, Request
from distillctl_vertex.client import genai_client
from distillctl_vertex.data import conversation
from distillctl_vertex.settings import VertexSettings

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

_ALTERNATIVES = 20  # the most that `logprobs` allows
_FILTERED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"}


class GeminiPredictor(PaidByToken):
    """Answers one request by one generateContent.

    model: a tuned model's endpoint, or a base model by name; base: the base model's name. location: the
    region that answers. max_tokens: longest answer, thinking included. price: for `cost_usd`; None leaves
    it unknown. json_schema: asks the service to keep the answer to it. labels: asks for token
    probabilities, and gives each label's from the answer's first token.
    """

    max_batch = 1
    replayed = False

    def __init__(self, model: str, base: str, settings: VertexSettings, credentials: Credentials, *,
                 location: str, max_tokens: int, price: PricePoint | None = None,
                 json_schema: Mapping[str, Any] | None = None, labels: Sequence[str] = ()) -> None:
        self.identity: Mapping[str, JSON] = {
            "provider": "vertex", "base_url": settings.base_url, "project": settings.project, "model": model,
            "base": base, "temperature": 0.0, "max_tokens": max_tokens, "json_schema": json_schema,
            "labels": list(labels)}
        self.price = price
        self.max_tokens = max_tokens
        self._model, self._labels = model, tuple(labels)
        self._settings, self._credentials, self._location = settings, credentials, location
        self._parameters = _parameters(base, max_tokens, json_schema, self._labels)
        self._client: Any = None
        self._http: Any = None

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        (request,) = requests
        started = time.perf_counter()
        try:
            body = await self._ask(request)
            return [self._read(body, time.perf_counter() - started)]
        except Refused as refused:
            return [refusal(refused, time.perf_counter() - started)]

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._client.close()
            self._client = self._http = None

    async def _ask(self, request: Request) -> dict[str, Any]:
        import httpx2
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.genai import errors, types

        if self._client is None:
            self._http = http_client(self._settings.timeout)
            self._client = genai_client(self._settings, self._credentials, self._location,
                                        httpx_async_client=self._http)
        system, contents = conversation(request.messages)
        asked = {**self._parameters, "system_instruction": system, "should_return_http_response": True}
        try:
            reply = await self._client.aio.models.generate_content(
                model=self._model, contents=contents, config=types.GenerateContentConfig(**asked))
        except errors.APIError as error:
            self._leave_out(error, asked)
            headers = getattr(error.response, "headers", None) or {}
            raise failure(error.code, error.details, headers, self._who) from None
        except TransportError as error:
            raise CallFailed("transient", f"no access token: {error}") from None
        except GoogleAuthError as error:
            raise CallFailed("auth", f"no access token ({self._who}): {error}") from None
        except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
            raise lost(error) from None
        except UnicodeError:
            raise CallFailed("rejected", "the prompt holds a lone surrogate, which no request can") from None
        try:
            body = json.loads(reply.sdk_http_response.body)
        except (ValueError, TypeError, AttributeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise unusable("the body is not a JSON object")
        return body

    @property
    def _who(self) -> str:
        """Whose credentials are refused, for messages."""
        return (self._settings.access_token_env if self._settings.is_here
                else "Application Default Credentials")

    def _leave_out(self, error: Any, asked: Mapping[str, Any]) -> None:
        """Not every model has log-probabilities, or a way to think less: it is asked again without."""
        said = str(error.message).casefold()
        for word, parameters in (("logprobs", ("response_logprobs", "logprobs")),
                                 ("thinking", ("thinking_config",))):
            if error.code == 400 and word in said and parameters[0] in asked:
                self._parameters = {name: value for name, value in self._parameters.items()
                                    if name not in parameters}
                raise CallFailed("transient", f"the model takes no {word}: asked again without") from None

    def _read(self, body: Mapping[str, Any], latency: float) -> Answer:
        blocked = body.get("promptFeedback")
        if isinstance(blocked, dict) and blocked.get("blockReason") and not body.get("candidates"):
            raise Refused(f"the prompt was blocked: {blocked['blockReason']}")
        try:
            candidate = body["candidates"][0]
            content = candidate.get("content") or {}
            texts = [part["text"] for part in content.get("parts") or () if "text" in part
                     and not part.get("thought")]
            output = clean("".join(texts)) or None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise unusable("the reply has no candidates[0].content") from None
        usage = body.get("usageMetadata") if isinstance(body.get("usageMetadata"), dict) else {}
        tokens_in = token_count(usage.get("promptTokenCount"))
        answered, thought = (token_count(usage.get(name, 0)) for name in (
            "candidatesTokenCount", "thoughtsTokenCount"))
        tokens_out = None if answered is None or thought is None else answered + thought
        cached = token_count(usage.get("cachedContentTokenCount"))
        finish, error = _finish(candidate.get("finishReason"), output)
        echoed = body.get("modelVersion")
        return Answer(
            output, finish, label_logprobs(_alternatives(candidate), self._labels), tokens_in, cached,
            tokens_out, latency, self.price and self.price.cost(tokens_in, tokens_out, cached),
            clean(echoed[:200]) if isinstance(echoed, str) and echoed else None, error)


def _parameters(base: str, max_tokens: int, json_schema: Mapping[str, Any] | None,
                labels: Sequence[str]) -> dict[str, Any]:
    # a tuned model has learned to answer without thinking, and thoughts are billed as answers
    thinking = {"thinking_budget": 0} if base.startswith("gemini-2.5-flash") else (
        {"thinking_budget": 128} if base.startswith("gemini-2.") else {"thinking_level": "MINIMAL"})
    parameters: dict[str, Any] = {"temperature": 0.0, "max_output_tokens": max_tokens,
                                  "thinking_config": thinking}
    if json_schema is not None:
        parameters |= {"response_mime_type": "application/json", "response_json_schema": dict(json_schema)}
    if labels:
        parameters |= {"response_logprobs": True, "logprobs": _ALTERNATIVES}
    return parameters


def _alternatives(candidate: Mapping[str, Any]) -> JSON:
    """The candidate's token probabilities as `label_logprobs` reads them."""
    try:
        first = candidate["logprobsResult"]["topCandidates"][0]["candidates"]
        return {"content": [{"top_logprobs": [
            {"token": choice["token"], "logprob": choice["logProbability"]} for choice in first]}]}
    except (KeyError, IndexError, TypeError):
        return None


def _finish(reason: JSON, output: str | None) -> tuple[Finish, str | None]:
    """How an answer ended, and why where that is not by itself."""
    if not isinstance(reason, str):
        raise unusable("the reply has no finishReason")
    if reason in _FILTERED:
        return "refusal", f"finishReason {reason}"
    if reason == "MAX_TOKENS":
        return "length", None
    if reason != "STOP":
        raise unusable(f"finishReason {reason[:50]!r}")
    return ("stop", None) if output and output.strip() else ("empty", None)
