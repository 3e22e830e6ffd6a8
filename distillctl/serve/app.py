"""The server's routes, and what a request must be before a model sees it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from distillctl import types
from distillctl.data.pii import NOT_SENT
from distillctl.errors import DistillctlError
from distillctl.secrets import Secret
from distillctl.serve.batching import Batcher, refusal
from distillctl.serve.cascade import Cascade, Decided
from distillctl.serve.metrics import CONTENT_TYPE, Meters
from distillctl.serve.wire import ChatRequest, Completion, Refused, no_probabilities, parse_chat
from distillctl.using import Student

log = logging.getLogger("distillctl.serve")

Handler = Callable[[Request], Awaitable[Response]]

GONE = 499  # nginx's status for a client that hung up; only the metrics see it


@dataclass(frozen=True)
class Limits:
    """What one client may ask. body: bytes. requests: that wait or are answered at once, by the student or
    the teacher. body_seconds: for a body to arrive."""

    body: int = 1 << 20
    requests: int = 256
    body_seconds: float = 30.0


class Service:
    """A student behind HTTP. key: what clients must send, None where none is wanted; then only requests that
    name this machine as their host are taken, so that no web page can reach it through a name of its own."""

    def __init__(self, student: Student, key: Secret | None, limits: Limits,
                 cascade: Cascade | None = None) -> None:
        recipe = student.run.partition("/")[0]
        self._names = (recipe, student.run)
        self._student = student
        self._key = key.reveal().encode() if key else None
        self._limits = limits
        self._cascade = cascade
        self._batcher = Batcher(student, limits.requests, lambda size: self._meters.batch.observe(size))
        self._meters = Meters(student.run, student.task.labels, lambda: self._batcher.under_way,
                              self._with_personal_data)
        self._started = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._guarded(self._health, key=False)),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/models/{model:path}", self._guarded(self._model)),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=self._life, exception_handlers={HTTPException: _no_route})

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        self._batcher.start()
        try:
            yield
        finally:
            await self._batcher.stop()
            await self._student.predictor.aclose()
            if self._cascade:
                await self._cascade.teacher.predictor.aclose()

    # --- routes ---

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "run": self._student.run})

    async def _metrics(self, _: Request) -> Response:
        return Response(self._meters.text(), media_type=CONTENT_TYPE)

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._names]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in self._names:
            raise Refused(404, "There is no such model here.", "model_not_found", "model")
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> types.JSON:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "distillctl"}

    async def _chat(self, request: Request) -> Response:
        started = time.perf_counter()
        status = 500
        try:
            response = await self._complete(request)
            status = response.status_code
            return response
        except Refused as refused:
            status = refused.status
            raise
        except ClientDisconnect:
            status = GONE
            raise
        finally:
            self._meters.requests.labels(str(status)).inc()
            self._meters.seconds.observe(time.perf_counter() - started)

    async def _complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused(400, "Send `Content-Type: application/json`.")  # what a web form cannot
        body = await self._body(request)
        asked = parse_chat(body, self._student.task, self._names)
        identity = f"chatcmpl-{secrets.token_hex(12)}"
        said = types.Request(identity, asked.messages, max_tokens=asked.max_tokens)
        decided = await _unless_gone(request, self._decided(said))
        completion = self._completion(identity, asked, decided)
        headers = {"x-distillctl-run": self._student.run, "x-request-id": identity,
                   "x-distillctl-answered-by": decided.by}
        if decided.confidence is not None:
            headers["x-distillctl-confidence"] = f"{decided.confidence:.4f}"
        if decided.kept_back:
            headers["x-distillctl-kept-back"] = "personal-data"
        if asked.stream:
            return Response("".join(completion.events()), media_type="text/event-stream", headers=headers)
        return JSONResponse(completion.body(), headers=headers)

    def _with_personal_data(self) -> int:
        """Findings in prompts that were bound for the network, sent or kept back."""
        asked = [self._student, *([self._cascade.teacher] if self._cascade else [])]
        return sum(one.guard.found.total() for one in asked if one.guard)

    async def _decided(self, request: types.Request) -> Decided:
        with self._batcher.place():
            return await self._decide(request, await self._batcher.answer(request))

    async def _decide(self, request: types.Request, answer: types.Answer) -> Decided:
        if self._cascade is None:
            reading = self._student.read(answer)
            return Decided("student", answer, reading, (reading.probabilities or {}).get(reading.value))
        try:
            return await self._cascade.decide(request, answer)
        except DistillctlError as error:
            log.exception("the teacher did not answer")
            raise refusal(error) from None

    def _completion(self, identity: str, asked: ChatRequest, decided: Decided) -> Completion:
        answer, reading = decided.answer, decided.reading
        if answer.finish == "failed":
            if answer.error and answer.error.startswith("the prompt has"):
                raise Refused(400, f"Too long: {answer.error}.", "context_length_exceeded", "messages")
            if answer.error and answer.error.startswith("the model's chat template"):
                raise Refused(400, f"Not answered: {answer.error}.", "unsupported_value", "messages")
            if answer.error and answer.error.startswith(NOT_SENT):
                raise Refused(400, f"The prompt was {answer.error}.", "personal_data", "messages")
            raise Refused(502, f"The student gave no answer: {answer.error}")
        if asked.alternatives is not None and reading.probabilities is None and decided.by == "student":
            raise no_probabilities()
        self._meters.answered_by.labels(decided.by).inc()
        self._meters.spent.inc(answer.cost_usd or 0.0)
        self._meters.answered(reading.value, answer.tokens_in, answer.tokens_out)
        fingerprint = self._student.run.rpartition("-")[2]
        return Completion(identity, self._names[0], fingerprint, answer, reading, asked)

    # --- what is let in ---

    def _guarded(self, handler: Handler, *, key: bool = True) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                if self._key is None:
                    _check_host(request.headers.get("host", ""))
                elif key:
                    self._check_key(request.headers.get("authorization", ""))
                return await handler(request)
            except Refused as refused:
                return JSONResponse(refused.body(), refused.status, refused.headers)
            except ClientDisconnect:
                return Response(status_code=GONE)
            except Exception:
                log.exception("%s %s failed", request.method, request.url.path)
                return JSONResponse(Refused(500, "The server failed; its log says how.").body(), 500)

        return guarded

    def _check_key(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            raise Refused(401, "The API key is missing or wrong: send `Authorization: Bearer KEY`.",
                          "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body
        too_large = Refused(413, f"A body has at most {most} bytes.", "request_too_large",
                            headers={"Connection": "close"})
        if int(request.headers.get("content-length") or 0) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Refused(408, "The body did not arrive in time.", headers={"Connection": "close"}) from None
        return bytes(body)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Decided]) -> Decided:
    """What `work` gives. Once the client has hung up, it is cancelled. Raises ClientDisconnect."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _check_host(header: str) -> None:
    """Without a key, a request must name this machine itself (against DNS rebinding)."""
    if not is_loopback(header.rpartition("]")[0].lstrip("[") if "]" in header else header.partition(":")[0]):
        raise Refused(403, "Without an API key only requests to localhost are taken.", "forbidden_host")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        refused = Refused(404, f"There is no route {request.method} {request.url.path}.", "unknown_url")
    elif error.status_code == 405:
        refused = Refused(405, f"{request.url.path} does not take {request.method}.", "method_not_supported")
    else:
        return PlainTextResponse(str(error.detail), error.status_code)
    return JSONResponse(refused.body(), refused.status, dict(error.headers or {}))
