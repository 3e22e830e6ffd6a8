"""The vertex backend: what it finds out for free, what it sends, and how it words refusals."""

import json
import threading
import time
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.data import sources
from distillctl_vertex.preflight import examine
from distillctl_vertex.settings import VertexSettings
from pydantic import ValidationError
from support.backends import problems, rewritten, to_end

from distillctl.backend import Ambiguous, BackendEnv, Rejected, StudentRef, Unreachable
from distillctl.errors import BackendError, StudentError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, LoraSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.vertex import VertexPart
from distillctl.testing.examples import example_job

MODEL = "gemini-3.5-flash-lite"
OPEN = "meta/llama3_1@llama-3.1-8b-instruct"
TOKEN = "a-token-0123456789"


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("vertex"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        yield sandbox


@pytest.fixture
def job(tmp_path):
    return example_job(tmp_path, "classification", "smollm2-135m", TrainSpec(epochs=3))


def env(tmp_path, token=TOKEN, at=None, offline=False):
    return BackendEnv(tmp_path / "workspace", lambda name: token, lambda: at or time.time(), offline)


def settings(sandbox=None, **more):
    where = {"base_url": sandbox.url} if sandbox else {}
    return VertexSettings(**{"model": MODEL, "project": "sandbox-project", "bucket": "sandbox-bucket",
                             "price": {"input": 0, "output": 0}, **where, **more})


def opened(sandbox, tmp_path, token=TOKEN, **more):
    return VertexBackend(settings(sandbox, **more), env(tmp_path, token))


def sent(sandbox):
    """The request of the one job that there is."""
    (made,) = sandbox.joblist.all()
    return made.request


# --- preflight ---


def offline(tmp_path, job, at=None, **more):
    """What preflight says without asking anybody."""
    chosen = settings(None, **more)
    return examine(job, chosen.model, chosen, env(tmp_path, at=at and at.timestamp(), offline=True))


@pytest.mark.parametrize("model", ["smollm2-135m", "gpt-4.1-mini-2025-04-14", "Qwen/Qwen3-0.6B"])
def test_what_google_cannot_tune_is_a_problem_that_names_the_field(tmp_path, job, model):
    assert "`backends.vertex.model`: is no model that Vertex AI tunes" in problems(
        offline(tmp_path, job, model=model))


def test_a_model_that_is_not_there_is_a_problem(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, model="gemini-9-pro").preflight(job)
    assert "has no such model" in problems(found)
    assert any("not among the Gemini models" in text for text in found.warnings)


def test_a_retired_model_is_a_problem_with_its_date(tmp_path, job):
    day = datetime(2026, 10, 16, tzinfo=UTC)
    found = offline(tmp_path, job, day, model="gemini-2.5-flash")
    assert "was to retire on 2026-10-16" in problems(found)


@pytest.mark.parametrize("day, place", [(datetime(2027, 6, 1, tzinfo=UTC), "notes"),
                                        (datetime(2027, 7, 1, tzinfo=UTC), "warnings")])
def test_a_retirement_is_said_and_warned_of_when_it_is_near(tmp_path, job, day, place):
    said = "\n".join(getattr(offline(tmp_path, job, day), place))
    assert "at the earliest on 2027-07-21" in said and "every model tuned from it" in said


def test_a_missing_token_is_a_problem_that_names_the_variable(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, token=None).preflight(job)
    assert "VERTEX_SANDBOX_TOKEN is not set" in problems(found)
    assert sandbox.store.requests() == {}


def test_a_foreign_project_is_a_problem_in_google_s_words(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, project="another-project").preflight(job)
    assert "Permission denied on resource project another-project" in problems(found)


def test_a_missing_bucket_is_a_problem_with_the_command_that_makes_it(sandbox, tmp_path, job):
    found = opened(sandbox, tmp_path, bucket="no-such-bucket").preflight(job)
    assert "gcloud storage buckets create gs://no-such-bucket" in problems(found)


def test_missing_rights_on_the_bucket_are_named(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr(VertexPart, "test_permissions", lambda self, call: {
        "permissions": ["storage.objects.get", "storage.objects.list"]})
    found = opened(sandbox, tmp_path).preflight(job)
    assert "lack storage.objects.create on the bucket" in problems(found)


def test_a_service_that_is_down_is_unreachable(sandbox, tmp_path, job):
    with sandbox.outage(), pytest.raises(Unreachable):
        opened(sandbox, tmp_path).preflight(job)


def test_what_cannot_be_told_is_said(tmp_path, job):
    notes = "\n".join(offline(tmp_path, job).notes)
    for name in ("seed", "learning_rate", "batch_size", "schedule", "warmup", "weight_decay", "lora.alpha"):
        assert name in notes
    assert "3 epochs" in notes


def test_an_open_model_is_told_its_learning_rate(tmp_path, job):
    found = offline(tmp_path, replace(job, train=TrainSpec(epochs=1, learning_rate=1e-3, batch_size=4)),
                    model=OPEN)
    notes = "\n".join(found.notes)
    assert "learning rate 0.001, 4 rows a step" in notes and "meta-llama/Llama-3.1-8B-Instruct" in notes
    assert found.problems == ()


def test_a_rank_that_google_lacks_is_rounded_down_and_said(tmp_path, job):
    found = offline(tmp_path, replace(job, train=TrainSpec(lora=LoraSpec(rank=12))))
    assert any("rank 8: Google has none of rank 12" in note for note in found.notes)


@pytest.mark.parametrize("more, said", [
    ({"tuning_mode": "full"}, "is for open models"), ({"learning_rate": 0.1}, "is for open models"),
    ({"model": OPEN, "learning_rate_multiplier": 2.0}, "is for Gemini models"),
    ({"adapter_size": 32}, "takes 1, 2, 4, 8, 16"),
    ({"model": "qwen/qwen3@qwen3-4b", "tuning_mode": "adapter"}, "by full alone"),
    ({"model": "google/gemma4@gemma-4-e2b-it"}, "set backends.vertex.hub_model")])
def test_a_setting_that_the_model_does_not_take_is_a_problem(tmp_path, job, more, said):
    assert said in problems(offline(tmp_path, job, **more))


FULL = TrainSpec(lora=None, learning_rate=2e-5)


def test_every_weight_of_an_open_model_is_tuned_where_the_recipe_has_no_adapter(tmp_path, job):
    found = offline(tmp_path, replace(job, train=FULL), model=OPEN)
    assert (found.problems, [text for text in found.warnings if "lora" in text]) == ((), [])
    assert "all weights are tuned" in found.notes
    hot = offline(tmp_path, replace(job, train=TrainSpec(lora=None)), model=OPEN)
    assert any("a tenth" in text for text in hot.warnings)


@pytest.mark.parametrize("more, field", [
    ({"model": "google/gemma4@gemma-4-e2b-it", "hub_model": "google/gemma-4-e2b-it"}, "train.lora"),
    ({"model": OPEN, "tuning_mode": "adapter"}, "backends.vertex.tuning_mode")])
def test_an_adapter_alone_contradicts_every_weight(tmp_path, job, more, field):
    found = offline(tmp_path, replace(job, train=FULL), **more)
    assert [problem.field for problem in found.problems] == [field]


def test_that_gemini_gets_an_adapter_all_the_same_is_warned_of_until_its_rank_is_named(tmp_path, job):
    asked = replace(job, train=FULL)
    assert any("train.lora: null" in text for text in offline(tmp_path, asked).warnings)
    named = offline(tmp_path, asked, adapter_size=8)
    assert not any("train.lora: null" in text for text in named.warnings)
    assert "an adapter of rank 8" in named.notes


def test_few_rows_are_warned_of_and_none_is_a_problem(tmp_path, job):
    assert any("24 rows: Google recommends at least 100" in text
               for text in offline(tmp_path, job).warnings)
    assert "nothing to train on" in problems(offline(tmp_path, replace(job, rows=0)))


def test_a_region_where_nothing_is_tuned_is_warned_of(tmp_path, job):
    assert any("antarctica-south1 is no region" in text
               for text in offline(tmp_path, job, location="antarctica-south1").warnings)


def test_an_empty_answer_is_a_problem_at_its_place(tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": " "} if n == 4 else row)
    assert "notes.jsonl:5: the assistant message is empty" in problems(offline(tmp_path, job))


def test_a_row_that_google_may_drop_is_named_before_it_is_paid(tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": "x" * 300_000} if n == 6 else row)
    assert any("1 rows may have more than 131,072 tokens" in text and "notes.jsonl:7" in text
               for text in offline(tmp_path, job).warnings)


def test_the_cost_has_a_ceiling_above_the_bill(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path, training_price=5.0)
    low, high = backend.preflight(job).cost_usd
    seen = to_end(backend, backend.submit(job, backend.stage(job), new_token()))
    (charge,) = sandbox.store.charges()
    assert 0 < low < high and seen.cost_usd == pytest.approx(charge["amount"] * 5.0 / 1e6)
    assert seen.cost_usd <= high


def test_an_unknown_price_of_training_is_unknown_and_said(tmp_path, job):
    found = offline(tmp_path, job)
    assert found.cost_usd is None and any("training_price" in note for note in found.notes)


def test_an_unknown_price_of_answers_stops_before_anything_is_paid(tmp_path, job):
    assert "backends.vertex.price" in problems(offline(tmp_path, job, model="gemini-9-pro", price=None))


def test_offline_asks_nothing(sandbox, tmp_path, job):
    found = VertexBackend(settings(sandbox), env(tmp_path, offline=True)).preflight(job)
    assert sandbox.store.requests() == {} and "sandbox-bucket" in found.sends_to[0]


@pytest.mark.parametrize("address", ["http://example.com", "ftp://localhost", "https:///",
                                     "https://user:pass@host", "https://host?key=1"])
def test_an_address_that_would_leak_is_refused(address):
    with pytest.raises(ValidationError):
        settings(None, base_url=address)


@pytest.mark.parametrize("location, address", [
    ("us-central1", "https://us-central1-aiplatform.googleapis.com"),
    ("global", "https://aiplatform.googleapis.com")])
def test_each_region_has_its_address(location, address):
    assert settings(None).address(location) == address


# --- credentials ---


class TokenServer(BaseHTTPRequestHandler):
    """What Google's token endpoint does for a service account."""

    def do_POST(self):
        assert b"assertion=" in self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"access_token": "exchanged-token", "expires_in": 3600,
                           "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args): ...


@pytest.fixture
def service_account(tmp_path, monkeypatch):
    """Application Default Credentials of a service account whose tokens come from loopback."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with HTTPServer(("127.0.0.1", 0), TokenServer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        path = tmp_path / "account.json"
        path.write_text(json.dumps({
            "type": "service_account", "project_id": "sandbox-project", "private_key_id": "1",
            "private_key": key.decode(), "client_email": "tuner@sandbox-project.iam.gserviceaccount.com",
            "client_id": "1", "token_uri": f"http://127.0.0.1:{server.server_address[1]}/token"}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        yield
        server.shutdown()


def test_google_gets_application_default_credentials(sandbox, tmp_path, job, service_account, monkeypatch):
    monkeypatch.setattr(VertexSettings, "is_here", False)  # the sandbox plays Google's part
    seen = []
    account = VertexPart.account
    monkeypatch.setattr(VertexPart, "account", lambda self, call: seen.append(call.bearer()) or account(
        self, call))
    backend = opened(sandbox, tmp_path, token=None)
    handle = backend.submit(job, backend.stage(job), new_token())
    assert backend.poll(handle, None).state == "queued"
    assert set(seen) == {"exchanged-token"} and "tuner" not in handle.account


def test_the_sandbox_never_sees_application_default_credentials(sandbox, tmp_path, job, service_account):
    assert "VERTEX_SANDBOX_TOKEN is not set" in problems(opened(sandbox, tmp_path, token=None).preflight(job))


def test_without_credentials_preflight_says_how_to_get_some(tmp_path, job, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    found = VertexBackend(settings(None), env(tmp_path)).preflight(job)
    assert "gcloud auth application-default login" in problems(found)


# --- what is sent ---


def test_a_gemini_job_carries_token_and_epochs_and_nothing_unknown(sandbox, tmp_path, job):
    backend, token = opened(sandbox, tmp_path, learning_rate_multiplier=0.5), new_token()
    staged = backend.stage(job)
    backend.submit(replace(job, train=TrainSpec(epochs=5, seed=11)), staged, token)
    assert sent(sandbox) == {
        "baseModel": MODEL, "labels": {"distillctl-token": token}, "location": "us-central1",
        "tunedModelDisplayName": f"distillctl-{token}", "supervisedTuningSpec": {
            "trainingDatasetUri": staged.data["uri"], "exportLastCheckpointOnly": True, "hyperParameters": {
                "epochCount": 5, "learningRateMultiplier": 0.5, "adapterSize": "ADAPTER_SIZE_SIXTEEN"}}}


def test_an_open_job_says_where_its_weights_go(sandbox, tmp_path, job):
    backend, token = opened(sandbox, tmp_path, model=OPEN), new_token()
    backend.submit(replace(job, train=TrainSpec(epochs=2, batch_size=4, learning_rate=1e-3)),
                   backend.stage(job), token)
    spec = sent(sandbox)["supervisedTuningSpec"]
    assert spec["hyperParameters"] == {"epochCount": 2, "batchSize": 4, "learningRate": 1e-3,
                                       "adapterSize": "ADAPTER_SIZE_SIXTEEN"}
    assert spec["tuningMode"] == "TUNING_MODE_PEFT_ADAPTER"
    assert sent(sandbox)["outputUri"] == f"gs://sandbox-bucket/distillctl/students/{token}/"


def test_a_system_message_becomes_gemini_s_instruction(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "messages": [
        {"role": "system", "content": "Name the animal."}, *row["messages"]]})
    uri = opened(sandbox, tmp_path).stage(job).data["uri"]
    (row, *_) = map(json.loads, sandbox.part.read_object(sandbox_account(), uri).splitlines())
    assert row["systemInstruction"]["parts"] == [{"text": "Name the animal."}]
    assert [content["role"] for content in row["contents"]] == ["user", "model"]


def sandbox_account():
    from distillctl.sandbox.wire import fingerprint

    return fingerprint(TOKEN)


def test_the_same_rows_are_uploaded_once(sandbox, tmp_path, job):
    first = opened(sandbox, tmp_path).stage(job)
    assert VertexBackend(settings(sandbox), env(tmp_path / "other")).stage(job) == first
    assert sandbox.store.requests()["objects.create"] == 1


def test_other_content_under_the_name_of_ours_is_refused(sandbox, tmp_path, job):
    uri = opened(sandbox, tmp_path).stage(job).data["uri"]
    sandbox.part.put_object(sandbox_account(), uri.removeprefix("gs://sandbox-bucket/"), b"{}\n")
    with pytest.raises(Rejected, match="other content"):
        opened(sandbox, tmp_path).stage(job)


def test_an_upload_that_another_run_was_faster_with_is_left_as_it_is(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    backend.stage(job)
    (before,) = sandbox.store.list("object")
    sandbox.add_fault(Fault("objects.get", "status", "404"))  # it was not there yet
    backend.stage(job)
    assert sandbox.store.requests()["objects.create"] == 2
    assert sandbox.store.list("object") == [before]


def test_an_upload_whose_reply_was_lost_is_found(sandbox, tmp_path, job):
    sandbox.add_fault(Fault("objects.create", "drop_after"))
    with pytest.raises(Unreachable):
        opened(sandbox, tmp_path).stage(job)
    opened(sandbox, tmp_path).stage(job)
    assert sandbox.store.requests()["objects.create"] == 1


def test_an_upload_beyond_eight_megabytes_arrives_whole(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": f"{n} " + "x" * 400_000})
    uri = opened(sandbox, tmp_path).stage(job).data["uri"]
    lines = sandbox.part.read_object(sandbox_account(), uri).splitlines()
    assert sandbox.store.requests()["objects.upload"] == 1 and len(lines) == 24
    assert json.loads(lines[23])["contents"][1]["parts"][0]["text"].startswith("23 x")


def test_variables_of_the_environment_redirect_nothing(sandbox, tmp_path, job, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_VERTEX_BASE_URL", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("GOOGLE_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.setenv(name, "elsewhere")
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    assert sent(sandbox)["location"] == "us-central1" and backend.find(handle.token) == [handle]


def test_nothing_that_is_sent_is_deprecated(sandbox, tmp_path, job):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of other tests' collected sockets
        backend = opened(sandbox, tmp_path)
        assert backend.preflight(job).problems == ()
        handle = backend.submit(job, backend.stage(job), new_token())
        assert to_end(backend, handle).state == "succeeded"
        assert backend.find(handle.token) and backend.collect(handle, tmp_path)


# --- refusals and failures ---


def test_without_a_token_submitting_is_rejected_and_sends_nothing(sandbox, tmp_path, job):
    staged = opened(sandbox, tmp_path).stage(job)
    with pytest.raises(Rejected, match="VERTEX_SANDBOX_TOKEN"):
        opened(sandbox, tmp_path, token=None).submit(job, staged, new_token())
    assert sandbox.creates() == 0


def test_a_full_quota_is_rejected_and_not_sent_again(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    staged = backend.stage(job)
    sandbox.add_fault(Fault("jobs.create", "status", "429"))
    with pytest.raises(Rejected):
        backend.submit(job, staged, new_token())
    assert (sandbox.creates(), sandbox.jobs()) == (1, 0)


@pytest.mark.parametrize("status", ["408", "499", "504"])
def test_a_time_out_of_the_service_is_no_refusal(sandbox, tmp_path, job, status):
    backend = opened(sandbox, tmp_path)
    staged = backend.stage(job)
    sandbox.add_fault(Fault("jobs.create", "status_after", status))
    with pytest.raises(Ambiguous):
        backend.submit(job, staged, new_token())


def test_validation_errors_name_our_file_and_line(sandbox, tmp_path, job):
    job = rewritten(job, lambda n, row: {**row, "completion": ""} if n == 7 else row)
    backend = opened(sandbox, tmp_path)
    seen = to_end(backend, backend.submit(job, backend.stage(job), new_token()))
    assert seen.state == "failed" and "Row: 8 (notes.jsonl:8)" in seen.message
    assert any("notes.jsonl:8" in event.message for event in seen.events if event.level == "error")


def test_dropped_examples_are_told_with_our_file_and_line(sandbox, tmp_path, job, monkeypatch):
    monkeypatch.setattr(VertexPart, "most_tokens", 100)
    job = rewritten(job, lambda n, row: {**row, "completion": "long " * 100} if n in (2, 9) else row)
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    seen = to_end(backend, handle)
    (event,) = [event for event in seen.events if event.level == "warning"]
    assert "dropped 2 of 24 examples" in event.message and "the limit is 100" in event.message
    assert "line 3 (notes.jsonl:3)" in event.message and "line 10 (notes.jsonl:10)" in event.message
    assert "notes.jsonl:10" in backend.collect(handle, tmp_path).data["dropped"]


def test_lines_that_we_do_not_have_stay_as_they_are(tmp_path):
    kept = sources(tmp_path)
    kept.keep("up", ["a.jsonl:7"])
    assert kept.translate("up", "row 1 and line 99") == "row 1 (a.jsonl:7) and line 99"
    assert kept.translate("other", "line 1") == kept.translate(None, "line 1") == "line 1"


def test_a_job_tells_its_story_once(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    told, cursor = [], None
    for _ in range(60):
        seen = backend.poll(handle, cursor)
        told, cursor = [*told, *seen.events], seen.cursor
        if seen.state == "succeeded":
            break
        time.sleep(0.02)
    keys = [event.key for event in told]
    assert len(keys) == len(set(keys)) and keys[0] == "created" and keys[-1] == "ended"
    assert any("billable tokens" in event.message for event in told)


def test_a_cancelled_job_passes_through_cancelling(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    backend.cancel(handle)
    first = backend.poll(handle, None)
    assert (first.state, first.raw) == ("running", "JOB_STATE_CANCELLING")
    assert to_end(backend, handle).state == "cancelled" and sandbox.store.charges() == []


@pytest.mark.parametrize("word, state", [
    ("JOB_STATE_PAUSED", "running"), ("JOB_STATE_UPDATING", "running"), ("JOB_STATE_EXPIRED", "failed"),
    ("JOB_STATE_UNSPECIFIED", "unknown")])
def test_google_s_rarer_words_are_known(sandbox, tmp_path, job, word, state):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    sandbox.say(handle.job_id, word)
    assert backend.poll(handle, None).state == state


def test_rights_that_were_taken_away_are_said_and_the_job_is_not_lost(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    sandbox.add_fault(Fault("jobs.get", "status", "403"))
    with pytest.raises(BackendError, match="refuses these credentials"):
        backend.poll(handle, None)


def test_a_listing_that_goes_in_circles_ends(sandbox, tmp_path, job, monkeypatch):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    listing = VertexPart.list_jobs
    monkeypatch.setattr(VertexPart, "list_jobs", lambda self, call: {
        **listing(self, call), "nextPageToken": "page-0"})
    with pytest.raises(Unreachable, match="does not end"):
        backend.find(handle.token)


# --- the student ---


def test_a_model_that_is_gone_cannot_be_opened(sandbox, tmp_path, job):
    name = "projects/100000000001/locations/us-central1"
    student = StudentRef("vertex", "hosted", f"{name}/endpoints/7", data={
        "base_model": MODEL, "tuned_model": f"{name}/models/7@1"})
    with pytest.raises(StudentError, match="not there"), opened(sandbox, tmp_path).open(
            student, tmp_path, job.task, EvaluateSpec()):
        pass


def test_a_collected_student_names_its_endpoint_and_base(sandbox, tmp_path, job):
    backend = opened(sandbox, tmp_path)
    handle = backend.submit(job, backend.stage(job), new_token())
    to_end(backend, handle)
    student = backend.collect(handle, tmp_path)
    assert "/endpoints/" in student.model and student.data["base_model"] == MODEL
    assert student.data["billable_tokens"] > 0 and TOKEN not in json.dumps(student.as_json())
