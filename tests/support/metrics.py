"""Results of made-up runs that are consistent in themselves, for tests of what reads `metrics.json`."""

from __future__ import annotations

import math
import random
from collections import Counter

from distillctl.evaluate.cascade import Sure, Upkeep, chosen, measure
from distillctl.evaluate.comparison_results import ComparedRun, ComparisonTable, SweetSpot
from distillctl.evaluate.economics import Paid, economics
from distillctl.evaluate.results import (
    Calibration,
    CalibrationBin,
    Comparison,
    Confusion,
    Contrast,
    Cost,
    Count,
    Evaluation,
    Interval,
    LabelScores,
    Latency,
    LedgerItem,
    Metrics,
    StructuredScores,
    TextScores,
    Throughput,
    Verdict,
)
from distillctl.evaluate.slices import slices
from distillctl.evaluate.threshold import Walk
from distillctl.recipe.models import EconomicsSpec
from distillctl.types import Example

LABELS = ["code", "docs", "hybrid", "skip"]
NO_ANSWER = "(no valid answer)"
PROMPT = """Classify this question into one of four retrieval modes.

Modes:
- code: question is about specific code, files, or symbols
- docs: question is about documentation, README, or guides
- hybrid: question spans both code and documentation
- skip: question is general knowledge, no retrieval needed

Question: {question}

Mode:"""
QUESTIONS = [
    "max_jerk: documented meaning, applied where?",
    "ok then just tell me which methods change Appointment.status",
    "CONTRIBUTING.md lays down rules for new notification channels. Which of the existing classes is the "
    "best one to copy if I want to satisfy all of them?",
    "installing hoist on a fresh macbook, which steps?",
    "For a Polish supplier and an Austrian buyer I expected no tax on the line, yet I get 20 %. Which branch "
    "of VatCalculator handles reverse charge, and which condition did my case miss?",
    "what is a monad, in one paragraph",
]


def interval(value: float, low: float, high: float, method: str = "test") -> Interval:
    return Interval(value=value, low=low, high=high, method=method)


def count(k: int, n: int) -> Count:
    """k of n with its Wilson interval."""
    p, z = k / n, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Count(k=k, n=n, share=interval(p, max(0.0, middle - half), min(1.0, middle + half), "Wilson"))


def drawn_answers(accuracy: float, n: int, seed: int, labels: list[str] = LABELS) -> list[tuple[str, str]]:
    """(expected, answered) of n items at about this accuracy, two of the wrong ones unreadable."""
    draw = random.Random(seed)
    pairs = []
    for number in range(n):
        expected = labels[number % len(labels)]
        right = draw.random() < accuracy
        pairs.append((expected, expected if right else draw.choice([x for x in labels if x != expected])))
    wrong = [i for i, (expected, answered) in enumerate(pairs) if expected != answered]
    for i in wrong[:2]:
        pairs[i] = (pairs[i][0], NO_ANSWER)
    return pairs


def evaluation(name: str, role: str, pairs: list[tuple[str, str]], labels: list[str] = LABELS,
               **more: object) -> Evaluation:
    """Everything that follows from the pairs, worked out plainly."""
    n = len(pairs)
    cells = Counter(pairs)
    scores = []
    for label in labels:
        hit, said = cells[label, label], sum(c for (_, a), c in cells.items() if a == label)
        there = sum(c for (e, _), c in cells.items() if e == label)
        precision, recall = hit / said if said else None, hit / there if there else None
        f1 = 2 * hit / (said + there) if said + there else None
        scores.append(LabelScores(label=label, support=there, precision=precision, recall=recall, f1=f1))
    macro = sum(s.f1 or 0 for s in scores) / len(scores)
    columns = [*labels, NO_ANSWER]
    return Evaluation(
        name=name, role=role, n=n, accuracy=count(sum(e == a for e, a in pairs), n),
        invalid=count(sum(a == NO_ANSWER for _, a in pairs), n),
        macro_f1=interval(macro, max(0, macro - .05), min(1, macro + .05), "bootstrap"), labels=scores,
        confusion=Confusion(labels=labels, columns=columns,
                            counts=[[cells[e, a] for a in columns] for e in labels]),
        **{"model": name, **more})


