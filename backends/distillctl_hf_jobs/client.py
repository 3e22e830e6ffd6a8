"""The official SDK with its retries off and with time limits, and what became of a call.

The SDK has one HTTP client for the whole process, without a time limit, and asks most questions up to six
times. While a `Service` is open, that client is ours: it hands each failure on at once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distillctl import registry
from distillctl.backend import BackendEnv
from distillctl.errors import BackendError, MissingExtra, Problem
from distillctl.hosted import Failed, answered, checked_secret, fingerprint
from distillctl.retry import parse_retry_after
from distillctl.store.files import atomic_write
from distillctl_hf_jobs.settings import HfJobsSettings

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

T = TypeVar("T")
LOG_PAUSE_S = 1.0  # a log that is silent for so long has been read to its present end
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,95}")  # of a job or a token, for a path
_ONE_AT_A_TIME = threading.RLock()  # the SDK's client is one for the process


class Service:
    """The Hub as one account sees it, for as long as the block runs. Raises MissingExtra, BackendError
    without a token."""

    def __init__(self, settings: HfJobsSettings, env: BackendEnv) -> None:
        self._settings, self._env = settings, env
        self._restore: list[Callable[[], None]] = []
        self.api: HfApi

    def __enter__(self) -> Service:
        if missing := registry.needs("hf-jobs", "huggingface_hub"):
            raise MissingExtra.of(missing)
        token = self._token()
        from huggingface_hub import HfApi, constants, set_client_factory
        from huggingface_hub.utils import (
            _http,
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        if self._settings.base_url is None and constants.is_offline_mode():
            raise BackendError(Problem("HF_HUB_OFFLINE forbids to reach the Hub", where="backend 'hf-jobs'",
                                       hint="unset it, or train with `backend: local`"))
        _ONE_AT_A_TIME.acquire()
        before, xet = _http._GLOBAL_CLIENT_FACTORY, constants.HF_HUB_DISABLE_XET
        self._restore = [lambda: set_client_factory(before),
                         lambda: setattr(constants, "HF_HUB_DISABLE_XET", xet)]
        set_client_factory(lambda: _client(self._settings))
        if self._settings.base_url is not None:
            constants.HF_HUB_DISABLE_XET = True  # its storage servers are the Hub's own
        if not are_progress_bars_disabled():
            disable_progress_bars()
            self._restore.append(enable_progress_bars)
        self.api = HfApi(endpoint=self._settings.endpoint, token=token, library_name="distillctl")
        return self

    def __exit__(self, *_: object) -> None:
        while self._restore:
            self._restore.pop()()
        _ONE_AT_A_TIME.release()

    def call(self, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """What one call of the SDK gives; an iterable is read to its end. Raises Failed."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            found = method(*args, **kwargs)
            return list(found) if hasattr(found, "__next__") else found  # type: ignore[return-value]
        except HfHubHTTPError as error:
            raise _failed(error.response) from None
        except RuntimeError as error:  # how the SDK words what broke one of several uploads
            cause = error.__cause__
            if isinstance(cause, Failed):
                raise cause from None
            if isinstance(cause, HfHubHTTPError):
                raise _failed(cause.response) from None
            raise Failed(f"{error}: {cause}") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Failed(f"the reply cannot be read: {type(error).__name__}: {error}"[:300]) from None

    def read(self, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> T | None:
        """Like `call`, for a question: None where there is no such thing. Raises Unreachable, or
        BackendError where the token is refused."""
        return answered(lambda: self.call(method, *args, **kwargs),
                        lambda failed: raise_for_account(failed, self._settings))

    def download(self, repo: str, name: str, revision: str, into: Path, most: int) -> bool:
        """One file of a model repo, as it is, of at most `most` bytes; whether it is there. Raises as
        `read`."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repo, name, revision=revision, endpoint=self._settings.endpoint)

        def fetch() -> bool:
            with get_session().stream("GET", url, headers=build_hf_headers(token=self.api.token)) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _failed(reply)
                size = 0
                with atomic_write(into, "wb") as file:
                    for piece in reply.iter_bytes():
                        size += len(piece)
                        if size > most:
                            raise BackendError(Problem(f"is larger than {most} bytes", where=repo,
                                                       value=name))
                        file.write(piece)
            return True

        return self.read(fetch) is not None

    def _token(self) -> str:
        name = self._settings.api_key_env
        return checked_secret(self._env, name, "backends.hf-jobs.api_key_env", token_problem(self._settings))


def _client(settings: HfJobsSettings) -> httpx2.Client:
    """The SDK's client, without retries and with a time limit on every request."""
    import httpx2

    home = httpx2.URL(settings.endpoint)

    class Transport(httpx2.HTTPTransport):
        """Raises `Failed` for what the SDK would try again, and sends the token to its own host only."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            to = request.url
            if "authorization" in request.headers and (to.scheme, to.host, to.port) != (
                    home.scheme, home.host, home.port):
                raise Failed(f"the service points to {to.host}, which is not given the token")
            logs = request.method == "GET" and to.path.endswith("/logs")
            # the SDK asks for no limit, or one of its own
            request.extensions["timeout"] = dict.fromkeys(
                ("connect", "read", "write", "pool"), settings.request_timeout)
            if logs:
                request.extensions["timeout"]["read"] = min(LOG_PAUSE_S, settings.request_timeout)
            try:
                reply = super().handle_request(request)
                reply.request = request
                if not logs and not (request.method == "GET" and "/resolve/" in to.path):
                    reply.read()
                if reply.status_code in (408, 429) or reply.status_code >= 500 or _is_busy(reply):
                    reply.read()
                    raise _failed(reply)
            except httpx2.TransportError as error:
                if logs and isinstance(error, httpx2.ReadTimeout):
                    raise
                raise Failed(f"{type(error).__name__}: {error}") from None
            return reply

    class Client(httpx2.Client):
        """Takes a file as the SDK hands it over for an upload, by a name that httpx2 deprecates."""

        def request(self, method: str, url: Any, *, data: Any = None, **more: Any) -> httpx2.Response:
            if data is not None and not isinstance(data, Mapping):
                return super().request(method, url, content=data, **more)
            return super().request(method, url, data=data, **more)

    return Client(transport=Transport(), follow_redirects=True, timeout=settings.request_timeout)


def _is_busy(reply: httpx2.Response) -> bool:
    """A refusal that the SDK answers by asking again, without end and without a pause."""
    return reply.status_code == 409 and "conflicting operation is in progress" in reply.text


def account(settings: HfJobsSettings, env: BackendEnv) -> str:
    """A fingerprint of the address and the token."""
    token = env.secret(settings.api_key_env) or ""
    return fingerprint(settings.host, token)


def is_name(text: object) -> bool:
    """Whether `text` can be a job's id or a token, and stands in a path as it is."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def token_problem(settings: HfJobsSettings) -> Problem:
    """There is no token."""
    name = settings.api_key_env
    return Problem(
        f"the environment variable {name} is not set", field="backends.hf-jobs.api_key_env",
        hint=f"export {name}=..., or `distillctl sandbox hf-jobs` to rehearse without an account")


def raise_for_account(failed: Failed, settings: HfJobsSettings) -> None:
    """BackendError where it is the token that was refused."""
    if failed.status in (401, 403):
        raise BackendError(Problem(
            f"{settings.host} refuses the token: {failed}", where="backend 'hf-jobs'",
            field="backends.hf-jobs.api_key_env", value=settings.api_key_env,
            hint="check the token: it must be able to write and to run jobs in this namespace")) from failed


def _failed(reply: httpx2.Response) -> Failed:
    said = reply.headers.get("x-error-message") or ""
    if not said:
        try:
            body = reply.json()
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and isinstance(body.get("error"), str):
            said = body["error"]
    said = said or " ".join(reply.text.split())[:300] or "no reason given"
    return Failed(said[:2000], reply.status_code, parse_retry_after(reply.headers.get("retry-after")))
