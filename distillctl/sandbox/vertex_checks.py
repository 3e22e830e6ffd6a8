"""What Vertex AI refuses in a request, with its words for it.

Fields: the v1beta1 discovery document of aiplatform.googleapis.com (tuningJobs, generateContent).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from distillctl.sandbox.wire import Refused
from distillctl.types import JSON

_JOB = {"baseModel", "supervisedTuningSpec", "tunedModelDisplayName", "description", "labels", "outputUri",
        "customBaseModel", "preTunedModel", "encryptionSpec", "serviceAccount"}
_SPEC = {"trainingDatasetUri", "validationDatasetUri", "hyperParameters", "exportLastCheckpointOnly",
         "tuningMode"}
_ADAPTERS = ("ONE", "TWO", "FOUR", "EIGHT", "SIXTEEN", "THIRTY_TWO")
_MODES = ("TUNING_MODE_FULL", "TUNING_MODE_PEFT_ADAPTER")
_GEMINI_ONLY = {"learningRateMultiplier"}
_OPEN_ONLY = {"learningRate", "batchSize"}
_HYPER = {"epochCount", "adapterSize", *_GEMINI_ONLY, *_OPEN_ONLY}
_QUESTION = {"contents", "systemInstruction", "generationConfig", "tools", "toolConfig", "safetySettings",
             "labels", "cachedContent"}
_GENERATION = {
    "temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "responseLogprobs",
    "logprobs", "presencePenalty", "frequencyPenalty", "seed", "responseMimeType", "responseSchema",
    "responseJsonSchema", "thinkingConfig"}
MOST_LOGPROBS = 20


def bad(message: str, word: str = "INVALID_ARGUMENT") -> Refused:
    return Refused(400, message, word=word)


def only(given: JSON, known: set[str], where: str) -> dict[str, JSON]:
    """`given` as an object without unknown fields, under their camelCase names; snake_case is understood,
    as Google's JSON parser does."""
    if not isinstance(given, dict):
        raise bad(f"Invalid value at '{where}'")
    given = {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): value
             for name, value in given.items()}
    if unknown := sorted(set(given) - known):
        raise bad(f"Invalid JSON payload received. Unknown name \"{unknown[0]}\" at '{where}': Cannot find "
                  "field.")
    return given


def check_job(asked: Mapping[str, JSON], gemini: bool) -> tuple[dict[str, JSON], int]:
    """The supervised tuning spec of a create request, and its epochs."""
    asked = only(asked, _JOB, "tuning_job")
    if "supervisedTuningSpec" not in asked:
        raise bad("Required field is not set: tuning_spec.")
    spec = only(asked["supervisedTuningSpec"], _SPEC, "tuning_job.supervised_tuning_spec")
    for field in ("trainingDatasetUri", "validationDatasetUri"):
        uri = spec.get(field)
        if (uri is not None or field == "trainingDatasetUri") and not (
                isinstance(uri, str) and re.fullmatch(r"gs://[^/]+/.+\.jsonl", uri)):
            raise bad(f"{field} {uri!r} should be a GCS object of type JSONL.")
    hyper = only(spec.get("hyperParameters", {}), _HYPER,
                 "tuning_job.supervised_tuning_spec.hyper_parameters")
    _check_hyperparameters(hyper, gemini)
    _check_open(asked, spec, gemini)
    _check_labels(asked.get("labels"))
    name = asked.get("tunedModelDisplayName")
    if name is not None and (not isinstance(name, str) or not 1 <= len(name) <= 128):
        raise bad("tuned_model_display_name must have 1 to 128 characters.")
    return spec, int(hyper.get("epochCount") or 3)


def _check_hyperparameters(hyper: Mapping[str, JSON], gemini: bool) -> None:
    for field in sorted((_OPEN_ONLY if gemini else _GEMINI_ONLY) & set(hyper)):
        raise bad(f"{field} is not supported for this base model.")
    _whole(hyper, "epochCount", 1, 100)
    _whole(hyper, "batchSize", 1, 256)
    for field in ("learningRateMultiplier", "learningRate"):
        value = hyper.get(field)
        if value is not None and (type(value) not in (int, float) or not 0 < value <= 100):
            raise bad(f"{field} must be positive, got {value!r}.")
    size = hyper.get("adapterSize")
    allowed = [f"ADAPTER_SIZE_{word}" for word in (_ADAPTERS[:5] if gemini else _ADAPTERS)]
    if size is not None and size not in allowed:
        raise bad(f"Adapter size {size!r} is not supported for this base model. Supported: "
                  f"{', '.join(allowed)}.")


def _whole(given: Mapping[str, JSON], field: str, least: int, most: int) -> None:
    """An int64: a number, or a string of digits."""
    value = given.get(field)
    if value is not None and not (type(value) in (int, str) and re.fullmatch(r"\d{1,18}", str(value))
                                  and least <= int(value) <= most):
        raise bad(f"{field} must be in [{least}, {most}], got {value!r}.")


def _check_open(asked: Mapping[str, JSON], spec: Mapping[str, JSON], gemini: bool) -> None:
    if gemini:
        for field, given in (("output_uri", asked.get("outputUri")), ("tuning_mode", spec.get("tuningMode"))):
            if given is not None:
                raise bad(f"{field} is not supported for this base model.")
        return
    if spec.get("tuningMode") not in _MODES:
        raise bad(f"Invalid value at 'tuning_job.supervised_tuning_spec.tuning_mode': "
                  f"{spec.get('tuningMode')!r}")
    if not re.fullmatch(r"gs://[^/]+/.+", str(asked.get("outputUri") or "")):
        raise bad("output_uri must be set to a Cloud Storage directory for this base model.")


def _check_labels(labels: JSON) -> None:
    if labels is None:
        return
    if not isinstance(labels, dict) or len(labels) > 64:
        raise bad("At most 64 labels.")
    for key, value in labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not (
                isinstance(value, str) and re.fullmatch(r"[a-z0-9_-]{0,63}", value)):
            raise bad(f"Invalid label {key!r}: keys and values may hold lower-case letters, digits, _ and -, "
                      "up to 63 characters.")


def check_question(asked: Mapping[str, JSON], base: str) -> dict[str, JSON]:
    """The generation config of a generateContent request."""
    only(asked, _QUESTION, "")
    config = only(asked.get("generationConfig", {}), _GENERATION, "generation_config")
    _whole(config, "maxOutputTokens", 1, 65_536)
    wanted = config.get("logprobs")
    if wanted is not None and not config.get("responseLogprobs"):
        raise bad("logprobs requires response_logprobs to be true.")
    if wanted is not None and (type(wanted) is not int or not 0 <= wanted <= MOST_LOGPROBS):
        raise bad(f"logprobs must be in [0, {MOST_LOGPROBS}].")
    if ("responseSchema" in config or "responseJsonSchema" in config) and (
            config.get("responseMimeType") != "application/json"):
        raise bad("A response schema requires response_mime_type application/json.")
    thinking = only(config.get("thinkingConfig", {}), {"thinkingBudget", "thinkingLevel", "includeThoughts"},
                    "generation_config.thinking_config")
    if {"thinkingBudget", "thinkingLevel"} <= set(thinking):
        raise bad("Thinking budget and thinking level cannot both be set.")
    if "thinkingLevel" in thinking and base.startswith("gemini-2"):
        raise bad("Thinking level is not supported for this model.")
    return config
