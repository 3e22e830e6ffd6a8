"""The life of a sandbox's jobs: phases that pass, a training that really runs, one end that stays.

`speed` is how many of the provider's seconds pass in one of ours. With `speed=None` time stands still and
a job goes one phase further each time that its status is asked for, so that tests do not race.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillctl.sandbox.store import Store
from distillctl.sandbox.tuner import Tuner, TuningFailed
from distillctl.sandbox.wire import Call
from distillctl.store.files import write_jsonl
from distillctl.types import JSON

if TYPE_CHECKING:
    from distillctl.sandbox.wire import ProviderPart

End = Literal["succeeded", "failed", "cancelled"]
CANCELLING_S = 2.0  # of the provider's seconds, where its cancelling takes time


@dataclass
class Job:
    """One job as it is kept. request: what the part keeps of the create request. failure: what validation
    found, {"message", …}; it ends the job after its first phase. extra: the part's own."""

    id: str
    account: str
    created_at: float
    request: dict[str, JSON]
    rows_file: str = ""
    rows: int = 0
    epochs: int = 1
    failure: dict[str, JSON] | None = None
    looks: int = 0
    trained_at: float | None = None
    cancelled_at: float | None = None
    cancelled_look: int = 0
    end: End | None = None
    ended_at: float | None = None
    word: str | None = None  # scripted: the provider says this whatever is true
    ours: bool = True
    extra: dict[str, JSON] = field(default_factory=dict)


