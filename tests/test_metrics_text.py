"""Likeness of texts: ROUGE-L and chrF against their libraries' meaning, over the items that expect a text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sacrebleu import sentence_chrf

from distillctl.evaluate import metrics
from distillctl.evaluate.text_scores import chrf, normal, rouge_l
from tests.support.evaluating import predictions, text


def scores(outputs, expected, **settings):
    task = text(**settings)
    scored = metrics.score(task, predictions(task, outputs), expected)
    return metrics.text_scores(task, scored, expected, None)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    assert rouge_l("The cat sat here.", "the cat lay here now") == pytest.approx(2 * 3 / (4 + 5))


def test_chrf_is_sacrebleus():
    pair = "the backup's size", "the size of the backup"
    assert chrf(*pair) == pytest.approx(sentence_chrf(pair[0], [pair[1]]).score / 100)
    assert 0 < chrf(*pair) < 1


def test_normalisation_leaves_words_alone():
    assert normal("  Backup: SIZE!\n") == "backup size"


def test_missing_answers_have_no_likeness():
    found = scores(["Backup size.", None, "other"], [{"text": "backup size"}] * 3)
    assert (found.exact.k, found.exact.n) == (1, 3)
    assert found.rouge_l.value == pytest.approx(1 / 3)


def test_only_items_that_expect_a_text_count():
    found = scores(["a b", "x"], [{"text": "a b"}, {"must_include": ["y"]}])
    assert (found.n, found.rouge_l.value) == (1, 1)
    assert scores(["x"], [{"must_include": ["y"]}]) is None


def test_chrf_is_shown_where_the_recipe_asks_for_it():
    expected = [{"text": "backups"}]
    assert scores(["backup"], expected).chrf is None
    assert scores(["backup"], expected, similarity="chrf").chrf.value == pytest.approx(
        chrf("backup", "backups"))


def test_importing_the_task_loads_no_scoring_library():
    code = "import sys, distillctl.task; sys.exit('sacrebleu' in sys.modules or 'rapidfuzz' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