def compare(student: str, teacher: list[tuple[str, str]], answers: list[tuple[str, str]],
            speedup: Interval | None, prompt: str = PROMPT) -> Comparison:
    """The item-by-item comparison of two lists of pairs over the same items."""
    items, cells = [], Counter()
    for number, ((expected, said), (_, answered)) in enumerate(zip(teacher, answers, strict=True)):
        if said == expected == answered:
            cells["both_right"] += 1
            continue
        cell = ("compression" if said == expected else "corrected" if answered == expected
                else "inherited" if said == answered else "both_wrong_differently")
        cells[cell] += 1
        items.append(LedgerItem(
            id=f"routing-{number:04d}", cell=cell, expected=expected, teacher=said, student=answered,
            prompt=prompt.format(question=QUESTIONS[number % len(QUESTIONS)]),
            student_confidence=round(0.35 + 0.6 * ((number * 37) % 100) / 100, 3)))
    n = len(teacher)
    drop = (cells["compression"] - cells["corrected"]) / n
    half = 1.96 * math.sqrt(max(cells["compression"] + cells["corrected"], 1)) / n
    return Comparison(
        student=student, n=n, drop=interval(drop, drop - half, drop + half, "Tango"), mcnemar_p=0.0004,
        mcnemar_mid_p=0.0003, speedup=speedup, items=items,
        other_drops={"Macro-F1": interval(drop + .01, drop - half, drop + half)},
        agreement=count(sum(a[1] == b[1] for a, b in zip(teacher, answers, strict=True)), n),
        **{c: cells[c] for c in ("both_right", "compression", "corrected", "inherited",
                                 "both_wrong_differently")})


def latency(p50: float, source: str = "measured", n: int = 50) -> Latency:
    return Latency(source=source, n=n, p50=interval(p50, .93 * p50, 1.08 * p50),
                   p95=interval(1.7 * p50, 1.5 * p50, 2.1 * p50) if n >= 20 else None)


CALIBRATION = Calibration(temperature=1.42, brier=0.171, ece=0.043, bins=[
    CalibrationBin(n=50, confidence=c, accuracy=a)
    for c, a in ((.41, .38), (.63, .56), (.81, .84), (.93, .90), (.99, .98))])


