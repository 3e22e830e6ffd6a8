"""Settings of the `hf-jobs` backend: the recipe's `backends.hf-jobs` block."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from distillctl_local.settings import LocalSettings
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from distillctl.hosted import checked_address
from distillctl.recipe.models import ENV_NAME, Strict

HUB = "https://huggingface.co"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class HfJobsSettings(Strict):
    """Where the job runs, on what, for how long at most, and how the trainer works in it."""

    model: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    """The student: a Hub id, a packaged alias, or a folder, which is uploaded; null: the recipe's
    `student.model`."""
    flavor: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")] = "l4x1"
    """The hardware; `plan` lists what there is where this is none of it."""
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")] | None = None
    """The user or organization that owns and pays; null: the token's user."""
    timeout: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}[smhd]$")] = "1h"
    """The job is ended after this time, e.g. 90m or 2h; it is the ceiling of the cost. The service's own
    default would be 30 minutes."""
    answer: bool = False
    """The job also answers the prompts of dev and test, so that no GPU is needed here; its latency is then
    that of `flavor`. The prompts go there, without what is expected."""
    trainer: LocalSettings = LocalSettings()
    """How the trainer works, as in `backends.local`."""
    base_url: str | None = None
    """Null: the Hugging Face Hub. Any server with its API; plain http only to this machine."""
    api_key_env: Annotated[str, Field(pattern=ENV_NAME)] = "HF_TOKEN"
    """Name of the environment variable that holds the token; it must be able to write. The job gets it as a
    secret, to push the student."""
    request_timeout: Annotated[float, Field(gt=0, le=60)] = 60.0
    """Seconds for each of connecting, sending and reading of one request."""

    @field_validator("base_url")
    @classmethod
    def _safe(cls, base_url: str | None) -> str | None:
        return checked_address(base_url, "api_key_env")

    @field_validator("trainer")
    @classmethod
    def _one_model(cls, trainer: LocalSettings) -> LocalSettings:
        if trainer.model is not None:
            raise PydanticCustomError("model", "the student is named by backends.hf-jobs.model")
        if trainer.engine == "unsloth" or trainer.report_to:
            raise PydanticCustomError("trainer", "engine: unsloth and report_to are for backend: local; the "
                                                 "job has neither Unsloth nor keys of trackers")
        if trainer.shared_prefix == "frozen":
            raise PydanticCustomError("trainer", "shared_prefix: frozen is for backend: local")
        if trainer.devices > 1 or trainer.shard:
            raise PydanticCustomError("trainer", "devices and shard are for backend: local; the job trains "
                                                 "on one GPU")
        return trainer

    @property
    def endpoint(self) -> str:
        return self.base_url or HUB

    @property
    def host(self) -> str:
        """Who gets the data."""
        return urlsplit(self.endpoint).netloc

    @property
    def timeout_s(self) -> int:
        return int(self.timeout[:-1]) * _SECONDS[self.timeout[-1]]
