"""What variants of the student tell: gold answers, fewer rows, other seeds."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from distillctl.cli.main import cli
from distillctl.evaluate.levers import Judged, Levers, VariantAnswers, weigh
from distillctl.recipe.models import ClassificationSpec
from distillctl.task import build_task
from distillctl.types import Answer, Example, Prediction

TASK = build_task(ClassificationSpec(kind="classification", labels=["yes", "no"], prompt="{{ text }}"))
ITEMS = [Example(f"i{i}", {"text": f"text {i}"}, "yes") for i in range(200)]


def answers(wrong: int) -> list[Prediction]:
    """The first `wrong` items wrong, the others right."""
    return [Prediction(one.id, Answer(said), said) for one, said in zip(
        ITEMS, ["no"] * wrong + ["yes"] * (len(ITEMS) - wrong), strict=True)]


def weighed(*variants: VariantAnswers, teacher: int = 0, student: int = 40) -> Levers:
    split = Judged(ITEMS, answers(teacher), answers(student))
    return weigh(TASK, split, split, 100, variants)


def test_a_student_that_is_better_on_gold_names_the_teacher_as_the_bottleneck() -> None:
    found = weighed(VariantAnswers("gold", "gold", 120, answers(10)), teacher=45)
    assert found.conclusions[0].startswith("The teacher is the bottleneck")


def test_a_student_that_is_no_better_on_gold_does_not_blame_the_teacher() -> None:
    found = weighed(VariantAnswers("gold", "gold", 120, answers(39)))
    assert found.conclusions[0].startswith("The teacher's answers are not clearly")


def test_a_rising_curve_asks_for_more_data() -> None:
    found = weighed(VariantAnswers("curve-0.5", "curve", 50, answers(80)))
    assert found.conclusions[0].startswith("More data would help: from 50 to 100 rows")


def test_where_neither_helps_a_larger_student_is_next() -> None:
    found = weighed(VariantAnswers("gold", "gold", 100, answers(41)),
                    VariantAnswers("curve-0.5", "curve", 50, answers(41)))
    assert found.conclusions[-1].startswith("A larger student")


def test_the_largest_part_of_the_curve_is_what_the_whole_is_held_against() -> None:
    found = weighed(VariantAnswers("curve-0.5", "curve", 50, answers(41)),
                    VariantAnswers("curve-0.25", "curve", 25, answers(120)))
    assert found.conclusions[0].startswith("More data is not clearly worth it: from 50 to 100 rows")


def test_seeds_show_their_spread_with_the_student_among_them() -> None:
    found = weighed(VariantAnswers("seed-1", "seed", 100, answers(30)),
                    VariantAnswers("seed-2", "seed", 100, answers(50)))
    assert (found.spread.n, found.spread.low, found.spread.high) == (3, 0.75, 0.85)
    assert found.spread.mean == pytest.approx(0.8)


def test_missing_answers_of_a_variant_are_wrong() -> None:
    found = weighed(VariantAnswers("gold", "gold", 100, answers(0)[:100]))
    assert found.levers[0].accuracy.k == 100


# --- in a run -----------------------------------------------------------------------------------------------


def run(*more: str) -> dict:
    done = CliRunner().invoke(cli, ["run", "recipes/routing.yaml", "--backend", "linear", "--set",
                                    "baseline=null", *more, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def levers(found: dict) -> dict:
    return json.loads((Path(found["folder"]) / "levers.json").read_text(encoding="utf-8"))


def spoil_teacher(workspace: Path) -> None:
    """Make four of ten of the teacher's answers a random label."""
    path = workspace / "recipes/data/routing.teacher.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(0)
    for row in rows:
        if chance.random() < 0.4:
            row["output"] = chance.choice(["code", "docs", "hybrid", "skip"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_variants_leave_the_students_run_as_it_is(workspace: Path) -> None:
    alone, with_more = run(), run("--set", "controls=[gold]", "--set", "curve=[0.5, 1]")
    assert with_more["run"] == alone["run"]
    assert with_more["metrics"] == alone["metrics"]


def test_a_part_of_the_curve_is_trained_on_its_share_of_the_students_rows(workspace: Path) -> None:
    found = run("--set", "curve=[0.25, 0.5, 1]")
    told = levers(found)
    assert [one["rows"] for one in told["levers"]] == [round(told["rows"] / 4), round(told["rows"] / 2)]
    folder = Path(found["folder"]) / "training"
    ids = [{json.loads(line)["id"] for line in (folder / name).read_text(encoding="utf-8").splitlines()}
           for name in ("curve-0.25.rows.jsonl", "curve-0.5.rows.jsonl", "train.jsonl")]
    assert ids[0] < ids[1] < ids[2]


def test_the_report_says_what_the_variants_tell(workspace: Path) -> None:
    found = run("--set", "curve=[0.5, 1]")
    rows = levers(found)["levers"][0]["rows"]
    assert f"from {rows:,} to" in Path(found["report"]).read_text(encoding="utf-8")


def test_a_bad_teacher_whose_mistakes_are_dropped_leaves_fewer_rows_than_gold_has(workspace: Path) -> None:
    spoil_teacher(workspace)
    told = levers(run("--set", "controls=[gold]"))
    assert told["levers"][0]["rows"] > 1.2 * told["rows"]
