"""Splits: what goes where follows from the inputs alone, near the shares, and never leaks."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data import LABELS, example, free_text, load, routing, spec, where, write_rows

from distillctl.data.near import shingles, similarity
from distillctl.data.split import Splits, split_by_list, split_by_shares
from distillctl.errors import DataError
from distillctl.recipe.models import SplitShares
from distillctl.types import SPLITS, Example

SHARES = SplitShares(train=0.6, dev=0.15, test=0.25, seed=7)
WORDS = [f"word{n}" for n in range(2000)]


def rows(count: int, labels: list[str] = LABELS, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [example(n, " ".join(rng.choices(WORDS, k=8)), labels[n % len(labels)]) for n in range(count)]


def split(examples: list[Example], shares: SplitShares = SHARES, task=None, **more) -> Splits:
    return split_by_shares(examples, spec(**more), shares, task or routing())[0]


# --- shares


@pytest.mark.parametrize("count", [40, 101, 999])
def test_every_label_is_split_at_the_shares(count: int) -> None:
    found = split(rows(count))
    sizes = Counter(one.expected for part in found.values() for one in part)
    for name, share in (("train", 0.6), ("dev", 0.15), ("test", 0.25)):
        counts = Counter(one.expected for one in found[name])
        assert all(abs(counts[label] - share * sizes[label]) <= 1 for label in LABELS)


def test_rounding_favours_no_split_where_labels_are_many_and_small() -> None:
    task = routing()
    task.labels = tuple(f"label{n}" for n in range(300))
    found = split(rows(900, list(task.labels)), task=task)
    assert abs(len(found["dev"]) / 900 - 0.15) < 0.03
    assert abs(len(found["test"]) / 900 - 0.25) < 0.03


def test_without_labels_the_whole_is_cut_at_the_shares() -> None:
    found = split([example(n, f"{WORDS[n]} is asked about") for n in range(200)], task=free_text(),
                  expected=None)
    assert {name: len(part) for name, part in found.items()} == {"train": 120, "dev": 30, "test": 50}


def test_a_split_without_a_share_is_empty() -> None:
    assert split(rows(80), SplitShares(train=0.8, dev=0.0, test=0.2))["dev"] == []


def test_each_split_keeps_the_order_of_the_file() -> None:
    for part in split(rows(100)).values():
        numbers = [int(one.id[1:]) for one in part]
        assert numbers == sorted(numbers)


# --- what decides


def test_neither_order_nor_ids_nor_other_columns_matter() -> None:
    examples = rows(200)
    before = {one.fields["question"]: name for name, part in split(examples).items() for one in part}
    changed = [example(900 + n, one.fields["question"], one.expected, note="new")
               for n, one in enumerate(examples)]
    random.Random(5).shuffle(changed)
    assert {one.fields["question"]: name for name, part in split(changed).items() for one in part} == before


def test_the_seed_decides() -> None:
    assert where(split(rows(200))) != where(split(rows(200), SHARES.model_copy(update={"seed": 8})))


def test_new_rows_move_few_others() -> None:
    before, after = where(split(rows(1000))), where(split(rows(1100)))  # the first 1000 are the same
    assert sum(before[one] != after[one] for one in before) <= 30


def test_a_corrected_label_moves_few_rows() -> None:
    examples = rows(400)
    before = where(split(examples))
    examples[3] = example(3, examples[3].fields["question"], "code")
    after = where(split(examples))
    assert sum(before[one] != after[one] for one in before) <= 5


# --- what stays together


def test_equal_and_near_equal_inputs_stay_together() -> None:
    long = [" ".join(random.Random(n).choices(WORDS, k=40)) for n in range(100)]
    examples = [example(n, text, "docs") for n, text in enumerate(long)]
    examples += [example(100 + n, text.upper() + "?", "code") for n, text in enumerate(long)]
    examples += [example(200 + n, text + " please", "skip") for n, text in enumerate(long)]
    place = where(split(examples))
    assert all(place[f"q{n}"] == place[f"q{100 + n}"] == place[f"q{200 + n}"] for n in range(100))
    assert set(place.values()) == set(SPLITS)


def test_rows_of_one_group_stay_together_and_rows_without_one_stand_alone() -> None:
    examples = rows(300)
    for n, one in enumerate(examples):
        one.fields["talk"] = n % 60 if n < 200 else None
    found = split(examples, group="talk")
    place = where(found)
    assert all(len({place[f"q{n}"] for n in range(talk, 200, 60)}) == 1 for talk in range(60))
    assert {place[f"q{n}"] for n in range(200, 300)} == set(SPLITS)
    assert abs(len(found["test"]) - 75) <= 10


def test_a_group_too_large_for_test_is_trained_on_and_told() -> None:
    examples = rows(100)
    for n, one in enumerate(examples):
        one.fields["talk"] = 1 if n < 70 else None
    found, warnings = split_by_shares(examples, spec(group="talk"), SHARES, routing())
    assert {where(found)[f"q{n}"] for n in range(70)} == {"train"}
    assert len(found["test"]) >= 10
    assert warnings[0] == ("70 rows go with others, since equal or near-equal inputs and rows with one "
                           "`talk` stay in one split")
    assert warnings[1].startswith("the shares are not met (train ") and "70 of 100 rows" in warnings[1]


def test_inputs_that_are_all_alike_cannot_be_split(tmp_path: Path) -> None:
    text = " ".join(WORDS[:60])
    write_rows(tmp_path / "rows.jsonl", [{"question": f"{text} {n}", "label": "docs"} for n in range(30)])
    with pytest.raises(DataError, match="test would have no rows") as caught:
        load(tmp_path, spec())
    assert caught.value.exit_code == 2


texts = st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=12).map(" ".join)
items = st.lists(st.tuples(texts, st.sampled_from(LABELS), st.sampled_from([None, "a", "b"])),
                 min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(items, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_invariants_of_every_split_by_shares(given_rows, seed: int, rng: random.Random) -> None:
    examples = [example(n, text, label, talk=talk) for n, (text, label, talk) in enumerate(given_rows)]
    shares = SHARES.model_copy(update={"seed": seed})
    place = where(split(examples, shares, group="talk"))
    assert sorted(place) == sorted(one.id for one in examples)  # each row once
    shuffled = examples.copy()
    rng.shuffle(shuffled)
    assert where(split(shuffled, shares, group="talk")) == place
    for one, other in combinations(examples, 2):
        a, b = one.fields["question"], other.fields["question"]
        if a == b or similarity(shingles(a), shingles(b)) >= 0.9 or (
                one.fields["talk"] and one.fields["talk"] == other.fields["talk"]):
            assert place[one.id] == place[other.id]


# --- lists


def write_lists(folder: Path, value: object) -> Path:
    (folder / "lists.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder / "lists.json"


def test_lists_say_which_row_goes_where(tmp_path: Path) -> None:
    path = write_lists(tmp_path, {"train": ["q2", "q0"], "dev": [], "test": ["q1"]})
    found = split_by_list(rows(3), path)
    assert {name: [one.id for one in part] for name, part in found.items()} == {
        "train": ["q0", "q2"], "dev": [], "test": ["q1"]}


def test_whole_numbers_in_lists_are_ids(tmp_path: Path) -> None:
    path = write_lists(tmp_path, {"train": [0], "dev": [], "test": [1]})
    assert where(split_by_list([Example("0", {}), Example("1", {})], path)) == {"0": "train", "1": "test"}


def test_all_that_is_wrong_with_lists_is_told_with_the_ids(tmp_path: Path) -> None:
    path = write_lists(tmp_path, {"train": ["q0", "q1", "x1"], "dev": ["q1"], "test": ["x2"]})
    with pytest.raises(DataError) as caught:
        split_by_list(rows(40), path)
    assert [(problem.what, problem.where) for problem in caught.value.problems] == [
        ("ids listed more than once (1)", str(path)), ("ids listed that no example has (2)", str(path)),
        ("ids of examples in none of the lists (38)", str(path))]
    message = str(caught.value)
    assert "'q1'" in message and "'x1, x2'" in message and "and 18 more" in message


@pytest.mark.parametrize("value", ["{", "[]", {"train": []}, {"train": [], "dev": [], "test": [], "x": []},
                                   {"train": "q0", "dev": [], "test": []},
                                   {"train": [True], "dev": [], "test": []}])
def test_a_file_that_is_no_lists_is_a_problem(value: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='"train"'):
        split_by_list(rows(3), write_lists(tmp_path, value))


def test_lists_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        split_by_list(rows(3), tmp_path / "lists.json")
