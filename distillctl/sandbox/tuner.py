"""What really trains behind a sandbox, and answers: an installed local backend, or a nearest neighbour.

A provider sees messages, never the task, so the task is read off the training file: a few short answers
are labels, anything else is text; a schema comes with the question.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import exp, log
from pathlib import Path
from typing import Any, Protocol

from distillctl import registry
from distillctl.backend import TERMINAL, BackendEnv, StudentRef, TrainJob
from distillctl.errors import DistillctlError, Problem, UsageError
from distillctl.jobs import new_token
from distillctl.recipe.models import (
    ClassificationSpec,
    EvaluateSpec,
    StructuredSpec,
    TextSpec,
    TrainSpec,
)
from distillctl.store.files import digest_file, read_json, read_jsonl, write_json
from distillctl.task import Task, build_task
from distillctl.types import JSON, Answer, Message, Predictor, Request

MODEL = "smollm2-135m"  # the embedded model
LEARNING_RATE = 1e-3  # of its adapter
_MOST_LABELS, _LONGEST_LABEL = 20, 40
_UNTRAINED = "I am not sure what you are asking for."


class TuningFailed(Exception):
    """The rows cannot be trained on; the message is for the job's error."""


Report = Callable[[Mapping[str, JSON]], None]  # takes step, total_steps, loss, … as JobEvent.data


class Tuner(Protocol):
    """Trains rows {"messages", "completion"} into a folder, and answers from it."""

    def train(self, rows: Path, epochs: int, into: Path, report: Report, stop: threading.Event) -> None:
        """Train and leave the student in `into`. Returns early once `stop` is set. Raises TuningFailed."""
        ...

    def open(self, student: Path | None, schema: Mapping[str, Any] | None,
             ) -> AbstractContextManager[Predictor]:
        """A predictor for what `train` left; None: the untrained model. schema: the answer must fit it."""
        ...


def tuner_named(name: str) -> Tuner:
    """`nearest`, or an installed backend that trains on this machine: `local`, `linear`."""
    return NearestTuner() if name == "nearest" else BackendTuner(name)


class BackendTuner:
    """Trains through a backend of this machine, as a run with it would."""

    def __init__(self, backend: str) -> None:
        self.backend = registry.load(backend)
        if self.backend.capabilities.data_leaves_machine:
            raise UsageError(Problem("does not train on this machine", field="--student", value=backend,
                                     hint="take local, linear or nearest"))

    def train(self, rows: Path, epochs: int, into: Path, report: Report, stop: threading.Event) -> None:
        try:
            self._train(rows, epochs, into, report, stop)
        except DistillctlError as error:
            raise TuningFailed(str(error)) from error

    def open(self, student: Path | None, schema: Mapping[str, Any] | None,
             ) -> AbstractContextManager[Predictor]:
        if student is not None:
            labels = read_json(student / "labels.json")
            ref = StudentRef.from_json(read_json(student / "student.json"))
            return self._open(student).open(ref, student / "student", _task(labels, schema), EvaluateSpec())
        if not self.backend.capabilities.untrained_answers:
            return _always(_UNTRAINED)
        ref = StudentRef(self.backend.name, "model", MODEL)
        return self._open(Path()).open(ref, Path(), _task([], schema), EvaluateSpec())

    def _open(self, folder: Path) -> Any:
        return self.backend(self.backend.Settings(), BackendEnv(
            folder / "work", lambda name: None, time.time, offline=True))

    def _train(self, rows: Path, epochs: int, into: Path, report: Report, stop: threading.Event) -> None:
        labels = labels_of(rows)
        backend = self._open(into)
        job = TrainJob("sandbox", _task(labels, None), TrainSpec(epochs=epochs, learning_rate=LEARNING_RATE),
                       MODEL, rows, None, sum(1 for _ in read_jsonl(rows)), digest_file(rows))
        if problems := backend.preflight(job).problems:
            raise TuningFailed("; ".join(map(str, problems)))
        handle = backend.submit(job, backend.stage(job), new_token())
        seen = backend.poll(handle, None)
        while seen.state not in TERMINAL:
            if stop.wait(0.2):
                backend.cancel(handle)
                return
            seen = backend.poll(handle, seen.cursor)
            for event in seen.events:
                report(event.data)
        if seen.state != "succeeded":
            raise TuningFailed(seen.message)
        (into / "student").mkdir(exist_ok=True)
        student = backend.collect(handle, into / "student")
        write_json(into / "labels.json", labels)
        write_json(into / "student.json", student.as_json())


