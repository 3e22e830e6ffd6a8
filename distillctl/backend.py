"""The backend contract: everything a training backend must offer, on one screen.

A backend makes single calls and classifies errors. The core owns loops, clocks, retries and persistence
(`jobs.py`). Backends are found through the entry-point group `distillctl.backends`; the shipped ones take
the same road as a stranger's. Importing a backend's module must be light: SDKs and torch are imported
inside the methods that need them. `distillctl.testing.BackendContract` is the suite that each must pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from distillctl.errors import Problem
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.task import Task
from distillctl.types import JSON, Predictor

API_VERSION = 1

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "lost", "unknown"]
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "lost"})


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; the core asks here and never sniffs."""

    task_kinds: frozenset[str]
    label_probabilities: bool = False  # its students give a probability per label
    data_leaves_machine: bool = True
    reports_cost: bool = False
    student_is_local: bool = False  # weights end on this machine; nothing is sent to predict
    training_version: int = 1  # raised when equal rows and settings come to another student than before
    untrained_answers: bool = False  # `open` also takes the base model, untrained, to compare with
    answers_setting: str = ""  # the setting that has a job answer `TrainJob.prompts` too, where it can
    settings_aside: frozenset[str] = frozenset()  # prices, time limits, names of keys: another value of one
    # of these settings is no reason to train, and to pay, again
    books: str = "training"  # the kind of spend that its jobs are


@dataclass(frozen=True)
class Prompts:
    """What a job is to answer once it has trained: prompts of dev and test, without what is expected.

    file: JSONL rows {"id", "split", "messages"}; digest: of its content. how: how to answer and to time it.
    """

    file: Path
    digest: str
    how: EvaluateSpec


@dataclass(frozen=True)
class TrainJob:
    """A training set and everything that determines the student.

    train_file, dev_file: JSONL rows {"id", "messages": [...], "completion": str, "source": "file:line"};
    dev_file holds prompts with the teacher's answers of the dev split, for early stopping. digest: of
    train_file's content. model: the recipe's student (a backend may name another in its settings). prompts:
    only where `Capabilities.answers_setting` is set in the recipe. revision: of the recipe's student on the
    Hub; None: the newest. how: the student will be asked so.
    """

    name: str
    task: Task
    train: TrainSpec
    model: str
    train_file: Path
    dev_file: Path | None
    rows: int
    digest: str
    prompts: Prompts | None = None
    revision: str | None = None
    how: EvaluateSpec = field(default_factory=EvaluateSpec)


@dataclass(frozen=True)
class Preflight:
    """What is known before anything is sent: free to ask, read only.

    problems stop the run; warnings do not. cost_usd and duration_s are (low, high), None where unknown.
    notes are one-line facts for `plan`: what was chosen and why, and what this backend cannot express.
    sends_to: hosts or services that the training data goes to; empty when it stays on this machine.
    answering_usd: the least that must be set aside before the student can be asked, where a server that is
    billed by time answers.
    """

    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cost_usd: tuple[float, float] | None = None
    duration_s: tuple[float, float] | None = None
    sends_to: tuple[str, ...] = ()
    answering_usd: float = 0.0


@dataclass(frozen=True)
class Staged:
    """Where the training set lies at the backend. data: JSON, kept in the ledger. cost_usd: what the service
    itself says, now that it has the rows, that the job will cost."""

    data: Mapping[str, JSON]
    cost_usd: float | None = None


@dataclass(frozen=True)
class JobHandle:
    """A job at a backend; JSON, kept in the ledger. Enough to poll it from another shell.

    account: a fingerprint of the credentials it was made with, so that a foreign 404 can be told.
    created_at: Unix seconds, the provider's where it says.
    """

    backend: str
    job_id: str
    token: str
    account: str = ""
    created_at: float = 0.0
    url: str | None = None
    data: Mapping[str, JSON] = field(default_factory=dict)

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> JobHandle:
        return cls(**row)


