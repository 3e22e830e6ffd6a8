"""A whole run, from the recipe to the verdict, and what a second one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distillctl.api import open_recipe
from distillctl.cli.main import cli
from distillctl.errors import UsageError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def run_linear() -> Result:
    return call("run", "recipes/routing.yaml", "--backend", "linear", "--set", "baseline=null", "--json")


def test_a_run_ends_with_a_verdict_and_a_report(workspace: Path) -> None:
    done = run_linear()
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["metrics"]["verdict"]["word"] == "not ready"
    assert Path(found["report"]).is_file()


def test_a_second_run_reuses_every_stage(workspace: Path) -> None:
    run_linear()
    again = run_linear()
    assert "▸" not in again.stderr
    assert again.stderr.count("reused") == 7


def test_new_thresholds_are_judged_on_the_same_answers(workspace: Path) -> None:
    run_linear()
    looser = call("run", "recipes/routing.yaml", "--backend", "linear", "--set", "baseline=null", "--set",
                  "verdict.max_drop=0.9", "--set", "verdict.marginal_drop=0.95", "--json")
    assert json.loads(looser.stdout)["metrics"]["verdict"]["word"] == "marginal"
    assert "✓ train-student  reused" in looser.stderr


def test_verify_finds_a_changed_file(workspace: Path) -> None:
    run = json.loads(run_linear().stdout)
    assert call("verify", run["run"]).exit_code == 0
    (Path(run["folder"]) / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Exception, match=r"metrics\.json.*was changed"):
        call("verify", run["run"])


def grow_data(workspace: Path) -> None:
    """One more example: the recipe now names another run."""
    path = workspace / "recipes/data/routing.jsonl"
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    extra = {**row, "id": "one-more", "question": "Which brass lantern did the ferryman leave behind?"}
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(extra) + "\n", encoding="utf-8")


def test_a_finished_run_is_scored_again_though_its_data_has_grown_since(workspace: Path) -> None:
    found = json.loads(run_linear().stdout)
    grow_data(workspace)
    again = json.loads(call("eval", found["run"], "--json").stdout)
    assert again["test_digest"] == found["metrics"]["test_digest"]


def test_going_on_with_a_run_whose_data_has_grown_would_write_over_it_and_is_refused(workspace: Path) -> None:
    found = json.loads(run_linear().stdout)
    before = (Path(found["folder"]) / "metrics.json").read_bytes()
    grow_data(workspace)
    with pytest.raises(UsageError, match="has changed since this run was started"):
        call("attach", found["run"])
    assert (Path(found["folder"]) / "metrics.json").read_bytes() == before


def name_of_run(*overrides: str) -> str:
    return open_recipe("recipes/routing.yaml", backend="openai", overrides=overrides).run_name


@pytest.mark.parametrize("setting", ["price={input: 1, output: 2}", "training_price=3.0", "timeout=5.0"])
def test_what_training_costs_or_may_take_is_no_reason_to_train_again(workspace: Path, setting: str) -> None:
    assert name_of_run(f"backends.openai.{setting}") == name_of_run()


def test_another_number_of_epochs_is_another_student(workspace: Path) -> None:
    assert name_of_run("backends.openai.n_epochs=2") != name_of_run()
