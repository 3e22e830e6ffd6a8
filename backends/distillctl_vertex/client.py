"""Google's own SDKs with their retries off, whose credentials they carry, and what became of a call."""

from __future__ import annotations

import re
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from distillctl import registry
from distillctl.backend import BackendEnv, Unreachable
from distillctl.errors import BackendError, MissingExtra, Problem
from distillctl.hosted import Failed, answered, fingerprint, unreachable
from distillctl.retry import parse_retry_after
from distillctl_vertex.settings import VertexSettings

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud import storage
    from google.genai import Client

NEEDS = ("google.genai", "google.cloud.storage", "httpx2")
PAGE = 100
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_ADDRESS = re.compile(r"^[A-Z]+ https?://\S+: ")  # of the request, before what was said


class Service:
    """Vertex AI and Cloud Storage as one account sees them. Opens connections at the first calls; the end
    of its block closes them. location: of the API, where it is not the settings'."""

    def __init__(self, settings: VertexSettings, env: BackendEnv, location: str | None = None) -> None:
        self._settings, self._env = settings, env
        self._location = location or settings.location
        self._open: list[Any] = []

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.pop().close()
        for made in ("sdk", "bucket"):
            self.__dict__.pop(made, None)

    @cached_property
    def credentials(self) -> Credentials:
        """Raises MissingExtra, and BackendError where there are none."""
        return credentials(self._settings, self._env)

    @property
    def account(self) -> str:
        """A fingerprint of the address, the project and whose credentials they are."""
        known = self.credentials
        who = getattr(known, "service_account_email", None) or getattr(known, "account", None) or getattr(
            known, "client_id", None) or (known.token if self._settings.is_here else "")
        return fingerprint(self._settings.base_url or "google", self._settings.project, str(who))

    @cached_property
    def sdk(self) -> Client:
        """The client of google-genai."""
        import httpx2

        known = self.credentials
        http = httpx2.Client(follow_redirects=False, timeout=self._settings.timeout, verify=_tls())
        client = genai_client(self._settings, known, self._location, httpx_client=http)
        self._open += [http, client]
        return client

    @cached_property
    def bucket(self) -> storage.Bucket:
        """The bucket, as google-cloud-storage sees it; nothing is asked yet."""
        known = self.credentials
        from google.cloud import storage

        # an explicit address: STORAGE_EMULATOR_HOST must not send the data elsewhere than `plan` says
        client = storage.Client(project=self._settings.project, credentials=known,
                                client_options={"api_endpoint": self._settings.storage_address})
        self._open.append(client)
        return client.bucket(self._settings.bucket)

    def call(self, method: Callable[..., Any], /, **arguments: Any) -> dict[str, Any]:
        """What one call of google-genai brings, as JSON. Raises Failed, BackendError."""
        with _genai_failures():
            return method(**arguments).to_json_dict()

    def read(self, method: Callable[..., Any], /, **arguments: Any) -> dict[str, Any] | None:
        """Like `call`, for a question: None where there is no such thing. Raises Unreachable, or
        BackendError where the credentials are refused."""
        return answered(lambda: self.call(method, **arguments),
                        lambda failed: raise_for_account(failed, self._settings))

    def tuning_jobs(self) -> Iterator[dict[str, Any]]:
        """Every tuning job of the project and region, page after page, each name once. Raises as `read`."""
        seen: set[str] = set()
        token: str | None = None
        while True:
            try:
                with _genai_failures():
                    page = self.sdk.tunings.list(config={"page_size": PAGE, "page_token": token})
                    rows = [job.to_json_dict() for job in page.page]
                    following = page.config.get("page_token")
            except Failed as failed:
                raise_for_account(failed, self._settings)
                raise unreachable(failed) from failed
            for row in rows:
                if isinstance(row.get("name"), str) and row["name"] not in seen:
                    seen.add(row["name"])
                    yield row
            if not following:
                return
            if following == token:
                raise Unreachable("the listing of tuning jobs does not end")
            token = following


