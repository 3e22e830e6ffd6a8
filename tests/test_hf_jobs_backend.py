"""The hf-jobs backend: what it finds out for free, what it sends, how it words refusals."""

import json
import warnings

import pytest
from distillctl_hf_jobs.backend import HfJobsBackend
from distillctl_hf_jobs.client import Failed, Service
from distillctl_hf_jobs.settings import HfJobsSettings
from pydantic import ValidationError
from support.backends import problems, to_end
from support.hf_jobs import KEY, REPO, USER, backend, delivering, env, settings, trained

from distillctl.backend import Ambiguous, Rejected, Unreachable
from distillctl.errors import BackendError
from distillctl.jobs import new_token
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.wire import Reply


@pytest.fixture
def sandbox(tmp_path):
    with delivering(tmp_path / "provider") as sandbox:
        yield sandbox


# --- preflight ---


def test_the_cost_is_the_price_from_one_minute_to_the_time_limit(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, flavor="a10g-small", timeout="90m").preflight(job)
    low, high = found.cost_usd
    assert (low, high) == (pytest.approx(1.0 / 60, rel=1e-3), pytest.approx(1.5, rel=1e-3))
    assert found.duration_s == (60.0, 5400.0)
    assert any("$1.00 per hour" in note and "A10G" in note for note in found.notes)


def test_unknown_hardware_is_a_problem_that_lists_what_there_is(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, flavor="l9x1").preflight(job)
    assert "`backends.hf-jobs.flavor`" in problems(found) and "l4x1 ($0.80/h)" in problems(found)


def test_hardware_that_is_not_billed_by_the_minute_has_no_known_cost(sandbox, tmp_path, job, monkeypatch):
    row = {"name": "l4x1", "prettyName": "", "cpu": "1", "ram": "1", "unitCostMicroUSD": 1,
           "unitCostUSD": 1e-6, "unitLabel": "second"}
    monkeypatch.setattr("distillctl.sandbox.hf_jobs.hardware_row", lambda name: row)
    found = backend(sandbox, tmp_path).preflight(job)
    assert found.cost_usd is None and any("is not known" in note for note in found.notes)


def test_a_missing_token_is_a_problem_that_names_the_variable(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, key=None).preflight(job)
    assert "HF_TOKEN is not set" in problems(found)
    assert sandbox.store.requests() == {}


def test_a_refused_token_is_a_problem(sandbox, tmp_path, job):
    sandbox.add_fault(Fault("whoami", "status", "401"))
    assert "refuses the token" in problems(backend(sandbox, tmp_path).preflight(job))


def test_a_token_that_can_only_read_is_a_problem(sandbox, tmp_path, job):
    assert "can only read" in problems(backend(sandbox, tmp_path, key="read-only").preflight(job))


def test_a_foreign_namespace_is_a_problem_that_names_ours(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, namespace="their-org").preflight(job)
    assert "`backends.hf-jobs.namespace`" in problems(found) and USER in problems(found)


def test_a_model_that_the_hub_does_not_have_is_a_problem(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, model="someone/nothing").preflight(job)
    assert "no such model" in problems(found)


def test_a_folder_that_is_not_there_is_a_problem(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, model="./nowhere").preflight(job)
    assert "nowhere: there is no such model folder" in problems(found)


def test_watching_without_a_dev_split_is_a_problem(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, trainer={"keep": "best"}).preflight(job)
    assert "no dev split" in problems(found)


def test_offline_asks_nothing_and_says_so(sandbox, tmp_path, job):
    found = HfJobsBackend(settings(sandbox), env(tmp_path, offline=True)).preflight(job)
    assert sandbox.store.requests() == {} and found.sends_to
    assert any("not looked up" in note for note in found.notes)


def test_a_service_that_is_down_is_unreachable_after_one_request(sandbox, tmp_path, job):
    """The SDK would ask six times, with half a minute of waiting."""
    with sandbox.outage(), pytest.raises(Unreachable):
        backend(sandbox, tmp_path).preflight(job)
    assert sum(sandbox.store.requests().values()) == 1
    sandbox.add_fault(Fault("jobs.list", "status", "503", times=None))
    with pytest.raises(Unreachable):
        backend(sandbox, tmp_path).find(new_token())
    assert sandbox.store.requests()["jobs.list"] == 1


@pytest.mark.parametrize("block", [
    {"base_url": "http://example.com"}, {"base_url": "https://user:pass@host"}, {"timeout": "2 hours"},
    {"timeout": "0h"}, {"namespace": "../up"}, {"trainer": {"model": "other"}}, {"flavor": "a/b"}])
def test_settings_that_would_leak_or_mislead_are_refused(block):
    with pytest.raises(ValidationError):
        HfJobsSettings(**block)


# --- staging ---


def test_the_same_job_is_uploaded_once_and_privately(sandbox, tmp_path, job):
    first = backend(sandbox, tmp_path).stage(job)
    again = backend(sandbox, tmp_path / "other").stage(job)
    assert first == again
    assert (sandbox.store.requests()["repos.commit"], sandbox.store.requests()["repos.create"]) == (1, 1)
    assert sandbox.store.get("repo", f"dataset/{USER}/{REPO}")["private"] is True


def test_other_settings_are_another_folder_in_the_same_repo(sandbox, tmp_path, job):
    first = backend(sandbox, tmp_path).stage(job)
    second = backend(sandbox, tmp_path, trainer={"rslora": True}).stage(job)
    assert first.data["folder"] != second.data["folder"] and first.data["repo"] == second.data["repo"]


