"""`distillctl errors`: who is wrong where, and seeds that never come from the test split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from distillctl.cli.main import cli
from distillctl.errors import UsageError
from distillctl.seeds import Errors, write_seeds
from tests.support.by_hand import object_of, run_by_hand

SCHEMA = {"type": "object", "properties": {"file": {"type": "string"}, "line": {"type": "integer"}},
          "required": ["file"]}


def rows(**expected):
    """Ten training rows, then d0.. on dev and t0.. on test; expected: a list per column, for dev and test."""
    count = len(next(iter(expected.values())))
    first = {name: values[0] for name, values in expected.items()}
    found = [{"id": f"n{i}", "split": "train", "question": f"train question number {i}", **first}
             for i in range(10)]
    for split in ("dev", "test"):
        found += [{"id": f"{split[0]}{i}", "split": split, "question": f"{split} question number {i}",
                   **{name: values[i] for name, values in expected.items()}} for i in range(count)]
    return found


def said(train, outputs):
    """The same outputs on dev and test."""
    return {f"n{i}": train for i in range(10)} | {
        f"{split}{i}": one for split in "dt" for i, one in enumerate(outputs) if one is not None}


def call(workspace, *arguments):
    return CliRunner().invoke(cli, ("errors", *arguments, "--workspace", str(workspace)),
                              catch_exceptions=False)


def errors(workspace, *arguments):
    return json.loads(call(workspace, "by-hand", "--json", *arguments).stdout)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    expected = ["code", "code", "code", "code", "docs"]
    run_by_hand(tmp_path, {"kind": "classification", "labels": ["code", "docs", "skip"]}, "label",
                rows(label=expected), said("code", ["code", "code", "docs", "docs", "skip"]),
                said("code", ["code", "docs", "docs", "skip", "docs"]))
    return tmp_path


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_wrong_item_of_the_split_has_its_cell(labels, split):
    found = errors(labels, "--split", split)
    assert {item["id"]: item["cell"] for item in found["items"]} == {
        f"{split[0]}1": "compression", f"{split[0]}2": "inherited",
        f"{split[0]}3": "both_wrong_differently", f"{split[0]}4": "corrected"}
    assert found["n"] == 5


def test_seeds_hold_the_row_and_what_everybody_said(labels):
    out = labels / "seeds.jsonl"
    assert call(labels, "by-hand", "-o", str(out)).exit_code == 0
    seeds = [json.loads(line) for line in out.read_text().splitlines()]
    assert [seed["id"] for seed in seeds] == ["d1", "d2", "d3", "d4"]
    seed = seeds[0]
    assert seed["fields"]["question"] == "dev question number 1"
    assert (seed["expected"], seed["teacher"], seed["student"], seed["cell"]) == (
        "code", "code", "docs", "compression")


def test_test_items_are_never_written(labels):
    out = labels / "seeds.jsonl"
    with pytest.raises(UsageError, match=r"never written as seeds.*judged"):
        call(labels, "by-hand", "--split", "test", "-o", str(out))
    assert not out.exists()


def test_the_library_does_not_write_test_items_either(tmp_path):
    with pytest.raises(UsageError, match="never written as seeds"):
        write_seeds(Errors("test", 1, True, []), tmp_path / "seeds.jsonl")
    assert not list(tmp_path.iterdir())


def test_test_items_are_shown(labels):
    shown = call(labels, "by-hand", "--split", "test").stdout
    assert "test question number 1" in shown
    assert "4 of 5 items" in shown


def test_a_run_that_is_not_finished_says_how_to_finish_it(labels):
    next(labels.glob("runs/by-hand/*/metrics.json")).unlink()
    with pytest.raises(UsageError, match=r"(?s)not finished.*distillctl attach by-hand/") as caught:
        call(labels, "by-hand")
    assert caught.value.exit_code == 2


def test_fields_of_an_object_have_cells_of_their_own(tmp_path):
    right = object_of(file="a", line=1)
    run_by_hand(
        tmp_path, {"kind": "structured", "json_schema": SCHEMA}, {"file": "file", "line": "line"},
        rows(file=["a"] * 5, line=[1] * 5),
        said(right, [right, object_of(file="b", line=1), object_of(file="b", line=1), right,
                     object_of(file="b", line=3)]),
        said(right, [object_of(file="x", line=1), object_of(file="b", line=2), object_of(file="a", line=1),
                     "no JSON", object_of(file="c", line=3)]))
    found = errors(tmp_path)
    assert {item["id"]: item["parts"] for item in found["items"]} == {
        "d0": {"file": "compression"},
        "d1": {"file": "inherited", "line": "compression"},
        "d2": {"file": "corrected"},
        "d3": {"file": "compression", "line": "compression"},
        "d4": {"file": "both_wrong_differently", "line": "inherited"}}
    assert found["parts"]["file"] == {
        "compression": 2, "inherited": 1, "corrected": 1, "both_wrong_differently": 1}
    assert found["items"][3]["student"] == "no JSON"


def test_checks_of_a_text_have_cells_of_their_own(tmp_path):
    run_by_hand(
        tmp_path, {"kind": "text", "max_words": 3}, {"must_include": "terms"},
        rows(terms=[["kiln"]] * 3), said("kiln", ["kiln", "one two three four", "kiln"]),
        said("kiln", ["a b c d kiln", "one two three four", None]))
    assert {item["id"]: item["parts"] for item in errors(tmp_path)["items"]} == {
        "d0": {"max_words": "compression"},
        "d1": {"must_include": "inherited", "max_words": "inherited"},
        "d2": {"must_include": "compression", "max_words": "compression"}}


def test_without_gold_the_teacher_is_the_measure_and_this_is_said(tmp_path):
    run_by_hand(tmp_path, {"kind": "classification", "labels": ["code", "docs"]}, None,
                rows(topic=["x", "x"]), said("code", ["code", "docs"]), said("code", ["code", "code"]))
    found = errors(tmp_path)
    assert [(item["id"], item["expected"]) for item in found["items"]] == [("d1", "docs")]
    assert found["gold"] is False
    assert "no gold answers" in call(tmp_path, "by-hand").stdout


def test_what_models_said_moves_no_cursor(tmp_path):
    run_by_hand(tmp_path, {"kind": "text"}, {"text": "text"}, rows(text=["right"]),
                said("right", ["right"]), said("right", ["\x1b[2Jwrong"]))
    shown = call(tmp_path, "by-hand").stdout
    assert "wrong" in shown
    assert "\x1b" not in shown
