"""Probabilities: are they believed as far as they should be, and no further?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from distillctl.evaluate.calibration import calibration, confidence, fit_temperature
from tests.support.evaluating import LABELS, logs


def drawn(n, temperature, seed=0):
    """Items whose stated probabilities are true ones sharpened by 1/temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, (n, len(LABELS)))
    true = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    truth = [str(rng.choice(LABELS, p=row)) for row in true]
    stated = scores * temperature
    stated -= np.log(np.exp(stated).sum(1, keepdims=True))
    return [(dict(zip(LABELS, map(float, row), strict=True)), label)
            for row, label in zip(stated, truth, strict=True)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_is_found_again(temperature):
    found = calibration(LABELS, drawn(500, temperature, 1), drawn(4000, temperature, 2))
    assert found.temperature == pytest.approx(temperature, rel=0.08)


def test_the_temperature_mends_overconfidence():
    test, dev = drawn(2000, 3.0, 3), drawn(2000, 3.0, 4)
    before, after = calibration(LABELS, test, ()), calibration(LABELS, test, dev)
    assert before.temperature is None
    assert after.ece < before.ece / 3
    assert after.brier < before.brier


def test_brier_is_scikit_learns_for_two_labels():
    test = [(logs("a", p, "ab"), y) for p, y in ((.9, "a"), (.8, "b"), (.3, "b"), (.6, "a"), (.2, "a"))]
    found = calibration(["a", "b"], test, ())
    one_sided = brier_score_loss([y == "a" for _, y in test], [math.exp(p["a"]) for p, _ in test])
    assert found.brier == pytest.approx(2 * one_sided)


def test_calibration_error_is_as_worked_out_by_hand():
    test = [(logs("code", 0.9), "code")] * 15 + [(logs("code", 0.6), "docs")] * 5
    found = calibration(LABELS, test, ())
    # 2 bins of 10: five of 0.6 all wrong and five of 0.9 all right; ten of 0.9 all right
    assert [one.n for one in found.bins] == [10, 10]
    assert found.ece == pytest.approx(0.5 * abs(0.75 - 0.5) + 0.5 * abs(0.9 - 1.0))


def test_bins_hold_equal_numbers_of_items():
    found = calibration(LABELS, drawn(257, 1.0), ())
    assert sum(one.n for one in found.bins) == 257
    assert {one.n for one in found.bins} == {25, 26}
    sure = [one.confidence for one in found.bins]
    assert sure == sorted(sure)


def test_a_flawless_dev_split_does_not_give_certainty():
    found = fit_temperature(np.log(np.array([[.7, .2, .1]] * 20)), np.zeros(20, int))
    assert 0.2 < found < 1
    assert confidence(logs("code", 0.7), "code", found) < 0.99


@pytest.mark.parametrize("test", [
    [], [(None, "code")], [(logs("code", .9), None)], [({"code": -0.1}, "code")]])
def test_without_usable_probabilities_nothing_is_known(test):
    assert calibration(LABELS, test, ()) is None


def test_items_without_probabilities_are_left_out():
    found = calibration(LABELS, [(logs("code", .9), "code"), (None, "code"), (logs("code", .9), None)], ())
    assert sum(one.n for one in found.bins) == 1


def test_too_small_a_dev_split_gives_no_temperature():
    assert calibration(LABELS, drawn(50, 1.0), drawn(9, 1.0)).temperature is None


def test_impossible_labels_do_not_break_it():
    test = [({"code": 0.0, "docs": -math.inf, "skip": -math.inf}, "docs")] * 12
    found = calibration(LABELS, test, test)
    assert math.isfinite(found.brier)
    assert math.isfinite(found.temperature)


def test_confidence_is_the_probability_of_what_was_said():
    assert confidence(logs("docs", 0.8), "docs", None) == pytest.approx(0.8)
    assert confidence(logs("docs", 0.8), "code", 1.0) == pytest.approx(0.1)
    assert confidence(logs("docs", 0.8), "docs", 2.0) < 0.8
    assert confidence(logs("docs", 0.8), None, None) is None
    assert confidence(None, "docs", None) is None
