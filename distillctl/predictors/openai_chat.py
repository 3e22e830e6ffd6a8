"""A predictor for any server that speaks OpenAI's chat completions
(https://platform.openai.com/docs/api-reference/chat): OpenAI, Azure, OpenRouter, Together, vLLM, Ollama.

Asked through the official SDK with its retries off; the reply is read from the JSON itself, because
compatible servers leave out or invent what the SDK's models promise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from distillctl.predictors.http import (
    Refused,
    ask,
    clean,
    echoed_model,
    failure,
    header_value,
    http_client,
    refusal,
    token_count,
    unusable,
)
from distillctl.prices import PaidByToken, PricePoint
from distillctl.recipe.provider_schema import openai_strict
from distillctl.secrets import Secret
from distillctl.types import JSON, Answer, CallFailed, Finish, Request

OPENAI_URL = "https://api.openai.com/v1"
_ENDED = {"stop", "eos", "eos_token", "stop_sequence", "end_turn"}  # Together and TGI have words of their own
_CUT_OFF = {"length", "max_tokens"}
_FILTERED = {"content_filter", "refusal"}
_ALTERNATIVES = 20  # the most that top_logprobs allows


class OpenAIPredictor(PaidByToken):
    """Answers one request by one chat completion.

    model: as the server calls it. base_url: None for OpenAI. api_key: None for a server without one.
    temperature, seed: None leaves them to the server. max_tokens: longest answer, in tokens, reasoning
    included. timeout: seconds for each of connecting, sending and reading. price: for `cost_usd`; None
    leaves it unknown. json_schema: asks the server to keep the answer to it. labels: asks for token
    probabilities, and gives each label's from the answer's first token.
    """

    max_batch = 1
    replayed = False

    def __init__(self, model: str, *, base_url: str | None = None, api_key: Secret | None = None,
                 temperature: float | None = 0.0, max_tokens: int = 1024, seed: int | None = None,
                 timeout: float = 60.0, price: PricePoint | None = None,
                 json_schema: Mapping[str, Any] | None = None, labels: Sequence[str] = ()) -> None:
        self.identity: Mapping[str, JSON] = {
            "provider": "openai", "base_url": (base_url or OPENAI_URL).rstrip("/"), "model": model,
            "temperature": temperature, "max_tokens": max_tokens, "seed": seed,
            "json_schema": json_schema, "labels": list(labels)}
        self.price = price
        self.max_tokens = max_tokens
        self._labels = tuple(labels)
        self._api_key = api_key
        self._timeout = timeout
        self._client: Any = None
        # OpenAI's newer models refuse `max_tokens`, most other servers know nothing else
        self._limit_name = "max_completion_tokens" if base_url is None else "max_tokens"
        self._parameters = _parameters(model, temperature, seed, json_schema, self._labels)

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        import openai

        (request,) = requests
        started = time.perf_counter()
        try:
            body = await ask(openai, lambda: self._create(request), self._api_key and self._api_key.name)
            latency = time.perf_counter() - started
            return [self.read(body, latency, self.price)]
        except Refused as refused:
            return [refusal(refused, time.perf_counter() - started)]

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent to the server for one request, as JSON."""
        return {"messages": list(request.messages), **self._parameters, self._limit_name: self.max_tokens}

    async def _create(self, request: Request) -> Any:
        import openai

        if self._client is None:
            # OPENAI_ORG_ID and OPENAI_PROJECT_ID are for OpenAI alone
            foreign = self.identity["base_url"] != OPENAI_URL
            omitted = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
            self._client = openai.AsyncOpenAI(
                # an explicit address: OPENAI_BASE_URL must not send the data elsewhere than `plan` says
                base_url=str(self.identity["base_url"]),
                api_key=header_value(self._api_key), max_retries=0,
                timeout=self._timeout, http_client=http_client(self._timeout),
                default_headers=omitted if foreign else None)
        sent = self._limit_name  # another call may change it before this one is answered
        try:
            return await self._client.chat.completions.with_raw_response.create(**self.body(request))
        except openai.BadRequestError as error:
            if error.code == "unsupported_parameter" and error.param == sent == "max_tokens":
                self._limit_name = "max_completion_tokens"  # e.g. newer models on Azure
                raise CallFailed("transient", "the server wants max_completion_tokens") from None
            raise

    def read(self, body: Mapping[str, JSON], latency: float | None, price: PricePoint | None) -> Answer:
        """The answer in a server's reply. latency: seconds, where it was timed. Raises CallFailed, and
        Refused where a filter stopped the prompt."""
        if isinstance(body.get("error"), dict) and not body.get("choices"):
            code = body["error"].get("code")  # OpenRouter: a failure of its upstream under HTTP 200
            raise failure(code if isinstance(code, int) and code >= 400 else 500, body, {},
                          self._api_key and self._api_key.name)
        try:
            choice = body["choices"][0]
            message = choice["message"]
            output = _text(message.get("content"))
            refused = message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise unusable("the reply has no choices[0].message") from None
        usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
        details = usage.get("prompt_tokens_details")
        tokens_in, tokens_out = token_count(usage.get("prompt_tokens")), token_count(
            usage.get("completion_tokens"))
        cached = token_count(details.get("cached_tokens")) if isinstance(details, dict) else None
        finish, error = _finish(choice.get("finish_reason"), output, refused)
        return Answer(
            output, finish, label_logprobs(choice.get("logprobs"), self._labels), tokens_in, cached,
            tokens_out, latency, price and price.cost(tokens_in, tokens_out, cached),
            echoed_model(body), error)


