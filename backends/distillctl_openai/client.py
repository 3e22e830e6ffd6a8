"""The official SDK with its retries off, for one account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from distillctl import registry
from distillctl.backend import BackendEnv
from distillctl.errors import BackendError, MissingExtra, Problem
from distillctl.hosted import Failed, checked_secret, fingerprint
from distillctl.sdk_calls import Calls
from distillctl_openai.settings import OpenAISettings

if TYPE_CHECKING:
    import openai

class Service:
    """One service as one account sees it. Opens a connection at the first call; `close` ends it."""

    def __init__(self, settings: OpenAISettings, env: BackendEnv) -> None:
        self._settings, self._env = settings, env
        self._client: Any = None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def sdk(self) -> openai.OpenAI:
        """The SDK's client. Raises MissingExtra, BackendError without a key."""
        if self._client is None:
            if missing := registry.needs("openai", "openai"):
                raise MissingExtra.of(missing)
            import httpx2
            import openai

            # OPENAI_ORG_ID and OPENAI_PROJECT_ID are for OpenAI alone
            omitted = None if self._settings.is_openai else {
                "OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
            self._client = openai.OpenAI(
                # an explicit address: OPENAI_BASE_URL must not send the data elsewhere than `plan` says
                api_key=self._key(), base_url=self._settings.base_url or "https://api.openai.com/v1",
                max_retries=0, timeout=self._settings.timeout, default_headers=omitted,
                http_client=httpx2.Client(follow_redirects=False, timeout=self._settings.timeout))
        return self._client

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `Calls.call`."""
        return self._calls.call(method, *args, **kwargs)

    def read(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """See `Calls.read`."""
        return self._calls.read(method, *args, **kwargs)

    def pages(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """See `Calls.pages`."""
        return self._calls.pages(method, *args, **kwargs)

    @property
    def _calls(self) -> Calls:
        import openai

        return Calls(openai, lambda failed: refused_key(failed, self._settings))

    def _key(self) -> str:
        name = self._settings.api_key_env
        if name is None:
            return "none"  # the SDK insists on something
        return checked_secret(self._env, name, "backends.openai.api_key_env", key_problem(self._settings))


def account(settings: OpenAISettings, env: BackendEnv) -> str:
    """A fingerprint of the address and the key."""
    key = env.secret(settings.api_key_env) if settings.api_key_env else None
    return fingerprint(settings.host, key or '')


def key_problem(settings: OpenAISettings) -> Problem:
    """There is no key."""
    return Problem(
        f"the environment variable {settings.api_key_env} is not set", field="backends.openai.api_key_env",
        hint=f"export {settings.api_key_env}=..., or `distillctl sandbox openai` to rehearse without one")


def refused_key(failed: Failed, settings: OpenAISettings) -> Problem:
    """It is the key that was refused."""
    return Problem(
        f"{settings.host} refuses the key: {failed}", where="backend 'openai'",
        field="backends.openai.api_key_env", value=settings.api_key_env,
        hint="check the key, its project and its rights")


def raise_for_account(failed: Failed, settings: OpenAISettings) -> None:
    """BackendError where it is the key that was refused."""
    if failed.status in (401, 403):
        raise BackendError(refused_key(failed, settings)) from failed
