"""Runs side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distillctl.errors import DataError
from distillctl.evaluate.compare import compare_runs
from distillctl.evaluate.evaluate import evaluate
from distillctl.evaluate.stats import mcnemar_exact
from distillctl.prices import PricePoint, Rate
from tests.support.evaluating import (
    LABELLING,
    answers,
    entrant,
    examples,
    given,
    gold,
    judged,
    predictions,
)


def run(right: int, n: int = 200, **more):
    return judged(right, n - right, **more)


def test_the_best_student_comes_first():
    table = compare_runs([("a", run(150)), ("b", run(190)), ("c", run(170))])
    assert [one.run for one in table.runs] == ["b", "c", "a"]
    assert table.n == 200


def test_each_run_brings_its_verdict():
    table = compare_runs([("a", run(100)), ("b", run(200))])
    assert [one.verdict.word for one in table.runs] == ["viable", "not ready"]
    assert table.runs[0].speedup.value == pytest.approx(10)


def test_pairs_are_those_of_the_items():
    expected = gold(100)
    first = evaluate(given(expected, entrant("teacher", expected), entrant(
        "student", answers(expected, [i >= 10 for i in range(100)]))))
    second = evaluate(given(expected, entrant("teacher", expected), entrant(
        "student", answers(expected, [not 5 <= i < 30 for i in range(100)]))))
    pair, = compare_runs([("a", first), ("b", second)]).contrasts
    assert (pair.first, pair.second, pair.n) == ("a", "b", 100)
    assert (pair.only_first, pair.only_second) == (20, 5)
    assert pair.difference.value == pytest.approx(0.15)
    assert pair.p == pytest.approx(mcnemar_exact(20, 5))


def test_p_values_are_adjusted_for_all_pairs_of_students():
    table = compare_runs([(name, run(right)) for name, right in (("a", 190), ("b", 182), ("c", 175))])
    assert [one.second for one in table.contrasts] == ["b", "c"]
    assert all(one.p_holm >= one.p for one in table.contrasts)
    assert table.contrasts[0].p_holm == pytest.approx(min(1, 2 * table.contrasts[0].p))
    assert table.contrasts[1].p_holm == pytest.approx(3 * table.contrasts[1].p)


def test_looking_at_several_is_told():
    notes = compare_runs([("a", run(190)), ("b", run(188))]).notes
    assert notes[0].startswith("2 students were compared on the same test items")
    assert any("a is not clearly better than b" in note for note in notes)


def test_one_run_alone_is_shown_as_it_is():
    table = compare_runs([("a", run(190))])
    assert (len(table.runs), table.contrasts, table.notes) == (1, [], [])


def test_references_that_runs_share_stand_once():
    table = compare_runs([("a", run(190, baseline=150)), ("b", run(180, baseline=150)),
                          ("c", run(170, baseline=140))])
    assert [one.role for one in table.references] == ["teacher", "baseline", "baseline"]


def test_different_teachers_are_told():
    table = compare_runs([("a", judged(180, 20)), ("b", judged(180, 0, 0, 20))])
    assert any("different teachers" in note for note in table.notes)


def test_runs_on_other_items_are_refused_by_name():
    with pytest.raises(DataError) as caught:
        compare_runs([("a", run(100)), ("b", run(100)), ("c", run(90, 180)), ("d", run(90, 150))])
    assert [problem.what.split()[0] for problem in caught.value.problems] == ["c", "d"]
    assert "cannot be compared with a" in str(caught.value)


def test_a_run_named_twice_is_refused():
    with pytest.raises(DataError, match="named twice"):
        compare_runs([("a", run(100)), ("a", run(100))])


def test_nothing_is_refused():
    with pytest.raises(DataError, match="nothing to compare"):
        compare_runs([])


def test_without_the_items_differences_are_unknown_and_that_is_told():
    old = run(180)
    old = old.model_copy(update={"evaluations": [
        one.model_copy(update={"wrong": None}) for one in old.evaluations]})
    table = compare_runs([("a", run(190)), ("b", old)])
    assert table.contrasts == []
    assert any("difference from the best is unknown" in note for note in table.notes)


def test_groups_that_differences_do_not_allow_for_are_told():
    expected = gold(100)
    groups = {one.id: i // 10 for i, one in enumerate(examples(expected))}
    runs = [(name, evaluate(given(expected, entrant("teacher", expected), entrant(
        "student", answers(expected, [i >= wrong for i in range(100)])), groups=groups)))
        for name, wrong in (("a", 10), ("b", 20))]
    assert any("too narrow" in note for note in compare_runs(runs).notes)


class TestOnDev:
    """Runs whose students have answered the same dev items."""

    @staticmethod
    def run(dev_right: int, test_right: int = 180, *, seconds: float = 0.1, first: int = 0, price=None):
        """A student that is right on `dev_right` of 100 dev items (from the `first` on) and on the first
        `test_right` of 200 test items."""
        expected = gold(200)
        dev = examples(gold(100))
        said = answers(gold(100), [first <= i < first + dev_right for i in range(100)])
        student = replace(entrant("student", answers(expected, [i < test_right for i in range(200)]),
                                  seconds=seconds, price=price), dev_predictions=predictions(LABELLING, said))
        return evaluate(given(expected, entrant("teacher", expected, seconds=1.0), student, dev=dev))

    def test_the_best_on_dev_comes_first_whatever_test_says(self):
        table = compare_runs([("a", self.run(80, 190)), ("b", self.run(95, 170))])
        assert ([one.run for one in table.runs], table.ranked_on) == (["b", "a"], "dev")
        assert table.notes[0].startswith("2 students were compared, and ranked on the dev split of 100")

    def test_only_the_pairs_of_the_first_are_adjusted_for(self):
        table = compare_runs([("a", self.run(95, 190)), ("b", self.run(80, 182)), ("c", self.run(70, 175))])
        assert table.contrasts[0].p_holm == pytest.approx(table.contrasts[0].p)  # all pairs: twice that
        assert table.contrasts[1].p_holm == pytest.approx(2 * table.contrasts[1].p)

    def test_the_sweet_spot_is_the_fastest_of_those_that_dev_cannot_tell_apart(self):
        table = compare_runs([("best", self.run(92, seconds=0.4)), ("close", self.run(91, seconds=0.2)),
                              ("poor", self.run(70, seconds=0.01))])
        spot = table.sweet_spot
        assert (spot.run, spot.by, spot.within) == ("close", "latency", ["best", "close"])
        assert "the fastest of the 2 students within one standard error of the best on 100 dev items" in (
            spot.sentence)

    def test_known_costs_come_before_latency(self):
        free = PricePoint(Rate(0.0, 0.0), "a list")
        table = compare_runs([("a", self.run(92, seconds=0.2, price=free)),
                              ("b", self.run(92, seconds=0.4, price=free))])
        assert table.sweet_spot.by == "cost"

    def test_a_best_that_stands_alone_is_the_sweet_spot(self):
        table = compare_runs([("a", self.run(95, seconds=0.4)), ("b", self.run(60))])
        assert table.sweet_spot.run == "a" and "no other one is within" in table.sweet_spot.sentence

    def test_what_differs_between_the_runs_is_told(self):
        table = compare_runs([("a", self.run(92)), ("b", self.run(90))], {
            "a": {"train.epochs": 2, "train.seed": 0}, "b": {"train.epochs": 4, "train.seed": 0}})
        assert [one.settings for one in table.runs] == [{"train.epochs": 2}, {"train.epochs": 4}]

    def test_a_block_that_one_run_lacks_is_told_as_each_has_it(self):
        table = compare_runs([("a", self.run(92)), ("b", self.run(90))], {
            "a": {"train.lora": None, "train.seed": 0}, "b": {"train.lora.rank": 16, "train.seed": 0}})
        assert [one.settings for one in table.runs] == [{"train.lora": None}, {"train.lora.rank": 16}]

    def test_what_only_other_backends_look_at_is_no_difference(self):
        local = {"backend": "local", "backends.local.engine": "auto"}
        table = compare_runs([("a", self.run(92)), ("b", self.run(91)), ("c", self.run(90))], {
            "a": local, "b": {**local, "backends.local.engine": "peft"},
            "c": {"backend": "openai", "backends.openai.base_url": "http://localhost:1"}})
        assert [one.settings for one in table.runs] == [
            local, {**local, "backends.local.engine": "peft"}, {"backend": "openai"}]

    def test_without_dev_no_sweet_spot_is_named(self):
        assert compare_runs([("a", run(190)), ("b", run(180))]).sweet_spot is None
        assert compare_runs([("a", self.run(92)), ("b", run(180))]).ranked_on == "test"
