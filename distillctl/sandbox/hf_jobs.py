"""Hugging Face's part: Jobs on rented hardware, beside the Hub's repos (`hf_jobs_hub.py`).

Wire format: https://huggingface.co/docs/huggingface_hub/guides/jobs and the SDK's own requests. A job's
command really runs (`hf_jobs_container.py`); `--student` has no part in it.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from distillctl.sandbox.hf_jobs_checks import HARDWARE, check_create, hardware_row
from distillctl.sandbox.hf_jobs_container import Container
from distillctl.sandbox.hf_jobs_hub import HubRoutes
from distillctl.sandbox.jobs import Job
from distillctl.sandbox.tuner import MODEL, Report, TuningFailed
from distillctl.sandbox.wire import Call, Refused, Reply, Route, fingerprint, route
from distillctl.types import JSON

PAGE = 100
KEEP_ALIVE_S = 30.0


class HfJobsPart(HubRoutes):
    """huggingface.co as it answers an account with credit."""

    name: ClassVar[str] = "hf-jobs"
    phases: ClassVar = (("SCHEDULING", 5.0), ("RUNNING", 0.0))
    ends: ClassVar = {"succeeded": "COMPLETED", "failed": "ERROR", "cancelled": "CANCELED"}
    cancelling: ClassVar[str | None] = "RUNNING"
    refusal: ClassVar[str] = "Pre-paid credit balance is insufficient"

    def __init__(self, sandbox: Any) -> None:
        super().__init__(sandbox)
        self.container = Container()
        self._secrets: dict[str, dict[str, str]] = {}  # by job; in memory alone

    @classmethod
    def routes(cls) -> list[Route]:
        return [found for owner in (HfJobsPart, HubRoutes) for handler in vars(owner).values()
                for found in getattr(handler, "routes", ())]

    # --- jobs ---

    @route("GET", "/api/jobs/hardware", "jobs.hardware")
    def hardware(self, call: Call) -> JSON:
        return [hardware_row(name) for name in HARDWARE]

    @route("POST", "/api/jobs/{ns}", "jobs.create")
    def create_job(self, call: Call) -> JSON:
        namespace, asked = call.path["ns"], call.json()
        if call.bearer().startswith("read-") or not self.owns(call.account, namespace):
            raise Refused(403, f"You don't have the rights to run jobs under the namespace {namespace!r}")
        check_create(asked)
        for volume in asked.get("volumes") or ():
            self._check_volume(call, volume)
        hidden = asked.pop("secrets", {})
        job = self.jobs.create(call, {**asked, "secrets": sorted(hidden), "namespace": namespace}, [], 1)
        self._secrets[job.id] = hidden
        return self._public(job, self.jobs.word(job))

    @route("GET", "/api/jobs/{ns}", "jobs.list")
    def list_jobs(self, call: Call) -> Reply:
        if not self.owns(call.account, call.path["ns"]):
            raise Refused(403, "You are not a member of this namespace")
        key, _, value = call.query.get("label", "").partition("=")
        found = [job for job in self.jobs.listing(call) if job.request["namespace"] == call.path["ns"]
                 and (not key or (job.request.get("labels") or {}).get(key) == value)]
        start = int(call.query["skip"]) if call.query.get("skip", "").isdecimal() else 0
        page = [self._public(job, self.jobs.word(job)) for job in found[start:start + PAGE]]
        path = call.url.partition("?")[0]
        label = f"&label={key}%3D{value}" if key else ""
        after = f'<{call.base_url}{path}?skip={start + PAGE}{label}>; rel="next"'
        return Reply(page, headers={"Link": after} if len(found) > start + PAGE else {})

    @route("GET", "/api/jobs/{ns}/{id}", "jobs.get")
    def get_job(self, call: Call) -> JSON:
        job = self._job(call)
        return self._public(job, self.jobs.word(job, call))

    @route("GET", "/api/jobs/{ns}/{id}/logs", "jobs.logs", slow=True)
    def job_logs(self, call: Call) -> Reply:
        return Reply(self._log_events(self._job(call)), headers={"Content-Type": "text/event-stream"})

    @route("POST", "/api/jobs/{ns}/{id}/cancel", "jobs.cancel")
    def cancel_job(self, call: Call) -> JSON:
        job = self._job(call)
        if not self.jobs.cancel(job):
            raise Refused(409, "The job is not running")
        return self._public(job, self.jobs.word(job))

    # --- the provider's words ---

    def new_job_id(self) -> str:
        return secrets.token_hex(12)

    def anonymous(self, request: dict[str, JSON]) -> dict[str, JSON]:
        return {**request, "labels": {"of": "somebody-else"}}

    def ended(self, job: Job) -> None:
        self._secrets.pop(job.id, None)
        if self._started(job) is not None:
            minutes = max(1, math.ceil(self._seconds(job) / 60))
            self.store.charge(job.account, "job", job.id, minutes, f"minutes of {job.request['flavor']}")

    def key_variable(self) -> str:
        return "HF_TOKEN"

    def settings(self, url: str) -> dict[str, JSON]:
        return {"model": MODEL, "base_url": url, "namespace": None}

    def pointers(self, url: str) -> list[str]:
        return [*super().pointers(url),
                "(the job's own command runs on this machine; --student has no part in it)"]

    # --- the work ---

    def train(self, job: Job, rows: Path, into: Path, report: Report, stop: threading.Event) -> None:
        """Run the job's command once it is scheduled, in a container as far as this machine has one."""
        while self.jobs.word(job) == "SCHEDULING" or job.cancelled_at is not None:  # then it never starts
            if stop.wait(0.05):
                return
            job = self.jobs.get(job.id, None) or job
        with self.store.transaction():
            self.store.put("started", job.id, time.time())
        scratch = into.resolve() / "scratch"
        scratch.mkdir()
        try:
            message = self.container.run(
                self._log(job), job.request, self._mounts(job), scratch, stop,
                {**self._secret_values(job), **job.request["environment"], "JOB_ID": job.id})
        finally:
            shutil.rmtree(scratch)
        if message and not stop.is_set():
            raise TuningFailed(message)

    def _secret_values(self, job: Job) -> dict[str, str]:
        """The job's secrets; after a restart, which forgets them, a key of the sandbox's own."""
        known = self._secrets.get(job.id)
        if known is not None:
            return known
        made = f"hf_job_{secrets.token_hex(16)}"
        self.store.put("guest", fingerprint(made), job.account)
        return dict.fromkeys(job.request["secrets"], made)

    def _mounts(self, job: Job) -> dict[str, dict[str, Path]]:
        """What each volume shows: mount path to relative path to the file that holds it."""
        found = {}
        for volume in job.request.get("volumes") or ():
            repo = self.repo(volume["type"], volume["source"], job.account)
            files = self.files_of(repo, volume.get("revision")) if repo else None
            below = f"{volume['path'].strip('/')}/" if volume.get("path") else ""
            found[volume["mountPath"]] = {
                path.removeprefix(below): self.store.folder / "blobs" / file["sha256"]
                for path, file in (files or {}).items() if path.startswith(below)}
        return found

    # --- what is shown ---

    def _check_volume(self, call: Call, volume: Mapping[str, Any]) -> None:
        repo = self.repo(volume["type"], volume["source"], call.account)
        if repo is None:
            raise Refused(404, f"Repository not found: {volume['source']}", code="RepoNotFound")
        if self.files_of(repo, volume.get("revision")) is None:
            raise Refused(404, f"Invalid rev id: {volume['revision']}", code="RevisionNotFound")

    def _job(self, call: Call) -> Job:
        job = self.jobs.get(call.path["id"], call.account)
        if job is None or job.request["namespace"] != call.path["ns"]:
            raise Refused(404, "Job not found")
        return job

    def _log(self, job: Job) -> Path:
        return self.store.folder / "jobs" / f"{job.id}.log"

    def _log_events(self, job: Job) -> Iterator[bytes]:
        """The log from its start, then what comes, until the job has ended: a quiet job keeps the stream
        open."""
        yield _event(f"===== Job started at {_time(self._started(job) or job.created_at)} =====",
                     job.created_at)
        place, said = 0, time.monotonic()
        while True:
            ended = self.jobs.get(job.id, None)
            over = ended is None or ended.end is not None or ended.trained_at is not None
            lines, place = _whole_lines(self._log(job), place)
            for line in lines:
                at, _, text = line.partition(" ")
                yield _event(text, float(at))
            if over or self.sandbox.closing.wait(0.05):
                return
            if time.monotonic() - said > KEEP_ALIVE_S:
                said = time.monotonic()
                yield b": keep-alive\n\n"

    def _started(self, job: Job) -> float | None:
        return self.store.get("started", job.id)

    def _seconds(self, job: Job) -> float:
        """How long the job has run."""
        started = self._started(job)
        return max(0.0, (job.trained_at or job.ended_at or time.time()) - started) if started else 0.0

    def _public(self, job: Job, word: str) -> JSON:
        asked, started = job.request, self._started(job)
        running = int(self._seconds(job)) if started else None
        owner = {"id": job.account, "name": asked["namespace"], "type": "user"}
        return {
            "type": "job", "id": job.id, "createdAt": _time(job.created_at),
            "startedAt": _time(started), "finishedAt": _time(job.ended_at),
            "dockerImage": asked["dockerImage"], "command": asked["command"], "arguments": asked["arguments"],
            "environment": asked["environment"], "secrets": asked["secrets"], "flavor": asked["flavor"],
            "timeout": asked.get("timeoutSeconds"), "labels": asked.get("labels"),
            "volumes": asked.get("volumes"), "attempts": asked.get("attempts", 1),
            "status": {"stage": word, "failureCount": 0,
                       "message": job.failure["message"] if job.end == "failed" and job.failure else None},
            "durations": {"schedulingSecs": int(started - job.created_at) if started else None,
                          "runningSecs": running, "totalSecs": int(time.time() - job.created_at)},
            "owner": owner, "createdBy": owner, "initiator": owner}


def _event(text: str, at: float) -> bytes:
    return b"data: " + json.dumps({"data": text, "timestamp": _time(at)}).encode() + b"\n\n"


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _whole_lines(path: Path, start: int) -> tuple[list[str], int]:
    """The lines of a log that have been written to their end, and where the next one begins."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    whole = text[:text.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), start + len(whole)