class Jobs:
    """Every job of one sandbox, and the thread that trains them, one after the other."""

    def __init__(self, store: Store, tuner: Tuner, speed: float | None) -> None:
        self.part: ProviderPart  # set by the sandbox
        self._store, self.tuner, self._speed = store, tuner, speed
        self._folder = store.folder / "jobs"
        self._wake = threading.Event()
        self._closing = False
        self._now_training: str | None = None  # changes inside transactions only
        self._stop_training = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a training that runs is begun again after a restart."""
        self._closing = True
        self._stop_training.set()
        self._wake.set()
        self._thread.join()

    # --- for a part ---

    def create(self, call: Call, request: dict[str, JSON], rows: Sequence[Mapping[str, JSON]], epochs: int,
               failure: dict[str, JSON] | None = None, **extra: JSON) -> Job:
        """Make a job. rows: {"messages", "completion"}, what will be trained on; failure: what the
        provider's validation will say of them."""
        job = Job(self.part.new_job_id(), call.account, time.time(), request, rows=len(rows), epochs=epochs,
                  failure=failure, extra=extra)
        path = self._folder / f"{job.id}.jsonl"
        write_jsonl(path, ({"id": f"row-{number}", "source": f"upload:{number}", **row}
                           for number, row in enumerate(rows, 1)))
        job.rows_file = path.name
        self.save(job)
        self._wake.set()
        return job

    def get(self, id: str, account: str | None) -> Job | None:
        """A job of `account` (None: of any)."""
        row = self._store.get("job", id, account)
        return None if row is None else Job(**row)

    def listing(self, call: Call) -> list[Job]:
        """The account's jobs, newest first, with the listing faults of this call."""
        found = [Job(**row) for row in self._store.list("job", call.account)]
        if call.fault and call.fault.what == "hide":
            found = found[call.fault.number:]
        if call.fault and call.fault.what == "repeat":
            found = [job for job in found for _ in range(2)]
        return found

    def save(self, job: Job) -> None:
        self._store.put("job", job.id, asdict(job), job.account)

    def delete(self, id: str) -> None:
        with self._store.transaction():
            self._store.delete("job", id)
            if self._now_training == id:
                self._stop_training.set()

    def word(self, job: Job, call: Call | None = None) -> str:
        """The provider's word for a job's state now. call: of a status route, which is one look at it."""
        if call is not None:
            word = self._word(self._settled(job), call)
            job.looks += 1
            self.save(job)
            return word
        return self._word(self._settled(job), None)

    def cancel(self, job: Job) -> bool:
        """Ask for the end; whether there was still something to end."""
        job = self._settled(job)
        if job.end is not None:
            return False
        if job.cancelled_at is None:
            job.cancelled_at, job.cancelled_look = time.time(), job.looks
            self.save(job)
            self._settled(job)
        return True

    def progress(self, job: Job) -> list[dict[str, JSON]]:
        """What the training has reported so far: rows of `JobEvent.data` with their "time"."""
        return self._store.get("progress", job.id) or []

    def student(self, job: Job) -> Path | None:
        """The folder of the trained student, for `Sandbox.answer`; None before the job succeeded.
        A backend's student lies in its `student` folder, with its reference in `student.json`."""
        return self._folder / f"{job.id}.student" if self._settled(job).end == "succeeded" else None

    def all(self) -> list[Job]:
        """Every job, newest first, in its state now."""
        with self._store.transaction():
            return [self._settled(Job(**row)) for row in self._store.list("job")]

    def passed(self, phases: Sequence[tuple[str, float]], since: float, looks: int) -> int:
        """How many phases have passed of what began at `since` and was looked at `looks` times since."""
        if self._speed is None:
            return looks
        elapsed = self.elapsed(since)
        passed = 0
        for _, seconds in phases:
            elapsed -= seconds
            if elapsed < 0:
                break
            passed += 1
        return passed

    def elapsed(self, since: float) -> float:
        """The provider's seconds since a moment of ours."""
        return (time.time() - since) * (self._speed or 1.0)

    # --- states ---

    def _word(self, job: Job, call: Call | None) -> str:
        if call and call.fault and call.fault.what == "word":
            return call.fault.value
        if job.word is not None:
            return job.word
        if job.end is not None:
            return self.part.ends[job.end]
        if job.cancelled_at is not None and self.part.cancelling is not None:
            return self.part.cancelling
        words = [word for word, _ in self.part.phases]
        return words[min(self._phase(job), len(words) - 1)]

    def _phase(self, job: Job) -> int:
        return self.passed(self.part.phases, job.created_at, job.looks)

    def _settled(self, job: Job) -> Job:
        """The job as it is now, its end recorded if it has come; what was not saved is forgotten."""
        if job.end is not None:
            return job
        with self._store.transaction():
            vars(job).update(self._store.get("job", job.id) or {})
            if job.end is None and (end := self._end(job)):
                job.end, job.ended_at = end, time.time()
                self.save(job)
                self.part.ended(job)
                if end == "cancelled" and self._now_training == job.id:
                    self._stop_training.set()
        return job

    def _end(self, job: Job) -> End | None:
        phase = self._phase(job)
        if job.failure is not None and phase >= 1:
            return "failed"
        if job.trained_at is not None and job.failure is None and phase >= len(self.part.phases):
            return "succeeded"
        if job.cancelled_at is not None and self._cancelling_is_over(job):
            return "cancelled"
        return None

    def _cancelling_is_over(self, job: Job) -> bool:
        if self.part.cancelling is None:
            return True
        if self._speed is None:
            return job.looks > job.cancelled_look
        return self.elapsed(job.cancelled_at) >= CANCELLING_S

    # --- training ---

    def _work(self) -> None:
        while True:
            self._wake.clear()
            with self._store.transaction():
                job = self._next()
                self._now_training = job.id if job else None
                self._stop_training.clear()
            if self._closing:
                return
            if job is None:
                self._wake.wait()
            else:
                self._train(job)

    def _next(self) -> Job | None:
        waiting = [job for job in self.all() if job.end is None and job.trained_at is None
                   and job.failure is None and job.cancelled_at is None]
        return waiting[-1] if waiting else None

    def _train(self, job: Job) -> None:
        target = self._folder / f"{job.id}.student"
        draft = target.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(exist_ok=True)
        self._store.put("progress", job.id, [])
        failure = None
        try:
            self.part.train(job, self._folder / job.rows_file, draft, self._reporter(job),
                            self._stop_training)
        except TuningFailed as error:
            failure = {"message": str(error)}
        except Exception as error:  # whatever breaks the training fails this job, and no other
            failure = {"message": f"Internal error: {type(error).__name__}: {error}"}
        if self._stop_training.is_set():
            shutil.rmtree(draft, ignore_errors=True)
            return
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        with self._store.transaction():
            now = self.get(job.id, None)
            if now is not None:  # not deleted meanwhile
                now.trained_at, now.failure = time.time(), failure
                self.save(now)

    def _reporter(self, job: Job):
        rows: list[dict[str, JSON]] = []

        def report(data: Mapping[str, JSON]) -> None:
            if data:
                rows.append({"time": time.time(), **data})
                self._store.put("progress", job.id, rows)
        return report
