"""The vertex backend: what it sends, how it words refusals, what it tells of a job."""

import json
import time
import warnings
from dataclasses import replace

import pytest
from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.data import sources
from support.backends import rewritten, to_end
from support.vertex import MODEL, OPEN, TOKEN, env, opened, rehearsal, sent, settings

from distillctl.backend import Ambiguous, Rejected, StudentRef, Unreachable
from distillctl.errors import BackendError, StudentError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.vertex import VertexPart


@pytest.fixture
def sandbox(tmp_path):
    with rehearsal(tmp_path) as sandbox:
        yield sandbox


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
