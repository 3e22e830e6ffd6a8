"""From predictions to `metrics.json`: score every entrant on the same items, compare, decide.

A pure function: it calls no model and reads no file, so that every backend, hosted or local, is scored by
the same code, and a run can be scored again from its files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distillctl.errors import DataError, Problem
from distillctl.evaluate import cascade as cascading
from distillctl.evaluate import intervals, metrics, secondary, stats
from distillctl.evaluate import slices as slicing
from distillctl.evaluate.calibration import MIN_DEV, Stated, calibration, confidence
from distillctl.evaluate.cost import cost, server, teacher_cost
from distillctl.evaluate.economics import Paid, economics
from distillctl.evaluate.errors import against_teacher, label_suspects
from distillctl.evaluate.findings import unconnected
from distillctl.evaluate.judging import Judged, judge_scores
from distillctl.evaluate.latency import MIN_FOR_MEDIAN, MIN_FOR_P95, latency, speedup
from distillctl.evaluate.results import (
    Calibration,
    Cascade,
    Cost,
    Evaluation,
    JudgeScores,
    Metrics,
    Role,
    Throughput,
)
from distillctl.evaluate.threshold import Walk
from distillctl.evaluate.verdict import decide
from distillctl.evaluate.wording import plural
from distillctl.prices import PricePoint
from distillctl.recipe.models import CascadeSpec, EconomicsSpec, VerdictSpec
from distillctl.store.files import digest_json
from distillctl.task import Task
from distillctl.types import JSON, Answer, Example, Prediction


@dataclass(frozen=True)
class Entrant:
    """Somebody who answered the test items.

    predictions: on test, one per item, any order; a missing one is a wrong answer. dev_predictions: on dev,
    for the temperature of its probabilities. latencies_s: wall seconds of single requests, one at a time;
    a replayed entrant's come from its recorded answers where they have them. price: of its tokens; None
    where unknown or where `cost_usd` of the answers is all there is. usd_per_hour: of the endpoint that gave
    them, where it is paid by time. timed_on: the machine in words, where its training job timed it.
    Raises ValueError for a replayed entrant that was timed: that times the replay.
    """

    name: str
    role: Role
    model: str
    predictions: Sequence[Prediction]
    dev_predictions: Sequence[Prediction] | None = None
    latencies_s: Sequence[float] | None = None
    latency_source: Literal["measured", "recorded"] = "measured"
    throughput: Throughput | None = None
    price: PricePoint | None = None
    usd_per_hour: float | None = None
    replayed: bool = False
    size_bytes: int | None = None
    timed_on: str | None = None

    def __post_init__(self) -> None:
        if self.replayed and self.latencies_s and self.latency_source == "measured":
            raise ValueError(f"{self.name} is replayed: timing it would time the replay, not the model")

    def timed(self) -> tuple[list[float], Literal["measured", "recorded"]]:
        """Seconds per request, and where they come from; empty where unknown."""
        if self.latencies_s is None and self.replayed:
            recorded = (prediction.answer.latency_s for prediction in self.predictions)
            return [seconds for seconds in recorded if seconds is not None], "recorded"
        return list(self.latencies_s or ()), self.latency_source


@dataclass(frozen=True)
class Judging:
    """What a judge said: of each pair its item's id, the pair, US dollars of all; and the recipe's bar."""

    ids: Sequence[str]
    pairs: Sequence[Judged]
    usd: float | None
    model: str
    min_agreement: float


@dataclass(frozen=True)
class EvaluationInput:
    """Everything that an evaluation needs.

    entrants: one teacher, one student, and base models and baselines where there are any. groups: by item
    id, where rows belong together (the recipe's `data.group`); intervals then allow for it. cascade,
    slices, economics: as in the recipe. paid: what getting the student cost. judging: of a text task.
    """

    task: Task
    verdict: VerdictSpec
    test: Sequence[Example]
    entrants: Sequence[Entrant]
    dev: Sequence[Example] = ()
    groups: Mapping[str, Hashable] | None = None
    cascade: CascadeSpec | None = None
    slices: Sequence[str] = ()
    economics: EconomicsSpec = field(default_factory=EconomicsSpec)
    paid: Paid = field(default_factory=Paid)
    judging: Judging | None = None


@dataclass(frozen=True)
class _Split:
    """Items with what counts as right for each; `expected` is None where nothing does."""

    examples: Sequence[Example]
    expected: Sequence[JSON]

    def line_up(self, predictions: Sequence[Prediction]) -> list[Prediction | None]:
        by_id = {one.id: one for one in predictions if one.sample == 0}
        return [by_id.get(example.id) for example in self.examples]


def evaluate(given: EvaluationInput) -> Metrics:
    """Score, compare, decide. Raises DataError for test items or predictions that do not fit together."""
    _check(given)
    teacher = next(one for one in given.entrants if one.role == "teacher")
    student = next(one for one in given.entrants if one.role == "student")
    gold = given.test[0].expected is not None
    test = _split(given.task, given.test, teacher.predictions)
    dev = _split(given.task, given.dev, teacher.dev_predictions or ())
    groups = [given.groups[e.id] for e in given.test] if given.groups else None
    groups = groups if groups and len(set(groups)) < len(groups) else None

    scored = {one.name: metrics.score(given.task, test.line_up(one.predictions), test.expected)
              for one in given.entrants}
    evaluations = [_evaluation(given, one, scored[one.name], test, dev, groups) for one in given.entrants]
    by_name = {one.name: one for one in evaluations}
    rest = [one for one in given.entrants if one.role not in ("teacher", "student")]
    comparisons = [
        against_teacher(given.task, given.test, test.expected, scored[teacher.name], scored[one.name],
                        one.name, speedup=speedup(teacher.timed()[0], one.timed()[0]), groups=groups,
                        ledger=one is student, temperature=_temperature(by_name[one.name].calibration))
        for one in (student, *rest)]
    contrasts = [intervals.contrast(student.name, scored[student.name].right, one.name,
                                    scored[one.name].right, groups) for one in rest]
    apart = [t - s for t, s in zip(scored[teacher.name].right, scored[student.name].right, strict=True)]
    effect = stats.design_effect(apart, groups) if groups else 1.0
    whole, no_cascade = _cascade(given, teacher, student, by_name, (test, dev), groups)
    parts = slicing.slices(given.test, given.slices, scored[teacher.name].right, scored[student.name].right,
                           given.verdict.max_drop, groups)
    fine = comparisons[0].drop.value <= given.verdict.max_drop  # else the whole says enough
    behind = [*secondary.warnings(comparisons[0].other_drops, given.verdict.max_drop),
              *slicing.warnings(parts, given.verdict.max_drop)] if fine else []
    return Metrics(
        task_kind=given.task.kind, gold=gold, test_digest=_digest(given.task, test),
        dev_digest=_digest(given.task, dev) if dev.examples else None, evaluations=evaluations,
        comparisons=comparisons, contrasts=contrasts, cascade=whole, no_cascade=no_cascade, slices=parts,
        judge=_judge(given),
        economics=economics(given.economics, by_name[teacher.name], by_name[student.name], given.paid, whole),
        how_scored={name: given.task.how_scored(name) for one in evaluations for name in one.parts},
        label_suspects=label_suspects(comparisons[0]) if gold else [],
        verdict=decide(given.verdict, gold=gold, evaluations=evaluations, comparisons=comparisons,
                       contrasts=contrasts, design_effect=effect, cascade=whole, behind=behind),
        notes=_notes(given, gold, test, evaluations, groups))


def _judge(given: EvaluationInput) -> JudgeScores | None:
    said = given.judging
    if said is None:
        return None
    groups = [given.groups[identity] for identity, pair in zip(said.ids, said.pairs, strict=True)
              if pair.split == "test"] if given.groups else None
    return judge_scores(said.pairs, said.model, said.min_agreement, said.usd, groups)


def _cascade(given: EvaluationInput, teacher: Entrant, student: Entrant, by_name: Mapping[str, Evaluation],
             splits: tuple[_Split, _Split], groups: Sequence[Hashable] | None,
             ) -> tuple[Cascade | None, str | None]:
    """The cascade of teacher and student; without one, why no threshold could be chosen. Neither where the
    student states no probabilities."""
    found = by_name[student.name].calibration
    if found is None:
        return None, None
    if unconnected(by_name[teacher.name]):
        return None, "A threshold would be of no use: the teacher is right only as often as by chance."
    test, dev = (_sure(given.task, split, teacher_said, student_said, found.temperature)
                 for split, teacher_said, student_said in (
                     (splits[0], teacher.predictions, student.predictions),
                     (splits[1], teacher.dev_predictions or (), student.dev_predictions or ())))
    spec, max_drop = given.cascade or CascadeSpec(), given.verdict.max_drop
    walk = Walk.over(dev, [given.groups[e.id] for e in given.dev] if given.groups else None)
    fixed = spec.threshold is not None
    threshold = spec.threshold if fixed else walk.threshold(max_drop, spec.level)
    if threshold is None:
        return None, walk.why_none(max_drop, spec.level)
    deferred = [one.answer for one, sure in zip(splits[0].line_up(teacher.predictions), test, strict=True)
                if one and not sure.answered(threshold)]
    own = by_name[student.name].cost
    asked = _cost(given, teacher, deferred) or by_name[teacher.name].cost
    upkeep = cascading.Upkeep(own and own.usd_per_1000, asked and asked.usd_per_1000,
                              _mean(student.timed()[0]), _mean(teacher.timed()[0]))
    measured = cascading.measure(test, threshold, max_drop, upkeep, groups)
    if fixed:
        return measured, None
    return cascading.chosen(measured, spec.level, len(dev), walk.steps(max_drop, spec.level)), None


def _sure(task: Task, split: _Split, teacher: Sequence[Prediction], student: Sequence[Prediction],
          temperature: float | None) -> list[cascading.Sure]:
    said = split.line_up(student)
    right = metrics.score(task, said, split.expected).right
    teacher_right = metrics.score(task, split.line_up(teacher), split.expected).right
    sure = [confidence(one.answer.label_logprobs, one.value, temperature) if one else None for one in said]
    return [cascading.Sure(*flags) for flags in zip(sure, right, teacher_right, strict=True)]


def _mean(seconds: Sequence[float]) -> float | None:
    return sum(seconds) / len(seconds) if len(seconds) >= MIN_FOR_MEDIAN else None


def _cost(given: EvaluationInput, who: Entrant, answers: Sequence[Answer]) -> Cost | None:
    if who.role == "teacher":
        return teacher_cost(answers, who.price, given.economics.teacher)
    billed = cost(answers, who.price)
    by_time = server(given.economics, who.role, who.throughput, latency(*who.timed()), who.usd_per_hour)
    if by_time is None:
        return billed
    shared = by_time.cost(given.economics.requests_per_day)
    return shared or billed if by_time.hosted else billed or shared


def _check(given: EvaluationInput) -> None:
    roles = [one.role for one in given.entrants]
    names = [one.name for one in given.entrants]
    if roles.count("teacher") != 1 or roles.count("student") != 1 or len(set(names)) < len(names):
        raise ValueError(f"one teacher, one student and distinct names are needed, not {names} as {roles}")
    if not given.test:
        raise DataError("the test split is empty: there is nothing to evaluate on")
    problems = []
    for split, examples in (("test", given.test), ("dev", given.dev)):
        ids = [example.id for example in examples]
        problems += [Problem(f"the id stands twice in the {split} split", value=one) for one in _twice(ids)]
        bare = [e for e in examples if e.expected is None]
        if bare and len(bare) < len(examples):
            problems.append(Problem(
                f"{len(bare)} of {plural(len(examples), f'{split} item')} have no expected answer",
                where=bare[0].source or None, value=bare[0].id, hint="give it for all of them, or for none"))
        for who in given.entrants:
            predictions = who.predictions if split == "test" else who.dev_predictions or ()
            answered = [one.id for one in predictions if one.sample == 0]
            strange = sorted(set(answered) - set(ids))
            if strange:
                problems.append(Problem(
                    f"{plural(len(strange), 'prediction')} of {who.name!r} for ids that are not in the "
                    f"{split} split", value=strange[0],
                    hint="they are of other data: make them again on this split"))
            problems += [Problem(f"{who.name!r} has two {split} predictions for one id", value=one)
                         for one in _twice(answered)]
    if problems:
        raise DataError(*problems)


def _twice(ids: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({one for one in ids if one in seen or seen.add(one)})


def _split(task: Task, examples: Sequence[Example], teacher: Sequence[Prediction]) -> _Split:
    """Gold answers where they exist; else the teacher's valid ones, as the task scores against."""
    if examples and examples[0].expected is not None:
        expected = [_gold(task, example) for example in examples]
    else:
        said = {one.id: one.value for one in teacher if one.sample == 0}
        expected = [said.get(example.id) for example in examples]
        if task.kind == "text":
            expected = [None if one is None else {"text": one} for one in expected]
    return _Split(examples, expected)


def _gold(task: Task, example: Example) -> JSON:
    if task.kind != "classification":
        return example.expected
    label = task.label(example.expected)
    if label is None:
        raise DataError(Problem("the expected answer is not one of the labels", where=example.source or None,
                                value=example.expected, hint=f"the labels are: {', '.join(task.labels)}"))
    return label


def _evaluation(given: EvaluationInput, who: Entrant, scored: metrics.Scored, test: _Split, dev: _Split,
                groups: Sequence[Hashable] | None) -> Evaluation:
    task = given.task
    accuracy = intervals.count(scored.right, groups)
    seconds, source = who.timed()
    by_kind = {}
    if task.kind == "classification":
        table = metrics.confusion(task.labels, test.expected, scored.values)
        stated = [(one.answer.label_logprobs if one else None) for one in scored.answers]
        dev_stated = [(one.answer.label_logprobs if one else None)
                      for one in dev.line_up(who.dev_predictions or ())]
        by_kind = {
            "macro_f1": metrics.macro_f1(task.labels, test.expected, scored.values, groups, accuracy.share),
            "labels": metrics.label_scores(table), "confusion": table,
            "calibration": calibration(task.labels, _pairs(stated, test), _pairs(dev_stated, dev))}
    elif task.kind == "structured":
        by_kind = {"structured": metrics.structured_scores(task, scored, test.expected, groups)}
    elif task.kind == "text":
        by_kind = {"text": metrics.text_scores(task, scored, test.expected, groups)}
    return Evaluation(
        name=who.name, role=who.role, model=who.model, n=len(scored.right), accuracy=accuracy,
        invalid=metrics.invalid(scored, groups), parts=metrics.part_means(scored, groups),
        latency=latency(seconds, source, who.timed_on), throughput=who.throughput,
        cost=_cost(given, who, [one.answer for one in scored.answers if one]),
        usd_per_hour=who.usd_per_hour, replayed=who.replayed,
        size_bytes=who.size_bytes,
        wrong=_wrong(test, scored), **_on_dev(given, who, dev), **by_kind)


def _wrong(split: _Split, scored: metrics.Scored) -> list[str]:
    return [e.id for e, right in zip(split.examples, scored.right, strict=True) if not right]


def _on_dev(given: EvaluationInput, who: Entrant, dev: _Split) -> dict[str, object]:
    """Accuracy on dev and what is wrong there; empty for who did not answer it."""
    if not dev.examples or who.dev_predictions is None:
        return {}
    groups = [given.groups[e.id] for e in dev.examples] if given.groups else None
    groups = groups if groups and len(set(groups)) < len(groups) else None
    scored = metrics.score(given.task, dev.line_up(who.dev_predictions), dev.expected)
    return {"dev": intervals.count(scored.right, groups), "dev_wrong": _wrong(dev, scored)}


def _pairs(stated: Sequence[Mapping[str, float] | None], split: _Split) -> list[Stated]:
    return list(zip(stated, split.expected, strict=True))


def _temperature(found: Calibration | None) -> float | None:
    return found.temperature if found else None


def _digest(task: Task, test: _Split) -> str:
    """The same for the same items, expected the same and scored the same; the prompt may differ."""
    items = sorted(([e.id, dict(e.fields), wanted] for e, wanted in
                    zip(test.examples, test.expected, strict=True)), key=lambda item: item[0])
    return digest_json({"items": items,
                        "scoring": task.spec.model_dump(mode="json", exclude={"prompt", "system"})})


def _notes(given: EvaluationInput, gold: bool, test: _Split, evaluations: Sequence[Evaluation],
           groups: Sequence[Hashable] | None) -> list[str]:
    """What a reader must know before believing a figure."""
    notes = []
    if not gold:
        notes.append("No gold answers: the teacher's answers are the measure, so every accuracy here is "
                     "agreement with the teacher, and its own is 100 % by definition.")
        unread = sum(wanted is None for wanted in test.expected)
        if unread:
            notes.append(f"The teacher gave no valid answer to {plural(unread, 'test item')}: they count as "
                         "wrong for everybody.")
    for who, one in zip(given.entrants, evaluations, strict=True):
        missing = one.n - sum(p is not None for p in test.line_up(who.predictions))
        if missing:
            notes.append(f"{one.name}: {plural(missing, 'answer')} of {one.n:,} missing, counted as wrong.")
        if one.replayed:
            lacks = [what for what in ("latency", "cost") if getattr(one, what) is None]
            unknown = f" Unknown of it: {' and '.join(lacks)}." if lacks else ""
            notes.append(f"{one.name} is replayed from a recording, not asked in this run.{unknown}")
        if one.latency and one.latency.source == "recorded":
            notes.append(f"{one.name}: latencies are as recorded; hardware and load then are not known here.")
        if one.latency and one.latency.machine:
            notes.append(f"{one.name}: answered and timed in its training job, on {one.latency.machine}; on "
                         "other hardware its latency is another.")
        if one.latency and one.latency.n < MIN_FOR_P95:
            what = "speed-up and p95" if one.latency.n < MIN_FOR_MEDIAN else "p95"
            notes.append(f"{one.name}: {plural(one.latency.n, 'request')} timed, too few for {what} "
                         f"(p95 needs {MIN_FOR_P95}).")
        if one.role == "student" and one.calibration and one.calibration.temperature is None:
            notes.append(f"{one.name}: fewer than {MIN_DEV} dev items with probabilities, so they are shown "
                         "as stated, without a temperature.")
    if groups:
        notes.append(f"The {len(groups):,} test items come in {len(set(groups)):,} groups: intervals allow "
                     "for it, McNemar's p does not.")
    return notes
