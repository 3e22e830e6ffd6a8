"""Variants of the student: the same model and settings on other rows or with another seed.

Each is trained and answers as the student does; what they say together is in `evaluate/levers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distillctl.context import Context, LearnerRole
from distillctl.errors import Problem, UsageError
from distillctl.evaluate.levers import Judged, Kind, VariantAnswers, weigh
from distillctl.store.files import digest_json, read_jsonl, write_json, write_jsonl
from distillctl.types import JSON, Split


@dataclass(frozen=True)
class Variant:
    """One more training. does: in words, for the plan."""

    role: LearnerRole
    kind: Kind
    does: str


def variants_of(ctx: Context) -> list[Variant]:
    """What the recipe asks for beside the student."""
    recipe = ctx.recipe
    return [
        *(Variant("gold", "gold", "train the same student on the gold answers") for _ in recipe.controls),
        *(Variant(f"curve-{share:g}", "curve", f"train the same student on {share:.0%} of its rows")
          for share in recipe.curve if share < 1),
        *(Variant(f"seed-{seed}", "seed", f"train the same student with seed {seed}")
          for seed in recipe.train.seeds)]


def rows_of(ctx: Context, role: LearnerRole) -> Path:
    """The training rows of a learner, written where they differ from the student's.

    Raises UsageError where a control needs gold answers and there are none.
    """
    whole = ctx.path("training/train.jsonl")
    if role == "gold":
        rows = _gold_rows(ctx)
    elif role.startswith("curve-"):
        rows = _part(list(read_jsonl(whole)), float(role.removeprefix("curve-")))
    else:
        return whole
    path = ctx.path(f"training/{role}.rows.jsonl")
    write_jsonl(path, rows)
    return path


def _gold_rows(ctx: Context) -> list[dict[str, JSON]]:
    examples = [e for e in ctx.examples("train") if e.expected is not None]
    if not examples:
        raise UsageError(Problem("there are no gold answers to train on", where=ctx.loaded.where("controls"),
                                 field="controls", value="gold", hint="name them in data.expected, or delete "
                                 "the control"))
    return [{"id": e.id, "messages": ctx.task.render(e.fields, e.source),
             "completion": ctx.task.target(e.expected), "source": e.source} for e in examples]


def _part(rows: list[dict[str, JSON]], share: float) -> list[dict[str, JSON]]:
    """A share of the rows, chosen by a hash of their ids, so that a smaller part lies in a larger one."""
    count = max(1, round(share * len(rows)))
    chosen = set(sorted((row["id"] for row in rows), key=lambda one: digest_json(["curve", one]))[:count])
    return [row for row in rows if row["id"] in chosen]


def weigh_variants(ctx: Context) -> None:
    """Write `levers.json`: what the variants say."""
    answers = [VariantAnswers(one.role, one.kind, _row_count(ctx, one.role),
                              ctx.predictions(one.role, "test" if one.kind == "seed" else "dev"))
               for one in variants_of(ctx)]
    found = weigh(ctx.task, _judged(ctx, "dev"), _judged(ctx, "test"), _row_count(ctx, "student"), answers,
                  ctx.recipe.verdict)
    write_json(ctx.path("levers.json"), found.model_dump(mode="json"))
    for line in found.conclusions:
        ctx.reporter.note(line)


def _row_count(ctx: Context, role: LearnerRole) -> int:
    own = ctx.path(f"training/{role}.rows.jsonl")
    return sum(1 for _ in read_jsonl(own if own.exists() else ctx.path("training/train.jsonl")))


def _judged(ctx: Context, split: Split) -> Judged:
    examples = ctx.examples(split)
    group = ctx.recipe.data.group
    groups = [str(e.fields.get(group)) for e in examples] if group else None
    return Judged(examples, ctx.predictions("teacher", split), ctx.predictions("student", split), groups)