class NearestTuner:
    """Answers as the most similar training prompt was answered: for rehearsals in a second."""

    def train(self, rows: Path, epochs: int, into: Path, report: Report, stop: threading.Event) -> None:
        pairs = [[row["messages"][-1]["content"], row["completion"]] for row in read_jsonl(rows)]
        write_json(into / "nearest.json", {"pairs": pairs, "labels": labels_of(rows)})

    @contextmanager
    def open(self, student: Path | None, schema: Mapping[str, Any] | None) -> Iterator[Predictor]:
        if student is None:
            with _always(_UNTRAINED) as predictor:
                yield predictor
        else:
            known = read_json(student / "nearest.json")
            yield _Replies(lambda messages: _nearest(messages, **known))


def labels_of(rows: Path) -> list[str]:
    """The answers of a training file, sorted, where they are so few and short that they are labels."""
    answers = sorted({row["completion"] for row in read_jsonl(rows)})
    labels = 2 <= len(answers) <= _MOST_LABELS and all(len(text) <= _LONGEST_LABEL for text in answers)
    return answers if labels else []


def _task(labels: Sequence[str], schema: Mapping[str, Any] | None) -> Task:
    prompt = "{{ prompt }}"
    if schema is not None:
        return build_task(StructuredSpec(kind="structured", prompt=prompt, json_schema=dict(schema)))
    if labels:
        return build_task(ClassificationSpec(kind="classification", prompt=prompt, labels=list(labels)))
    return build_task(TextSpec(kind="text", prompt=prompt))


def _nearest(messages: Sequence[Message], pairs: Sequence[Sequence[str]], labels: Sequence[str]) -> Answer:
    from rapidfuzz.fuzz import token_set_ratio

    asked = messages[-1]["content"]
    best: dict[str, float] = {}
    for prompt, completion in pairs:
        best[completion] = max(best.get(completion, 0.0), token_set_ratio(asked, prompt) / 5)
    total = log(sum(exp(best[label]) for label in labels)) if labels else 0.0
    return Answer(max(best, key=best.__getitem__),
                  label_logprobs={label: best[label] - total for label in labels} or None)


class _Replies:
    """A predictor made of a function."""

    max_batch = 1
    replayed = False
    identity: Mapping[str, JSON] = {}

    def __init__(self, reply: Callable[[Sequence[Message]], Answer]) -> None:
        self._reply = reply

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._reply(request.messages) for request in requests]

    async def aclose(self) -> None: ...


@contextmanager
def _always(text: str) -> Iterator[Predictor]:
    yield _Replies(lambda messages: Answer(text))


class Students:
    """Open students, the few last used; one question at a time, as one small machine would."""

    def __init__(self, tuner: Tuner, most: int = 2) -> None:
        self._tuner = tuner
        self._most = most
        self._open: dict[object, tuple[AbstractContextManager[Predictor], Predictor]] = {}
        self._lock = threading.Lock()

    def answer(self, student: Path | None, messages: Sequence[Message],
               schema: Mapping[str, Any] | None) -> Answer:
        with self._lock:
            predictor = self._predictor(student, schema)
            return asyncio.run(_one(predictor, Request("sandbox", messages)))

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._close_oldest()

    def _predictor(self, student: Path | None, schema: Mapping[str, Any] | None) -> Predictor:
        key = (student, repr(schema))
        if key in self._open:
            self._open[key] = self._open.pop(key)  # now the newest
            return self._open[key][1]
        while len(self._open) >= self._most:
            self._close_oldest()
        manager = self._tuner.open(student, schema)
        self._open[key] = (manager, manager.__enter__())
        return self._open[key][1]

    def _close_oldest(self) -> None:
        manager, _ = self._open.pop(next(iter(self._open)))
        manager.__exit__(None, None, None)


async def _one(predictor: Predictor, request: Request) -> Answer:
    return (await predictor.answer([request]))[0]
