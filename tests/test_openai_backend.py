"""The openai backend: what it finds out for free, what it sends, and how it words refusals."""

import json
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from distillctl_openai.backend import OpenAIBackend
from distillctl_openai.client import Service
from distillctl_openai.data import sources
from distillctl_openai.preflight import answer_price, examine
from distillctl_openai.settings import OpenAISettings
from pydantic import ValidationError
from support.backends import problems, rewritten, to_end

from distillctl.backend import Ambiguous, BackendEnv, Rejected, StudentRef, Unreachable
from distillctl.errors import BackendError, StudentError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.openai import OpenAIPart
from distillctl.sandbox.server import Sandbox

MODEL = "gpt-4.1-mini-2025-04-14"
KEY = "a-key-0123456789"


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("openai"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        yield sandbox


def env(tmp_path, key=KEY, at=None, offline=False):
    return BackendEnv(tmp_path / "workspace", lambda name: key, lambda: at or time.time(), offline)


def settings(sandbox, **more):
    return OpenAISettings(**{"model": MODEL, "base_url": f"{sandbox.url}/v1",
                             "price": {"input": 0, "output": 0}, **more})


# --- preflight ---


def test_too_few_rows_are_a_problem(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(replace(job, rows=9))
    assert "at least 10 rows" in problems(found)


def test_an_unknown_model_is_a_problem_that_names_the_field(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox, model="gpt-2"), env(tmp_path)).preflight(job)
    assert "`backends.openai.model`" in problems(found) and "does not exist" in problems(found)


def test_a_local_student_is_no_model_there(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox, model=None), env(tmp_path)).preflight(job)
    assert "`student.model`" in problems(found) and "set backends.openai.model" in problems(found)


def test_a_missing_key_is_a_problem_that_names_the_variable(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox), env(tmp_path, key=None)).preflight(job)
    assert "OPENAI_API_KEY is not set" in problems(found)
    assert sandbox.store.requests() == {}


def test_a_refused_key_is_a_problem(sandbox, tmp_path, job):
    sandbox.add_fault(Fault("models.get", "status", "401"))
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job)
    assert "refuses the key" in problems(found)


def test_a_service_that_is_down_is_unreachable(sandbox, tmp_path, job):
    with sandbox.outage(), pytest.raises(Unreachable):
        OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job)


def test_the_model_s_end_is_warned_of_with_its_date(sandbox, tmp_path, job):
    at = datetime(2026, 12, 15, tzinfo=UTC).timestamp()
    found = OpenAIBackend(settings(sandbox), env(tmp_path, at=at)).preflight(job)
    assert any("2027-01-14, in 30 days" in text for text in found.warnings)


def test_a_model_that_was_shut_down_is_a_problem(sandbox, tmp_path, job):
    at = datetime(2027, 1, 14, tzinfo=UTC).timestamp()
    found = OpenAIBackend(settings(sandbox), env(tmp_path, at=at)).preflight(job)
    assert "was shut down on 2027-01-14" in problems(found)


@pytest.mark.parametrize("day, stops", [(datetime(2026, 12, 27, tzinfo=UTC), False),
                                        (datetime(2027, 1, 6, tzinfo=UTC), True)])
def test_the_closing_of_fine_tuning_is_said_with_its_date(tmp_path, job, day, stops):
    found = examine(job, MODEL, OpenAISettings(model=MODEL),
                    env(tmp_path, at=day.timestamp(), offline=True))
    said = problems(found) if stops else "\n".join(found.warnings)
    assert "2027-01-06" in said and "`backend: together`" in said
    assert stops or "10 days left" in said


def test_what_cannot_be_expressed_is_said(sandbox, tmp_path, job):
    notes = "\n".join(OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job).notes)
    for name in ("train.lora", "train.learning_rate", "train.schedule", "train.warmup",
                 "train.weight_decay"):
        assert name in notes
    assert "3 epochs" in notes


def test_that_every_weight_cannot_be_asked_for_is_warned_of(sandbox, tmp_path, job):
    asked = replace(job, train=TrainSpec(lora=None))
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(asked)
    assert any("train.lora: null asks for every weight" in warning for warning in found.warnings)


