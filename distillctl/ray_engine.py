"""`predict --engine ray`: copies of a student in the processes of a Ray cluster, asked side by side.

A worker is a Ray actor that opens the student once. What it needs (the task, the backend's settings, the
student's own files) travels to it, so no disk has to be shared; a base model is fetched or found on its node.
The rows are read, and the answers put in order, here: actors fit that better than Ray Data, which reads its
input itself and so knows nothing of lines that are answered already.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from distillctl.backend import BackendEnv, StudentRef
from distillctl.errors import DistillctlError, MissingExtra, Problem, StudentError, UsageError
from distillctl.progress import Reporter
from distillctl.recipe.models import EvaluateSpec, TaskSpec
from distillctl.task import build_task
from distillctl.types import JSON, Answer, Predictor, Request

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

AHEAD = 2  # batches that a worker has: one that it answers, one that waits for it
LIVES = 20  # how often a worker's process is started again
TRIES = 3  # workers that may die of one batch
SPARE = 256 << 20  # bytes of a local Ray's object store beside the student's files


@dataclass(frozen=True)
class Parcel:
    """What a worker opens a student from; no secrets. files: by name, in the student's folder."""

    backend: str
    settings: Mapping[str, JSON]
    student: StudentRef
    spec: TaskSpec
    how: EvaluateSpec
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Opened:
    """A worker's student. node: the machine's name. version: of the distillctl there."""

    node: str
    version: str
    max_batch: int
    identity: Mapping[str, JSON]


class Worker:
    """Answers in a process of its own. Ray starts one that died anew, so every call says from which parcel:
    [a reference], which Ray leaves as it is."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner())
        self._predictor: Predictor | None = None

    def open(self, parcel: list[ObjectRef]) -> Opened:
        """Have the student in memory. Raises StudentError, MissingExtra, RecipeError."""
        if self._predictor is None:
            import ray

            with TemporaryDirectory(prefix="distillctl-") as folder:  # gone before anybody kills us
                opening = _unpack(ray.get(parcel[0]), Path(folder))
                self._predictor = self._stack.enter_context(opening)
        return Opened(platform.node(), version("distillctl"), self._predictor.max_batch,
                      self._predictor.identity)

    def answer(self, parcel: list[ObjectRef], requests: list[Request]) -> list[Answer]:
        """As `Predictor.answer`."""
        self.open(parcel)
        return self._runner.run(self._predictor.answer(requests))


def _unpack(parcel: Parcel, into: Path) -> AbstractContextManager[Predictor]:
    """The student, opened by its backend."""
    from distillctl import registry

    folder = into / "student"
    for name, content in parcel.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    env = BackendEnv(workspace=into, secret=lambda name: None, clock=time.time)
    backend = registry.open_backend(parcel.backend, parcel.settings, env)
    return backend.open(parcel.student, folder, build_task(parcel.spec), parcel.how)


class RayPredictor:
    """Passes each batch to the next worker that is free. identity: the workers' own, which is the same.
    at_once: calls that keep all of them busy."""

    replayed = False

    def __init__(self, workers: Sequence[ActorHandle], openings: Sequence[ObjectRef], first: Opened,
                 parcel: ObjectRef) -> None:
        self.identity = first.identity
        self.max_batch = first.max_batch
        self._first = first
        self._parcel = parcel
        self._starting = list(zip(workers, openings, strict=True))
        self._joining: set[asyncio.Task[None]] = set()
        self.at_once = AHEAD * len(workers)
        self._left = self.at_once  # places of workers that are alive, or are started again
        self._free: asyncio.Queue[ActorHandle | DistillctlError] = asyncio.Queue()

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer per request. A batch whose worker dies is given to another one. Raises StudentError."""
        from ray.exceptions import RayActorError, RayError

        while self._starting:
            self._await(*self._starting.pop(), AHEAD)
        for _ in range(TRIES):
            worker = await self._take()
            try:
                answers = await worker.answer.remote([self._parcel], list(requests))
            except RayActorError as error:
                why = _first_line(error)
                self._await(worker, _open(worker, self._parcel), 1)
            except RayError as error:
                raise _own_error(error) from None
            else:
                self._free.put_nowait(worker)
                return answers
        raise StudentError(Problem(
            f"{TRIES} workers died while they had the rows {requests[0].id!r} to {requests[-1].id!r}: {why}",
            hint="often memory: give each worker more of it (fewer --workers)"))

    async def aclose(self) -> None:
        """The workers end with `open_on_ray`'s block."""

    async def _take(self) -> ActorHandle:
        found = await self._free.get()
        if isinstance(found, DistillctlError):
            self._free.put_nowait(found)  # for whoever waits too
            raise found
        return found

    def _await(self, worker: ActorHandle, opening: ObjectRef, places: int) -> None:
        """Give the worker `places` batches as soon as it has the student in memory."""
        task = asyncio.create_task(self._join(worker, opening, places))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, worker: ActorHandle, opening: ObjectRef, places: int) -> None:
        from ray.exceptions import RayActorError, RayError

        try:
            check_alike(self._first, await opening)
        except RayActorError as error:  # it is not started again
            self._left -= places
            if not self._left:
                self._free.put_nowait(_own_error(error))
        except (RayError, StudentError) as error:
            self._free.put_nowait(_own_error(error))
        else:
            for _ in range(places):
                self._free.put_nowait(worker)


