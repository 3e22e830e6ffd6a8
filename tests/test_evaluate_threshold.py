"""The threshold of a cascade: the walk over dev, what it says where none will do, and whether it keeps its
level."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.evaluating import falling

from distillctl.evaluate import stats
from distillctl.evaluate.cascade import Sure, bound
from distillctl.evaluate.threshold import Walk, dev_needed


def choose(dev, max_drop, level=0.95, groups=None):
    return Walk.over(dev, groups).threshold(max_drop, level)


def answered(dev, max_drop, level=0.95):
    threshold = choose(dev, max_drop, level)
    return sum(one.answered(threshold) for one in dev)


class TestTheWalk:
    def test_it_stops_before_the_first_step_that_dev_does_not_carry(self):
        """600 right ones of 1,000, all wrong below: 38 losses are shown to be under 5 %, 39 are not."""
        assert answered(falling(1000), 0.05) == 600 + 38
        *passed, refused = Walk.over(falling(1000)).steps(0.05, 0.95)
        assert passed[-1].at_most <= 0.05 < refused.at_most
        assert refused.share == pytest.approx(0.639)

    @pytest.mark.parametrize("max_drop", [0.02, 0.1, 0.3])
    def test_it_follows_the_recipes_margin(self, max_drop):
        assert 600 + 500 * max_drop < answered(falling(1000), max_drop) < 600 + 1000 * max_drop

    def test_what_the_student_corrects_pays_for_what_it_loses(self):
        dev = [Sure(0.9, True, False)] * 100 + [Sure(0.5, False, True)] * 100 + [Sure(0.1, False, True)] * 800
        assert answered(dev, 0.05) == 200

    def test_a_later_step_does_not_mend_one_that_failed(self):
        dev = [*[Sure(0.9, True, True)] * 100, *[Sure(0.8, False, True)] * 60, *[Sure(0.7, True, False)] * 80,
               *[Sure(0.6, True, True)] * 760]
        assert answered(dev, 0.05) == 100

    def test_a_student_that_may_answer_everything_has_no_threshold_to_reach(self):
        assert choose([Sure(0.4, True, True)] * 100, 0.05) == 0.0

    def test_items_without_a_probability_go_to_the_teacher(self):
        dev = [*falling(100), *[Sure(None, False, True)] * 100]
        assert answered(dev, 0.9) == 100

    def test_equal_probabilities_stay_together(self):
        assert choose([Sure(0.8, i % 2 == 0, True) for i in range(500)], 0.1) is None

    def test_it_is_written_with_few_digits(self):
        dev = [Sure(0.912345, True, True)] * 140 + [Sure(0.7512345, False, True)] * 60
        assert choose(dev, 0.05) == 0.9

    def test_groups_count_for_less_than_as_many_items(self):
        dev, groups = falling(1000), [i // 5 for i in range(1000)]
        assert choose(dev, 0.05, groups=groups) > choose(dev, 0.05)

    def test_a_long_walk_is_thinned_out(self):
        steps = Walk.over(falling(1000)).steps(0.05, 0.95)
        assert len(steps) == 61
        assert [one.threshold for one in steps] == sorted((one.threshold for one in steps), reverse=True)


class TestWhereNoneWillDo:
    def why(self, dev, max_drop=0.05):
        assert choose(dev, max_drop) is None
        return Walk.over(dev).why_none(max_drop, 0.95)

    def test_a_small_dev_split_is_told_the_size_that_could_do(self):
        assert "69 dev items: even if the student lost nothing on them" in self.why(falling(69))
        assert "70 items could" in self.why(falling(69))
        assert choose(falling(70), 0.05) is not None

    def test_a_student_whose_sureness_says_nothing_is_not_helped_by_more_items(self):
        assert "more of them would not" in self.why([Sure(i / 200, i > 190 or i < 180, True) if i < 180 else
                                                     Sure(1.0, False, True) for i in range(200)])

    def test_a_near_miss_names_the_items_that_would_do(self):
        said = self.why([Sure(0.9, i % 25 > 0, True) for i in range(150)])
        assert "About 2,700 dev items would, if this holds." in said

    def test_without_a_margin_nothing_can_be_shown(self):
        assert "larger verdict.max_drop" in self.why(falling(200), 0.0)

    def test_without_probabilities_there_is_nothing_to_walk_over(self):
        assert "no dev item has a probability" in self.why([Sure(None, True, True)] * 200)


@pytest.mark.parametrize(("max_drop", "level"), [(0.05, 0.95), (0.05, 0.975), (0.02, 0.95), (0.1, 0.9)])
def test_the_size_that_could_do_is_the_least(max_drop, level):
    n = dev_needed(max_drop, level)
    assert choose([Sure(0.9, True, True)] * n, max_drop, level) == 0.0
    assert choose([Sure(0.9, True, True)] * (n - 1), max_drop, level) is None


# --- does it keep what it promises? -----------------------------------------------------------------------

TEACHER = 0.97  # its share of right answers, whatever the student's confidence
DRAWS = 2000


def drawn(rng, n):
    """n items; the student is right as often as it says: from 50 to 100 % of the time."""
    sure = 0.5 + 0.5 * rng.random(n)
    return [Sure(*one) for one in zip(sure.tolist(), (rng.random(n) < sure).tolist(),
                                      (rng.random(n) < TEACHER).tolist(), strict=True)]


def true_drop(threshold):
    """Of the whole: confidences are uniform on [0.5, 1], so (teacher - confidence) over the accepted ones."""
    threshold = max(threshold, 0.5)
    return 2 * (TEACHER * (1 - threshold) - (1 - threshold ** 2) / 2)


@cache
def walks():
    """Over the dev splits of 150 items of the simulated tasks."""
    rng = np.random.default_rng(5)
    return [Walk.over(drawn(rng, 150)) for _ in range(DRAWS)]


def losing_too_much(level, max_drop=0.05):
    """Share of simulated tasks whose threshold loses more than max_drop, and the mean share answered."""
    found = [walk.threshold(max_drop, level) for walk in walks()]
    chosen = [one for one in found if one is not None]
    share = 2 * (1 - np.maximum(chosen, 0.5)).sum() / DRAWS
    return sum(true_drop(one) > max_drop for one in chosen) / DRAWS, share


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_whole_loses_more_than_is_allowed_no_more_often_than_the_level_says(level):
    failed, share = losing_too_much(level)
    allowed = 1 - level
    assert failed <= allowed + 3 * (allowed * level / DRAWS) ** 0.5
    assert failed > allowed / 3  # a walk that never fails asks for too much
    assert share > 0.3  # 150 dev items are enough to be of use; the best threshold would answer 53 %


def test_the_point_estimate_which_it_replaces_fails_far_more_often():
    assert losing_too_much(0.5)[0] > 0.2


def test_the_bound_on_test_holds_at_its_level_though_dev_chose_the_threshold():
    """What the student answers alone is less accurate than its 97.5 % bound in at most 2.5 % of the tasks."""
    rng = np.random.default_rng(6)
    failed = kept = 0
    for walk in walks():
        threshold = walk.threshold(0.05, 0.95)
        at = [one.student for one in drawn(rng, 200) if threshold is not None and one.answered(threshold)]
        if at:
            kept += 1
            failed += bound(at) > (1 + max(threshold, 0.5)) / 2  # the mean confidence above the threshold
    level = 0.025
    assert kept > 1900
    assert failed / kept <= level + 3 * (level * (1 - level) / kept) ** 0.5
    assert failed > 0  # a bound that never fails is no bound of this level


def test_the_docs_table_of_dev_items_is_what_the_test_allows():
    text = (Path(__file__).parents[1] / "docs/thresholds.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| (none is few enough|\d+) \| (none is few enough|\d+) \|$", text, re.M)
    assert len(rows) == 6
    for items, *allowed in rows:
        n, losses = int(items.replace(",", "")), np.arange(100.0)
        for said, margin in zip(allowed, (0.05, 0.02), strict=True):
            count = int(stats.drop_within(losses, 0 * losses, n, margin, 0.95).sum())
            assert said == (str(count - 1) if count else "none is few enough")