def label_logprobs(logprobs: JSON, labels: Sequence[str]) -> dict[str, float] | None:
    """Each label's log-probability from the alternatives for the answer's first token.

    A token counts for the one label that it begins. None where the first tokens cannot tell the labels
    apart or none is among the alternatives. A label that is not among them gets the least likely
    alternative's probability, an upper bound of its own.
    """
    try:
        alternatives = [(str(a["token"]).strip().casefold(), float(a["logprob"]))
                        for a in logprobs["content"][0]["top_logprobs"]
                        if math.isfinite(float(a["logprob"]))]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    shares = dict.fromkeys(labels, 0.0)
    for token, logprob in alternatives:
        meant = [label for label in labels if token and label.casefold().startswith(token)]
        if len(meant) > 1 and logprob > math.log(0.01):
            return None
        if len(meant) == 1:
            shares[meant[0]] += math.exp(min(logprob, 0.0))
    if not labels or not any(shares.values()):
        return None
    least = math.exp(max(min(logprob for _, logprob in alternatives), -50.0))
    shares = {label: share or least for label, share in shares.items()}
    total = sum(shares.values())
    return {label: math.log(share / total) for label, share in shares.items()}


def _parameters(model: str, temperature: float | None, seed: int | None,
                json_schema: Mapping[str, Any] | None, labels: Sequence[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {"model": model}
    if temperature is not None:
        parameters["temperature"] = temperature
    if seed is not None:
        parameters["seed"] = seed
    if json_schema is not None:
        strict, problems = openai_strict(json_schema)
        sent = {"schema": dict(json_schema)} if problems else {"schema": strict, "strict": True}
        parameters["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", **sent}}
    if labels:
        parameters |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
    return parameters


def _text(content: JSON) -> str | None:
    """The text of a message, given as a string or as a list of parts."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise TypeError
    return clean(content) if content else None


def _finish(reason: JSON, output: str | None, refused: JSON) -> tuple[Finish, str | None]:
    """How an answer ended, and why where that is not by itself."""
    if isinstance(refused, str) and refused:
        return "refusal", clean(refused[:500])
    if not isinstance(reason, str):
        raise unusable("the reply has no finish_reason")
    if reason in _FILTERED:
        return "refusal", f"finish_reason {reason}"
    if reason in _CUT_OFF:
        return "length", None
    if reason in ("tool_calls", "function_call") and not output:
        return "empty", "a tool call instead of text"
    if reason not in _ENDED:
        raise unusable(f"unknown finish_reason {reason[:50]!r}")
    return ("stop", None) if output and output.strip() else ("empty", None)