def check_alike(one: Opened, other: Opened) -> None:
    """Raises StudentError where two workers would answer differently."""
    if one.version != other.version:
        raise StudentError(Problem(f"{other.node} has distillctl {other.version}, {one.node} {one.version}",
                                   hint="install one version on every node"))
    differing = [name for name in one.identity if one.identity[name] != other.identity.get(name)]
    if differing:
        raise StudentError(Problem(
            f"the workers on {one.node} and {other.node} would not answer alike", field=differing[0],
            value=[one.identity[differing[0]], other.identity.get(differing[0])],
            hint="`products` and `device` are set in the recipe's backend block; `base` is the base model, "
                 "of which every node needs the same"))


def spread(nodes: Sequence[Mapping[str, float]], workers: int | None) -> tuple[int, int, int]:
    """How many workers, and the CPUs and GPUs of each, for nodes with these resources: one for each GPU;
    without GPUs one for each node, or `workers`, with as many CPUs as all of them can have.

    Raises UsageError where there is no room for so many.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    wanted = workers or gpus or sum(count > 0 for count in cpus)
    most = gpus or sum(cpus)
    if not 0 < wanted <= most:
        unit = "GPUs" if gpus else "CPUs"
        raise UsageError(Problem(f"the Ray cluster has {most} {unit}, and a worker needs one at least",
                                 "--workers", value=wanted))
    if gpus:
        return wanted, 1, 1
    each = next(size for size in range(max(cpus), 0, -1) if sum(c // size for c in cpus) >= wanted)
    return wanted, each, 0


@contextmanager
def open_on_ray(parcel: Parcel, workers: int | None, reporter: Reporter) -> Iterator[RayPredictor]:
    """Workers with the student, for as long as the block runs: on the cluster that RAY_ADDRESS names, else
    on a Ray of this machine that ends with the block.

    workers: how many, None for one a GPU or else one a node. Raises MissingExtra, UsageError, StudentError.
    """
    if find_spec("ray") is None:
        raise MissingExtra(Problem("--engine ray needs ray", hint="pip install 'distillctl[ray]'"))
    import ray
    from ray.exceptions import RayError

    with _connected(parcel, workers):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, cpus, gpus = spread(nodes, workers)
        actor = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=LIVES)
        sent = ray.put(parcel)
        handles = [actor.remote() for _ in range(count)]
        openings = [_open(handle, sent) for handle in handles]
        reporter.note(f"workers: {count}, each with {f'{gpus} GPU' if gpus else f'{cpus} CPU'}, on "
                      f"{os.environ.get('RAY_ADDRESS') or 'a Ray of this machine'}")
        try:
            first = ray.get(_soonest(openings, reporter))
            check_alike(Opened("this machine", version("distillctl"), first.max_batch, first.identity), first)
        except RayError as error:
            raise _own_error(error) from None
        yield RayPredictor(handles, openings, first, sent)


@contextmanager
def _connected(parcel: Parcel, workers: int | None) -> Iterator[None]:
    """Ray, for as long as the block runs."""
    import ray
    from ray.exceptions import RayError

    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray tells of lost nodes there, as if asked to
        try:
            if address:
                _reach(address)
                ray.init(address, **quiet)
            else:
                folder = stack.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
                ray.init("local", num_cpus=workers and max(workers, os.cpu_count() or 1),
                         include_dashboard=False, _temp_dir=folder,
                         object_store_memory=SPARE + 2 * sum(map(len, parcel.files.values())), **quiet)
        except (OSError, RayError, RuntimeError, ValueError) as error:
            raise UsageError(Problem(
                f"no Ray cluster can be reached: {_first_line(error)}" if address
                else f"no Ray can be started here: {_first_line(error)}", "RAY_ADDRESS", value=address,
                hint="one with token authentication needs RAY_AUTH_MODE=token and its token; without "
                     "RAY_ADDRESS this machine alone is used" if address else None)) from None
        stack.callback(ray.shutdown)
        yield


def _reach(address: str) -> None:
    """Raises OSError where nobody listens, of which Ray becomes sure only after a quarter of an hour."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:  # "auto" has none
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _open(worker: ActorHandle, parcel: ObjectRef) -> ObjectRef:
    """Waits for a process that is being started again, too."""
    return worker.open.options(max_task_retries=-1).remote([parcel])


def _soonest(openings: Sequence[ObjectRef], reporter: Reporter) -> ObjectRef:
    import ray

    told = False
    while True:
        ready, _ = ray.wait(list(openings), num_returns=1, timeout=30)
        if ready:
            return ready[0]
        if not told:
            reporter.note("no worker has the student yet: it is being fetched, or the cluster has no room")
            told = True


def _own_error(error: Exception) -> DistillctlError:
    """What went wrong in a worker, as this process would have said it."""
    cause: Any = getattr(error, "cause", None) or error
    if isinstance(cause, DistillctlError):
        return cause
    if getattr(cause, "actor_init_failed", False):  # a traceback, whose end says what it was
        what = str(cause).strip().splitlines()[-1]
    else:
        what = f"{type(cause).__name__}: {_first_line(cause)}"
    return StudentError(Problem(f"a Ray worker failed: {what}",
                                hint="every node needs distillctl with the extras of the student's backend"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