def classification(*, student: float, teacher: float = 0.99, live: bool = True, n: int = 250,
                   word: str = "not ready", settled: bool = True, needed: int | None = None,
                   labels: list[str] = LABELS) -> Metrics:
    """Teacher, base model, linear baseline and student on n items. live: the teacher was asked in the run,
    so that its latency and cost are known; else it is a recording without either."""
    answers = {"teacher": drawn_answers(teacher, n, 1, labels), "base": drawn_answers(.36, n, 2, labels),
               "linear": drawn_answers(.70, n, 3, labels), "student": drawn_answers(student, n, 4, labels)}
    speed = {"base": .041, "linear": .0009, "student": .041}
    spread = interval(.82 / .041, 17.1, 22.9)
    learners = [
        evaluation("base", "base", answers["base"], labels, model="smollm2-135m", calibration=CALIBRATION,
                   latency=latency(.041), throughput=Throughput(per_second=61.2, at_once=16)),
        evaluation("linear", "baseline", answers["linear"], labels, model="TF-IDF + logistic regression",
                   latency=latency(.0009), throughput=Throughput(per_second=4100, at_once=256),
                   size_bytes=412_000),
        evaluation("student", "student", answers["student"], labels, model="smollm2-135m",
                   calibration=CALIBRATION, latency=latency(.041), size_bytes=9_800_000,
                   throughput=Throughput(per_second=58.7, at_once=16),
                   cost=Cost(usd_per_1000=.0021, source="own machine at $0.18 per hour"))]
    asked = evaluation(
        "teacher", "teacher", answers["teacher"], labels, model="gpt-4.1-2025-04-14", replayed=not live,
        latency=latency(.82) if live else None,
        cost=Cost(usd_per_1000=.94, source="price table of 2026-11-01") if live else None)
    got = next(e for e in learners if e.name == "student").accuracy.share
    return Metrics(
        task_kind="classification", gold=True, test_digest="sha256:" + "ab" * 32,
        evaluations=[asked, *learners],
        comparisons=[compare(name, answers["teacher"], answers[name],
                             spread if live and name == "student" else
                             interval(.82 / speed[name], 10, 1000) if live else None)
                     for name in ("base", "linear", "student")],
        contrasts=[contrast("student", "base"), contrast("student", "linear")],
        verdict=Verdict(
            student="student", word=word, on_quality_alone=not live, settled=settled, needed=needed,
            sentence=f"The student is {word}: it answers {100 * got.value:.1f} % of {n} test items right, "
                     f"the teacher {100 * asked.accuracy.share.value:.1f} %.",
            reasons=[f"accuracy drop against a limit of 5.0 points (95 % interval by Tango, n = {n})",
                     "speed-up 20× [17, 23], at least 2× is asked for" if live else
                     "speed is unknown: the recording has no latency, so this is a verdict on quality alone"],
            next_steps=["Collect more training rows for `hybrid`: 14 of 23 compression errors expect it.",
                        "Try a larger student."]),
        notes=[] if live else ["The teacher is a recording without latency, tokens or price: its speed and "
                               "cost are unknown, and so is every figure that would need them."])


def decided(metrics: Metrics, *, known: bool = True) -> Metrics:
    """`metrics` with a cascade, slices, economics (whose costs are not known where not `known`) and possible
    label errors, as the evaluator makes them."""
    draw = random.Random(9)
    sure = [Sure(s, draw.random() < s, draw.random() < .98) for s in (draw.random() for _ in range(250))]
    walk = Walk.over([Sure(s.confidence, s.student or s.confidence > .9, True) for s in sure])
    whole = chosen(measure(sure, 0.9, 0.05, Upkeep(.0021, .94, .041, .82) if known else Upkeep()), 0.95, 250,
                   walk.steps(0.05, 0.95))
    examples = [Example(f"e{i}", {"difficulty": ("easy", "medium", "hard")[(i % 100 > 59) + (i % 100 > 94)]})
                for i in range(250)]
    parts = slices(examples, ["difficulty"], [s.teacher for s in sure],
                   [s.student or i % 100 < 60 for i, s in enumerate(sure)], 0.05)
    teacher, student = metrics.evaluations[0], metrics.evaluations[-1]
    spec = EconomicsSpec(requests_per_day=50_000, hardware_usd_per_hour=.18) if known else EconomicsSpec()
    bare = {} if known else {"cost": None}
    return metrics.model_copy(update={
        "cascade": whole, "slices": parts,
        "economics": economics(spec, teacher.model_copy(update=bare), student.model_copy(update=bare),
                               Paid(12.4, "what this run spent") if known else Paid(), whole),
        "label_suspects": [item.id for item in metrics.comparisons[-1].items[:3]]})


def viable() -> Metrics:
    return classification(student=.985, word="viable")


def not_ready() -> Metrics:
    return classification(student=.80, word="not ready")


def replayed() -> Metrics:
    """A recorded teacher without latency; marginal, and the test set is too small to say so."""
    return classification(student=.92, live=False, word="marginal", settled=False, needed=1180)


