"""Near-equal texts: what counts as equal, that little is missed and nothing is made up."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations

import pytest

from distillctl.data.near import Groups, near_links, normal, normal_input, shingles, similarity

LONG = " ".join(f"word{n}" for n in range(80))


@pytest.mark.parametrize(("one", "other"), [
    ("Where IS it?", "where is it"), ("“Where” is\n it…", "'where' is it!"),
    ("zero\u200bwidth", "zero width"), ("ｆｕｌｌ ｗｉｄｔｈ", "full width"), ("Straße", "STRASSE")])
def test_case_marks_and_blanks_make_no_other_input(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(("one", "other"), [
    ("2+2", "2-2"), ("a = b", "a == b"), ("C", "C++"), ("3.14", "314"), ("文字", "文学"), ("", "?"),
    ("🙂", "🙁")])
def test_symbols_digits_and_characters_make_another_input(one: str, other: str) -> None:
    assert normal(one) != normal(other)


def test_an_input_is_the_values_of_the_variables_alone_each_in_its_place() -> None:
    names = ["a", "b"]
    assert normal_input({"a": "X", "b": None, "c": "left out"}, names) == normal_input({"a": "x"}, names)
    assert normal_input({"a": 1}, names) != normal_input({"b": 1}, names)


def test_text_without_blanks_between_words_has_shingles_too() -> None:
    assert len(shingles(normal("この関数はどこにありますか"))) > 3


def links(texts: list[str], threshold: float = 0.9) -> list[tuple[int, int, float]]:
    return list(near_links(texts, threshold))


def test_a_word_more_is_near_and_a_word_changed_in_a_short_text_is_not() -> None:
    texts = [LONG, LONG + " please", "where is it said how", "where is it said that"]
    assert [(a, b) for a, b, _ in links(texts)] == [(0, 1)]


def test_texts_below_three_words_are_never_near() -> None:
    assert links(["yes", "yes please", "yes indeed"], 0.01) == []


def test_the_similarity_told_is_the_exact_one() -> None:
    assert links([LONG, LONG + " please"]) == [(0, 1, 78 / 79)]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.9, 1.0])
def test_groups_are_those_of_comparing_all_with_all(threshold: float) -> None:
    rng = random.Random(11)
    vocabulary = [f"w{n}" for n in range(40)]
    texts = []
    for _ in range(60):
        words = rng.choices(vocabulary, k=rng.randint(3, 40))
        texts.append(" ".join(words))
        for _ in range(4):  # copies with more and more words changed
            words[rng.randrange(len(words))] = rng.choice(vocabulary)
            texts.append(" ".join(words))
    texts = list(dict.fromkeys(texts))
    sets = [shingles(text) for text in texts]
    wanted, found = Groups(len(texts)), Groups(len(texts))
    for a, b in combinations(range(len(texts)), 2):
        if similarity(sets[a], sets[b]) >= threshold:
            wanted.join(a, b)
    for a, b, _ in links(texts, threshold):
        found.join(a, b)
    assert [found.find(n) for n in range(len(texts))] == [wanted.find(n) for n in range(len(texts))]


def test_rows_of_one_template_are_not_near_and_thousands_alike_are_one_group() -> None:
    assert links([f"i want to book a room in town{n} for two nights please" for n in range(3000)]) == []
    assert len(links([f"{LONG} number {n} {LONG}" for n in range(500)])) == 499


def test_every_process_finds_the_same(tmp_path) -> None:
    code = ("import random; from distillctl.data.near import near_links; r = random.Random(1); "
            "t = [' '.join(r.choices('abcdefgh', k=9)) for _ in range(400)]; "
            "print(list(near_links(list(dict.fromkeys(t)), 0.4)))")
    outputs = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
                              capture_output=True, check=True).stdout for seed in ("1", "2")}
    assert len(outputs) == 1
