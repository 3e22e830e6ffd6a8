"""Deployments: none outlives its run, whatever ends it, and what they cost is in the books."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from distillctl_together.backend import TogetherBackend
from distillctl_together.client import Service
from distillctl_together.serving import Serving
from distillctl_together.settings import TogetherSettings

from distillctl import servers
from distillctl.backend import BackendEnv, StudentRef
from distillctl.cli.main import cli
from distillctl.errors import BudgetError, StudentError, UsageError
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.store.workspace import Workspace
from distillctl.testing.examples import example_job, example_requests

RECIPES = Path(__file__).parents[1] / "recipes"
MODEL = "Qwen/Qwen3-0.6B"
KEY = "canary-71c0d4e9a6b25f38"


@pytest.fixture
def sandbox(tmp_path_factory):
    with Sandbox(part("together"), tmp_path_factory.mktemp("provider"), tuner="nearest",
                 speed=None) as sandbox:
        yield sandbox


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    return Workspace(tmp_path)


@pytest.fixture
def job(tmp_path):
    return example_job(tmp_path, "classification", MODEL, TrainSpec())


def backend_of(workspace, sandbox, left=100.0, **more):
    env = BackendEnv(workspace.private / "together", lambda name: KEY, time.time, run="recipe/run",
                     budget_left=lambda: left)
    return TogetherBackend(TogetherSettings(base_url=sandbox.url, model=MODEL, **more), env)


def opened(workspace, sandbox, job, **more):
    """The untrained model, deployed: as a student is, without a training."""
    return open_base(backend_of(workspace, sandbox, **more), workspace, job)


def open_base(backend, workspace, job):
    return backend.open(StudentRef("together", "hosted", MODEL), workspace.root, job.task, EvaluateSpec())


def call(*arguments):
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def spent(workspace):
    with workspace.ledger() as ledger:
        return ledger.spent("recipe/run")


def ignore(text): ...


# --- while it is open ---


def test_it_runs_while_it_is_open_with_an_idle_limit_and_is_gone_after(workspace, sandbox, job):
    with opened(workspace, sandbox, job, inactive_timeout=45):
        assert sandbox.paid_servers() == 1
        (deployment,) = sandbox.store.list("deployment")
        assert deployment["idle"] == 45 and deployment["replicas"] == [1, 1]
        (note,) = servers.all_notes(workspace)
        assert note.in_use and note.server.usd_per_hour == 3.99
    assert sandbox.paid_servers() == 0
    assert sandbox.store.list("deployment") == sandbox.store.list("endpoint") == []


def test_what_it_cost_is_booked_with_the_run(workspace, sandbox, job):
    with opened(workspace, sandbox, job) as predictor:
        answers = asyncio.run(answered(predictor, job))
    servers.stop_left_behind(workspace, ignore)
    assert servers.all_notes(workspace) == []
    found = spent(workspace)
    assert found.usd > 0 and found.unknown == 0
    assert all(answer.cost_usd > 0 and answer.model == MODEL for answer in answers)


async def answered(predictor, job):
    answers = [(await predictor.answer([request]))[0] for request in example_requests(job.task)]
    await predictor.aclose()
    return answers


def test_a_start_that_fails_leaves_nothing(workspace, sandbox, job):
    sandbox.add_fault(Fault("deployments.get", "word", "DEPLOYMENT_STATE_FAILED"))
    with pytest.raises(StudentError, match="did not start"), opened(workspace, sandbox, job):
        pass
    assert sandbox.store.list("deployment") == sandbox.store.list("endpoint") == []


def test_a_start_that_takes_too_long_is_given_up_and_stopped(workspace, sandbox, job):
    sandbox.add_fault(Fault("deployments.get", "word", "DEPLOYMENT_STATE_PROVISIONING", times=2))
    with pytest.raises(StudentError, match="start_timeout"), opened(workspace, sandbox, job,
                                                                     start_timeout=0.2):
        pass
    assert sandbox.store.list("deployment") == sandbox.store.list("endpoint") == []


def test_a_state_that_nobody_knows_is_waited_out(workspace, sandbox, job):
    sandbox.add_fault(Fault("deployments.get", "word", "DEPLOYMENT_STATE_DREAMING", times=2))
    with opened(workspace, sandbox, job):
        assert sandbox.paid_servers() == 1


@pytest.mark.parametrize("route", ["endpoints.create", "deployments.create"])
def test_a_lost_reply_to_a_creation_leaves_nothing(workspace, sandbox, job, route):
    sandbox.add_fault(Fault(route, "drop_after"))
    with pytest.raises(StudentError, match="run again later"), opened(workspace, sandbox, job):
        pass
    assert sandbox.store.requests()[route] == 1
    assert sandbox.store.list("deployment") == sandbox.store.list("endpoint") == []


# --- the budget ---


def test_a_deployment_that_could_pass_the_budget_is_not_started(workspace, sandbox, job):
    """Idle after a crash, it would run for `inactive_timeout`: 30 minutes at $3.99 an hour."""
    backend = backend_of(workspace, sandbox, left=1.99)
    with (pytest.raises(BudgetError, match=r"takes \$2.00 at least, and \$1.99 of the budget are left"),
          open_base(backend, workspace, job)):
        pass
    assert "endpoints.create" not in sandbox.store.requests() and servers.all_notes(workspace) == []
    with open_base(backend_of(workspace, sandbox, left=2.0), workspace, job):
        assert sandbox.paid_servers() == 1


def test_a_budget_below_what_answering_takes_stops_a_run_before_it_sends_anything(
        workspace, recipes, sandbox):
    with pytest.raises(UsageError, match=r"take \$2.00 at least, and the budget is \$1.50"):
        call(*arguments(sandbox, "--set", "budget.max_usd=1.5"))
    assert "files.create" not in sandbox.store.requests() and sandbox.creates() == 0


# --- what cannot be stopped now is stopped by the next command ---


def left_running(workspace, sandbox, job):
    """Open and close while the service lets nothing be stopped."""
    broken = Fault("deployments.update", "status", "503", times=None)
    sandbox.add_fault(broken)
    with opened(workspace, sandbox, job):
        pass
    assert sandbox.paid_servers() == 1
    return broken


def test_any_command_stops_what_was_left_running(workspace, sandbox, job):
    sandbox.faults.remove(left_running(workspace, sandbox, job))
    done = call("status")
    assert "stopped server distillctl-" in done.stderr and done.exit_code == 0
    assert sandbox.store.list("deployment") == [] and servers.all_notes(workspace) == []
    found = spent(workspace)  # when it stopped is not known: a bound is
    assert (found.usd, found.unknown) == (0.0, 1) and found.at_most > 0


def test_what_still_cannot_be_stopped_is_said_and_kept(workspace, sandbox, job):
    left_running(workspace, sandbox, job)
    done = call("status")
    assert done.exit_code == 0 and "could not be stopped" in done.stderr
    assert len(servers.all_notes(workspace)) == 1


def test_offline_sends_nothing_and_says_what_may_run(workspace, sandbox, job):
    sandbox.faults.remove(left_running(workspace, sandbox, job))
    told = []
    servers.stop_left_behind(workspace, told.append, offline=True)
    assert "--offline" in told[0] and sandbox.paid_servers() == 1


def test_one_that_another_command_uses_is_left_alone(workspace, sandbox, job):
    with opened(workspace, sandbox, job):
        call("status")
        assert "nothing to stop" in call("endpoints", "stop").stdout
        assert sandbox.paid_servers() == 1


def test_an_intent_without_a_server_is_forgotten_once_it_is_old(workspace, sandbox):
    env = BackendEnv(workspace.private / "together", lambda name: KEY, time.time)
    settings = TogetherSettings(base_url=sandbox.url).model_dump(mode="json")
    with servers.announced(env, "together", "distillctl-never", settings):
        pass
    servers.stop_left_behind(workspace, ignore)
    (note,) = servers.all_notes(workspace)  # its create request may still be on its way
    note.server = replace(note.server, announced=time.time() - servers.IN_DOUBT_S - 1)
    note.change()
    servers.stop_left_behind(workspace, ignore)
    assert servers.all_notes(workspace) == []


def test_a_server_of_a_process_that_died_before_it_noted_it_is_found_by_name(workspace, sandbox, job):
    backend = backend_of(workspace, sandbox)
    settings = TogetherSettings(base_url=sandbox.url, model=MODEL)
    kept = settings.model_dump(mode="json")
    with servers.announced(backend._env, "together", "distillctl-lost", kept), Service(
            settings, backend._env) as service:
        serving = Serving(service, settings)
        serving.start("distillctl-lost", serving.of_base(MODEL), lambda: None)
    assert sandbox.paid_servers() == 1
    servers.stop_left_behind(workspace, ignore)
    assert sandbox.paid_servers() == 0 and spent(workspace).unknown == 1


# --- endpoints list and stop ---


def test_endpoints_are_listed_and_stopped_by_name(workspace, sandbox, job):
    sandbox.faults.remove(left_running(workspace, sandbox, job))
    (row,) = json.loads(call("endpoints", "list", "--json").stdout)
    assert row["run"] == "recipe/run" and row["in_use"] is False and KEY not in json.dumps(row)
    assert f"{row['name']}  together  recipe/run  left behind" in call("endpoints", "list").stdout
    assert sandbox.paid_servers() == 1  # listing changes nothing
    assert f"{row['name']} is gone" in call("endpoints", "stop", row["name"]).stdout
    assert sandbox.paid_servers() == 0 and "none" in call("endpoints", "list").stdout


def test_one_in_use_is_stopped_when_all_are_asked_for(workspace, sandbox, job):
    with opened(workspace, sandbox, job):
        assert "is gone" in call("endpoints", "stop", "--all").stdout
        assert sandbox.paid_servers() == 0


def test_a_stop_that_fails_is_an_error(workspace, sandbox, job):
    left_running(workspace, sandbox, job)
    with pytest.raises(Exception, match="it may still run, and cost"):
        call("endpoints", "stop")


def test_an_unknown_name_is_an_error(workspace):
    with pytest.raises(Exception, match="no such server"):
        call("endpoints", "stop", "nothing")


# --- whole runs ---


@pytest.fixture
def recipes(workspace):
    """The shipped recipes, routing with its first 90 examples only."""
    shutil.copytree(RECIPES, workspace.root / "recipes")
    examples = workspace.root / "recipes/data/routing.jsonl"
    examples.write_text("".join(examples.read_text().splitlines(keepends=True)[:90]))


def arguments(sandbox, *more):
    return ["run", "recipes/routing.yaml", "--backend", "together", "--yes", "--json", "--set",
            "baseline=null", "--set", f"backends.together.base_url={sandbox.url}", *more]


@pytest.mark.parametrize("point", ["after-deployment", "after-answer-commit:9"])
def test_killed_during_evaluation_the_next_command_stops_the_deployment(workspace, recipes, sandbox, point):
    run = arguments(sandbox, "--set", "evaluate.base=false")
    killed = subprocess.run([sys.executable, "-m", "distillctl.cli.main", *run], capture_output=True,
                            text=True, timeout=120, env={**os.environ, "DISTILLCTL_CRASH_AT": point})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sandbox.paid_servers() == 1
    assert call("status").exit_code == 0 and sandbox.paid_servers() == 0
    assert sandbox.store.list("endpoint") == sandbox.store.list("deployment") == []
    found = json.loads(call(*run).stdout)
    answers = sum(len(Path(found["folder"], f"predictions/student.{split}.jsonl").read_text().splitlines())
                  for split in ("dev", "test"))
    assert sandbox.store.requests()["chat"] == answers  # what was answered before is not asked again
    assert (sandbox.creates(), sandbox.paid_servers()) == (1, 0)
