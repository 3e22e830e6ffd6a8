"""Settings of the `together` backend: the recipe's `backends.together` block."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from distillctl.hosted import checked_address
from distillctl.recipe.models import ENV_NAME, Strict

TOGETHER_URL = "https://api.together.ai"


class TogetherSettings(Strict):
    """Where to train and to answer, on what, and what it costs."""

    model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """The model to tune, as Together calls it, e.g. Qwen/Qwen3-0.6B; null: the recipe's `student.model`."""
    base_url: str | None = None
    """Null: Together. Another address, without /v1, e.g. of the sandbox; plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] = "TOGETHER_API_KEY"
    """Name of the environment variable that holds the key."""
    project_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    """Project that owns the deployments; null: the key's own."""
    training_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """US dollars per million trained tokens, for the estimate before the upload, which is also the most that
    is accepted; null: unknown until Together's own estimate, after the upload."""
    config: Annotated[str, Field(pattern=r"^projects/[\w.-]+/configs/[\w.-]+$")] | None = None
    """Deployment config, projects/PROJECT/configs/ID; null: the cheapest that fits the model."""
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """US dollars an hour of the deployment; null: as Together's list of hardware says."""
    inactive_timeout: Annotated[int, Field(ge=30, le=1440)] = 30
    """Idle minutes after which Together itself stops the deployment, whatever became of this process."""
    start_timeout: Annotated[float, Field(gt=0, le=86400)] = 1800.0
    """Seconds that a deployment may take to start."""
    timeout: Annotated[float, Field(gt=0, le=60)] = 60.0
    """Seconds for each of connecting, sending and reading of one request."""

    @field_validator("base_url")
    @classmethod
    def _safe(cls, base_url: str | None) -> str | None:
        address = checked_address(base_url, "api_key_env")
        # where the addresses of the SDK's second version end
        return address and address.removesuffix("/v1")

    @property
    def url(self) -> str:
        """What the requests start with."""
        return self.base_url or TOGETHER_URL

    @property
    def host(self) -> str:
        """Who gets the data."""
        return urlsplit(self.url).netloc

    @property
    def is_together(self) -> bool:
        return ("." + (urlsplit(self.url).hostname or "")).endswith((".together.ai", ".together.xyz"))