def test_steps_are_said_as_epochs(sandbox, tmp_path, job):
    job = replace(job, train=TrainSpec(max_steps=10, batch_size=4))
    notes = "\n".join(OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job).notes)
    assert "2 epochs (it counts no steps: train.max_steps 10 of 4 rows" in notes


def test_too_many_epochs_are_a_problem(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(
        replace(job, train=TrainSpec(epochs=51)))
    assert "at most 50 epochs" in problems(found)


def test_the_cost_has_a_ceiling_above_the_bill(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox, training_price=5.0), env(tmp_path))
    low, high = backend.preflight(job).cost_usd
    seen = to_end(backend, backend.submit(job, backend.stage(job), new_token()))
    assert 0 < low < high and seen.cost_usd <= high


def test_an_unknown_price_of_training_is_unknown_and_said(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job)
    assert found.cost_usd is None
    assert any("training_price" in note and "not known" in note for note in found.notes)


def test_an_unknown_price_of_answers_stops_before_anything_is_paid(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox, price=None), env(tmp_path)).preflight(job)
    assert "backends.openai.price" in problems(found)


def test_prices_of_tuned_models_come_from_the_recipe_then_a_table():
    plain = OpenAISettings(model=MODEL)
    assert answer_price(f"ft:{MODEL}:o::x", MODEL, plain).rate.input == 0.8
    own = OpenAISettings(model=MODEL, price={"input": 1, "output": 2})
    assert answer_price(f"ft:{MODEL}:o::x", MODEL, own).rate.input == 1
    assert answer_price(None, MODEL, plain).rate.input == 0.4


def test_offline_asks_nothing(sandbox, tmp_path, job):
    found = OpenAIBackend(settings(sandbox), env(tmp_path, offline=True)).preflight(job)
    assert sandbox.store.requests() == {} and found.sends_to


def test_an_empty_answer_is_a_problem_at_its_place(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": " "} if n == 4 else row)
    found = OpenAIBackend(settings(sandbox), env(tmp_path)).preflight(job)
    assert "notes.jsonl:5" in problems(found)


@pytest.mark.parametrize("address", ["http://example.com/v1", "ftp://localhost/v1", "https:///v1",
                                     "https://user:pass@host/v1", "https://host/v1?key=1"])
def test_an_address_that_would_leak_is_refused(address):
    with pytest.raises(ValidationError):
        OpenAISettings(base_url=address)


@pytest.mark.parametrize("address, openai", [(None, True), ("https://eu.api.openai.com/v1", True),
                                             ("https://evilopenai.com/v1", False)])
def test_openai_is_told_from_its_likes(address, openai):
    assert OpenAISettings(base_url=address).is_openai is openai


# --- what is sent ---


def test_the_request_carries_token_epochs_and_seed_and_nothing_unknown(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox, suffix="mine", batch_size=4), env(tmp_path))
    token = new_token()
    backend.submit(replace(job, train=TrainSpec(epochs=5, seed=11)), backend.stage(job), token)
    (made,) = sandbox.joblist.all()
    assert made.request["metadata"]["distillctl_token"] == token
    assert made.request["hyperparameters"] == {
        "n_epochs": 5, "batch_size": 4, "learning_rate_multiplier": "auto"}
    assert (made.request["seed"], made.request["suffix"]) == (11, "mine")


