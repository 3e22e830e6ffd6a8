"""What a run would do, before it does anything: reuse, calls, cost, where data goes, and what is missing.

Everything here is free and read only. `run` makes the same plan first and stops at its problems, so that
nothing is discovered after hours of work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from distillctl import answering, judge, stages
from distillctl.backend import TrainJob, Unreachable
from distillctl.batches import file_of, under_way
from distillctl.context import Context, LearnerRole
from distillctl.data import load_splits, pii
from distillctl.data.formats import read_rows
from distillctl.errors import DistillctlError, Problem, UsageError
from distillctl.pipeline import Step, select_until, steps_of
from distillctl.predictors import LiveTeacher, model_warnings, teacher_price
from distillctl.prices import Estimate, estimate
from distillctl.progress import seconds_text
from distillctl.recipe.models import JudgeSpec, RecordedTeacher
from distillctl.recipe.overrides import VARIABLE
from distillctl.select import requests_of
from distillctl.store.files import digest_json, write_jsonl
from distillctl.store.ledger import answer_key
from distillctl.task import TextTask
from distillctl.types import JSON, SPLITS, Example, Request, Split
from distillctl.variants import variants_of


@dataclass
class PlanRow:
    """One stage. calls, tokens and usd are of what will be asked now; None is unknown."""

    stage: str
    does: str
    action: str  # "run", "reuse", or "share": done for another student of the sweep
    why: str
    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """All stages and what stands in the way."""

    run: str
    rows: list[PlanRow]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sends_to: list[str] = field(default_factory=list)
    usd: tuple[float, float] | None = (0.0, 0.0)  # None: a part of it is unknown
    budget_usd: float = 0.0

    def check(self) -> None:
        """Raises UsageError with every problem at once."""
        if self.problems:
            raise UsageError(*self.problems)

    def warn_of_budget(self) -> None:
        """Say so where the budget may stop it."""
        if self.usd and self.usd[1] > self.budget_usd:
            self.warnings.append(f"it may cost up to ${self.usd[1]:.2f}; the budget of "
                                 f"${self.budget_usd:.2f} stops it before")

    @property
    def needs_consent(self) -> bool:
        """Whether money may be spent or data leave this machine."""
        return bool(self.sends_to) or self.usd is None or self.usd[1] > 0

    @property
    def consent_text(self) -> str:
        cost = "an unknown amount" if self.usd is None else f"up to ${self.usd[1]:.2f}"
        where = f" and sends data to {', '.join(self.sends_to)}" if self.sends_to else ""
        return f"this run spends {cost} (budget ${self.budget_usd:.2f}){where}"

    def as_json(self) -> dict[str, JSON]:
        return {**asdict(self), "problems": [problem.as_json() for problem in self.problems]}


def make_plan(ctx: Context, until: str | None = None, shared: set[str] | None = None) -> Plan:
    """The plan of a run. shared: in a sweep, what the students before this one collect and train, by key, to
    which its own is added; the budget is then that of all. Raises RecipeError and DataError for what is wrong
    with recipe or data."""
    steps = select_until(steps_of(ctx), until)
    plan = Plan(ctx.rundir.name, [_row(step) for step in steps], budget_usd=ctx.recipe.budget.max_usd)
    to_run = {step.stage.name for step in steps if not step.reuse}
    if not to_run:
        return plan
    splits = _examples(ctx, plan, "data" in to_run)
    if isinstance(ctx.task, TextTask):
        try:
            ctx.task.check_ready()
        except DistillctlError as error:
            plan.problems += error.problems
    plan.warnings += model_warnings(ctx.recipe, ctx.task.json_schema)
    rows = {row.stage: row for row in plan.rows}
    if "teacher" in to_run and not _share(rows["teacher"], "teacher", shared):
        _plan_teacher(ctx, plan, rows["teacher"], splits)
    for role in (*ctx.roles(), *(one.role for one in variants_of(ctx))):
        key = digest_json([role, ctx.learner(role).parts()])
        if f"train-{role}" in to_run and not _share(rows[f"train-{role}"], key, shared):
            _plan_training(ctx, plan, rows[f"train-{role}"], role, splits)
        if f"answer-{role}" in rows:
            rows[f"answer-{role}"].calls = len(splits["dev"]) + len(splits["test"])
    if "judge" in to_run:
        known = not to_run & {"data", "teacher", "answer-student"}
        _plan_judge(ctx, plan, rows["judge"], judge.requests_of(ctx, judge.pairs_of(ctx)) if known else
                    _judge_at_most(ctx, splits))
    if plan.sends_to and ctx.recipe.data.pii != "off":
        found = pii.find_pii(texts_of(ctx, splits))
        if ctx.recipe.data.pii == "refuse":
            plan.problems += pii.as_problems(found)
        else:
            plan.warnings += pii.as_warnings(found)
    if shared is None:
        plan.warn_of_budget()
    return plan


def texts_of(ctx: Context, splits: Mapping[Split, Sequence[Example]]) -> Iterator[pii.Text]:
    """What a run may send away: what prompts show of the examples, and recorded answers."""
    yield from pii.sent_texts(splits, ctx.task.variables)
    if isinstance(ctx.recipe.teacher, RecordedTeacher):
        path = ctx.loaded.resolve(ctx.recipe.teacher.outputs)
        for line, row in read_rows(path):
            if isinstance(row, dict) and isinstance(row.get("output"), str):
                yield f"{ctx.recipe.teacher.outputs}:{line}", "output", row["output"]


def _share(row: PlanRow, key: str, shared: set[str] | None) -> bool:
    """Whether an earlier student of the sweep does this too, so that nothing is asked or paid again."""
    if shared is None:
        return False
    if key in shared:
        row.action, row.calls, row.usd = "share", 0, 0.0
        return True
    shared.add(key)
    return False


def _row(step: Step) -> PlanRow:
    return PlanRow(step.stage.name, step.stage.does, "reuse" if step.reuse else "run", step.why)


def _examples(ctx: Context, plan: Plan, from_recipe: bool) -> dict[Split, list[Example]]:
    if not from_recipe:
        return {split: ctx.examples(split) for split in SPLITS}
    splits, warnings = load_splits(ctx.recipe.data, ctx.task, ctx.loaded.resolve)
    plan.warnings += warnings
    return splits


def _plan_teacher(ctx: Context, plan: Plan, row: PlanRow, splits: dict[Split, list[Example]]) -> None:
    """What asking the teacher takes; that it can be asked, and that a recording has every answer."""
    try:
        with answering.teacher(ctx) as who:
            requests = {split: requests_of(ctx.task, splits[split]) for split in SPLITS}
            if who.predictor.replayed:
                ids = [request.id for split in SPLITS for request in requests[split]]
                _plan_recording(plan, row, who.predictor.missing(ids))
            else:
                _plan_calls(ctx, plan, row, who, requests)
    except DistillctlError as error:
        plan.problems += error.problems


def _plan_recording(plan: Plan, row: PlanRow, missing: list[str]) -> None:
    row.calls, row.tokens, row.usd = 0, 0, 0.0
    row.notes.append("replayed from a recording: nothing is asked")
    if missing:
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        plan.warnings.append(f"the recording has no answer to {len(missing)} examples ({shown}): they "
                             "count as wrong answers of the teacher")


def _plan_calls(ctx: Context, plan: Plan, row: PlanRow, who: answering.Answerer,
                splits: dict[Split, list[Request]]) -> None:
    teacher = ctx.recipe.teacher
    requests = [request for split in SPLITS for request in splits[split]]
    keys = _unasked(ctx, who, requests)
    if keys and ctx.workspace.has_ledger():
        _leave_out_batches(ctx, plan, row, who, keys)
    found = _estimate(ctx, row, keys, splits)
    repeats = (teacher.stability.samples - 1) * teacher.stability.items if teacher.stability else 0
    again = estimate(requests, teacher_price(teacher), teacher.max_tokens)  # repeats are asked by themselves
    share = repeats / max(1, len(requests))
    row.calls, row.tokens = found.calls + repeats, round(found.tokens_in + again.tokens_in * share)
    row.usd = None if found.usd_at_most is None else found.usd_at_most + (again.usd_at_most or 0.0) * share
    _plan_sending(plan, row, teacher, "prompts")
    _plan_price(ctx, plan, row, "teacher")


def _plan_judge(ctx: Context, plan: Plan, row: PlanRow, requests: list[Request]) -> None:
    """What asking the judge takes, at most: which pairs it is asked follows from the student's answers."""
    spec = ctx.recipe.evaluate.judge
    try:
        with answering.judge(ctx) as who:
            asked = _unasked(ctx, who, requests)
    except DistillctlError as error:
        plan.problems += error.problems
        return
    found = estimate(asked.values(), teacher_price(spec), spec.max_tokens)
    row.calls, row.tokens, row.usd = found.calls, found.tokens_in, found.usd_at_most
    _plan_sending(plan, row, spec, "texts")
    _plan_price(ctx, plan, row, "evaluate.judge")


