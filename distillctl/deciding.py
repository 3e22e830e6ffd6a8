"""The last stages: from predictions on disk to metrics, verdict and report. No model is called here."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from pathlib import Path

from distillctl import job_answers, judge
from distillctl.context import Context, machine
from distillctl.doctor import installed_version
from distillctl.errors import DataError, Problem, UsageError
from distillctl.evaluate.evaluate import Entrant, EvaluationInput, Judging, evaluate
from distillctl.evaluate.results import Metrics, Role, Throughput
from distillctl.paid import paid_for
from distillctl.predictors import teacher_price
from distillctl.prices import PricePoint, price_in_recipe, price_of
from distillctl.recipe.models import RecordedTeacher, TeacherCost
from distillctl.select import predictions_of, requests_of
from distillctl.status import spent_text
from distillctl.store.files import read_json, read_jsonl, write_json
from distillctl.types import JSON, Answer
from distillctl.variants import variants_of

_TOLD_VERSIONS = ("distillctl", "torch", "transformers", "trl", "peft", "scikit-learn", "openai", "anthropic")


def evaluate_run(ctx: Context) -> None:
    """Score everybody who answered the test items, and decide."""
    write_json(ctx.path("metrics.json"), evaluate(evaluation_input(ctx)).model_dump(mode="json"))


def evaluation_input(ctx: Context, student: Entrant | None = None) -> EvaluationInput:
    """What the evaluator reads of a run; `student` takes the place of the run's own."""
    test, dev = ctx.examples("test"), ctx.examples("dev")
    entrants = [_entrant(ctx, "teacher", _teacher_model(ctx), has_dev=True)]
    if ctx.path("predictions/base.test.jsonl").exists():
        entrants.append(_entrant(ctx, "base", ctx.learner("student").model, has_dev=False))
    if ctx.recipe.baseline:
        entrants.append(_entrant(ctx, "baseline", ctx.learner("baseline").model, has_dev=True))
    entrants.append(student or _entrant(ctx, "student", ctx.learner("student").model, has_dev=True))
    group = ctx.recipe.data.group
    groups = {e.id: str(e.fields.get(group)) for e in (*test, *dev)} if group else None
    wanted = ctx.recipe.evaluate
    judged = None
    if wanted.judge and student is None and ctx.path(judge.FILE).exists():
        judged = Judging(*judge.judged_of(ctx), wanted.judge.model, wanted.judge.min_agreement)
    return EvaluationInput(ctx.task, ctx.recipe.verdict, test, entrants, dev, groups, wanted.cascade,
                           wanted.slices, ctx.recipe.economics, paid_for(ctx), judged)


def _recorded_price(spec: TeacherCost) -> PricePoint | None:
    """The price of a recording's model, as far as the recipe names it."""
    if spec.price is not None:
        return price_in_recipe(spec.price)
    return price_of(spec.model) if spec.model else None


def _entrant(ctx: Context, role: Role, model: str, *, has_dev: bool) -> Entrant:
    timing = read_json(ctx.path(f"timings/{role}.json"))
    throughput = timing.get("throughput")
    price = None
    if role == "teacher":
        recorded = isinstance(ctx.recipe.teacher, RecordedTeacher)
        price = (_recorded_price(ctx.recipe.economics.teacher) if recorded
                 else teacher_price(ctx.recipe.teacher))
    elif role == "student" and (own := ctx.recipe.economics.student_price):
        price = price_in_recipe(own)
    return Entrant(
        name=role, role=role, model=model, predictions=ctx.predictions(role, "test"),
        dev_predictions=ctx.predictions(role, "dev") if has_dev else None,
        latencies_s=timing["latencies_s"] or None, latency_source=timing["source"],
        throughput=Throughput(**throughput) if throughput else None, price=price,
        usd_per_hour=timing.get("usd_per_hour"), replayed=timing["replayed"],
        size_bytes=_size(ctx.path(role)), timed_on=timing["machine"] if timing.get("in_job") else None)


def _teacher_model(ctx: Context) -> str:
    return ctx.recipe.teacher.model or f"recording {Path(ctx.recipe.teacher.outputs).name}"


def _size(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()
               and file.name != job_answers.FILE)


def rescore(ctx: Context, predictions: Path | None = None, name: str = "predictions") -> Metrics:
    """Score a run again from its files, with the recipe's present thresholds; or score, in the student's
    place, answers that were made elsewhere: a JSONL of {"id", "output"}.

    Writes nothing. Raises UsageError for a run that is not finished, DataError for rows that cannot be
    read or are for other items.
    """
    if not ctx.path("metrics.json").exists():
        raise UsageError(Problem("this run is not finished: not everybody has answered",
                                 where=str(ctx.rundir.path), hint=f"distillctl attach {ctx.rundir.name}"))
    if predictions is None:
        return evaluate(evaluation_input(ctx))
    test = ctx.examples("test")
    answers = _read_outputs(predictions, {example.id for example in test})
    requests = [request for request in requests_of(ctx.task, test) if request.id in answers]
    parsed = predictions_of(ctx.task, requests, [answers[request.id] for request in requests])
    seconds = [answer.latency_s for answer in answers.values() if answer.latency_s is not None]
    return evaluate(evaluation_input(ctx, Entrant(
        name=name, role="student", model=str(predictions), predictions=parsed,
        latencies_s=seconds or None, latency_source="recorded")))


def _read_outputs(path: Path, wanted: set[str]) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    problems: list[Problem] = []
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}:{number}"
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str) or "output" not in row:
            problems.append(Problem('a row must be {"id": "...", "output": "..."}', where=where))
        elif row["id"] not in wanted:
            problems.append(Problem("is not a test item of this run", where=where, value=row["id"]))
        else:
            answers[row["id"]] = Answer.from_json(row)
    if problems:
        raise DataError(*problems[:20])
    return answers


def write_report(ctx: Context) -> None:
    """The run's report, from its files alone."""
    from distillctl.report.html import ReportInput
    from distillctl.report.html import write_report as write_page

    records = ctx.rundir.records()
    spent = ctx.ledger.spent(ctx.run_id)
    write_page(ReportInput(
        metrics=Metrics.model_validate(read_json(ctx.path("metrics.json"))), run_name=ctx.rundir.name,
        recipe_text=ctx.loaded.text, audit=_optional(ctx, "audit.json"),
        selection=_optional(ctx, "selection.json"), stability=_optional(ctx, "stability.json"),
        levers=levers_of(ctx),
        training=list(read_jsonl(ctx.path("training/student.jsonl"))),
        spend={"in all": spent_text(spent)},
        stages=[{"name": name, "seconds": record.seconds, "reused": False}
                for name, record in records.items()],
        provenance=_provenance(ctx)), ctx.path("report.html"))


def levers_of(ctx: Context) -> JSON:
    """What the variants of the student say (`evaluate.levers.Levers`); None without any."""
    return _optional(ctx, "levers.json") if variants_of(ctx) else None


def _optional(ctx: Context, name: str) -> JSON:
    path = ctx.path(name)
    return read_json(path) if path.exists() else None


def _provenance(ctx: Context) -> dict[str, str]:
    found = {name: number for name in _TOLD_VERSIONS if (number := installed_version(name))}
    return {
        "run": ctx.rundir.name, "backend": ctx.recipe.backend, "student": ctx.learner("student").model,
        "machine": machine(), "python": platform.python_version(),
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
        "versions": ", ".join(f"{name} {number}" for name, number in found.items()),
        "test items": _test_digest(ctx)}


def _test_digest(ctx: Context) -> str:
    return str(read_json(ctx.path("metrics.json"))["test_digest"])
