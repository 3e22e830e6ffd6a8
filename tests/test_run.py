"""A whole run, from the recipe to the verdict, and what a second one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distillctl.cli.main import cli

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