def credentials(settings: VertexSettings, env: BackendEnv) -> Credentials:
    """Application Default Credentials; for a service on this machine, the token that the settings name.
    Raises MissingExtra, BackendError."""
    if missing := registry.needs("vertex", *NEEDS):
        raise MissingExtra.of(missing)
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.oauth2.credentials import Credentials

    if settings.is_here:
        token = env.secret(settings.access_token_env)
        if not token or not (token.isascii() and token.isprintable()):
            raise BackendError(Problem(
                f"the environment variable {settings.access_token_env} "
                f"{'holds characters that no token has' if token else 'is not set'}",
                field="backends.vertex.access_token_env",
                hint=f"export {settings.access_token_env}=sandbox: any word will do for `distillctl sandbox "
                     "vertex`"))
        return Credentials(token=token)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a user's own login has no quota project: fine
            found, _ = google.auth.default(scopes=[_SCOPE])
    except (GoogleAuthError, OSError) as error:
        raise BackendError(credentials_problem(f"there are none that can be read ({error})")) from None
    return found


def genai_client(settings: VertexSettings, known: Credentials, location: str, **clients: Any) -> Client:
    """A client of google-genai for one region. clients: `httpx_client` or `httpx_async_client`."""
    from google import genai
    from google.genai import types

    return genai.Client(
        enterprise=True, project=settings.project, location=location, credentials=known,
        http_options=types.HttpOptions(
            base_url=settings.address(location), timeout=int(settings.timeout * 1000),
            # one context for all that the client prepares: it would read the certificates three times
            client_args={"verify": _tls()}, async_client_args={"verify": _tls(), "ssl": _tls()},
            retry_options=types.HttpRetryOptions(attempts=1), **clients))


@cache
def _tls() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def credentials_problem(what: str) -> Problem:
    return Problem(
        f"Google's Application Default Credentials: {what}", where="backend 'vertex'",
        hint="`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE of a service "
             "account; `distillctl sandbox vertex` rehearses without any")


def raise_for_account(failed: Failed, settings: VertexSettings) -> None:
    """BackendError where it is the credentials that were refused."""
    if failed.status in (401, 403):
        raise BackendError(Problem(
            f"{settings.host} refuses these credentials: {failed}", where="backend 'vertex'",
            field="backends.vertex.project", value=settings.project,
            hint="check the project, that its Vertex AI API is on, and the account's roles: Vertex AI User, "
                 "and Storage Object Admin on the bucket")) from failed


@contextmanager
def _genai_failures() -> Iterator[None]:
    """Turns what google-genai raises into Failed."""
    import httpx2
    from google.genai import errors

    try:
        with _auth_failures(), warnings.catch_warnings():
            # "experimental", and words of a newer API: both are read for what they are
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", errors.ExperimentalWarning)
            yield
    except errors.APIError as error:
        headers = getattr(error.response, "headers", None) or {}
        raise Failed(_words(error.message or error.status), error.code,
                     parse_retry_after(headers.get("retry-after"))) from None
    except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Failed(f"the reply cannot be read: {_words(error)[:200]}") from None


@contextmanager
def storage_failures() -> Iterator[None]:
    """Turns what google-cloud-storage raises into Failed."""
    import requests
    import urllib3
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        with _auth_failures():
            yield
    except GoogleAPICallError as error:
        headers = getattr(error.response, "headers", None) or {}
        raise Failed(_words(_ADDRESS.sub("", error.message or "")), error.code,
                     parse_retry_after(headers.get("retry-after"))) from None
    except InvalidResponse as error:
        raise Failed(_words(error), error.response.status_code) from None
    except (DataCorruption, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise Failed(f"{type(error).__name__}: {_words(error)[:300]}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Failed(f"the reply cannot be read: {_words(error)[:200]}") from None


@contextmanager
def _auth_failures() -> Iterator[None]:
    """What getting an access token can end in; nothing was sent to the service itself."""
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except TransportError as error:
        raise Failed(f"no access token: {_words(error)[:300]}") from None
    except GoogleAuthError as error:
        raise BackendError(credentials_problem(f"no access token ({_words(error)[:300]})")) from None


def _words(text: object) -> str:
    """What a service says, on one line."""
    return " ".join(str(text or "no reason given").split())[:2000]
