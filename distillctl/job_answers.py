"""Answers that a training job gave where it ran, so that no model need run at home.

The job answers the prompts of dev and test once it has trained, and times itself there; its file comes home
with the student. The core then asks nobody, and the figures say on which machine they were made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillctl.errors import Problem, StorageError
from distillctl.recipe.evaluation_models import EvaluateSpec
from distillctl.store.files import read_json, write_json
from distillctl.types import JSON, Answer, Predictor, Request

FILE = "answers.json"
AT_ONCE = 64  # requests in the measurement of a local model's throughput


async def time_here(predictor: Predictor, warm: Sequence[Request], timed: Sequence[Request],
                    on_progress: Callable[[int], None] = lambda done: None) -> dict[str, JSON]:
    """Time a model of this machine, as `timings/*.json` has it: `timed` one at a time, after `warm`, then
    many at once."""
    for request in warm:
        await predictor.answer([request])
    latencies = []
    for done, request in enumerate(timed, 1):
        started = time.perf_counter()
        await predictor.answer([request])
        latencies.append(time.perf_counter() - started)
        on_progress(done)
    batch = [*timed] * AT_ONCE
    batch = batch[:min(AT_ONCE, predictor.max_batch)]
    started = time.perf_counter()
    await predictor.answer(batch)
    return {"source": "measured", "latencies_s": latencies, "throughput": {
        "per_second": len(batch) / (time.perf_counter() - started), "at_once": len(batch)}}


@dataclass(frozen=True)
class Answered:
    """What one model answered in a job. answers: by example. timing: as `timings/*.json` has it. machine:
    the job's, in words."""

    answers: Mapping[str, Answer]
    timing: Mapping[str, JSON]
    machine: str

    def as_json(self) -> dict[str, JSON]:
        return {"answers": {id: answer.as_json() for id, answer in self.answers.items()},
                "timing": dict(self.timing), "machine": self.machine}


def answer_all(predictor: Predictor, prompts: Sequence[Mapping[str, JSON]], how: EvaluateSpec, machine: str,
               timed: bool) -> Answered:
    """Have a model of this machine answer a job's prompts, {"id", "split", "messages"}, and time it on those
    of test where that is wanted."""
    requests = [Request(row["id"], row["messages"]) for row in prompts]
    by_split = {split: [request for request, row in zip(requests, prompts, strict=True)
                        if row["split"] == split] for split in ("dev", "test")}
    items = by_split["test"][:how.latency.items]
    warm = (by_split["dev"] or items)[:how.latency.warmup]

    async def work() -> Answered:
        answers: list[Answer] = []
        for start in range(0, len(requests), predictor.max_batch):
            answers += await predictor.answer(requests[start:start + predictor.max_batch])
        timing = await time_here(predictor, warm, items) if timed else {
            "source": "measured", "latencies_s": []}
        await predictor.aclose()
        found = {request.id: answer for request, answer in zip(requests, answers, strict=True)}
        return Answered(found, timing, machine)

    return asyncio.run(work())


def write_answers(path: Path, found: Mapping[str, Answered]) -> None:
    """found: by who answered, "student" and, where it was asked too, "base"."""
    write_json(path, {who: one.as_json() for who, one in found.items()})


def read_answers(path: Path, who: str) -> Answered | None:
    """What `who` answered in the job; None where it was not asked there. Raises StorageError for a file that
    cannot be read so."""
    found = read_json(path)
    try:
        if who not in found:
            return None
        row = found[who]
        timing: dict[str, JSON] = {
            "source": "measured", "latencies_s": [float(s) for s in row["timing"]["latencies_s"]]}
        if rate := row["timing"].get("throughput"):
            timing["throughput"] = {"per_second": float(rate["per_second"]), "at_once": int(rate["at_once"])}
        answers = {id: Answer.from_json(answer) for id, answer in row["answers"].items()}
        if not all(isinstance(one.output, str | None) for one in answers.values()):
            raise TypeError("an output is no text")
        return Answered(answers, timing, str(row["machine"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(Problem("holds no answers of a job", where=str(path),
                                   hint="run again with --resubmit to train anew")) from error
