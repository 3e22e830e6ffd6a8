"""Settings of the `openai` backend: the recipe's `backends.openai` block."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from distillctl.hosted import checked_address
from distillctl.recipe.models import ENV_NAME, Price, Strict

OPENAI_HOST = "api.openai.com"


class OpenAISettings(Strict):
    """Where to train, on what, and what it costs."""

    model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """The model to tune, with its date, e.g. gpt-4.1-mini-2025-04-14; null: the recipe's `student.model`."""
    base_url: str | None = None
    """Null: OpenAI. Any server with its fine-tuning API; plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] | None = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; null for a server without one."""
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Part of the tuned model's name."""
    n_epochs: Annotated[int, Field(ge=1, le=50)] | None = None
    """Passes over the rows; null: as `train` says."""
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """Rows per step; null: the service chooses."""
    learning_rate_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Times the service's own learning rate; null: the service chooses."""
    training_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """US dollars per million trained tokens; no table has them. Null: unknown, and said so."""
    price: Price | None = None
    """What answers cost where the price table has nothing; the tuned model's also where it is wrong."""
    timeout: Annotated[float, Field(gt=0, le=60)] = 60.0
    """Seconds for each of connecting, sending and reading of one request."""

    @field_validator("base_url")
    @classmethod
    def _safe(cls, base_url: str | None) -> str | None:
        return checked_address(base_url, "api_key_env", "https://host/v1")

    @property
    def host(self) -> str:
        """Who gets the data."""
        return urlsplit(self.base_url).netloc if self.base_url else OPENAI_HOST

    @property
    def is_openai(self) -> bool:
        return ("." + (urlsplit(self.base_url or "").hostname or OPENAI_HOST)).endswith(".openai.com")