@dataclass(frozen=True)
class JobEvent:
    """One line of a job's story. `key` is unique within the job and lets the core drop repeats.

    data: numbers for the training curve where the event has them: step, total_steps, epoch, loss,
    eval_loss, eval_score, learning_rate, seconds_per_step.
    """

    key: str
    time: float
    message: str
    level: Literal["info", "warning", "error"] = "info"
    data: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A job as one poll saw it. raw: the provider's own word. cost_usd: billed so far, where it says."""

    state: JobState
    raw: str
    message: str = ""
    events: tuple[JobEvent, ...] = ()
    cursor: str | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class StudentRef:
    """Where a trained student is and how to reach it; JSON, without secrets.

    kind: "adapter" and "model" lie in a folder beside this reference (`path` is relative to it, `files`
    maps each file to its sha256); "hosted" is answered by the backend's service under `model`. answers: the
    file of `job_answers.py` in that folder and its sha256, where the job answered too.
    """

    backend: str
    kind: Literal["adapter", "model", "hosted"]
    model: str  # hosted model id, or the base model that an adapter sits on
    path: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, JSON] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> StudentRef:
        return cls(**row)


class Rejected(Exception):
    """Certain: nothing was created, nothing is billed. The message is for the user."""


class Ambiguous(Exception):
    """The reply was lost or unreadable: the job may exist. The core answers with `find`."""


class Unreachable(Exception):
    """The backend could not be asked just now. It says nothing about the job."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotYet(Unreachable):
    """The backend answered that it is not ready, as while it looks at an upload: to be asked again."""


@dataclass(frozen=True)
class BackendEnv:
    """What the core lends a backend. workspace: the folder for its own files, `.distillctl/<name>/`.

    secret: the value of a named environment variable, None where it is not set; call it at use and keep
    no copy. clock: Unix seconds. offline: nothing may be sent. run: what is spent is booked on it. tell:
    takes a line for the user, where something takes minutes. budget_left: US dollars that may still be spent,
    to be asked before something is started that is billed by time.
    """

    workspace: Path
    secret: Callable[[str], str | None]
    clock: Callable[[], float]
    offline: bool = False
    run: str = ""
    tell: Callable[[str], None] = lambda line: None
    budget_left: Callable[[], float] = lambda: math.inf


class JobService(Protocol):
    """What `jobs.py` asks of whoever creates paid jobs: a backend's trainings, a teacher's batches."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def stage(self, job: Any) -> Staged:
        """Put the data where the job will read it. Idempotent by the data's digest.
        Raises Rejected, Unreachable."""
        ...

    def submit(self, job: Any, staged: Staged, token: str) -> JobHandle:
        """Create the job: exactly one create request, SDK retries off, `token` visible at the provider.
        Raises Rejected or Ambiguous, nothing else."""
        ...

    def find(self, token: str) -> list[JobHandle]:
        """Every job that carries this token, oldest first: a complete listing, compared on our side.
        Raises Unreachable."""
        ...

    def poll(self, handle: JobHandle, cursor: str | None) -> Snapshot:
        """The job's state and what is new since `cursor`. An unknown word gives state "unknown", never a
        terminal one; a job that is gone gives "lost". Raises Unreachable."""
        ...

    def cancel(self, handle: JobHandle) -> None:
        """Ask for the end; idempotent. `poll` sees the outcome. Raises Unreachable."""
        ...


class Backend(JobService, Protocol):
    """Trains students from `TrainJob`s. Constructed with its validated settings; the constructor does no
    I/O. `name` is the entry point's and the word behind `backend:` in a recipe."""

    api_version: ClassVar[int]
    Settings: ClassVar[type[BaseModel]]  # the recipe's `backends.<name>` block, extra="forbid"

    def __init__(self, settings: Any, env: BackendEnv) -> None: ...

    def preflight(self, job: TrainJob) -> Preflight:
        """Problems, estimates, limits. Read only and free; complete, so that nothing fails later that
        could have been seen now. Raises Unreachable."""
        ...

    def collect(self, handle: JobHandle, into: Path) -> StudentRef:
        """Bring the student home; idempotent. Writes only under the existing folder `into`; weights are
        safetensors or plain arrays, never pickle. Raises Unreachable, BackendError."""
        ...

    def open(self, student: StudentRef, folder: Path, task: Task,
             how: EvaluateSpec) -> AbstractContextManager[Predictor]:
        """A predictor for a collected student; `folder` is what `collect` wrote into, `how` says how long
        and how freely it answers. Starts what must be started and stops it on every exit.
        Raises StudentError, Unreachable."""
        ...
