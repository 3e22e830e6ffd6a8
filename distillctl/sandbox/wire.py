"""What a provider's part is made of: routes, calls, replies, refusals.

    class AcmePart(ProviderPart):
        name = "acme"
        phases = (("pending", 2), ("running", 5))

        @route("POST", "/v1/jobs", "jobs.create")
        def create(self, call: Call) -> Reply | JSON: ...

A route's name is what faults and counts go by. Names that the core knows: "jobs.create" (the paid request),
"jobs.list", "jobs.get". In a path, `{x}` is one segment or a piece of it and `{x*}` may hold slashes; routes
are tried in the order in which they are written. A handler returns JSON (status 200) or a `Reply`, and
raises `Refused`. It runs inside one transaction, alone, unless its route says `slow`.
"""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, Any, ClassVar

from distillctl.recipe.overrides import VARIABLE
from distillctl.types import JSON

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from distillctl.sandbox.faults import Fault
    from distillctl.sandbox.jobs import Job
    from distillctl.sandbox.server import Sandbox
    from distillctl.sandbox.tuner import Report


@dataclass(frozen=True)
class Reply:
    """An answer. body: bytes as they are, JSON, or pieces that are sent as they come, until the last one
    closes the connection. headers replace the default ones of the same name."""

    body: bytes | JSON | Iterator[bytes] = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The request is refused; `ProviderPart.error_body` words it as the provider does."""

    def __init__(self, status: int, message: str, **details: JSON) -> None:
        super().__init__(message)
        self.status, self.message, self.details = status, message, details


@dataclass
class Call:
    """One request. path: `{x}` of the route, unquoted. query: the last value of each name. headers: names
    in lower case. base_url: of this server as the client wrote it. fault: the listing or word fault that
    the route's reply must show (the core's helpers do)."""

    method: str
    url: str
    path: dict[str, str]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    base_url: str
    fault: Fault | None = None
    account: str = ""  # what `ProviderPart.account` said

    def json(self) -> dict[str, JSON]:
        """The body as a JSON object, or Refused with 400."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Refused(400, "We could not parse the JSON body of your request.")
        return value

    def bearer(self) -> str:
        """The key in the Authorization header, "" where there is none."""
        kind, _, key = self.headers.get("authorization", "").partition(" ")
        return key.strip() if kind.lower() == "bearer" else ""

    def number(self, name: str, default: int, most: int) -> int:
        """A count from the query, in 1 … most; Refused with 400 where it is none."""
        text = self.query.get(name, str(default))
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise Refused(400, f"Invalid '{name}': expected an integer from 1 to {most}, got {text!r}.",
                          param=name)
        return int(text)

    def multipart(self) -> dict[str, tuple[str | None, bytes]]:
        """The fields of a multipart/form-data body: name to (file name or None, content)."""
        boundary = re.search(r'boundary="?([^";]+)', self.headers.get("content-type", ""))
        if boundary is None:
            raise Refused(400, "Expected a multipart/form-data body.")
        found = {}
        for piece in (b"\r\n" + self.body).split(b"\r\n--" + boundary.group(1).encode())[1:-1]:
            head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            headers = BytesHeaderParser().parsebytes(head)
            name = headers.get_param("name", header="content-disposition")
            found[str(name)] = (headers.get_filename(), content)
        return found


@dataclass(frozen=True)
class Route:
    """One entry of a part's routing table."""

    method: str
    pattern: re.Pattern[str]
    name: str
    handler: str  # attribute of the part
    slow: bool  # runs outside the transaction, beside other calls


def route(method: str, path: str, name: str, slow: bool = False) -> Callable[[Callable], Callable]:
    """Declare a handler; several of these may stand over one."""
    def piece(match: re.Match[str]) -> str:
        return f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+?'})"

    parts = re.split(r"(\{\w+\*?\})", path)
    pattern = re.compile("".join(
        re.sub(r"^\{(\w+)(\*?)\}$", piece, part) if part.startswith("{") else re.escape(part)
        for part in parts))

    def mark(handler: Callable) -> Callable:
        handler.routes = [*getattr(handler, "routes", ()),
                          Route(method, pattern, name, handler.__name__, slow)]
        return handler
    return mark


class ProviderPart(ABC):
    """One provider: subclass it, declare routes, fill in the class attributes."""

    name: ClassVar[str]
    phases: ClassVar[tuple[tuple[str, float], ...]]
    """A job's words before its end, in order, with how long each lasts, seconds; the last one lasts until
    the training has ended."""
    ends: ClassVar[Mapping[str, str]] = {
        "succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}
    """The provider's words for the three ends."""
    cancelling: ClassVar[str | None] = None
    """The word between a cancel and its effect; None: it takes effect at once."""
    refusal: ClassVar[str] = "This organization may not create jobs."
    """The words of a scripted refusal (403 where a test or `--fault` asks for one)."""
    base_models: ClassVar[tuple[str, ...]] = ()
    """Models that can be tuned here, and answer untrained."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.store = sandbox.store
        self.jobs = sandbox.joblist

    @classmethod
    def routes(cls) -> list[Route]:
        """The routing table, in the order of the class body."""
        return [found for handler in vars(cls).values() for found in getattr(handler, "routes", ())]

    def account(self, call: Call) -> str:
        """Whose call it is: a fingerprint of its key. Raises Refused without one."""
        key = call.bearer()
        if not key:
            raise Refused(401, "You didn't provide an API key.")
        return fingerprint(key)

    def error_body(self, refused: Refused) -> JSON:
        """The error body in the provider's shape."""
        return {"error": {"message": refused.message, **refused.details}}

    def error_headers(self, refused: Refused) -> Mapping[str, str]:
        """Headers that come with an error."""
        return {}

    def train(self, job: Job, rows: Path, into: Path, report: Report, stop: threading.Event) -> None:
        """Do a job's work, as `Tuner.train` does it. Raises TuningFailed."""
        self.jobs.tuner.train(rows, job.epochs, into, report, stop)

    @abstractmethod
    def new_job_id(self) -> str:
        """A fresh id in the provider's shape."""

    @abstractmethod
    def ended(self, job: Job) -> None:
        """Called once, when a job has got its `end`: bill it, publish what it made."""

    @abstractmethod
    def anonymous(self, request: dict[str, JSON]) -> dict[str, JSON]:
        """`Job.request` without our token: of a job that somebody else made."""

    def paid_servers(self) -> int:
        """Servers that are running and billed by the minute."""
        return 0

    @abstractmethod
    def key_variable(self) -> str:
        """The environment variable whose value the provider takes for a key."""

    @abstractmethod
    def settings(self, url: str) -> dict[str, JSON]:
        """The settings that point a recipe's `backends.<name>` here."""

    def pointers(self, url: str) -> list[str]:
        """Commands for a person's shell, after which a run changes one word to come here."""
        variable = f"{VARIABLE}{self.name.upper().replace('-', '_')}"
        return [f"export {self.key_variable()}=sandbox",
                f"export {variable}='{json.dumps(self.settings(url))}'",
                f"distillctl run RECIPE --backend {self.name}"]


def fingerprint(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def match(routes: list[Route], method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """The route of a request and the pieces of its path, unquoted."""
    for candidate in routes:
        if candidate.method == method and (found := candidate.pattern.fullmatch(path)):
            return candidate, {name: urllib.parse.unquote(text) for name, text in found.groupdict().items()}
    return None


def query_of(text: str) -> dict[str, str]:
    """A query string; of a repeated name, the last value."""
    return dict(urllib.parse.parse_qsl(text, keep_blank_values=True))


def encode(body: Any) -> bytes:
    """A reply's body as bytes."""
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
