"""A whole run with `backend: local`: a tiny model really trained on this machine, from recipe to verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from support.tiny_models import save_tiny_model

from distillctl.cli.main import cli
from distillctl.store.files import digest_json


def test_the_shipped_recipe_ends_with_a_verdict_and_the_untrained_model_is_not_timed(workspace: Path) -> None:
    for name in ("routing.jsonl", "routing.teacher.jsonl"):
        path = workspace / "recipes/data" / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:60]))
    save_tiny_model(workspace / "tiny", max_position_embeddings=2048)
    settings = ["student.model=./tiny",  # from here, though the trainer works elsewhere
                "train.epochs=null", "train.max_steps=2", "train.batch_size=4",
                "backends.local.layers=null", "baseline=null", "evaluate.latency.items=2"]
    done = CliRunner().invoke(cli, ["run", "recipes/routing.yaml", "--json",
                                    *(part for setting in settings for part in ("--set", setting))],
                              catch_exceptions=False)
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["verdict"]["word"] in ("viable", "marginal", "not ready")
    timed = {one["role"]: one["latency"] is not None for one in metrics["evaluations"]}
    assert timed == {"teacher": False, "student": True, "base": False}


def test_the_revision_that_a_recipe_names_is_trained_and_answers(workspace: Path) -> None:
    """And not the newest, on the branch main."""
    for name in ("routing.jsonl", "routing.teacher.jsonl"):
        path = workspace / "recipes/data" / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:40]))
    repo = workspace / "hub/models--a-team--tiny"
    wanted, newest = "1" * 40, "2" * 40
    for commit, ref, seed in ((wanted, "v1", 1), (newest, "main", 2)):
        save_tiny_model(repo / "snapshots" / commit, max_position_embeddings=2048, seed=seed)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
    settings = ["student={model: a-team/tiny, revision: v1}", "train.epochs=null", "train.max_steps=2",
                "backends.local.layers=null", "baseline=null", "evaluate.latency.items=2"]
    done = subprocess.run(
        [sys.executable, "-m", "distillctl.cli.main", "run", "recipes/routing.yaml", "--json",
         *(part for setting in settings for part in ("--set", setting))],
        env={**os.environ, "HF_HUB_CACHE": str(workspace / "hub")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = workspace.glob("runs/routing/*")
    assert json.loads((run / "student.json").read_text())["data"]["revision"] == "v1"
    (job,) = workspace.glob(".distillctl/local/jobs/*/job.json")
    assert json.loads(job.read_text())["revision"] == "v1"
    base = digest_json({"repo": "a-team/tiny", "commit": wanted})
    assert json.loads((run / "timings/student.json").read_text())["identity"]["base"] == base
    assert json.loads((run / "timings/base.json").read_text())["identity"]["base"] == base


def test_the_command_line_has_a_models_threads_wait_asleep():
    program = ("import os, sys; from distillctl.cli.main import main; "
               "sys.argv = ['distillctl', '--version']; main(); print(os.environ['OMP_WAIT_POLICY'])")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env=environment)
    assert done.stdout.splitlines()[-1] == "PASSIVE"
