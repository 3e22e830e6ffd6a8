"""A whole run with `backend: local`: a tiny model really trained on this machine, from recipe to verdict."""

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from support.tiny_models import save_tiny_model

from distillctl.cli.main import cli


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


def test_the_command_line_has_a_models_threads_wait_asleep():
    program = ("import os, sys; from distillctl.cli.main import main; "
               "sys.argv = ['distillctl', '--version']; main(); print(os.environ['OMP_WAIT_POLICY'])")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env=environment)
    assert done.stdout.splitlines()[-1] == "PASSIVE"
