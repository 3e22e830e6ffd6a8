"""Gates: which runs may pass, and what a run that may not is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import small_runs
from support.evaluating import examples, gold, judged
from support.recipe import GOOD

from distillctl.cli.main import cli
from distillctl.errors import DataError, StorageError, UsageError
from distillctl.evaluate.results import Metrics
from distillctl.gate import GateReport, check_gates, gates_text
from distillctl.recipe.load import load_recipe
from distillctl.store.files import write_json, write_jsonl
from distillctl.store.workspace import Workspace


def finished_run(root: Path, name: str, gates: str, metrics: Metrics, group: str | None = None) -> str:
    """A run on disk as evaluation leaves one, with these metrics and gates."""
    folder = root / "runs" / "tiny" / name
    (root / "data").mkdir(exist_ok=True)
    (root / "data/examples.jsonl").write_text('{"text": "Why?", "label": "yes", "who": "a"}\n')
    (root / "data/teacher.jsonl").write_text('{"id": "1", "output": "yes"}\n')
    recipe = root / "recipe.yaml"
    text = GOOD.replace("expected: label", f"expected: label\n  group: {group}") if group else GOOD
    recipe.write_text(text + f"gates: {gates}\n")
    loaded = load_recipe(recipe)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(loaded.text)
    write_json(folder / "recipe.resolved.json", loaded.resolved_json())
    write_json(folder / "run.json", {"format": 1, "recipe": "tiny", "run": name, "base": "."})
    n = metrics.evaluations[0].n
    write_jsonl(folder / "data/test.jsonl", (
        {**one.as_json(), "fields": {"who": f"person {i // 20}"}} for i, one in enumerate(examples(gold(n)))))
    write_json(folder / "metrics.json", metrics.model_dump(mode="json"))
    Workspace(root).run_dir("tiny", name).mark_done("evaluate", "key", {}, ["metrics.json"], 0.0)
    return f"tiny/{name}"


def gated(root: Path, gates: str, metrics: Metrics) -> GateReport:
    return check_gates(finished_run(root, "new", gates, metrics), Workspace(root))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, standalone_mode=False)


def test_a_run_that_is_good_enough_passes_every_gate(tmp_path: Path) -> None:
    found = gated(tmp_path, "{min_accuracy: 0.9, max_drop: 0.05, min_speedup: 2, max_invalid: 0.05}",
                  judged(390, 5, 5))
    assert [gate.gate for gate in found.gates] == ["min_accuracy", "max_drop", "min_speedup", "max_invalid"]
    assert found.passed


@pytest.mark.parametrize(("gates", "counts", "estimate"), [
    ("{min_accuracy: 0.85}", {"both": 86, "neither": 14}, 0.86),
    ("{max_drop: 0.05}", {"both": 95, "teacher_only": 4, "student_only": 1}, 0.03),
    ("{max_invalid: 0.01}", {"both": 100}, 0.0),
])
def test_a_gate_is_held_against_the_interval_and_not_the_estimate(
        tmp_path: Path, gates: str, counts: dict[str, int], estimate: float) -> None:
    [gate] = gated(tmp_path, gates, judged(**counts)).gates
    assert gate.value == pytest.approx(estimate)
    assert not gate.passed
    assert "more test items would tell" in gate.reason


def test_an_unknown_speed_does_not_pass(tmp_path: Path) -> None:
    [gate] = gated(tmp_path, "{min_speedup: 1}", judged(100, seconds=(None, 0.1))).gates
    assert (gate.value, gate.bound, gate.passed) == (None, None, False)
    assert "unknown" in gate.reason


def test_a_recipe_without_gates_is_an_error_and_not_a_pass(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no gates") as caught:
        gated(tmp_path, "{}", judged(100))
    assert caught.value.exit_code == 2


def test_metrics_that_were_changed_by_hand_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "new", "{min_accuracy: 0.9}", judged(50, neither=50))
    write_json(tmp_path / "runs/tiny/new/metrics.json", judged(100).model_dump(mode="json"))
    with pytest.raises(StorageError, match="was changed"):
        check_gates(run, Workspace(tmp_path))


# --- against the deployed run ---------------------------------------------------------------------------


def test_a_run_as_good_as_the_deployed_one_passes(tmp_path: Path) -> None:
    new = finished_run(tmp_path, "new", "{max_regression: 0.02}", judged(380, 20))
    finished_run(tmp_path, "old", "{}", judged(380, 20))
    found = check_gates(new, Workspace(tmp_path), "tiny/old")
    assert found.passed
    assert found.gates[0].value == 0


def test_a_run_that_lost_against_the_deployed_one_fails_on_the_same_items(tmp_path: Path) -> None:
    """5 points lost; each run's own interval alone would hide it."""
    new = finished_run(tmp_path, "new", "{max_regression: 0.02}", judged(360, 40))
    finished_run(tmp_path, "old", "{}", judged(380, 20))
    [gate] = check_gates(new, Workspace(tmp_path), "tiny/old").gates
    assert gate.value == pytest.approx(0.05)
    assert not gate.passed