def test_the_same_rows_are_uploaded_once(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    backend.stage(job)
    OpenAIBackend(settings(sandbox), env(tmp_path / "other")).stage(job)
    assert sandbox.store.requests()["files.create"] == 1


def test_a_file_that_failed_is_not_used_again(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    first = backend.stage(job).data["file"]
    sandbox.store.put("file", first, {**sandbox.store.get("file", first), "status": "error"})
    assert backend.stage(job).data["file"] != first


def test_a_file_in_processing_is_waited_for(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    file = backend.stage(job).data["file"]
    sandbox.store.put("file", file, {**sandbox.store.get("file", file), "status": "uploaded"})
    with pytest.raises(Unreachable, match="still being processed"):
        backend.stage(job)


def test_account_headers_go_to_openai_alone(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    seen = []
    monkeypatch.setattr(OpenAIPart, "account", lambda self, call: seen.append(call.headers) or "x")
    with Service(settings(sandbox), env(tmp_path)) as service:
        service.call(service.sdk.models.with_raw_response.list)
    assert "openai-organization" not in seen[0]


def test_nothing_that_is_sent_is_deprecated(sandbox, tmp_path, job):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        backend = OpenAIBackend(settings(sandbox), env(tmp_path))
        handle = backend.submit(job, backend.stage(job), new_token())
        assert to_end(backend, handle).state == "succeeded"
        assert backend.find(handle.token) and backend.collect(handle, tmp_path)


# --- refusals and failures ---


def test_a_closed_account_is_told_what_to_use_instead(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    staged = backend.stage(job)
    sandbox.add_fault(Fault("jobs.create", "refuse"))
    with pytest.raises(Rejected, match=r"not allowed to create.*`backend: together`"):
        backend.submit(job, staged, new_token())


def test_without_a_key_submitting_is_rejected_and_sends_nothing(sandbox, tmp_path, job):
    staged = OpenAIBackend(settings(sandbox), env(tmp_path)).stage(job)
    with pytest.raises(Rejected, match="OPENAI_API_KEY"):
        OpenAIBackend(settings(sandbox), env(tmp_path, key=None)).submit(job, staged, new_token())
    assert sandbox.creates() == 0


def test_a_request_time_out_of_the_service_is_no_refusal(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    staged = backend.stage(job)
    sandbox.add_fault(Fault("jobs.create", "status_after", "408"))
    with pytest.raises(Ambiguous):
        backend.submit(job, staged, new_token())


def test_validation_errors_name_our_file_and_line(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": ""} if n in (2, 7) else row)
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    seen = to_end(backend, backend.submit(job, backend.stage(job), new_token()))
    assert seen.state == "failed" and "(invalid_training_file)" in seen.message
    assert "Line 3 (notes.jsonl:3)" in seen.message and "Line 8 (notes.jsonl:8)" in seen.message
    assert any("notes.jsonl:3" in event.message for event in seen.events if event.level == "error")


def test_lines_that_we_do_not_have_stay_as_they_are(tmp_path):
    kept = sources(tmp_path)
    kept.keep("up", ["a.jsonl:7"])
    assert kept.translate("up", "line 1 and line 99") == "line 1 (a.jsonl:7) and line 99"
    assert kept.translate("other", "line 1") == "line 1"
    assert kept.translate(None, "line 1") == "line 1"


def test_events_come_once_and_oldest_first(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    handle = backend.submit(job, backend.stage(job), new_token())
    first = backend.poll(handle, None)
    assert first.events[0].message.startswith("Created")
    assert backend.poll(handle, first.cursor).events == ()


def test_a_refused_key_while_polling_says_so(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    handle = backend.submit(job, backend.stage(job), new_token())
    sandbox.add_fault(Fault("jobs.get", "status", "403"))
    with pytest.raises(BackendError, match="refuses the key"):
        backend.poll(handle, None)


def test_a_server_that_ignores_the_filter_is_listed_whole(sandbox, tmp_path, job, monkeypatch):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    staged = backend.stage(job)
    first, second = (backend.submit(job, staged, new_token()) for _ in range(2))
    monkeypatch.setattr("distillctl.sandbox.openai._filter", lambda call: {})
    assert [found.job_id for found in backend.find(first.token)] == [first.job_id]
    assert [found.job_id for found in backend.find(second.token)] == [second.job_id]


# --- the student ---


def test_a_model_that_is_gone_cannot_be_opened(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    student = StudentRef("openai", "hosted", f"ft:{MODEL}:org::gone", data={"base_model": MODEL})
    with pytest.raises(StudentError, match="not there"), backend.open(
            student, tmp_path, job.task, EvaluateSpec()):
        pass


def test_a_collected_student_holds_no_secret_and_names_its_base(sandbox, tmp_path, job):
    backend = OpenAIBackend(settings(sandbox), env(tmp_path))
    handle = backend.submit(job, backend.stage(job), new_token())
    to_end(backend, handle)
    student = backend.collect(handle, tmp_path)
    assert student.data["base_model"] == MODEL and student.data["trained_tokens"] > 0
    assert student.model.startswith(f"ft:{MODEL}:") and KEY not in json.dumps(student.as_json())