def _judge_at_most(ctx: Context, splits: dict[Split, list[Example]]) -> list[Request]:
    """As many questions as the judge may be asked, with answers of the greatest length."""
    spec, longest = ctx.recipe.evaluate.judge, ctx.recipe.evaluate.max_tokens
    student = "x" * 2 * longest  # counted as a token for two bytes
    teacher = "y" * 2 * getattr(ctx.recipe.teacher, "max_tokens", longest)
    pairs = [judge.Pair(example.id, split, "\n\n".join(m["content"] for m in request.messages), teacher,
                        student)
             for split in ("test", "dev") for example, request in
             list(zip(splits[split], requests_of(ctx.task, splits[split]), strict=True))[:spec.items]]
    return judge.requests_of(ctx, pairs)


def _unasked(ctx: Context, who: answering.Answerer, requests: list[Request]) -> dict[str, Request]:
    """Those of `requests` that the ledger has no answer to, by their answers' keys."""
    keys = {answer_key(who.predictor.identity, request): request for request in requests}
    if ctx.workspace.has_ledger():
        for key in ctx.ledger.answers(list(keys)):
            del keys[key]
    return keys


def _plan_sending(plan: Plan, row: PlanRow, spec: LiveTeacher | JudgeSpec, what: str) -> None:
    place = spec.base_url or f"the {spec.provider} API"
    row.notes.append(f"{what} go to {place}")
    if row.calls and not answering.on_this_machine(spec.base_url) and place not in plan.sends_to:
        plan.sends_to.append(place)


