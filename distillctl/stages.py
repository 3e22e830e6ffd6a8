"""The stages of a run: what each reads, does and writes. Their order and keys are in `pipeline.py`.

Every function takes the run's `Context` and leaves its files in the run directory. None knows which
backend it talks to, and none calls another: what passes between them are the files.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from distillctl import answering, jobs
from distillctl.backend import JobEvent, Prompts, StudentRef, TrainJob
from distillctl.context import Context, Detached, LearnerRole
from distillctl.data import audit, load_splits
from distillctl.errors import BackendError, Problem, TeacherError
from distillctl.evaluate.slices import check_fields
from distillctl.job_answers import Answered, read_answers
from distillctl.progress import seconds_text
from distillctl.select import select
from distillctl.stability import Stability
from distillctl.store.files import digest_file, digest_json, read_json, safe_join, write_json, write_jsonl
from distillctl.task import Task
from distillctl.types import JSON, SPLITS, Example, Split
from distillctl.variants import rows_of


def load_data(ctx: Context) -> None:
    """Read, split and audit the examples."""
    splits, warnings = load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)
    check_fields(splits["test"], ctx.recipe.evaluate.slices)
    found = audit(splits, ctx.task, ctx.recipe.data)
    for split in SPLITS:
        write_jsonl(ctx.path(f"data/{split}.jsonl"), (example.as_json() for example in splits[split]))
    write_json(ctx.path("audit.json"), found.as_json())
    for warning in (*warnings, *found.warnings):
        ctx.reporter.note(warning, "warning")
    ctx.reporter.note(", ".join(f"{split} {len(splits[split])}" for split in SPLITS) + " examples")


def ask_teacher(ctx: Context) -> None:
    """Measure the teacher's stability where the recipe asks for it, then collect its answers."""
    with answering.teacher(ctx) as who:
        if wanted := getattr(ctx.recipe.teacher, "stability", None):
            found = answering.stability(ctx, who, wanted)
        else:
            found = Stability(measured=False)
        write_json(ctx.path("stability.json"), found.as_json())
        if found.measured and not found.enough:
            raise TeacherError(Problem(
                f"the teacher agrees with itself on {found.unanimous:.0%} of {found.items} prompts asked "
                f"{found.samples} times, below {found.min_agreement:.0%}: not ready to be distilled",
                field="teacher.stability.min_agreement",
                hint="make the prompt or the labels clearer, or lower the temperature; then run again"))
    with answering.teacher(ctx) as who:
        answering.collect_splits(ctx, who, SPLITS)


def select_rows(ctx: Context) -> None:
    """Keep the teacher's right answers of train as training rows, those of dev for watching."""
    kept = {}
    for split in ("train", "dev"):
        chosen = select(ctx.task, ctx.examples(split), ctx.predictions("teacher", split))
        write_jsonl(ctx.path(f"training/{split}.jsonl"), chosen.rows)
        kept[split] = chosen
    if not kept["train"].rows:
        raise TeacherError(Problem("no answer of the teacher can be trained on",
                                   where=str(ctx.path("selection.json")),
                                   hint="look at its answers in predictions/teacher.train.jsonl"))
    write_json(ctx.path("selection.json"), kept["train"].as_json())
    dropped = ", ".join(f"{len(ids)} {reason}" for reason, ids in kept["train"].dropped.items())
    rows = f"{len(kept['train'].rows)} training rows"
    ctx.reporter.note(f"{rows}; dropped: {dropped}" if dropped else rows)


# --- training -------------------------------------------------------------------------------------------


def provisional_row(task: Task, example: Example) -> dict[str, JSON]:
    """A training row before the teacher has answered: with the gold answer, else one of a usual length."""
    gold = example.expected
    if task.kind == "classification":
        in_turn = task.labels[zlib.crc32(example.id.encode()) % len(task.labels)]  # not all the same one
        completion = task.target(gold if gold is not None else in_turn)
    else:
        completion = str(gold.get("text", gold)) if isinstance(gold, Mapping) else "unknown " * 40
    return {"id": example.id, "messages": task.render(example.fields, example.source),
            "completion": completion, "source": example.source}


def train_job(ctx: Context, role: LearnerRole, train_file: Path, dev_file: Path,
              splits: Mapping[Split, Sequence[Example]] | None = None) -> TrainJob:
    """The job for a learner, on these rows; prompts that it is to answer go beside them. splits: the
    examples, where the run's own are not there yet."""
    learner = ctx.learner(role)
    with train_file.open(encoding="utf-8") as rows:
        count = sum(1 for _ in rows)
    return TrainJob(name=f"{ctx.recipe.name}-{role}", task=ctx.task, train=learner.train, model=learner.model,
                    train_file=train_file, dev_file=dev_file, rows=count, digest=digest_file(train_file),
                    prompts=_prompts(ctx, train_file.parent / "prompts.jsonl", splits)
                    if learner.answers_in_job else None, revision=learner.revision,
                    how=ctx.recipe.evaluate)


