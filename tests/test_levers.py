"""What variants of the student tell: gold answers, fewer rows, other seeds."""

from __future__ import annotations

import html
import json

import pytest
from click.testing import CliRunner
from support.small_runs import gold, small_run

from distillctl.api import Run
from distillctl.cli.main import cli
from distillctl.evaluate.levers import Judged, Levers, VariantAnswers, weigh
from distillctl.recipe.models import ClassificationSpec, VerdictSpec
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
    return weigh(TASK, split, split, 100, variants, VerdictSpec())


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


@pytest.mark.parametrize(("wrong", "said"), [
    (4, "The drop against the teacher goes from 2.0 to 5.0 points: on quality alone viable with every seed."),
    (15, "from 5.0 to 7.5 points: on quality alone marginal with 1, viable with 1 of them, so that the "
         "verdict hangs on chance.")])
def test_seeds_say_whether_the_verdict_hangs_on_one(wrong, said) -> None:
    assert said in weighed(VariantAnswers("seed-1", "seed", 100, answers(wrong)), student=10).conclusions[0]


def test_missing_answers_of_a_variant_are_wrong() -> None:
    found = weighed(VariantAnswers("gold", "gold", 100, answers(0)[:100]))
    assert found.levers[0].accuracy.k == 100


# --- in a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Run, dict, Run]:
    """A run, its metrics as they were, and the same run with variants."""
    folder = tmp_path_factory.mktemp("levers")
    alone = small_run(folder, gold, gold)
    before = alone.metrics.model_dump()
    return alone, before, small_run(folder, gold, gold, controls=["gold"], curve=[0.25, 0.5, 1],
                                    train={"seeds": [1]})


def levers(done: Run) -> dict:
    return json.loads((done.dir.path / "levers.json").read_text(encoding="utf-8"))


def test_variants_leave_the_students_run_as_it_is(trained) -> None:
    alone, before, with_more = trained
    assert with_more.name == alone.name
    assert with_more.metrics.model_dump() == before


def test_a_part_of_the_curve_is_trained_on_its_share_of_the_students_rows(trained) -> None:
    told = levers(trained[2])
    assert [one["rows"] for one in told["levers"] if one["kind"] == "curve"] == [
        round(told["rows"] / 4), round(told["rows"] / 2)]
    folder = trained[2].dir.path / "training"
    ids = [{json.loads(line)["id"] for line in (folder / name).read_text(encoding="utf-8").splitlines()}
           for name in ("curve-0.25.rows.jsonl", "curve-0.5.rows.jsonl", "train.jsonl")]
    assert ids[0] < ids[1] < ids[2]


def test_the_report_says_what_the_variants_tell_in_every_form(trained) -> None:
    done = trained[2]
    lines = levers(done)["conclusions"]
    assert len(lines) == 3
    shown = CliRunner().invoke(cli, ["report", done.name, "--markdown", "--workspace", str(
        done.dir.path.parents[2])], catch_exceptions=False).stdout
    page = (done.dir.path / "report.html").read_text(encoding="utf-8")
    for line in lines:
        assert line in html.unescape(page)
        assert line in html.unescape(shown)