def _plan_price(ctx: Context, plan: Plan, row: PlanRow, block: str) -> None:
    if row.calls and row.usd is None:
        plan.problems.append(Problem(
            f"the price of the {block.rpartition('.')[2]} is unknown, so the budget cannot be kept",
            where=ctx.loaded.where(block), field=f"{block}.price", hint="give it in US dollars per "
            "million tokens: {input: 0.4, output: 1.6}; {input: 0, output: 0} for a server of your own"))
    _add_cost(plan, None if row.usd is None else (0.0, row.usd))


def _leave_out_batches(ctx: Context, plan: Plan, row: PlanRow, who: answering.Answerer,
                       keys: dict[str, Request]) -> None:
    """Take out of `keys` what a batch that was submitted earlier will answer."""
    for job in under_way(ctx.ledger, who.predictor.identity):
        held = keys.keys() & file_of(job, answering.batch_folder(ctx)).requests.keys()
        name = job.handle.job_id if job.handle else "not recorded yet"
        if held and not ctx.recipe.teacher.batch:
            plan.problems.append(Problem(
                f"batch {name} of this teacher is under way and holds {len(held)} of these prompts: they "
                "would be paid twice", where=ctx.loaded.where("teacher"), field="teacher.batch",
                hint=f"set it to true until that batch is home; `distillctl cancel {job.run}` ends it"))
        elif held:
            row.notes.append(f"{len(held)} prompts are in batch {name} already ({job.state})")
        for key in held:
            del keys[key]