def test_rows_that_belong_together_widen_the_comparison(tmp_path: Path) -> None:
    deployed, present = judged(380, 20), judged(360, 40)
    finished_run(tmp_path, "old", "{}", deployed)
    alone = check_gates(finished_run(tmp_path, "new", "{max_regression: 0.02}", present),
                        Workspace(tmp_path), "tiny/old").gates[0]
    grouped = check_gates(finished_run(tmp_path, "grouped", "{max_regression: 0.02}", present, "who"),
                          Workspace(tmp_path), "tiny/old").gates[0]
    assert grouped.bound > alone.bound


def test_runs_on_other_items_are_not_compared(tmp_path: Path) -> None:
    new = finished_run(tmp_path, "new", "{max_regression: 0.02}", judged(100))
    finished_run(tmp_path, "old", "{}", judged(99))
    with pytest.raises(DataError, match="test items"):
        check_gates(new, Workspace(tmp_path), "tiny/old")


@pytest.mark.parametrize(("gates", "against"), [("{max_regression: 0.02}", None),
                                                ("{min_accuracy: 0.5}", "tiny/old")])
def test_a_comparison_that_is_half_configured_is_an_error(
        tmp_path: Path, gates: str, against: str | None) -> None:
    new = finished_run(tmp_path, "new", gates, judged(100))
    finished_run(tmp_path, "old", "{}", judged(100))
    with pytest.raises(UsageError, match="max_regression"):
        check_gates(new, Workspace(tmp_path), against)


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    new = finished_run(tmp_path, "new", "{max_regression: 0.02}", judged(100))
    with pytest.raises(UsageError, match="itself"):
        check_gates(new, Workspace(tmp_path), new)


# --- the command ----------------------------------------------------------------------------------------


def test_the_command_exits_with_1_and_names_the_gate_that_failed(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "new", "{min_accuracy: 0.9}", judged(50, neither=50))
    done = call("gate", run, "--workspace", str(tmp_path))
    assert done.exit_code == 1
    assert "FAIL  min_accuracy: accuracy 50.0 %" in done.output


def test_a_real_run_passes_or_fails_by_the_gates_it_kept(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    right = small_runs.gold
    name = small_runs.small_run(tmp_path, right, right, gates={"min_accuracy": 0.2}).name
    assert call("gate", name, "--json").exit_code == 0
    call("run", "recipe.yaml", "--set", "gates.min_accuracy=0.999", "--json")
    failed = call("gate", name, "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["gates"][0]["gate"] == "min_accuracy"


def test_the_text_has_a_line_a_gate_and_a_sum(tmp_path: Path) -> None:
    text = gates_text(gated(tmp_path, "{min_accuracy: 0.9, max_drop: 0.1}", judged(50, neither=50)))
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "FAIL  min_accuracy", "pass  max_drop", "tiny/new"]