def structured() -> Metrics:
    """JSON answers scored by field."""
    n = 60
    marks = {"teacher": drawn_answers(.93, n, 5, ["right", "wrong"]),
             "student": drawn_answers(.62, n, 6, ["right", "wrong"])}
    marks = {name: [("right", "right" if e == a else "wrong") for e, a in pairs]
             for name, pairs in marks.items()}
    items = [LedgerItem(
        id=f"evidence-{i:04d}", cell="compression",
        prompt="Answer the question from the evidence alone.\n\nEvidence:\n[1] docs/errors/E0241.md: A match "
               f"is not exhaustive.\n\nQuestion: what does E02{i:02d} mean\n\nJSON:",
        expected={"citations": [2], "answerable": True, "confidence": "high"},
        teacher={"answer": "A value is consumed inside a loop.", "citations": [2], "answerable": True,
                 "confidence": "high"},
        student={"answer": "It is a match.", "citations": [1, 2], "answerable": True, "confidence": "low"}
        if i % 3 else '{"answer": "It is a match that is not exh',
        parts={"citations": 0.0, "answerable": 1.0, "confidence": 0.0},
        part_cells={"citations": "compression", "confidence": "compression" if i % 3 else "inherited"})
        for i in range(7)]
    evaluations = []
    for name, role in (("teacher", "teacher"), ("student", "student")):
        share = count(sum(e == a for e, a in marks[name]), n)
        part = share.share.value
        evaluations.append(Evaluation(
            name=name, role=role, model=f"{name}-model", n=n, accuracy=share, invalid=count(3, n),
            latency=latency(1.9 if role == "teacher" else .6, n=12),
            structured=StructuredScores(schema_valid=count(n - 3, n), exact_object=share,
                                        field_f1=interval(part + .04, part - .03, part + .09)),
            parts={field: interval(min(1, part + up), min(1, part + up - .08), min(1, part + up + .06))
                   for field, up in (("citations", .02), ("answerable", .06), ("confidence", -.1))}))
    return Metrics(
        task_kind="structured", gold=True, test_digest="sha256:" + "cd" * 32, evaluations=evaluations,
        how_scored={"citations": "a list, order aside", "answerable": "exact", "confidence": "exact"},
        comparisons=[compare("student", marks["teacher"], marks["student"], interval(3.2, 2.8, 3.7))
                     .model_copy(update={"items": items})],
        verdict=Verdict(
            student="student", word="not ready", on_quality_alone=False, settled=True, needed=None,
            sentence="The student is not ready: it loses 31.7 points against the teacher.",
            reasons=["the drop is above the limit of 10.0 points"], next_steps=["More rows."]))


def text() -> Metrics:
    """Free text checked by terms, without gold: measured against the teacher's own answers."""
    n = 44
    pairs = {"teacher": [("ok", "ok")] * n, "student": drawn_answers(.71, n, 7, ["ok", "missed"])}
    pairs["student"] = [("ok", "ok" if e == a else "missed") for e, a in pairs["student"]]
    items = [LedgerItem(
        id=f"query-{i:03d}", cell="compression", student_confidence=None,
        prompt=f"Rewrite the last question as one search query.\n\nConversation:\nUser: is {i} ok?\n\nQuery:",
        expected={"text": "Peatvault backup size 7 November", "must_include": ["Peatvault", "7 November"]},
        teacher="Peatvault backup size 7 November", student="How much did last night's backup add?",
        parts={"must_include": 0.0, "must_not_include": 1.0}, part_cells={"must_include": "compression"})
        for i in range(5)]
    evaluations = [Evaluation(
        name=name, role=name, model=f"{name}-model", n=n, invalid=count(0, n), replayed=name == "teacher",
        accuracy=count(sum(e == a for e, a in pairs[name]), n),
        text=TextScores(n=n, exact=count(30, n), rouge_l=interval(.81, .75, .86),
                        chrf=interval(.77, .7, .83)),
        parts={"must_include": interval(.8, .7, .9), "must_not_include": interval(1, .92, 1)})
        for name in ("teacher", "student")]
    return Metrics(
        task_kind="text", gold=False, test_digest="sha256:" + "ef" * 32, evaluations=evaluations,
        comparisons=[compare("student", pairs["teacher"], pairs["student"], None)
                     .model_copy(update={"items": items})],
        verdict=Verdict(
            student="student", word="not ready", on_quality_alone=True, settled=False, needed=None,
            sentence="The student is not ready: it agrees with the teacher on 70.5 % of 44 items.",
            reasons=["no gold answers: agreement with the teacher is what is measured"],
            next_steps=["Write gold answers for 100 test items."]))