def test_no_data_goes_to_a_public_repo(sandbox, tmp_path, job):
    sandbox.part.container.push(f"{USER}/{REPO}", {}, kind="dataset", private=False)
    with pytest.raises(Rejected, match="is not private"):
        backend(sandbox, tmp_path).stage(job)
    assert "repos.preupload" not in sandbox.store.requests()


# --- the request ---


def test_the_token_travels_as_a_secret_alone(sandbox, tmp_path, job, monkeypatch):
    bodies = []
    monkeypatch.setattr("distillctl.sandbox.hf_jobs.check_create", lambda asked: bodies.append(dict(asked)))
    ours = backend(sandbox, tmp_path, timeout="2h")
    token = new_token()
    ours.submit(job, ours.stage(job), token)
    (body,) = bodies
    assert body.pop("secrets") == {"HF_TOKEN": KEY}
    assert KEY not in json.dumps(body)
    assert body["labels"] == {"distillctl-token": token, "name": "distillctl-notes"}
    assert (body["timeoutSeconds"], body["attempts"], body["flavor"]) == (7200, 1, "l4x1")
    assert body["command"][-4:-2] == ["--to", f"{USER}/distillctl-{token}"]


def test_the_token_goes_to_no_other_host(sandbox, tmp_path):
    with Sandbox(part("hf-jobs"), tmp_path / "elsewhere", speed=None) as elsewhere:
        link = {"Link": f'<{elsewhere.url}/api/jobs/{USER}>; rel="next"'}
        route = next(route for route in sandbox.routes if route.name == "jobs.list")
        setattr(sandbox.part, route.handler, lambda call: Reply([], headers=link))
        with pytest.raises(Unreachable, match="is not given the token"):
            backend(sandbox, tmp_path).find(new_token())
        assert elsewhere.store.requests() == {}


def test_a_listing_that_ignores_the_label_is_compared_here(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    staged = ours.stage(job)
    first, second = (ours.submit(job, staged, new_token()) for _ in range(2))
    assert [found.job_id for found in ours.find(first.token)] == [first.job_id]
    assert [found.job_id for found in ours.find(second.token)] == [second.job_id]


def test_a_namespace_that_cannot_be_listed_is_not_an_empty_one(sandbox, tmp_path):
    sandbox.add_fault(Fault("jobs.list", "status", "404"))
    with pytest.raises(Unreachable):
        backend(sandbox, tmp_path).find(new_token())


def test_a_refusal_is_worded_by_the_service(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    staged = ours.stage(job)
    sandbox.add_fault(Fault("jobs.create", "refuse"))
    with pytest.raises(Rejected, match="credit balance is insufficient"):
        ours.submit(job, staged, new_token())


def test_a_request_time_out_of_the_service_is_no_refusal(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    staged = ours.stage(job)
    sandbox.add_fault(Fault("jobs.create", "status_after", "408"))
    with pytest.raises(Ambiguous):
        ours.submit(job, staged, new_token())
    assert sandbox.creates() == 1


def test_without_a_token_submitting_is_rejected_and_sends_nothing(sandbox, tmp_path, job):
    staged = backend(sandbox, tmp_path).stage(job)
    with pytest.raises(Rejected, match="HF_TOKEN"):
        backend(sandbox, tmp_path, key=None).submit(job, staged, new_token())
    assert sandbox.creates() == 0


def test_a_time_limit_is_kept_though_the_sdk_has_none(sandbox, tmp_path):
    sandbox.add_fault(Fault("jobs.list", "stall", "20"))
    with pytest.raises(Unreachable, match="Timeout"):
        backend(sandbox, tmp_path, request_timeout=0.2).find(new_token())


def test_the_sdk_is_as_it_was_before(sandbox, tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, are_progress_bars_disabled

    before = (_http._GLOBAL_CLIENT_FACTORY, constants.HF_HUB_DISABLE_XET, are_progress_bars_disabled())
    with pytest.raises(Failed), Service(settings(sandbox), env(tmp_path)) as service:
        service.call(service.api.model_info, "someone/nothing")
    assert before == (_http._GLOBAL_CLIENT_FACTORY, constants.HF_HUB_DISABLE_XET,
                      are_progress_bars_disabled())


def test_nothing_that_we_call_is_deprecated(sandbox, tmp_path, job):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        ours = backend(sandbox, tmp_path)
        ours.preflight(job)
        handle = trained(ours, job)
        ours.cancel(handle)
        into = tmp_path / "into"
        into.mkdir()
        assert ours.find(handle.token) and ours.collect(handle, into)


# --- polling ---


def test_a_failed_job_says_the_end_of_its_log(sandbox, tmp_path, job):
    sandbox.part.container.message = "Job failed with exit code: 1. Reason: Error"
    sandbox.part.container.lines = ["a line", "CUDA out of memory"]
    ours = backend(sandbox, tmp_path)
    seen = to_end(ours, ours.submit(job, ours.stage(job), new_token()))
    assert seen.state == "failed" and "exit code: 1" in seen.message
    assert "CUDA out of memory" in seen.message


def test_a_job_that_never_ran_costs_nothing(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    handle = ours.submit(job, ours.stage(job), new_token())
    ours.cancel(handle)
    seen = to_end(ours, handle)
    assert (seen.state, seen.cost_usd) == ("cancelled", 0.0)


def test_a_refused_token_while_polling_says_so_and_ends_nothing(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    handle = ours.submit(job, ours.stage(job), new_token())
    sandbox.add_fault(Fault("jobs.get", "status", "403"))
    with pytest.raises(BackendError, match="refuses the token"):
        ours.poll(handle, None)
