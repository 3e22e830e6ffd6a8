"""The audit and the leak check: what a user learns before anything is paid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.data import example, free_text, load, routing, spec, write_rows

from distillctl.data import audit
from distillctl.errors import DataError
from distillctl.recipe.load import load_recipe
from distillctl.task import build_task

LONG = " ".join(f"word{n}" for n in range(40))
FILES = {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
ROOT = Path(__file__).parents[1]


def write_files(folder: Path, **questions: list[str]) -> None:
    for split in FILES:
        write_rows(folder / FILES[split], [
            {"id": f"{split}-{n}", "question": text, "label": "docs"}
            for n, text in enumerate(questions.get(split, [f"an ordinary {split} question"]))])


# --- leaks


def test_equal_and_near_equal_inputs_in_two_files_are_named_with_both_places(tmp_path: Path) -> None:
    write_files(tmp_path, train=["where is it", LONG], dev=["Where is it?"], test=["who", LONG + " please"])
    with pytest.raises(DataError) as caught:
        load(tmp_path, spec(FILES))
    assert caught.value.exit_code == 2
    assert [problem.what for problem in caught.value.problems] == [
        "equal inputs in train and dev: train.jsonl:1 and dev.jsonl:1",
        "near-equal (0.97 alike) inputs in train and test: train.jsonl:2 and test.jsonl:2",
        "what is tested must not be trained on"]
    assert "Where is it?" in str(caught.value)


def test_equal_rows_without_ids_in_two_files_are_a_leak_too(tmp_path: Path) -> None:
    for split in FILES:
        write_rows(tmp_path / FILES[split], [{"question": "where is it", "label": "docs"}])
    with pytest.raises(DataError, match="equal inputs in train and dev"):
        load(tmp_path, spec(FILES))


def test_lists_that_tear_equal_inputs_apart_are_a_leak(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [
        {"id": str(n), "question": text, "label": "docs"}
        for n, text in enumerate(["where is it", "who wrote it", "where is it"])])
    (tmp_path / "lists.json").write_text('{"train": ["0"], "dev": ["1"], "test": ["2"]}')
    with pytest.raises(DataError, match=r"in train and test: rows\.jsonl:1 and rows\.jsonl:3"):
        load(tmp_path, spec(split="lists.json"))


def test_many_pairs_are_cut_and_counted(tmp_path: Path) -> None:
    same = [f"question number {n} here" for n in range(50)]
    write_files(tmp_path, train=same, test=same)
    with pytest.raises(DataError) as caught:
        load(tmp_path, spec(FILES))
    assert len(caught.value.problems) == 22
    assert caught.value.problems[20].what == "and 30 more pairs"


def test_the_threshold_of_the_recipe_decides(tmp_path: Path) -> None:
    write_files(tmp_path, train=[LONG], test=[LONG + " please"])
    load(tmp_path, spec(FILES, near_duplicate=0.99))
    with pytest.raises(DataError, match="near-equal"):
        load(tmp_path, spec(FILES, near_duplicate=0.9))


def test_only_what_varies_in_the_prompt_is_compared(tmp_path: Path) -> None:
    write_files(tmp_path, train=["where is it"], test=["who wrote it"])
    load(tmp_path, spec(FILES), routing(f"{LONG} {LONG} {{{{ question }}}}"))


def test_an_id_stands_in_one_split_only(tmp_path: Path) -> None:
    write_files(tmp_path)
    write_rows(tmp_path / "test.jsonl", [{"id": "train-0", "question": "who wrote it", "label": "docs"}])
    with pytest.raises(DataError, match=r"test\.jsonl:1: has the id of train\.jsonl:1, got 'train-0'"):
        load(tmp_path, spec(FILES))


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, train=[""], test=[" "])
    (tmp_path / "dev.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        load(tmp_path, spec(FILES))
    assert [problem.where for problem in caught.value.problems] == [
        f"{tmp_path}/train.jsonl:1", f"{tmp_path}/dev.jsonl", f"{tmp_path}/test.jsonl:1"]


def test_a_split_without_train_or_test_rows_is_a_problem(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"id": n, "question": f"what is {n}", "label": "docs"}
                                         for n in range(3)])
    (tmp_path / "lists.json").write_text('{"train": [0, 1], "dev": [2], "test": []}')
    with pytest.raises(DataError, match=r"test would have no rows \(train 2, dev 1, test 0\)"):
        load(tmp_path, spec(split="lists.json"))


# --- the account


def splits(**rows: list) -> dict:
    return {"train": [], "dev": [], "test": []} | {
        split: [example(n, text, label) for n, (text, label) in enumerate(given)]
        for split, given in rows.items()}


def test_the_account_counts_rows_labels_repeats_and_lengths() -> None:
    rows = splits(train=[("a b c", "docs"), ("A b, c", "docs"), ("d", "code")], test=[("e f", "code")])
    found = audit(rows, routing("Question: {{ question }}"), spec())
    assert (found.rows, found.repeated_inputs, found.conflicting_inputs) == (4, 1, 0)
    assert found.splits[0] == {
        "split": "train", "rows": 3, "repeats": 1, "words_median": 3, "words_p95": 3, "words_max": 3,
        "characters_median": 5, "characters_p95": 6, "characters_max": 6}
    assert found.splits[1]["words_median"] is None
    assert found.labels[:2] == [{"label": "code", "train": 1, "dev": 0, "test": 1},
                                {"label": "docs", "train": 2, "dev": 0, "test": 0}]
    assert found.duplicates == [{"rows": 2, "places": ["rows.jsonl:0", "rows.jsonl:1"]}]


def test_the_account_is_plain_json() -> None:
    found = audit(splits(train=[("a", "docs")], test=[("b", "docs")]), routing(), spec())
    assert json.loads(json.dumps(found.as_json(), allow_nan=False)) == found.as_json()


def test_equal_inputs_that_expect_different_answers_are_listed() -> None:
    found = audit(splits(train=[("why", "docs"), ("who", "skip"), ("Why?", "code")]), routing(), spec())
    assert found.conflicts == [{"places": ["rows.jsonl:0", "rows.jsonl:2"], "expected": ["docs", "code"]}]
    assert any("1 inputs have several rows that expect different answers" in w for w in found.warnings)


def test_the_balance_of_labels_is_unknown_without_gold_answers() -> None:
    assert audit(splits(train=[("a", None)], test=[("b", None)]), routing(), spec(expected=None)).labels == []
    assert audit(splits(train=[("a", None)]), free_text(), spec(expected=None)).labels == []


def test_lengths_in_tokens_are_those_of_the_whole_prompt() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="comes with the local extra")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    rows = splits(train=[("a b c", "docs"), ("d", "docs")])
    found = audit(rows, routing("Question: {{ question }}"), spec(), tokenizer)
    assert (found.splits[0]["tokens_median"], found.splits[0]["tokens_max"]) == (2, 4)


def warnings(**rows: list) -> list[str]:
    return audit(splits(**rows), routing(), spec()).warnings


@pytest.mark.parametrize(("count", "words"), [(30, "±14 points"), (150, "±6 points"), (200, None)])
def test_few_test_rows_are_told_with_what_they_can_say(count: int, words: str | None) -> None:
    told = warnings(test=[(f"question {n}", "docs") for n in range(count)])
    assert (f"{count} test rows are few: an accuracy near 80 % is known to {words}" in told) == bool(words)


def test_what_is_out_of_balance_is_told() -> None:
    told = warnings(train=[("a", "docs"), ("b", "code")], test=[("c", "docs"), ("c", "docs")])
    assert "there are no dev rows: nothing can be chosen or calibrated on them" in told
    assert "no test row has the label 'code'" in told
    assert ("100% of the test rows have the label 'docs': always answering it would be right as often"
            in told)
    assert "1 test rows repeat an earlier input" in told


# --- the data sets that come with the project


def test_the_fixed_split_of_routing_does_not_leak() -> None:
    recipe = load_recipe(ROOT / "recipes" / "routing.yaml", ["data.split=data/routing.fixed-split.json"])
    found, _ = load(ROOT / "recipes", recipe.recipe.data, build_task(recipe.recipe.task))
    assert {split: len(part) for split, part in found.items()} == {"train": 700, "dev": 99, "test": 200}


@pytest.mark.parametrize(("name", "prompt"), [
    ("routing", "{{ conversation_context }} {{ question }}"), ("bug_summary", "{{ diff }} {{ error }}"),
    ("query_rewriting", "{{ conversation_context }} {{ question }}"),
    ("evidence_summary", "{{ evidence }} {{ question }}")])
def test_no_two_rows_of_a_shipped_data_set_are_near_equal(name: str, prompt: str) -> None:
    _, told = load(ROOT / "recipes" / "data", spec(f"{name}.jsonl", expected=None), free_text(prompt))
    assert told == []
