"""What OpenAI and Anthropic refuse in the body of a chat request, in their words."""

from __future__ import annotations

from collections.abc import Mapping

from distillctl.types import JSON

_OPENAI_PARAMETERS = {
    "model", "messages", "temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "seed", "stop",
    "response_format", "logprobs", "top_logprobs", "user", "stream"}
_ANTHROPIC_PARAMETERS = {
    "model", "messages", "system", "max_tokens", "stop_sequences", "metadata", "stream", "output_config"}
_OPEN_KEYWORDS = {"minLength", "maxLength", "uniqueItems", "allOf", "oneOf", "not", "default", "$schema"}
_BOUNDS = {"minLength", "maxLength", "minimum", "maximum", "multipleOf", "maxItems", "pattern", "$schema"}
ANTHROPIC_VERSIONS = ("2023-06-01", "2026-10-21")
_ANTHROPIC_SAMPLING = {"temperature", "top_p", "top_k"}  # gone in the newer version


class Refusal(Exception):
    """The request is refused before the model sees it."""

    def __init__(self, status: int, kind: str, message: str, code: str | None = None,
                 param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param


def check_body(body: Mapping[str, JSON], anthropic: bool, version: str | None, models: frozenset[str] | None,
               completion_tokens_only: bool) -> None:
    """Refuse what the original refuses in the body of one request. version: Anthropic's header. models: those
    that exist, None for all. completion_tokens_only: `max_tokens` is refused. Raises Refusal."""
    known = _ANTHROPIC_PARAMETERS if anthropic else _OPENAI_PARAMETERS
    if anthropic and version == ANTHROPIC_VERSIONS[0]:
        known = known | _ANTHROPIC_SAMPLING
    unknown = set(body) - known
    if unknown:
        name = sorted(unknown)[0]
        raise Refusal(400, "invalid_request_error",
                       f"{name}: Extra inputs are not permitted" if anthropic
                       else f"Unrecognized request argument supplied: {name}")
    if not isinstance(body.get("model"), str) or (
            models is not None and body["model"] not in models):
        raise Refusal(404, "not_found_error" if anthropic else "invalid_request_error",
                       f"The model `{body.get('model')}` does not exist", "model_not_found", "model")
    if completion_tokens_only and "max_tokens" in body:
        raise Refusal(400, "invalid_request_error",
                       "Unsupported parameter: 'max_tokens' is not supported with this model. "
                       "Use 'max_completion_tokens' instead.", "unsupported_parameter", "max_tokens")
    _check_numbers(body, anthropic)
    _check_messages(body.get("messages"), anthropic)
    _check_schema(body, anthropic)


def _check_numbers(body: Mapping[str, JSON], anthropic: bool) -> None:
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
    if anthropic and not limits:
        raise Refusal(400, "invalid_request_error", "max_tokens: Field required")
    if any(not isinstance(limit, int) or limit < 1 for limit in limits):
        raise Refusal(400, "invalid_request_error", "max_tokens must be at least 1", param="max_tokens")
    temperature = body.get("temperature", 0)
    if not isinstance(temperature, int | float) or not 0 <= temperature <= (1 if anthropic else 2):
        raise Refusal(400, "invalid_request_error", "temperature is out of range", param="temperature")
    if "top_logprobs" in body and not (body.get("logprobs") and 0 <= body["top_logprobs"] <= 20):
        raise Refusal(400, "invalid_request_error", "top_logprobs needs logprobs, and is at most 20")


def _check_schema(body: Mapping[str, JSON], anthropic: bool) -> None:
    """That structured output is asked for as the originals take it."""
    wanted = (body.get("output_config" if anthropic else "response_format") or {})
    wanted = wanted.get("format", {}) if anthropic else wanted.get("json_schema", {})
    if not anthropic and not wanted.get("strict"):
        return
    refused = _BOUNDS if anthropic else _OPEN_KEYWORDS
    for part in _schemas(wanted.get("schema", {})):
        why = None
        if bad := sorted(refused & set(part)):
            why = f"'{bad[0]}' is not permitted"
        elif part.get("type") == "object" and part.get("additionalProperties") is not False:
            why = "'additionalProperties' is required to be supplied and to be false"
        elif not anthropic and set(part.get("required", [])) != set(part.get("properties", {})):
            why = "'required' is required to be an array including every key in properties"
        if why:
            place = "output_config.format.schema" if anthropic else "response_format 'answer'"
            raise Refusal(400, "invalid_request_error", f"Invalid schema for {place}: {why}",
                           param=None if anthropic else "response_format")


def _check_messages(messages: JSON, anthropic: bool) -> None:
    roles = {"user", "assistant"} if anthropic else {"system", "developer", "user", "assistant"}
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "invalid_request_error", "messages: at least one message is required")
    for number, message in enumerate(messages):
        if set(message) != {"role", "content"} or message["role"] not in roles:
            raise Refusal(400, "invalid_request_error",
                           f"messages.{number}: unexpected role or field, with {sorted(message)}")
        if not isinstance(message["content"], str | list) or not message["content"]:
            raise Refusal(400, "invalid_request_error", f"messages.{number}: content must not be empty")
    if not any(message["role"] == "user" for message in messages):
        raise Refusal(400, "invalid_request_error", "messages: a user turn is required")


def _schemas(schema: JSON) -> list[Mapping[str, JSON]]:
    """A JSON Schema and those in it."""
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ()),
             *schema.get("$defs", {}).values(), *([schema["items"]] if "items" in schema else ())]
    return [schema, *(one for part in inner for one in _schemas(part))]
