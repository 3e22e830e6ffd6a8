"""The stages in their order, what determines each, and the loop that runs or reuses them.

The one place that knows the whole. A stage's key is a digest of its version, of the parts of the recipe
and the files that determine its outputs, and of the keys of the stages it reads from; so all keys are
known before anything runs, and `plan` can say what will be reused and why the rest will not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from distillctl import deciding, judge, stages
from distillctl.context import Context, LearnerRole
from distillctl.errors import Problem, UsageError
from distillctl.store.files import digest_json
from distillctl.store.rundir import StageRecord
from distillctl.testing.crash import crashpoint
from distillctl.types import JSON, SPLITS
from distillctl.variants import variants_of, weigh_variants

Parts = Mapping[str, JSON]


@dataclass(frozen=True)
class Stage:
    """A step from files to files. parts: what, beside the stages it comes `after`, determines the outputs.

    Raise `version` when the stage's code changes what it writes.
    """

    name: str
    does: str
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: Callable[[Context], Parts]
    work: Callable[[Context], None]
    version: int = 1


@dataclass(frozen=True)
class Step:
    """A stage in this run: its key, and whether its outputs of an earlier run serve again."""

    stage: Stage
    key: str
    parts: Parts
    reuse: bool
    why: str
    record: StageRecord | None = field(default=None, repr=False)


def _learner_stages(role: LearnerRole, does: str = "", rows: tuple[str, ...] = ()) -> list[Stage]:
    """rows: files of training rows of its own that training leaves."""
    return [
        Stage(f"train-{role}", does or f"train the {role}", ("select",),
              (f"{role}.json", f"{role}", f"training/{role}.jsonl", *rows),
              lambda ctx: ctx.learner(role).parts(), lambda ctx: stages.train(ctx, role)),
        Stage(f"answer-{role}", f"let the {role} answer dev and test", ("data", f"train-{role}"),
              (f"predictions/{role}.dev.jsonl", f"predictions/{role}.test.jsonl", f"timings/{role}.json"),
              lambda ctx: ctx.answering_parts(), lambda ctx: stages.answer_learner(ctx, role)),
    ]


def stages_of(ctx: Context) -> list[Stage]:
    """The stages that this recipe needs, in order."""
    recipe = ctx.recipe
    found = [
        Stage("data", "read, split and audit the examples", (),
              (*(f"data/{split}.jsonl" for split in SPLITS), "audit.json"),
              lambda ctx: ctx.data_parts(), stages.load_data),
        Stage("teacher", "ask the teacher", ("data",),
              (*(f"predictions/teacher.{split}.jsonl" for split in SPLITS), "stability.json",
               "timings/teacher.json"),
              lambda ctx: ctx.teacher_parts(), stages.ask_teacher),
        Stage("select", "keep the right answers as training rows", ("teacher",),
              ("training/train.jsonl", "training/dev.jsonl", "selection.json"),
              lambda ctx: {}, stages.select_rows),
        *_learner_stages("student"),
    ]
    scored = ["answer-student"]
    if recipe.evaluate.base and ctx.has_base:
        found.append(Stage(
            "answer-base", "let the untrained student answer", ("data", "train-student"),
            ("predictions/base.test.jsonl", "timings/base.json"),
            lambda ctx: ctx.answering_parts(), stages.answer_base))
        scored.append("answer-base")
    if recipe.evaluate.judge:
        found.append(Stage("judge", "let the judge compare the student's texts with the teacher's",
                           ("teacher", "answer-student"), (judge.FILE,), lambda ctx: ctx.judge_parts(),
                           judge.ask_judge))
        scored.append("judge")
    if recipe.baseline:
        found.extend(_learner_stages("baseline"))
        scored.append("answer-baseline")
    variants = variants_of(ctx)
    for one in variants:
        rows = () if one.kind == "seed" else (f"training/{one.role}.rows.jsonl",)
        found.extend(_learner_stages(one.role, one.does, rows))
    told = ["evaluate"]
    if variants:
        found.append(Stage("levers", "say what the variants of the student tell",
                           ("teacher", "answer-student", *(f"answer-{one.role}" for one in variants)),
                           ("levers.json",),
                           lambda ctx: {"verdict": ctx.recipe.verdict.model_dump(mode="json")},
                           weigh_variants, version=2))
        told.append("levers")
    found.append(Stage("evaluate", "score, compare, decide", ("teacher", *scored), ("metrics.json",),
                       lambda ctx: ctx.scoring_parts(), deciding.evaluate_run, version=5))
    found.append(Stage("report", "write the report", tuple(told), ("report.html",),
                       lambda ctx: {}, deciding.write_report, version=3))
    return found


def steps_of(ctx: Context) -> list[Step]:
    """What a run would do now, stage by stage. Reads files and writes nothing."""
    records = ctx.rundir.records()
    keys: dict[str, str] = {}
    steps: list[Step] = []
    rerun: set[str] = set()
    for stage in stages_of(ctx):
        parts = {"version": stage.version, **stage.parts(ctx)}
        after = [keys[name] for name in stage.after]
        key = digest_json({"stage": stage.name, "parts": parts, "after": after})
        keys[stage.name] = key
        record = records.get(stage.name)
        why = _why_again(ctx, stage, key, parts, record, rerun)
        if why:
            rerun.add(stage.name)
        steps.append(Step(stage, key, parts, not why, why or "outputs are there and unchanged", record))
    return steps


def _why_again(ctx: Context, stage: Stage, key: str, parts: Parts, record: StageRecord | None,
               rerun: set[str]) -> str:
    if record is None:
        return "not done yet"
    if record.key != key:
        changed = [name for name in {**record.parts, **parts} if record.parts.get(name) != parts.get(name)]
        if changed:
            return "changed: " + ", ".join(sorted(changed))
        return "after " + ", ".join(name for name in stage.after if name in rerun)
    damage = ctx.rundir.damage(record)
    return f"{damage[0].where} {damage[0].what}" if damage else ""


def execute(ctx: Context, until: str | None = None) -> list[Step]:
    """Run what has to be run, reuse the rest. Returns the steps that were gone through.

    until: the last stage to run. Raises the error of the stage that failed; stages before it stay done.
    """
    done: list[Step] = []
    for step in select_until(steps_of(ctx), until):
        name = step.stage.name
        if step.reuse:
            ctx.reporter.reused(name)
        else:
            ctx.reporter.stage(name, step.why)
            started = time.monotonic()
            step.stage.work(ctx)
            seconds = time.monotonic() - started
            crashpoint(f"before-mark-{name}")
            ctx.rundir.mark_done(name, step.key, step.parts, step.stage.outputs, seconds)
            ctx.reporter.done(name, seconds)
        done.append(step)
    return done


def select_until(steps: Sequence[Step], until: str | None) -> list[Step]:
    """The steps up to and with stage `until`. Raises UsageError for a stage that this run has not."""
    names = [step.stage.name for step in steps]
    if until is None:
        return list(steps)
    if until not in names:
        raise UsageError(Problem("no such stage", field="--until", value=until,
                                 hint="stages: " + ", ".join(names)))
    return list(steps[:names.index(until) + 1])
