"""A small training service on loopback, and the backend that speaks to it over HTTP.

The service keeps its jobs in memory, sees each create request, and can be told to fail as real ones do.
It "trains" by remembering the most frequent answer of the uploaded file.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from distillctl.backend import (
    API_VERSION,
    Ambiguous,
    BackendEnv,
    Capabilities,
    JobEvent,
    JobHandle,
    Preflight,
    Rejected,
    Snapshot,
    Staged,
    StudentRef,
    TrainJob,
    Unreachable,
)
from distillctl.errors import BackendError, Problem, StudentError
from distillctl.recipe.models import EvaluateSpec, Strict
from distillctl.store.files import write_json
from distillctl.task import Task
from distillctl.testing.outage import Outages
from distillctl.types import Answer

PAGE = 100
STORY = ("queued", "running", "running", "succeeded")


class Provider(Outages):
    """The service. Use as a context manager; `url` is where it answers."""

    refusal = "this model cannot be tuned"

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.files: dict[str, str] = {}
        self.made: list[dict[str, Any]] = []
        self.create_requests: list[str] = []  # the token of each
        self.cancels: list[str] = []
        self.serving: set[str] = set()
        self.faults: list[str] = []
        self.hidden_listings = 0  # how many listings do not show the newest job yet
        self.cost = 1.25
        self.seen_keys: set[str] = set()

    def __enter__(self) -> Provider:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.provider = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # --- what tests ask and tell ---

    def creates(self) -> int:
        return len(self.create_requests)

    def jobs(self) -> int:
        return sum(1 for job in self.made if job["token"])

    def break_next_create(self, how: str) -> None:
        self.faults.append(how)

    def say(self, job_id: str, word: str) -> None:
        self._job(job_id)["word"] = word

    def delete(self, job_id: str) -> None:
        self.made.remove(self._job(job_id))

    def duplicate(self, job_id: str) -> str:
        first = self._job(job_id)
        return self.make(first["token"], first["file"], first["key"], first["created_at"] + 1)["id"]

    def crowd(self, count: int) -> None:
        for _ in range(count):
            self.make("", "none", next(iter(self.seen_keys)), time.time())

    def paid_servers(self) -> int:
        return len(self.serving)

    # --- what it does ---

    def make(self, token: str, file: str, key: str, created_at: float) -> dict[str, Any]:
        with self.lock:
            job = {"id": f"job-{len(self.made) + 1:04}", "token": token, "file": file, "key": key,
                   "created_at": created_at, "looks": 0, "word": None, "cancelled": False}
            self.made.append(job)
            return job

    def _job(self, job_id: str) -> dict[str, Any]:
        return next(job for job in self.made if job["id"] == job_id)

    def status(self, job: dict[str, Any]) -> str:
        if job["word"]:
            return job["word"]
        if job["cancelled"]:
            return "cancelled"
        return STORY[min(job["looks"], len(STORY) - 1)]

    def student(self, job: dict[str, Any]) -> str:
        rows = map(json.loads, self.files[job["file"]].splitlines())
        return Counter(row["completion"] for row in rows).most_common(1)[0][0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        provider: Provider = self.server.provider
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        url = urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.split("/")[1:]]
        with provider.lock:
            provider.seen_keys.add(key)
            if provider.down:
                return self._send(503, {"error": "down for maintenance"})
            if (method, parts) == ("POST", ["files"]):
                name = "file-" + hashlib.sha256(body.encode()).hexdigest()[:16]
                provider.files[name] = body
                return self._send(200, {"id": name})
            if (method, parts) == ("POST", ["jobs"]):
                return self._create(provider, json.loads(body), key)
            if (method, parts) == ("GET", ["jobs"]):
                return self._list(provider, key, int(urllib.parse.parse_qs(url.query)["skip"][0]))
            if parts[0] == "servers":
                (provider.serving.discard if method == "DELETE" else provider.serving.add)(parts[1])
                return self._send(200, {})
            job = next((job for job in provider.made
                        if job["key"] == key and len(parts) > 1 and job["id"] == parts[1]), None)
            if job is None:
                return self._send(404, {"error": "no such job"})
            return self._one(provider, job, "/".join(parts[2:]))

    def _create(self, provider: Provider, asked: dict[str, Any], key: str) -> None:
        provider.create_requests.append(asked["token"])
        fault = provider.faults.pop(0) if provider.faults else None
        if fault == "refused":
            return self._send(400, {"error": provider.refusal})
        if fault == "error_before":
            return self._send(500, {"error": "internal error"})
        job = provider.make(asked["token"], asked["file"], key, time.time())
        if fault == "error_after":
            return self._send(500, {"error": "internal error"})
        if fault == "garbled":
            return self._send(200, None)
        if fault == "lost_reply":
            self.close_connection = True
            return None
        return self._send(200, _public(provider, job))

    def _list(self, provider: Provider, key: str, skip: int) -> None:
        mine = [job for job in reversed(provider.made) if job["key"] == key]
        if provider.hidden_listings > 0 and skip == 0:
            provider.hidden_listings -= 1
            mine = mine[1:]
        self._send(200, {"jobs": [_public(provider, job) for job in mine[skip:skip + PAGE]],
                         "more": len(mine) > skip + PAGE})

    def _one(self, provider: Provider, job: dict[str, Any], what: str) -> None:
        if what == "cancel":
            if provider.status(job) not in ("succeeded", "failed"):
                job["cancelled"] = True
            provider.cancels.append(job["id"])
            return self._send(200, {})
        if what == "student":
            return self._send(200, {"answer": provider.student(job)})
        seen = _public(provider, job)
        job["looks"] += 1
        return self._send(200, seen)

    def _send(self, status: int, body: dict[str, Any] | None) -> None:
        data = b"<html>gateway" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _public(provider: Provider, job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "token": job["token"], "created_at": job["created_at"],
            "status": provider.status(job), "cost": provider.cost,
            "events": [{"key": f"step-{n}", "time": job["created_at"] + n, "message": f"step {n}"}
                       for n in range(1, min(job["looks"], 3) + 1)]}


# --- the backend ----------------------------------------------------------------------------------------


class LoopbackSettings(Strict):
    url: str


class LoopbackBackend:
    """Trains at the service above."""

    name: ClassVar[str] = "loopback"
    api_version: ClassVar[int] = API_VERSION
    capabilities: ClassVar[Capabilities] = Capabilities(
        task_kinds=frozenset({"classification"}), reports_cost=True)
    Settings: ClassVar[type[LoopbackSettings]] = LoopbackSettings

    def __init__(self, settings: LoopbackSettings, env: BackendEnv) -> None:
        self._url = settings.url
        self._env = env

    def preflight(self, job: TrainJob) -> Preflight:
        problems = () if job.task.kind == "classification" else (
            Problem("labels only", field="task.kind", value=job.task.kind),)
        return Preflight(problems=problems, cost_usd=(1.0, 2.0), sends_to=(self._url,))

    def stage(self, job: TrainJob) -> Staged:
        return Staged({"file": self._ask("POST", "files", job.train_file.read_text())["id"]})

    def submit(self, job: TrainJob, staged: Staged, token: str) -> JobHandle:
        try:
            made = self._send("POST", "jobs", json.dumps({"token": token, "file": staged.data["file"]}))
            return self._handle(made)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            raise (Rejected if error.code < 500 else Ambiguous)(said) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Ambiguous(str(error)) from error

    def find(self, token: str) -> list[JobHandle]:
        found, skip = [], 0
        while True:
            page = self._ask("GET", f"jobs?skip={skip}")
            found += [self._handle(job) for job in page["jobs"] if job["token"] == token != ""]
            if not page["more"]:
                return sorted(found, key=lambda handle: handle.created_at)
            skip += len(page["jobs"])

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        seen = self._ask("GET", self._path(handle))
        if seen is None:
            return Snapshot("lost", "404", f"made with account {handle.account}, this is {self._account()}")
        word = seen["status"]
        known = ("queued", "running", "succeeded", "failed", "cancelled")
        return Snapshot(word if word in known else "unknown", word, f"the service says {word}",
                        tuple(JobEvent(**event) for event in seen["events"]), cost_usd=seen["cost"])

    def cancel(self, handle: JobHandle) -> None:
        self._ask("POST", f"{self._path(handle)}/cancel")

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        student = self._ask("GET", f"{self._path(handle)}/student")
        if student is None:
            raise BackendError(Problem("no such job", value=handle.job_id))
        write_json(into / "receipt.json", {"job": handle.job_id})
        return StudentRef(self.name, "hosted", handle.job_id, data={"answer": student["answer"]})

    @contextmanager
    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> Iterator[Constant]:
        if self._ask("POST", f"servers/{urllib.parse.quote(student.model, safe='')}") is None:
            raise StudentError(Problem("cannot be served", value=student.model))
        try:
            yield Constant(student)
        finally:
            self._ask("DELETE", f"servers/{urllib.parse.quote(student.model, safe='')}")

    def _account(self) -> str:
        return hashlib.sha256((self._env.secret("LOOPBACK_API_KEY") or "").encode()).hexdigest()[:8]

    def _handle(self, job: dict[str, Any]) -> JobHandle:
        return JobHandle(self.name, job["id"], job["token"], self._account(), job["created_at"])

    def _path(self, handle: JobHandle) -> str:
        return "jobs/" + urllib.parse.quote(handle.job_id, safe="")

    def _ask(self, method: str, path: str, body: str | None = None) -> Any:
        """One request; None for 404."""
        try:
            return self._send(method, path, body)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise Unreachable(f"HTTP {error.code}") from error
        except (OSError, ValueError) as error:
            raise Unreachable(str(error)) from error

    def _send(self, method: str, path: str, body: str | None = None) -> Any:
        request = urllib.request.Request(
            f"{self._url}/{path}", body.encode() if body is not None else None, method=method,
            headers={"Authorization": f"Bearer {self._env.secret('LOOPBACK_API_KEY')}"})
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.loads(reply.read())


class Constant:
    max_batch = 1
    replayed = False

    def __init__(self, student: StudentRef) -> None:
        self.identity = {"backend": student.backend, "model": student.model}
        self._answer = student.data["answer"]

    async def answer(self, requests):
        return [Answer(self._answer, model="constant") for _ in requests]

    async def aclose(self) -> None: ...


class AtLoopback:
    """The contract suite's hooks for a backend that talks to a `Provider`."""

    @classmethod
    def make_provider(cls, folder: Path) -> Provider:
        return Provider()

    @classmethod
    def settings(cls, provider: Provider) -> dict[str, str]:
        return {"url": provider.url}
