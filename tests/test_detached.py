"""A hosted run that is left: seen, followed and ended from any shell in the same folder."""

import json

import pytest
from click.testing import CliRunner
from support.sandbox_runs import exports, small_recipe

from distillctl.cli.main import cli
from distillctl.errors import BackendError
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox

KEY = "canary-8c52e6f01b7d49a3"


@pytest.fixture
def sandbox(tmp_path_factory):
    with Sandbox(part("openai"), tmp_path_factory.mktemp("provider"), tuner="nearest",
                 speed=None) as sandbox:
        yield sandbox


@pytest.fixture
def detached(tmp_path, sandbox, monkeypatch):
    """The output of a run that was left; its settings are then forgotten, its key stays."""
    small_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as shell:
        for name, value in exports(sandbox, KEY).items():
            shell.setenv(name, value)
        done = call("run", "recipes/routing.yaml", "--backend", "openai", "--yes", "--detach")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return done


def call(*arguments):
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_it_says_how_to_come_back_and_status_shows_the_job(detached, sandbox):
    assert detached.exit_code == 0 and "distillctl attach routing/openai-" in detached.stdout
    (job,) = sandbox.joblist.all()
    asked = dict(sandbox.store.requests())
    assert "openai job queued" in call("status").stdout
    (row,) = json.loads(call("status", "--json").stdout)
    assert (row["verdict"], [one["handle"]["job_id"] for one in row["jobs"]]) == (None, [job.id])
    assert f"openai job {job.id}: queued" in call("status", "routing").stdout
    assert sandbox.store.requests() == asked  # it asks nobody


def test_attach_follows_it_to_the_verdict_without_a_second_job(detached, sandbox):
    done = call("attach", "routing", "--yes", "--json")
    assert json.loads(done.stdout)["metrics"]["verdict"]["word"] in ("viable", "marginal", "not ready")
    assert (sandbox.creates(), sandbox.jobs()) == (1, 1)
    assert KEY not in detached.output + done.output


def test_a_cancelled_job_is_made_again_only_when_it_is_run_again(detached, sandbox):
    assert "asked for the end of ftjob-" in call("cancel", "routing").stdout
    assert "asked for the end of ftjob-" in call("cancel", "routing").stdout  # it has not been seen to end
    with pytest.raises(BackendError, match="cancelled"):
        call("attach", "routing", "--yes")
    assert sandbox.creates() == 1
    assert "no job of routing/" in call("cancel", "routing").stdout
    assert call("attach", "routing", "--yes").exit_code == 0
    assert sandbox.creates() == 2


def test_the_plan_names_the_variable_that_redirects_a_run(tmp_path, sandbox, monkeypatch):
    small_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in exports(sandbox, KEY).items():
        monkeypatch.setenv(name, value)
    plan = json.loads(call("plan", "recipes/routing.yaml", "--backend", "openai", "--json").stdout)
    notes = next(row["notes"] for row in plan["rows"] if row["stage"] == "train-student")
    assert any("base_url" in note and note.endswith("in DISTILLCTL_BACKEND_OPENAI") for note in notes)
