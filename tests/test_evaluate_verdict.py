"""The verdict: which word, how certain, and words that cannot be mistaken for success."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillctl.evaluate import stats
from distillctl.evaluate.evaluate import evaluate
from distillctl.evaluate.results import Interval
from distillctl.evaluate.verdict import judge
from distillctl.recipe.models import VerdictSpec
from tests.support.evaluating import LABELS, answers, entrant, gold, judged, structured
from tests.support.evaluating import given as given_run

FAST, SLOW, ODD, UNTIMED = (1.0, 0.1), (0.1, 1.0), (1.0, 0.5), (None, None)
STRICT = VerdictSpec(max_drop=0.0, marginal_drop=0.0)
WIDE = VerdictSpec(max_drop=0.3, marginal_drop=0.5, min_speedup=1.0)
SAME = VerdictSpec(max_drop=0.05, marginal_drop=0.05)


def spread(value, low, high):
    return Interval(value=value, low=low, high=high, method="test")


@pytest.mark.parametrize(("counts", "seconds", "spec", "word", "settled"), [
    # both, teacher only, student only, neither
    ((1000, 0, 0, 0), FAST, None, "viable", True),
    ((980, 20, 0, 0), FAST, None, "viable", True),
    ((950, 30, 10, 10), FAST, None, "viable", True),
    ((970, 5, 25, 0), FAST, None, "viable", True),  # better than its teacher
    ((0, 0, 500, 0), FAST, None, "viable", True),  # the teacher is never right, the student always
    ((95, 5, 0, 0), FAST, None, "viable", False),  # 5 points to the dot is within
    ((50, 0, 0, 0), FAST, None, "viable", False),  # no error in 50 leaves 7 points open
    ((5, 0, 0, 0), FAST, None, "viable", False),
    ((1, 0, 0, 0), FAST, None, "viable", False),
    ((1000, 0, 0, 0), SLOW, None, "marginal", True),  # good but slow
    ((930, 70, 0, 0), FAST, None, "marginal", True),
    ((93, 7, 0, 0), FAST, None, "marginal", False),
    ((90, 10, 0, 0), FAST, None, "marginal", False),  # 10 points to the dot
    ((1000, 40, 0, 0), SLOW, None, "marginal", True),  # 5 points do not matter when it is slow anyway
    ((960, 40, 0, 0), UNTIMED, None, "marginal", False),  # quality alone: 5 points matter
    ((1000, 0, 0, 0), UNTIMED, None, "marginal", True),
    ((1000, 0, 0, 0), (1.0, None), None, "marginal", True),
    ((1000, 0, 0, 0), (None, 0.1), None, "marginal", True),
    ((1000, 0, 0, 0), ODD, None, "viable", False),  # twice as fast to the dot
    ((800, 200, 0, 0), FAST, None, "not ready", True),
    ((800, 200, 0, 0), UNTIMED, None, "not ready", True),
    ((88, 12, 0, 0), FAST, None, "not ready", False),
    ((0, 100, 0, 0), FAST, None, "not ready", True),
    ((0, 1, 0, 0), FAST, None, "not ready", False),  # one item settles nothing
    ((0, 5, 0, 0), FAST, None, "not ready", True),  # five of five do: 13 points at the least
    ((0, 0, 0, 100), FAST, None, "not ready", False),  # nobody right: level with the teacher, and worthless
    ((0, 2, 0, 98), FAST, None, "not ready", False),
    ((100, 0, 0, 100), FAST, None, "viable", True),  # both wrong on half: as good as its teacher
    ((990, 5, 5, 0), FAST, STRICT, "viable", False),
    ((990, 6, 4, 0), FAST, STRICT, "not ready", False),
    ((800, 200, 0, 0), FAST, WIDE, "viable", True),
    ((930, 70, 0, 0), FAST, SAME, "not ready", True),  # no room for marginal
])
def test_word_and_certainty(counts, seconds, spec, word, settled):
    verdict = judged(*counts, seconds=seconds, verdict=spec).verdict
    assert (verdict.word, verdict.settled) == (word, settled)


class TestSentence:
    def test_not_ready(self):
        found = judged(196, 53, 0, 1, seconds=UNTIMED).verdict.sentence
        assert found == ("Not ready: the student is right on 78.4 % of 250 test items, 21.2 points below the "
                         "teacher (95 % interval 16.6 to 26.7).")

    def test_viable(self):
        found = judged(490, 10, seconds=FAST).verdict.sentence
        assert found == ("Viable: the student is right on 98.0 % of 500 test items, 2.0 points below the "
                         "teacher (95 % interval 1.1 to 3.6), 10 times as fast.")

    def test_not_settled_comes_first(self):
        found = judged(50, seconds=FAST).verdict
        assert found.sentence.startswith("Not settled, viable so far: ")
        assert found.sentence.endswith("test items in all would settle it.")
        assert found.needed > 50

    def test_on_quality_alone_says_that_it_is_not_shown_to_be_viable(self):
        found = judged(1000, seconds=UNTIMED).verdict
        assert found.on_quality_alone
        assert found.sentence.startswith("Marginal, on quality alone: ")
        assert "does not show that it is viable" in found.sentence

    def test_a_better_student(self):
        assert "4.0 points above the teacher (95 % interval 2.0 to 6.4)" in judged(
            470, 5, 25).verdict.sentence

    def test_an_interval_with_two_sides_names_them(self):
        assert "1.0 points below the teacher (95 % interval 1.0 above to 3.1 below)" in judged(
            470, 15, 10, 5).verdict.sentence

    def test_slow(self):
        found = judged(1000, seconds=(1.0, 0.6)).verdict.sentence
        assert found.startswith("Marginal: ")
        assert "only 1.66 times as fast" in found

    def test_recorded_latencies_are_named(self):
        found = judged(1000, teacher={"latency_source": "recorded", "replayed": True}).verdict
        assert "times as fast by recorded latencies" in found.sentence
        assert any("hardware and load are not known" in reason for reason in found.reasons)

    def test_without_gold_it_speaks_of_agreement(self):
        found = judged(90, 10, with_gold=False).verdict
        assert "gives the teacher's answer on 90.0 % of 100 test items" in found.sentence
        assert "is right on" not in found.sentence
        assert any("agreement, not correctness" in reason for reason in found.reasons)

    def test_right_on_nothing(self):
        found = judged(0, 0, 0, 60).verdict
        assert found.sentence.startswith("Not ready so far, not settled: ")
        assert "it is right on nothing" in found.sentence
        assert found.needed is None
        assert found.next_steps[0].startswith("Check the expected answers and the prompt first")

    def test_a_tiny_test_set_is_called_rough(self):
        assert any("every figure here is rough" in reason for reason in judged(5).verdict.reasons)

    def test_a_drop_just_over_a_threshold_does_not_read_like_the_threshold(self):
        reason = judged(1895, 100).verdict.reasons[0]
        assert "5.01 points" in reason
        assert "above the 5.0" in reason


class TestOthersOnTheSameItems:
    def test_a_baseline_that_does_as_well_is_in_the_sentence_and_comes_first(self):
        found = judged(490, 10, baseline=492).verdict
        assert "but the cheap baseline 'linear' does as well" in found.sentence
        assert found.next_steps[0].startswith("Deploy the baseline 'linear' instead")
        assert not any("real traffic" in step for step in found.next_steps)

    def test_a_baseline_within_noise_may_do_as_well(self):
        found = judged(490, 10, baseline=487).verdict
        assert "but the cheap baseline 'linear' may do as well" in found.sentence

    def test_a_baseline_that_is_as_bad_is_no_way_out(self):
        found = judged(300, 200, baseline=310).verdict
        assert found.word == "not ready"
        assert "baseline" not in found.sentence
        assert found.next_steps[0].startswith("The cheap baseline 'linear' does as well")
        assert not any("Deploy" in step for step in found.next_steps)

    def test_a_viable_baseline_beside_a_bad_student_is_named_first(self):
        found = judged(300, 200, baseline=495).verdict
        assert found.word == "not ready"
        assert found.next_steps[0].startswith("Deploy the baseline 'linear' instead")

    def test_a_beaten_baseline_is_a_reason_only(self):
        found = judged(490, 10, baseline=350).verdict
        assert "baseline" not in found.sentence
        assert any("'linear' is right on 70.0 %: the student is better" in reason for reason in found.reasons)
        assert not any("baseline" in step for step in found.next_steps)

    def test_training_that_made_it_worse_is_named_first(self):
        found = judged(300, 200, base=450).verdict
        assert found.next_steps[0].startswith("Training made the model worse: untrained it is right on 90.0")

    def test_training_without_effect_is_named(self):
        found = judged(300, 200, base=299).verdict
        assert found.next_steps[0].startswith("Training shows no clear effect")

    def test_training_that_helps_with_a_field_alone_names_the_field(self):
        expected = [{"file": f"{i}.py", "lines": i} for i in range(100)]
        task = structured()
        found = evaluate(given_run(
            expected, entrant("teacher", expected, task),
            entrant("student", [{**one, "lines": -1} for one in expected], task),
            entrant("base", [{"file": "?", "lines": -1}] * 100, task), task=task)).verdict
        assert found.next_steps[0].startswith("Training helps with file 100.0 % (0.0 %), untrained in br")

    def test_an_untrained_model_that_is_good_enough_needs_no_training(self):
        found = judged(490, 10, base=490).verdict
        assert found.next_steps[0].startswith("Try the untrained model as it is")

    def test_always_the_same_label_is_seen_through(self):
        expected = ["skip"] * 97 + ["code"] * 3
        found = evaluate_labels(expected, expected, ["skip"] * 100).verdict
        assert (found.word, found.settled) == ("not ready", False)
        assert "its answers have no clear connection with the expected answers" in found.sentence
        assert any("recall of each label" in step for step in found.next_steps)

    def test_a_student_hardly_better_than_a_constant_is_told_apart_from_one(self):
        expected = ["skip"] * 97 + ["code"] * 3
        found = evaluate_labels(expected, expected, ["skip"] * 98 + ["code"] * 2).verdict
        assert found.word == "viable"
        assert "but always answering 'skip' would be right on 97.0 %" in found.sentence
        assert any("recall of each label" in step for step in found.next_steps)


class TestNoConnection:
    """Answers that are right as often as by chance lose nothing against a teacher that is no better."""

    def mixed(self, seed, n=120):
        draw = random.Random(seed)
        return [draw.choice(LABELS) for _ in range(n)]

    def test_teacher_and_student_at_chance_are_not_ready_however_small_the_drop(self):
        expected, said = self.mixed(1), self.mixed(2)
        found = evaluate_labels(expected, said, said)
        assert found.comparisons[0].drop.value == 0
        assert found.verdict.word == "not ready"
        assert any("wrong or mixed up" in reason and "not a bounded task" in reason
                   for reason in found.verdict.reasons)
        assert found.verdict.next_steps[0].startswith("Look at twenty items")

    def test_a_student_at_chance_beside_a_good_teacher_has_learned_nothing(self):
        expected = self.mixed(1)
        found = evaluate_labels(expected, expected, self.mixed(2)).verdict
        assert found.word == "not ready"
        assert any("training has failed" in reason for reason in found.reasons)

    def test_a_few_items_are_too_few_to_say_so(self):
        few = ["skip", "code"] * 3
        assert "connection" not in evaluate_labels(few, few, few[::-1]).verdict.sentence

    def test_a_weak_connection_is_one(self):
        expected = self.mixed(1, 300)
        said = [label if i % 4 == 0 else other for i, (label, other) in
                enumerate(zip(expected, self.mixed(2, 300), strict=True))]
        assert "connection" not in evaluate_labels(expected, said, said).verdict.sentence


def evaluate_labels(expected, teacher, student):
    return evaluate(given_run(expected, entrant("teacher", teacher, seconds=1.0),
                              entrant("student", student, seconds=0.1)))


class TestNextSteps:
    def test_compression_asks_for_more_training(self):
        steps = judged(300, 100, 0, 5).verdict.next_steps
        assert steps[0].startswith("On 100 of the student's 105 wrong answers the teacher is right")

    def test_inherited_errors_ask_for_a_better_teacher(self):
        steps = judged(300, 60, 0, 100).verdict.next_steps  # wrong alike: the next label
        assert steps[0].startswith(
            "The teacher makes the same mistake on 100 of the student's 160 wrong answers")

    def test_different_errors_ask_for_a_look_at_the_labels(self):
        expected = gold(300)
        right = [i < 150 for i in range(300)]
        other = [one if good else LABELS[(LABELS.index(one) + 2) % 3]
                 for one, good in zip(expected, right, strict=True)]
        steps = evaluate_labels(expected, answers(expected, right), other).verdict.next_steps
        assert any(step.startswith("On all of the student's 150 wrong answers the teacher is wrong too")
                   for step in steps)

    def test_unreadable_answers_are_named(self):
        steps = judged(300, 100, wrong="I think it is code").verdict.next_steps
        assert any("all of the student's 100 wrong answers could not be read" in step for step in steps)

    def test_nothing_readable_comes_first(self):
        found = judged(0, 100, wrong="I think it is code").verdict
        assert found.next_steps[0].startswith("Look at the student's raw answers: not one could be read")
        assert "100 items of 100 got no valid answer; they count as wrong." in found.reasons

    def test_a_lasting_confusion_is_named(self):
        expected = ["code"] * 100 + ["docs"] * 100
        student = ["code"] * 70 + ["docs"] * 130
        steps = evaluate_labels(expected, expected, student).verdict.next_steps
        assert any(step.startswith("Add training rows that tell 'code' from 'docs'") for step in steps)

    def test_an_untimed_teacher_is_to_be_timed(self):
        steps = judged(1000, seconds=(None, 0.1)).verdict.next_steps
        assert any(step.startswith("Time the teacher: ask a live one, or add `latency_s`") for step in steps)

    def test_a_slow_student_is_to_be_made_faster(self):
        steps = judged(1000, seconds=(1.0, 0.8)).verdict.next_steps
        assert len(steps) == 1
        assert steps[0].startswith("Make the student faster than 1.25 times, to the 2 times asked for")

    def test_an_open_speed_asks_for_more_timings(self):
        found = judged(1000, seconds=ODD).verdict
        assert found.needed is None
        assert any(step.startswith("Time more requests") for step in found.next_steps)

    def test_a_settled_viable_student_is_to_be_watched_first(self):
        assert "on real traffic" in judged(1000).verdict.next_steps[0]

    def test_too_few_test_items_come_first_when_all_else_is_well(self):
        assert judged(50).verdict.next_steps[0].startswith("Collect more test items: about ")

    def test_items_that_come_in_groups_are_needed_in_larger_number(self):
        drop = spread(0.02, -0.01, 0.06)
        alone, grouped = (judge(VerdictSpec(), drop, None, 0.05, design_effect=effect) for effect in (1, 3))
        assert grouped.needed == 3 * alone.needed

    def test_more_items_cannot_mend_a_drop_that_is_too_large(self):
        found = judged(93, 7).verdict
        assert any("more test items cannot make the student viable, only a better student can" in reason
                   for reason in found.reasons)


class TestProperties:
    counts = st.tuples(*[st.integers(0, 60)] * 3).filter(lambda c: sum(c) > 0)
    specs = st.tuples(st.floats(0, 0.3), st.floats(0, 0.3)).map(
        lambda pair: VerdictSpec(max_drop=min(pair), marginal_drop=max(pair)))
    speeds = st.one_of(st.none(), st.tuples(*[st.floats(0.2, 8)] * 3).map(
        lambda three: spread(*(sorted(three)[i] for i in (1, 0, 2)))))

    @staticmethod
    def drop_of(counts):
        n10, n01, rest = counts
        n = n10 + n01 + rest
        return spread((n10 - n01) / n, *stats.tango(n10, n01, n)), (n10 + n01 + 2) / (n + 2), n

    @settings(deadline=None, max_examples=150)
    @given(counts, specs, speeds)
    def test_settled_means_that_nothing_inside_the_intervals_says_otherwise(self, counts, spec, speed):
        drop, discordance, _ = self.drop_of(counts)
        decision = judge(spec, drop, speed, discordance)
        words = set()
        for d in (drop.low, drop.value, drop.high):
            for s in (speed.low, speed.value, speed.high) if speed else (None,):
                fixed = spread(s, s, s) if speed else None
                words.add(judge(spec, spread(d, d, d), fixed, discordance).word)
        if speed is not None:
            assert decision.settled == (len(words) == 1)
        elif decision.settled:
            assert words == {decision.word}

    @settings(deadline=None, max_examples=150)
    @given(counts, specs, speeds)
    def test_unknown_or_slow_is_never_viable_and_a_larger_drop_is_never_better(self, counts, spec, speed):
        drop, discordance, _ = self.drop_of(counts)
        order = ["viable", "marginal", "not ready"]
        word = judge(spec, drop, speed, discordance).word
        if speed is None or speed.value < spec.min_speedup:
            assert word != "viable"
        worse = spread(drop.value + 0.01, drop.low, max(drop.high, drop.value + 0.01))
        assert order.index(judge(spec, worse, speed, discordance).word) >= order.index(word)

    @settings(deadline=None, max_examples=150)
    @given(counts, specs, speeds)
    def test_more_items_are_asked_for_only_when_open_and_then_more_than_there_are(self, counts, spec, speed):
        drop, discordance, n = self.drop_of(counts)
        decision = judge(spec, drop, speed, discordance)
        if decision.settled:
            assert decision.needed is None
        if decision.needed is not None:
            assert decision.needed > n

    @settings(deadline=None, max_examples=25)
    @given(st.tuples(*[st.integers(0, 40)] * 4).filter(lambda c: sum(c) > 0),
           st.sampled_from([FAST, SLOW, UNTIMED]))
    def test_a_sentence_opens_with_viable_only_when_it_is_and_is_settled(self, counts, seconds):
        verdict = judged(*counts, seconds=seconds).verdict
        assert verdict.sentence.startswith("Viable") == (verdict.word == "viable" and verdict.settled)
        assert verdict.sentence.startswith("Not ready") == (verdict.word == "not ready")
        assert verdict.sentence.endswith(".")
        assert "nan" not in verdict.sentence
        assert all(reason.endswith(".") for reason in (*verdict.reasons, *verdict.next_steps))