def _prompts(ctx: Context, path: Path, splits: Mapping[Split, Sequence[Example]] | None) -> Prompts:
    """The prompts that a job is to answer, without what is expected of them."""
    splits = splits or {split: ctx.examples(split) for split in SPLITS}
    write_jsonl(path, ({"id": example.id, "split": split,
                        "messages": ctx.task.render(example.fields, example.source)}
                       for split in ("dev", "test") for example in splits[split]))
    return Prompts(path, digest_file(path), ctx.recipe.evaluate)


def job_key(ctx: Context, role: LearnerRole, job: TrainJob) -> str:
    """Digest of all that determines a trained model and what its job answers, whatever run it belongs to."""
    answers = {"prompts": job.prompts.digest, **ctx.answering_parts()} if job.prompts else {}
    return digest_json({"rows": job.digest, "dev": digest_file(job.dev_file) if job.dev_file else None,
                        "task": job.task.spec.model_dump(mode="json"), **ctx.learner(role).parts(),
                        **answers})


def train(ctx: Context, role: LearnerRole) -> None:
    """Train one learner at its backend and bring it home."""
    backend = ctx.backend(role)
    job = train_job(ctx, role, rows_of(ctx, role), ctx.path("training/dev.jsonl"))
    found = backend.preflight(job)
    if found.problems:
        raise BackendError(*found.problems)
    teller = _Teller(ctx)
    at_most = found.cost_usd[1] if found.cost_usd else None
    row = jobs.train(backend, job, ledger=ctx.ledger, run=ctx.run_id, key=job_key(ctx, role, job),
                     on_event=teller, detach=ctx.options.detach, resubmit=ctx.options.resubmit,
                     at_most_usd=at_most, budget_left=ctx.budget_left)
    if ctx.options.detach and row.state != "succeeded":
        raise Detached(f"training goes on; come back with: distillctl attach {ctx.rundir.name}")
    student = jobs.collect(backend, row, ctx.path(role), ledger=ctx.ledger, on_event=teller)
    write_jsonl(ctx.path(f"training/{role}.jsonl"), (
        {"time": event.time, "message": event.message, **event.data}
        for _, event in ctx.ledger.events(row.token)))
    write_json(ctx.path(f"{role}.json"), student.as_json())


class _Teller:
    """Turns a job's events into progress and notes."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def __call__(self, event: JobEvent) -> None:
        data = event.data
        if event.level != "info":
            self._ctx.reporter.note(event.message, event.level)
        elif data.get("step") and data.get("total_steps"):
            left = (data["total_steps"] - data["step"]) * (data.get("seconds_per_step") or 0)
            text = f"step {data['step']}/{data['total_steps']}"
            if data.get("loss") is not None:
                text += f"  loss {data['loss']:.3f}"
            if left:
                text += f"  {seconds_text(left)} left"
            self._ctx.reporter.progress(data["step"], data["total_steps"], text)
        else:
            self._ctx.reporter.note(event.message)


# --- answering ------------------------------------------------------------------------------------------


def student_ref(ctx: Context, role: LearnerRole) -> StudentRef:
    """The reference that training left."""
    return StudentRef.from_json(read_json(ctx.path(f"{role}.json")))


def answer_learner(ctx: Context, role: LearnerRole) -> None:
    """Let a trained model answer dev and test, and time it, unless it did so in its job."""
    student = student_ref(ctx, role)
    if found := _from_job(ctx, role, student, "student"):
        answering.write_answered(ctx, role, found, ("dev", "test"))
        return
    with answering.learner(ctx, role, student, ctx.path(role), trained_as=role) as who:
        answering.collect_splits(ctx, who, ("dev", "test"))


def _from_job(ctx: Context, role: LearnerRole, student: StudentRef, who: str) -> Answered | None:
    """What the student (or the untrained model, "base") answered in the student's training job."""
    for name in student.answers:
        return read_answers(safe_join(ctx.path(role), name), who)
    return None


def answer_base(ctx: Context) -> None:
    """Let the untrained student answer test, and time it."""
    trained = student_ref(ctx, "student")
    if found := _from_job(ctx, "student", trained, "base"):
        answering.write_answered(ctx, "base", found, ("test",))
        return
    pinned = {name: value for name, value in trained.data.items() if name == "revision" and value}
    untrained = StudentRef(trained.backend, "model" if trained.kind != "hosted" else "hosted",
                           str(trained.data.get("base_model", trained.model)), data=pinned)
    with answering.learner(ctx, "base", untrained, ctx.path("student")) as who:
        answering.collect_splits(ctx, who, ("test",))
