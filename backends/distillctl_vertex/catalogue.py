"""What Vertex AI tunes, as Google's pages said: models, tuning modes, limits, retirements, regions.

Gemini: https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/tuning/supervised-tuning and
.../models/model-versions; open models: .../models/tuning/open-model-tuning (of 2026-09-25).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal

from distillctl.recipe.models import LoraSpec

AS_OF = "November 2026"
REGIONS = ("global", "us-central1", "europe-west4", "us-west1", "us-east5", "asia-southeast1",
           "asia-southeast2")
GEMINI_MOST_TOKENS = 131_072  # of one example; longer ones are dropped in silence
MOST_BYTES = 2**30
MOST_ROWS = 1_000_000
RECOMMENDED_ROWS = 100
CLOSING_DAYS = 31  # a model is closed to new users about a month before it retires

Mode = Literal["adapter", "full"]
_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9._-]+@[a-z0-9._-]+")
_GEMINI = re.compile(r"gemini-[a-z0-9.-]{1,60}")


@dataclass(frozen=True)
class Gemini:
    """A Gemini model. retires: its day; `fixed` where it is the day itself and not the earliest one."""

    retires: date
    fixed: bool
    adapter_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class OpenModel:
    """An open model. hub: its id on the Hugging Face Hub, None where that is not known here."""

    hub: str | None
    modes: tuple[Mode, ...]
    most_tokens: int = 8192


GEMINI = {
    "gemini-3.5-flash-lite": Gemini(date(2027, 7, 21), False),
    "gemini-3.5-flash": Gemini(date(2027, 5, 19), False),
    "gemini-3.1-flash-lite": Gemini(date(2027, 5, 7), False),
    "gemini-2.5-pro": Gemini(date(2026, 10, 16), True, (1, 2, 4, 8)),
    "gemini-2.5-flash": Gemini(date(2026, 10, 16), True),
    "gemini-2.5-flash-lite": Gemini(date(2026, 10, 16), True),
}
_FULL, _ADAPTER, _BOTH = ("full",), ("adapter",), ("adapter", "full")
OPEN = {
    "google/gemma4@gemma-4-e2b-it": OpenModel(None, _ADAPTER),
    "google/gemma4@gemma-4-e4b-it": OpenModel(None, _ADAPTER),
    "google/gemma4@gemma-4-26b-a4b-it": OpenModel(None, _ADAPTER),
    "google/gemma4@gemma-4-31b-it": OpenModel(None, _ADAPTER),
    "google/gemma3@gemma-3-1b-it": OpenModel("google/gemma-3-1b-it", _FULL),
    "google/gemma3@gemma-3-4b-it": OpenModel("google/gemma-3-4b-it", _FULL),
    "google/gemma3@gemma-3-12b-it": OpenModel("google/gemma-3-12b-it", _FULL),
    "google/gemma3@gemma-3-27b-it": OpenModel("google/gemma-3-27b-it", _BOTH),
    "google/medgemma@medgemma-1.5-4b-it": OpenModel("google/medgemma-1.5-4b-it", _FULL),
    "qwen/qwen3-6@qwen3.6-27b": OpenModel(None, _ADAPTER, 12_288),
    "qwen/qwen3-6@qwen3.6-35b-a3b": OpenModel(None, _ADAPTER, 12_288),
    "qwen/qwen3-5@qwen3.5-9b": OpenModel(None, _FULL),
    "qwen/qwen3@qwen3-4b": OpenModel("Qwen/Qwen3-4B", _FULL),
    "qwen/qwen3@qwen3-8b": OpenModel("Qwen/Qwen3-8B", _FULL),
    "qwen/qwen3@qwen3-14b": OpenModel("Qwen/Qwen3-14B", _FULL),
    "qwen/qwen3@qwen3-32b": OpenModel("Qwen/Qwen3-32B", _BOTH),
    "meta/llama3_1@llama-3.1-8b": OpenModel("meta-llama/Llama-3.1-8B", _BOTH),
    "meta/llama3_1@llama-3.1-8b-instruct": OpenModel("meta-llama/Llama-3.1-8B-Instruct", _BOTH),
    "meta/llama3-2@llama-3.2-1b-instruct": OpenModel("meta-llama/Llama-3.2-1B-Instruct", _FULL),
    "meta/llama3-2@llama-3.2-3b-instruct": OpenModel("meta-llama/Llama-3.2-3B-Instruct", _FULL),
    "meta/llama3-3@llama-3.3-70b-instruct": OpenModel("meta-llama/Llama-3.3-70B-Instruct", _BOTH),
    "meta/llama4@llama-4-scout-17b-16e-instruct": OpenModel(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct", _ADAPTER, 2048),
    "zai-org/glm-4.7-flash@glm-4.7-flash": OpenModel("zai-org/GLM-4.7-Flash", _ADAPTER),
}


def is_gemini(model: str) -> bool:
    return _GEMINI.fullmatch(model) is not None


def is_open(model: str) -> bool:
    """Whether `model` is written as Model Garden writes it: publisher/family@version."""
    return _NAME.fullmatch(model) is not None


def mode_of(model: str, chosen: Mode | None, lora: LoraSpec | None) -> Mode:
    """How an open model is tuned: as chosen; else in full where the recipe has no adapter, and with one where
    the model allows it."""
    known = OPEN.get(model)
    return chosen or ("full" if lora is None else known.modes[0] if known else "adapter")


def adapter_size(model: str, chosen: int | None, lora: LoraSpec | None) -> int:
    """The adapter's rank: as chosen, else the largest that there is up to the recipe's, or up to the usual
    one where the recipe has none."""
    rank = (lora or LoraSpec()).rank
    known = GEMINI.get(model)
    sizes = known.adapter_sizes if known else (1, 2, 4, 8, 16) if is_gemini(model) else (1, 2, 4, 8, 16, 32)
    return chosen or max(size for size in sizes if size <= max(rank, 1))


def most_tokens(model: str) -> int | None:
    """Tokens of one example at most; None where that is not known."""
    if is_gemini(model):
        return GEMINI_MOST_TOKENS
    return OPEN[model].most_tokens if model in OPEN else None
