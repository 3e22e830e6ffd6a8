"""A whole run at the vertex sandbox, from the recipe to the verdict, changing one word."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from distillctl.cli.main import cli
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox

RECIPES = Path(__file__).parents[1] / "recipes"
TOKEN = "canary-1d77e0c2b9a4f583"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERTEX_SANDBOX_TOKEN", TOKEN)
    return tmp_path


def test_one_word_changed_ends_with_a_verdict(workspace, tmp_path_factory):
    with Sandbox(part("vertex"), tmp_path_factory.mktemp("provider"), tuner="nearest", speed=None) as sandbox:
        settings = {"project": "sandbox-project", "bucket": "sandbox-bucket", "base_url": sandbox.url,
                    "training_price": "3", "price": "{input: 0, output: 0}"}
        arguments = ["run", "recipes/routing.yaml", "--backend", "vertex", "--yes", "--json",
                     "--set", "baseline=null", *(piece for name, value in settings.items()
                                                 for piece in ("--set", f"backends.vertex.{name}={value}"))]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        again = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        creates, (charge,) = sandbox.creates(), sandbox.store.charges()
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["metrics"]["verdict"]["word"] in ("viable", "marginal", "not ready")
    assert Path(found["report"]).is_file()
    assert again.exit_code == 0 and "▸" not in again.stderr
    assert creates == 1 and charge["amount"] > 0
    assert [path for path in workspace.rglob("*")
            if path.is_file() and TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in done.output + again.output