def _estimate(ctx: Context, row: PlanRow, keys: dict[str, Request],
              requests: dict[Split, list[Request]]) -> Estimate:
    """What the prompts in `keys` cost at most, all of which are asked."""
    teacher = ctx.recipe.teacher
    price = teacher_price(teacher)
    if not teacher.batch:
        return estimate(keys.values(), price, teacher.max_tokens)
    alone = {request.id for part in answering.timed_alone(ctx, requests) for request in part}
    timed = estimate((r for r in keys.values() if r.id in alone), price, teacher.max_tokens)
    batched = estimate((r for r in keys.values() if r.id not in alone), teacher_price(teacher, batch=True),
                       teacher.max_tokens)
    if batched.calls:
        row.notes.append(f"{batched.calls} prompts go in batches at half the price; the answers usually come "
                         "within hours, at the latest after 24 h")
    if timed.calls:
        row.notes.append(f"{timed.calls} are asked by themselves first, at the full price: they time the "
                         "teacher")
    if teacher.base_url and batched.calls:
        row.notes.append("batches are booked at half of `teacher.price`; where this server gives no "
                         "discount, give twice its price")
    unknown = timed.usd_at_most is None or batched.usd_at_most is None
    return Estimate(timed.calls + batched.calls, timed.tokens_in + batched.tokens_in,
                    None if unknown else timed.usd_at_most + batched.usd_at_most)


def _plan_training(ctx: Context, plan: Plan, row: PlanRow, role: LearnerRole,
                   splits: dict[Split, list[Example]]) -> None:
    try:
        backend = ctx.backend(role)
        with _provisional(ctx, role, splits) as job:
            found = backend.preflight(job)
    except Unreachable as error:
        plan.problems.append(Problem(f"{ctx.learner(role).backend} cannot be asked now: {error}"))
        return
    except DistillctlError as error:
        plan.problems += error.problems
        return
    plan.problems += found.problems
    plan.warnings += found.warnings
    plan.sends_to += [place for place in found.sends_to if place not in plan.sends_to]
    if ctx.options.offline and found.sends_to:
        plan.problems.append(Problem(f"--offline: this backend sends data to {', '.join(found.sends_to)}",
                                     field="backend", value=ctx.learner(role).backend))
    row.notes += found.notes
    name = ctx.learner(role).backend
    if set_outside := [field for field in ctx.recipe.backends.get(name, {})
                       if ctx.loaded.where(f"backends.{name}.{field}").startswith(VARIABLE)]:
        row.notes.append(f"{', '.join(set_outside)} of backends.{name}: as the environment says, in "
                         f"{ctx.loaded.where(f'backends.{name}.{set_outside[0]}')}")
    if found.duration_s:
        row.notes.append(f"takes about {seconds_text(found.duration_s[0])} to "
                         f"{seconds_text(found.duration_s[1])}")
    row.usd = found.cost_usd[1] if found.cost_usd else None
    least = (found.cost_usd[0] if found.cost_usd else 0.0) + found.answering_usd
    if least > plan.budget_usd:
        plan.problems.append(Problem(
            f"training and answering at `{ctx.learner(role).backend}` take ${least:.2f} at least, and the "
            f"budget is ${plan.budget_usd:.2f}", where=ctx.loaded.where("budget"), field="budget.max_usd",
            hint="raise it, or choose another backend"))
    _add_cost(plan, found.cost_usd)


def _add_cost(plan: Plan, cost: tuple[float, float] | None) -> None:
    plan.usd = None if plan.usd is None or cost is None else (plan.usd[0] + cost[0], plan.usd[1] + cost[1])


@contextmanager
def _provisional(ctx: Context, role: LearnerRole, splits: dict[Split, list[Example]]) -> Iterator[TrainJob]:
    """The training job as far as it is known before the teacher has answered: every train example, with
    the expected answer where there is one, else an answer of a usual length."""
    with tempfile.TemporaryDirectory(prefix="distillctl-plan-") as folder:
        files = {}
        for split in ("train", "dev"):
            files[split] = Path(folder) / f"{split}.jsonl"
            write_jsonl(files[split],
                        (stages.provisional_row(ctx.task, example) for example in splits[split]))
        yield stages.train_job(ctx, role, files["train"], files["dev"], splits)
