"""The together backend: what it finds out for free, what it sends, and how it words refusals."""

import asyncio
import json
import time
import warnings
from dataclasses import replace

import pytest
from distillctl_together.backend import UPLOAD_PATIENCE_S, TogetherBackend
from distillctl_together.client import Service
from distillctl_together.predictor import Meter
from distillctl_together.settings import TogetherSettings
from distillctl_together.story import events_of
from pydantic import ValidationError
from support.backends import problems, rewritten, to_end

from distillctl.backend import Ambiguous, BackendEnv, Rejected, StudentRef, Unreachable
from distillctl.errors import BackendError, StudentError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, LoraSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.together import TogetherPart
from distillctl.testing.examples import example_requests

MODEL = "Qwen/Qwen3-0.6B"
KEY = "a-key-0123456789"


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("together"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        yield sandbox


@pytest.fixture
def backend(tmp_path, sandbox):
    return TogetherBackend(settings(sandbox), env(tmp_path))


def env(tmp_path, key=KEY, at=None, offline=False):
    return BackendEnv(tmp_path / "workspace", lambda name: key, lambda: at or time.time(), offline)


def settings(sandbox, **more):
    return TogetherSettings(**{"model": MODEL, "base_url": sandbox.url, **more})


def staged(backend, job):
    for _ in range(20):
        try:
            return backend.stage(job)
        except Unreachable as error:
            assert "validated" in str(error)
    raise AssertionError("never validated")


def submitted(backend, job, token=None):
    return backend.submit(job, staged(backend, job), token or new_token())


def preflight(sandbox, tmp_path, job, train=None, **more):
    job = replace(job, train=TrainSpec(**train)) if train else job
    return TogetherBackend(settings(sandbox, **more), env(tmp_path)).preflight(job)


# --- preflight ---


@pytest.mark.parametrize("model, field", [("gpt-2", "backends.together.model"), (None, "student.model")])
def test_an_unknown_model_is_a_problem_that_names_the_field(sandbox, tmp_path, job, model, field):
    found = preflight(sandbox, tmp_path, job, model=model)
    assert f"`{field}`" in problems(found) and "cannot tune" in problems(found)


def test_a_missing_key_is_a_problem_that_names_the_variable(sandbox, tmp_path, job):
    found = TogetherBackend(settings(sandbox), env(tmp_path, key=None)).preflight(job)
    assert "TOGETHER_API_KEY is not set" in problems(found)
    assert sandbox.store.requests() == {}


def test_a_refused_key_is_a_problem(sandbox, tmp_path, job):
    sandbox.add_fault(Fault("limits", "status", "401"))
    assert "refuses the key" in problems(preflight(sandbox, tmp_path, job))


def test_a_service_that_is_down_is_unreachable(sandbox, tmp_path, job):
    with sandbox.outage(), pytest.raises(Unreachable):
        preflight(sandbox, tmp_path, job)


def test_offline_asks_nothing(sandbox, tmp_path, job):
    found = TogetherBackend(settings(sandbox), env(tmp_path, offline=True)).preflight(job)
    assert sandbox.store.requests() == {} and found.sends_to


@pytest.mark.parametrize("train, field", [
    ({"epochs": 21}, "train"), ({"learning_rate": 0.5}, "train.learning_rate"),
    ({"lora": LoraSpec(rank=128)}, "train.lora.rank"), ({"lora": LoraSpec(alpha=12.5)}, "train.lora.alpha"),
    ({"lora": LoraSpec(targets=["q_proj", "experts"])}, "train.lora.targets"),
    ({"max_length": 20}, "train.max_length")])
def test_what_the_model_s_limits_forbid_is_a_problem(sandbox, tmp_path, job, train, field):
    assert f"`{field}`" in problems(preflight(sandbox, tmp_path, job, train))


def test_what_is_translated_is_said(sandbox, tmp_path, job):
    found = preflight(sandbox, tmp_path, job, {"max_steps": 12, "batch_size": 4})
    notes = "\n".join(found.notes)
    assert "counts no steps: train.max_steps 12 of 4 rows become 2 epochs" in notes
    assert "8 in place of train.batch_size 4" in notes and "dev split is not sent" in notes


def test_the_deployment_s_price_is_said_before_anything_is_paid(sandbox, tmp_path, job):
    notes = "\n".join(preflight(sandbox, tmp_path, job).notes)
    assert "1x H100, $3.99 an hour" in notes and "idle for 30 minutes" in notes


def test_a_model_that_cannot_be_deployed_is_a_problem(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr("distillctl.sandbox.together_serving._supported",
                        lambda base: {"id": base.id, "name": base.name, "deploymentProfiles": []})
    assert "no deployment" in problems(preflight(sandbox, tmp_path, job))


def test_an_unknown_price_of_the_hardware_is_a_problem_until_it_is_given(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr("distillctl.sandbox.together_serving.HARDWARE", {
        "1x_nvidia_h100_80gb_sxm": ("H100", 1, 80, None)})
    assert "backends.together.price_per_hour" in problems(preflight(sandbox, tmp_path, job))
    assert preflight(sandbox, tmp_path, job, price_per_hour=4.5).problems == ()


def test_a_key_without_a_project_asks_for_one(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr(TogetherPart, "_project", lambda self, account: "")
    assert "backends.together.project_id" in problems(preflight(sandbox, tmp_path, job))


def test_an_empty_answer_is_a_problem_at_its_place(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": " "} if n == 4 else row)
    assert "notes.jsonl:5" in problems(preflight(sandbox, tmp_path, job))


def test_the_cost_is_unknown_without_a_price_and_has_a_ceiling_with_one(sandbox, tmp_path, job):
    assert preflight(sandbox, tmp_path, job).cost_usd is None
    found = preflight(sandbox, tmp_path, job, training_price=0.48)
    backend = TogetherBackend(settings(sandbox, training_price=0.48), env(tmp_path))
    seen = to_end(backend, submitted(backend, job))
    assert 0 < found.cost_usd[0] < found.cost_usd[1] and 0 < seen.cost_usd <= found.cost_usd[1]


@pytest.mark.parametrize("address", ["http://example.com", "ftp://localhost", "https:///v1",
                                     "https://user:pass@host", "https://host?key=1"])
def test_an_address_that_would_leak_is_refused(address):
    with pytest.raises(ValidationError):
        TogetherSettings(base_url=address)


def test_an_address_of_the_sdk_s_second_version_is_understood():
    assert TogetherSettings(base_url="https://api.together.xyz/v1/").url == "https://api.together.xyz"


@pytest.mark.parametrize("minutes", [0, 29, 1441])
def test_a_deployment_without_an_idle_limit_cannot_be_asked_for(minutes):
    with pytest.raises(ValidationError):
        TogetherSettings(inactive_timeout=minutes)


# --- what is sent ---


def test_the_request_carries_token_and_hyperparameters(sandbox, backend, job):
    train = TrainSpec(epochs=5, seed=11, learning_rate=1e-3, batch_size=16, warmup=0.05, weight_decay=0.01,
                      lora=LoraSpec(rank=8, alpha=24, dropout=0.1, targets=["q_proj", "v_proj"]))
    token = new_token()
    submitted(backend, replace(job, train=train), token)
    (made,) = sandbox.joblist.all()
    asked = made.request
    assert asked["suffix"] == token and f"-{token}-" in made.extra["output"]
    assert asked["training_type"] == {"type": "Lora", "lora_r": 8, "lora_alpha": 24, "lora_dropout": 0.1,
                                      "lora_trainable_modules": "q_proj,v_proj"}
    assert (asked["n_epochs"], asked["random_seed"], asked["learning_rate"]) == (5, 11, 1e-3)
    assert (asked["batch_size"], asked["warmup_ratio"], asked["weight_decay"]) == (16, 0.05, 0.01)
    assert asked["training_method"] == {"method": "sft", "train_on_inputs": False}


def test_every_weight_is_trained_where_the_recipe_has_no_adapter(sandbox, tmp_path, backend, job):
    full = replace(job, train=TrainSpec(epochs=2, learning_rate=2e-5, batch_size=32, lora=None))
    found = backend.preflight(full)
    assert (found.problems, found.warnings) == ((), ())
    assert any("in full" in note for note in found.notes)
    assert any("8 to 16 sequences a step: 16 in place" in note for note in found.notes)
    handle = submitted(backend, full)
    assert sandbox.joblist.all()[0].request["training_type"] == {"type": "Full"}
    assert to_end(backend, handle).state == "succeeded"
    assert backend.collect(handle, tmp_path).data["object"].startswith("ml_")


def test_a_model_that_cannot_be_trained_in_full_is_a_problem(sandbox, tmp_path, job):
    found = preflight(sandbox, tmp_path, job, {"lora": None, "epochs": 1}, model="Qwen/Qwen3-1.7B")
    assert "`train.lora`" in problems(found) and "adapters alone" in problems(found)


def test_an_adapters_learning_rate_is_warned_of_where_every_weight_is_trained(sandbox, tmp_path, job):
    found = preflight(sandbox, tmp_path, job, {"lora": None, "learning_rate": 1e-3})
    assert any("a tenth" in warning for warning in found.warnings)


def test_a_constant_schedule_is_a_linear_one_that_does_not_fall(sandbox, backend, job):
    submitted(backend, replace(job, train=TrainSpec(schedule="constant")))
    assert sandbox.joblist.all()[0].request["lr_scheduler"] == {
        "lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 1.0}}


def test_the_same_rows_are_uploaded_once(sandbox, tmp_path, backend, job):
    staged(backend, job)
    staged(TogetherBackend(settings(sandbox), env(tmp_path / "other")), job)
    assert sandbox.store.requests()["files.put"] == 1


def test_an_upload_that_was_cut_off_before_its_processing_is_made_anew(sandbox, tmp_path, backend, job):
    sandbox.add_fault(Fault("files.preprocess", "drop_before"))
    with pytest.raises(Unreachable):
        backend.stage(job)
    late = TogetherBackend(settings(sandbox), env(tmp_path, at=time.time() + UPLOAD_PATIENCE_S + 5))
    with pytest.raises(Unreachable, match="never validated"):
        late.stage(job)
    assert staged(backend, job).data["file"]


def test_the_storage_gets_the_rows_and_no_key(sandbox, backend, job, monkeypatch):
    seen = []
    real = TogetherPart.account
    monkeypatch.setattr(TogetherPart, "account", lambda self, call: seen.append(call) or real(self, call))
    staged(backend, job)
    put = [call for call in seen if call.url.startswith("/storage/")]
    assert len(put) == 1 and KEY not in json.dumps(put[0].headers)


def test_data_goes_nowhere_unencrypted(sandbox, backend, job, monkeypatch):
    real = TogetherPart.create_file

    def elsewhere(self, call):
        reply = real(self, call)
        return replace(reply, headers={**reply.headers, "Location": "http://192.0.2.1/storage"})
    monkeypatch.setattr(TogetherPart, "create_file", elsewhere)
    with pytest.raises(Unreachable, match=r"unencrypted to 192\.0\.2\.1"):
        backend.stage(job)


def test_nothing_that_is_sent_is_deprecated_or_warned_of(sandbox, tmp_path, backend, job, caplog, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = submitted(backend, job)
        assert to_end(backend, handle).state == "succeeded"
        student = backend.collect(handle, tmp_path)
        assert backend.find(handle.token)
        with backend.open(student, tmp_path, job.task, EvaluateSpec()) as predictor:
            asyncio.run(answered(predictor, job))
    out = capsys.readouterr()
    assert out.out + out.err == "" and [r for r in caplog.records if r.levelname != "INFO"] == []


async def answered(predictor, job):
    answers = [(await predictor.answer([request]))[0] for request in example_requests(job.task)]
    await predictor.aclose()
    return answers


# --- refusals and failures ---


def test_an_account_that_may_not_proceed_is_rejected_before_a_create(sandbox, backend, job, monkeypatch):
    monkeypatch.setattr("distillctl.sandbox.together.CREDIT_USD", 0.0)
    with pytest.raises(Rejected, match=r"does not allow this job.*limit \(\$0.00\)"):
        staged(backend, job)
    assert sandbox.creates() == 0


def test_an_estimate_above_the_ceiling_is_rejected(sandbox, tmp_path, job):
    backend = TogetherBackend(settings(sandbox, training_price=0.001), env(tmp_path))
    with pytest.raises(Rejected, match="training_price allows"):
        staged(backend, job)


def test_without_a_key_submitting_is_rejected_and_sends_nothing(sandbox, tmp_path, backend, job):
    ready = staged(backend, job)
    with pytest.raises(Rejected, match="TOGETHER_API_KEY"):
        TogetherBackend(settings(sandbox), env(tmp_path, key=None)).submit(job, ready, new_token())
    assert sandbox.creates() == 0


@pytest.mark.parametrize("route", ["limits", "jobs.estimate"])
def test_a_question_of_the_sdk_s_own_that_fails_creates_nothing(sandbox, backend, job, route):
    ready = staged(backend, job)
    sandbox.add_fault(Fault(route, "status", "500"))
    with pytest.raises(Ambiguous):
        backend.submit(job, ready, new_token())
    assert (sandbox.creates(), sandbox.jobs()) == (0, 0)


def test_validation_errors_name_our_file_and_line(sandbox, backend, job):
    job = rewritten(job, lambda n, row: {**row, "completion": ""} if n == 7 else row)
    with pytest.raises(Rejected, match=r"line 8 \(notes.jsonl:8\)"):
        staged(backend, job)


def test_why_a_job_failed_comes_from_its_events(sandbox, backend, job, monkeypatch):
    def broken(self, *arguments):
        raise ValueError("example 3 has no tokens")
    monkeypatch.setattr(TogetherPart, "train", broken)
    seen = to_end(backend, submitted(backend, job))
    assert seen.state == "failed" and "example 3 (notes.jsonl:3) has no tokens" in seen.message


def test_a_user_error_is_a_failure(sandbox, backend, job):
    handle = submitted(backend, job)
    sandbox.say(handle.job_id, "user_error")
    assert backend.poll(handle, None).state == "failed"


def test_a_cancelled_job_is_asked_to_stop_before_it_has(sandbox, backend, job):
    handle = submitted(backend, job)
    backend.poll(handle, None)
    backend.cancel(handle)
    first = backend.poll(handle, None)
    assert (first.state, first.raw) == ("running", "cancel_requested")
    last = to_end(backend, handle)
    assert last.state == "cancelled" and last.cost_usd is not None


def test_a_refused_key_while_polling_says_so(sandbox, backend, job):
    handle = submitted(backend, job)
    sandbox.add_fault(Fault("jobs.get", "status", "403"))
    with pytest.raises(BackendError, match="refuses the key"):
        backend.poll(handle, None)


def test_metrics_that_cannot_be_had_do_not_hide_the_state(sandbox, backend, job):
    handle = submitted(backend, job)
    sandbox.add_fault(Fault("jobs.metrics", "status", "500", times=None))
    assert to_end(backend, handle).state == "succeeded"


def test_metrics_come_once_with_step_and_loss(sandbox, backend, job, monkeypatch):
    rows = [{"time": 1.0, "step": n, "total_steps": 2, "loss": 1.0 / n} for n in (1, 2)]
    handle = submitted(backend, job)
    to_end(backend, handle)
    sandbox.store.put("progress", handle.job_id, rows)
    seen = backend.poll(handle, None)
    assert [event.data for event in seen.events if "loss" in event.data] == [
        {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert not [event for event in backend.poll(handle, seen.cursor).events if "loss" in event.data]


def test_events_that_say_the_same_are_told_apart():
    row = {"created_at": "2026-11-24T10:00:00Z", "type": "warning", "level": "legacy_iwarning",
           "message": "again"}
    first, second = events_of([row, row, "no event"], str)
    assert first.key != second.key and first.level == "warning" and first.time == 1795514400


def test_a_listing_without_suffixes_is_searched_by_name(sandbox, backend, job, monkeypatch):
    handle = submitted(backend, job)
    real = TogetherPart._listed
    monkeypatch.setattr(TogetherPart, "_listed", lambda self, *a: {**real(self, *a), "suffix": None})
    assert [found.job_id for found in backend.find(handle.token)] == [handle.job_id]


# --- the student ---


def test_a_model_that_is_gone_cannot_be_opened(sandbox, tmp_path, backend, job):
    student = StudentRef("together", "hosted", "me/gone", data={"object": "ml_gone", "base_model": MODEL})
    with pytest.raises(StudentError, match="not there"), backend.open(
            student, tmp_path, job.task, EvaluateSpec()):
        pass
    assert "endpoints.create" not in sandbox.store.requests()


def test_a_collected_student_holds_no_secret_and_names_its_base(sandbox, tmp_path, backend, job):
    handle = submitted(backend, job)
    to_end(backend, handle)
    student = backend.collect(handle, tmp_path)
    assert student.data["base_model"] == MODEL and student.data["object"].startswith("ml_")
    assert KEY not in json.dumps(student.as_json())


def test_answers_share_the_time_of_their_server():
    meter = Meter(3600.0)
    assert [meter.charge(0, 2), meter.charge(1, 3), meter.charge(2.5, 2.8)] == [2.0, 1.0, 0.0]
    assert meter.usd == 3.0 and Meter(None).charge(0, 1) is None


def test_environment_variables_do_not_redirect_the_data(sandbox, tmp_path, monkeypatch):
    monkeypatch.setenv("TOGETHER_BASE_URL", "http://127.0.0.1:9")
    with Service(settings(sandbox), env(tmp_path)) as service:
        assert service.project.startswith("proj_")