def side_by_side(runs: dict[str, Metrics], on_dev: bool = False) -> ComparisonTable:
    """Runs as `compare` puts them, in the order given. on_dev: ranked on 100 dev items, with a sweet spot."""
    best, first = next(iter(runs.items()))
    references = {e.name: e for m in runs.values() for e in m.evaluations if e.role != "student"}
    return ComparisonTable(
        task_kind=first.task_kind, gold=first.gold, test_digest=first.test_digest,
        n=first.evaluations[0].n, references=list(references.values()),
        ranked_on="dev" if on_dev else "test",
        sweet_spot=SweetSpot(run=best, by="cost", within=list(runs)[:2],
                             sentence=f"Sweet spot: {best}, the cheapest of 2.") if on_dev else None,
        runs=[ComparedRun(
            run=name, student=m.evaluations[-1].model_copy(
                update={"dev": count(98 - i, 100)} if on_dev else {}),
            settings={"train.learning_rate": .001 * (i + 1)} if on_dev else {}, drop=m.comparisons[-1].drop,
            speedup=m.comparisons[-1].speedup, economics=m.economics, verdict=m.verdict)
            for i, (name, m) in enumerate(runs.items())],
        contrasts=[contrast(a, b) for a, b in zip(list(runs)[:1] * len(runs), list(runs)[1:], strict=False)],
        notes=[f"{len(runs)} students were compared on one test set: the best figure is optimistic."])


def contrast(first: str, second: str) -> Contrast:
    return Contrast(first=first, second=second, n=250, only_first=41, only_second=12,
                    difference=interval(.116, .061, .173, "Tango"), p=.00006, p_holm=.00012)


def hostile(payload: str) -> Metrics:
    """`payload` in every place that text from a model, a provider or a data file can reach."""
    labels = [payload, payload + "2"]
    made = decided(classification(student=.5, teacher=.7, n=12, labels=labels))
    evil = {"model": payload, "cost": Cost(usd_per_1000=1, source=payload)}
    items = [LedgerItem(id=payload, cell=cell, prompt=payload, expected=payload, student=value,
                        teacher=payload, parts={payload: 0.5}, part_cells={payload: cell})
             for cell in ("compression", "inherited", "both_wrong_differently", "corrected")
             for value in (payload, {payload: payload}, [payload])]
    return made.model_copy(update={
        "evaluations": [e.model_copy(update={**evil, "parts": {payload: interval(.5, .4, .6)}})
                        for e in made.evaluations],
        "comparisons": [c.model_copy(update={"items": items}) for c in made.comparisons],
        "cascade": made.cascade.model_copy(update={"sentence": payload}),
        "slices": [s.model_copy(update={"field": payload, "value": payload}) for s in made.slices],
        "economics": made.economics.model_copy(update={
            "sentence": payload, "unknown": [payload], "assumed": [payload],
            "from_recipe": [payload], "training_source": payload,
            "scenarios": [s.model_copy(update={"name": payload}) for s in made.economics.scenarios]}),
        "label_suspects": [payload], "how_scored": {payload: payload},
        "contrasts": [c.model_copy(update={"first": payload, "second": payload}) for c in made.contrasts],
        "verdict": made.verdict.model_copy(update={
            "sentence": payload, "reasons": [payload], "next_steps": [payload]}),
        "notes": [payload]})
