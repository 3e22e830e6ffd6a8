"""The official SDK with its retries off, and what became of a call.

Replies are read from the JSON itself: what the SDK's models promise and what the service sends differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillctl import registry
from distillctl.backend import BackendEnv, Rejected, Unreachable
from distillctl.errors import BackendError, MissingExtra, Problem
from distillctl.hosted import Failed, answered, checked_secret, fingerprint, json_object
from distillctl.retry import parse_retry_after
from distillctl_together.settings import TogetherSettings

if TYPE_CHECKING:
    import httpx
    import together

PAGE = 100
CREATE_PATH = "/v1/fine-tunes"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}")  # stands in a path
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*")


class Service:
    """One service as one account sees it. Opens a connection at the first call; `close` ends it."""

    def __init__(self, settings: TogetherSettings, env: BackendEnv) -> None:
        self._settings, self._env = settings, env
        self._client: Any = None
        self._project: str | None = None
        self._last = ("", "")  # method and path of the last request that was sent

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def sdk(self) -> together.Together:
        """The SDK's client. Raises MissingExtra, BackendError without a key."""
        if self._client is None:
            if missing := registry.needs("together", "together"):
                raise MissingExtra.of(missing)
            import httpx
            import together

            # an explicit address: TOGETHER_BASE_URL must not send the data elsewhere than `plan` says
            self._client = together.Together(
                api_key=self._key(), base_url=self._settings.url, project_id=self._settings.project_id,
                max_retries=0, timeout=self._settings.timeout, http_client=httpx.Client(
                    follow_redirects=False, timeout=self._settings.timeout,
                    event_hooks={"request": [self._before]}))
        return self._client

    @property
    def project(self) -> str:
        """The project that owns models and deployments. Raises Unreachable, BackendError."""
        if self._project is None:
            self._project = self.sdk.project_id or self._own_project()
        return self._project

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The JSON object that one call of `sdk….with_raw_response.…` brings. Raises Failed."""
        return json_object(self._sent(lambda: method(*args, **kwargs)).http_response)

    def read(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Like `call`, for a question: None where there is no such thing. Raises Unreachable, or
        BackendError where the key is refused."""
        return answered(lambda: self.call(method, *args, **kwargs),
                        lambda failed: raise_for_account(failed, self._settings))

    def pages(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Every entry of a listing by cursor, each id once. Raises as `read`."""
        seen: set[str] = set()
        after: dict[str, str] = {}
        while True:
            page = self.read(method, *args, limit=PAGE, **after, **kwargs) or {}
            new = [row for row in entries(page) if row["id"] not in seen]
            seen.update(row["id"] for row in new)
            yield from new
            cursor = page.get("next_cursor")
            if not new or not isinstance(cursor, str) or not cursor:
                return
            after = {"after": cursor}

    def upload(self, path: Path) -> str:
        """Send a training file: its id. The same content is there only once. Raises Failed."""
        sdk = self.sdk
        sent = self._sent(lambda: sdk.files.upload(path, purpose="fine-tune"))
        file_id = getattr(sent, "id", None)
        if not is_id(file_id):
            raise Failed("the reply to the upload names no file")
        return file_id

    def create(self, **arguments: Any) -> dict[str, Any]:
        """One create request, after the SDK's own questions for limits and price. Raises Failed, and Rejected
        where the SDK itself refuses the arguments."""
        sdk, self._last = self.sdk, ("", "")
        try:
            made = self._sent(lambda: sdk.fine_tuning.create(**arguments))
        except (ValueError, TypeError, AttributeError) as error:  # a reply that cannot be read is one, too
            if self._last != ("POST", CREATE_PATH):
                raise Rejected(f"the SDK refuses the job: {error}") from error
            raise Failed(f"the reply cannot be read: {error}") from error
        dump = getattr(made, "model_dump", None)
        if dump is None:
            raise Failed("the reply is no JSON object: " + " ".join(str(made).split())[:200])
        return dump(mode="json", by_alias=True, warnings=False)

    def _sent(self, send: Callable[[], Any]) -> Any:
        import httpx
        import together

        try:
            return send()
        except together.APIStatusError as error:
            raise _failed(error) from None
        except together.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Failed(f"{type(cause).__name__}: {cause}") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None

    def _before(self, request: httpx.Request) -> None:
        """Called with each request, uploads to the storage that the service names among them."""
        if request.url.scheme != "https" and request.url.host not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"refused to send data unencrypted to {request.url.host}")
        self._last = (request.method, request.url.path)

    def _own_project(self) -> str:
        found = (self.read(self.sdk.with_raw_response.whoami) or {}).get("project")
        project = found.get("id") if isinstance(found, dict) else None
        if not is_id(project):
            raise BackendError(Problem(
                "the key does not say which project it belongs to, and a deployment needs one",
                where=self._settings.host, field="backends.together.project_id",
                hint="set it to the project's id"))
        return project

    def _key(self) -> str:
        name = self._settings.api_key_env
        return checked_secret(self._env, name, "backends.together.api_key_env", key_problem(self._settings))


def entries(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a listing that have an id. Raises Unreachable where it is no listing."""
    rows = page.get("data")
    if not isinstance(rows, list):
        raise Unreachable("the listing cannot be read")
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def account(settings: TogetherSettings, env: BackendEnv) -> str:
    """A fingerprint of the address and the key."""
    key = env.secret(settings.api_key_env) or ""
    return fingerprint(settings.host, key)


def is_id(text: object) -> bool:
    """Whether `text` can be the id of something at the service, and stands in a path as it is."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def is_model(text: object) -> bool:
    """Whether `text` can be a model's name: owner/name."""
    return isinstance(text, str) and len(text) <= 300 and _MODEL.fullmatch(text) is not None


def key_problem(settings: TogetherSettings) -> Problem:
    """There is no key."""
    return Problem(
        f"the environment variable {settings.api_key_env} is not set", field="backends.together.api_key_env",
        hint=f"export {settings.api_key_env}=..., or `distillctl sandbox together` to rehearse without one")


def raise_for_account(failed: Failed, settings: TogetherSettings) -> None:
    """BackendError where it is the key that was refused."""
    if failed.status in (401, 403):
        raise BackendError(Problem(
            f"{settings.host} refuses the key: {failed}", where="backend 'together'",
            field="backends.together.api_key_env", value=settings.api_key_env,
            hint="check the key, its project, and the account's credit")) from failed


def _failed(error: together.APIStatusError) -> Failed:
    try:
        body = error.response.json()
    except (ValueError, RecursionError):
        body = {}
    body = body if isinstance(body, dict) else {}
    fields = body["error"] if isinstance(body.get("error"), dict) else body
    said = fields.get("message")
    text = said[:2000] if isinstance(said, str) else " ".join(error.response.text.split())[:300]
    return Failed(text or "no reason given", error.response.status_code,
                  parse_retry_after(error.response.headers.get("retry-after")))
