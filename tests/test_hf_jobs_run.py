"""A whole run with `--backend hf-jobs` against the sandbox: from the recipe to the verdict."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.tiny_models import save_tiny_model

from distillctl.cli.main import cli
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox

RECIPES = Path(__file__).parents[1] / "recipes"
KEY = "hf_canary_5d1c9a70b3e84f26"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """The shipped recipe with 60 of its examples."""
    folder = tmp_path / "workspace"
    shutil.copytree(RECIPES, folder / "recipes")
    for name in ("routing.jsonl", "routing.teacher.jsonl"):
        path = folder / "recipes/data" / name
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:60]))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", KEY)
    return folder


def test_the_shipped_recipe_ends_with_a_verdict_changing_one_word(workspace, tmp_path):
    model = save_tiny_model(tmp_path / "tiny", max_position_embeddings=2048)
    with Sandbox(part("hf-jobs"), tmp_path / "provider", speed=100.0) as sandbox:
        where = {"base_url": sandbox.url, "model": str(model), "namespace": "null"}
        shorter = ["train.epochs=null", "train.max_steps=2", "train.batch_size=4", "train.max_length=2048",
                   "baseline=null", "evaluate.latency.items=2"]
        settings = [f"backends.hf-jobs.{name}={value}" for name, value in where.items()] + shorter
        done = CliRunner().invoke(cli, [
            "run", "recipes/routing.yaml", "--backend", "hf-jobs", "--yes", "--json",
            *(part for setting in settings for part in ("--set", setting))], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["metrics"]["verdict"]["word"] in ("viable", "marginal", "not ready")
        assert (sandbox.creates(), sandbox.jobs(), len(sandbox.store.charges())) == (1, 1, 1)
    assert "trained in" in done.stderr and "pushed to user-" in done.stderr
    student = json.loads((Path(found["folder"]) / "student.json").read_text())
    assert (student["backend"], student["kind"]) == ("hf-jobs", "adapter")
    assert KEY not in done.output
    assert [path for path in tmp_path.rglob("*")
            if path.is_file() and KEY.encode() in path.read_bytes()] == []
