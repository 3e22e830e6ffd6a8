"""What a student cost to get: what its run paid, and what other runs paid for that it uses too."""

from __future__ import annotations

from itertools import pairwise

from distillctl.context import Context
from distillctl.evaluate.economics import Paid
from distillctl.evaluate.wording import money
from distillctl.progress import seconds_text
from distillctl.select import requests_of
from distillctl.stages import job_key, train_job
from distillctl.store.files import read_json, read_jsonl
from distillctl.store.ledger import answer_key
from distillctl.types import SPLITS, Request
from distillctl.variants import rows_of

_LONGEST_PAUSE_S = 600.0  # between two events of a trainer at work; a longer one is a trainer at rest


def paid_for(ctx: Context) -> Paid:
    """The recipe's figure, else what the ledger says was spent on this student, and its training time on a
    machine of one's own at that machine's price.

    Answers and jobs that another run paid for count in full: without them there would be no student.
    """
    spec = ctx.recipe.economics
    if spec.training_usd is not None:
        return Paid(spec.training_usd, "as the recipe says")
    own = ctx.ledger.spent(ctx.run_id, apart_from="judge")  # a judge helps to decide, the student needs none
    spent = ctx.ledger.spent(ctx.run_id, shared=_shared(ctx), apart_from="judge")
    if spent.unknown:
        return Paid(None, f"{spent.unknown:,} of the things that were paid for have no known price")
    source = f"what this run spent, {money(own.usd)}"
    if spent.usd > own.usd:
        source += f", and {money(spent.usd - own.usd)} that other runs had paid for the answers it uses"
    if ctx.backend("student").capabilities.data_leaves_machine:  # it was trained there, and billed
        return Paid(spent.usd, source)
    if spec.hardware_usd_per_hour is None:
        return Paid(None, "it was trained on your machine, whose time has no price here")
    seconds = _training_seconds(ctx)
    return Paid(spent.usd + seconds / 3600 * spec.hardware_usd_per_hour,
                f"{source}, and {seconds_text(seconds)} of training at "
                f"{money(spec.hardware_usd_per_hour)} an hour")


def _shared(ctx: Context) -> set[str]:
    """What stands in the books, of whatever run, for the teacher's answers and the student's training."""
    job = train_job(ctx, "student", rows_of(ctx, "student"), ctx.path("training/dev.jsonl"))
    found = {row.token for row in ctx.ledger.jobs(key=job_key(ctx, "student", job))}
    identity = read_json(ctx.path("timings/teacher.json")).get("identity")
    if identity is None:  # a run of an earlier version
        return found
    requests = [one for split in SPLITS for one in requests_of(ctx.task, ctx.examples(split))]
    repeats = getattr(ctx.recipe.teacher, "stability", None)
    samples = range(repeats.samples if repeats else 1)
    return found | {answer_key(identity, Request(one.id, one.messages, sample))
                    for one in requests for sample in samples}


def _training_seconds(ctx: Context) -> float:
    """How long the training took, also where it was done for another run or by a process that was killed."""
    times = sorted(row["time"] for row in read_jsonl(ctx.path("training/student.jsonl")))
    at_work = sum(min(later - earlier, _LONGEST_PAUSE_S) for earlier, later in pairwise(times))
    record = ctx.rundir.records().get("train-student")
    return max(at_work, record.seconds if record else 0.0)
