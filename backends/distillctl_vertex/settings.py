"""Settings of the `vertex` backend: the recipe's `backends.vertex` block."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from distillctl.hosted import LOOPBACK, checked_address
from distillctl.recipe.models import ENV_NAME, Price, Strict

_MULTI_REGIONS = ("eu", "us")


class VertexSettings(Strict):
    """Where to train, on what, and what it costs."""

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What to tune: a Gemini model (gemini-3.5-flash-lite) or an open one by its Model Garden id
    (meta/llama3_1@llama-3.1-8b-instruct); null: the recipe's `student.model`."""
    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9.:-]{4,61}[a-z0-9]$")]
    """Google Cloud project id; it is billed."""
    location: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,40}$")] = "us-central1"
    """Region of the job."""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$")]
    """Cloud Storage bucket for the training rows, and for an open model's weights."""
    prefix: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=200)] = "distillctl"
    """Folder in the bucket."""
    base_url: str | None = None
    """Null: Google. The sandbox's address, or a private endpoint; plain http only to this machine."""
    access_token_env: Annotated[str, Field(pattern=ENV_NAME)] = "VERTEX_SANDBOX_TOKEN"
    """Name of the variable with the sandbox's access token, used only where `base_url` is this machine;
    anywhere else Application Default Credentials are."""
    epochs: Annotated[int, Field(ge=1, le=100)] | None = None
    """Passes over the rows; null: as `train` says."""
    adapter_size: Literal[1, 2, 4, 8, 16, 32] | None = None
    """Rank of the adapter; null: the largest that there is up to `train.lora.rank`."""
    learning_rate_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Gemini: times Google's own learning rate; null: Google chooses."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Open models; null: `train.learning_rate`."""
    tuning_mode: Literal["adapter", "full"] | None = None
    """Open models; null: full with `train.lora: null`, else an adapter where the model allows one."""
    hub_model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """Open models: the same model on the Hugging Face Hub, for the comparison with the untrained one and
    for adapters; null: the one that belongs to a known id."""
    training_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """US dollars per million trained tokens; no table has them. Null: unknown, and said so."""
    price: Price | None = None
    """What answers cost; null: the price table's figure for the base model."""
    timeout: Annotated[float, Field(gt=0, le=60)] = 60.0
    """Seconds for each of connecting, sending and reading of one request."""

    @field_validator("base_url")
    @classmethod
    def _safe(cls, base_url: str | None) -> str | None:
        return checked_address(base_url, "access_token_env")

    @property
    def is_here(self) -> bool:
        """Whether `base_url` is on this machine: no Google credentials are sent there."""
        return self.base_url is not None and urlsplit(self.base_url).hostname in LOOPBACK

    @property
    def host(self) -> str:
        """Who gets the data, for people."""
        return urlsplit(self.base_url).netloc if self.base_url else f"Google Cloud ({self.location})"

    def address(self, location: str) -> str:
        """Where the API of a region answers."""
        if self.base_url:
            return self.base_url
        if location == "global":
            return "https://aiplatform.googleapis.com"
        if location in _MULTI_REGIONS:
            return f"https://aiplatform.{location}.rep.googleapis.com"
        return f"https://{location}-aiplatform.googleapis.com"

    @property
    def storage_address(self) -> str:
        """Where Cloud Storage answers."""
        return self.base_url or "https://storage.googleapis.com"
