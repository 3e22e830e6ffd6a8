"""Google's sandbox refuses what Google refuses, in its words and shapes, to its own SDKs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from google import genai
from google.api_core import exceptions
from google.cloud import storage
from google.genai import errors, types
from google.oauth2.credentials import Credentials
from support.chat_rows import jsonl

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.vertex import VertexPart
from distillctl.sandbox.vertex_data import examine

pytestmark = pytest.mark.filterwarnings("ignore:The SDK's tuning implementation is experimental")
MODEL = "gemini-3.5-flash-lite"
OPEN = "meta/llama3_1@llama-3.1-8b-instruct"
BUCKET = "sandbox-bucket"


def row(n, answer=None):
    word, label = (("meow", "hybrid"), ("woof", "hydrant"))[n % 2]
    return {"systemInstruction": {"role": "system", "parts": [{"text": "Name the animal."}]},
            "contents": [{"role": "user", "parts": [{"text": f"{word} number {n}"}]},
                         {"role": "model", "parts": [{"text": answer or label}]}]}


def turns(*roles):
    return {"contents": [{"role": role, "parts": [{"text": "x"}]} for role in roles]}


def chat(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


GOOD = [row(n) for n in range(12)]


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("vertex"), tmp_path, tuner="nearest", speed=None) as sandbox:
        yield sandbox


def sdk(url, token="a-token", project="sandbox-project", location="us-central1"):
    return genai.Client(
        enterprise=True, project=project, location=location, credentials=Credentials(token=token),
        http_options=types.HttpOptions(base_url=url, retry_options=types.HttpRetryOptions(attempts=1)))


@pytest.fixture
def client(sandbox):
    with sdk(sandbox.url) as client:
        yield client


@pytest.fixture
def bucket(sandbox):
    with bucket_of(sandbox.url) as client:
        yield client.bucket(BUCKET)


def bucket_of(url, token="a-token"):
    # the client of version 3.0 is no context manager
    return closing(storage.Client(project="sandbox-project", credentials=Credentials(token=token),
                                  client_options={"api_endpoint": url}))


def upload(bucket, rows=GOOD, name="rows.jsonl"):
    bucket.blob(name).upload_from_string(jsonl(rows), retry=None)
    return f"gs://{BUCKET}/{name}"


def train(client, bucket, model=MODEL, uri=None, **config):
    return client.tunings.tune(
        base_model=model, training_dataset=types.TuningDataset(gcs_uri=uri or upload(bucket)),
        config=types.CreateTuningJobConfig(**config))


def to_end(client, job):
    for _ in range(200):
        seen = client.tunings.get(name=job.name)
        if seen.has_ended:
            return seen
        time.sleep(0.02)
    raise AssertionError(seen)


@pytest.fixture
def tuned(client, bucket):
    return to_end(client, train(client, bucket)).tuned_model


# --- Cloud Storage ---


def test_an_object_comes_back_as_it_was_sent_until_it_is_deleted(bucket):
    blob = bucket.blob("a folder/ünter.jsonl")
    blob.upload_from_string(b"\r\n--x\r\nbytes", content_type="application/jsonl", retry=None)
    assert blob.download_as_bytes(retry=None) == b"\r\n--x\r\nbytes"
    assert [found.name for found in bucket.list_blobs(prefix="a folder/", retry=None)] == [blob.name]
    blob.delete(retry=None)
    assert not blob.exists(retry=None)


def test_create_only_means_create_only(bucket):
    bucket.blob("once").upload_from_string(b"first", if_generation_match=0, retry=None)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("once").upload_from_string(b"second", if_generation_match=0, retry=None)
    assert bucket.blob("once").download_as_bytes(retry=None) == b"first"


def test_a_large_upload_goes_in_pieces(bucket, sandbox):
    data = b"0123456789" * 900_000
    bucket.blob("large", chunk_size=4 * 1024 * 1024).upload_from_string(data, retry=None)
    assert sandbox.store.requests()["objects.upload"] == 3
    assert bucket.blob("large").download_as_bytes(retry=None) == data


def test_a_wrong_checksum_is_refused(bucket):
    blob = bucket.blob("rows")
    blob.crc32c = "AAAAAA=="
    with pytest.raises(exceptions.BadRequest, match="doesn't match calculated"):
        blob.upload_from_string(b"other bytes", checksum=None, retry=None)


def test_listings_come_by_pages(bucket):
    for n in range(5):
        bucket.blob(f"rows/{n}").upload_from_string(b"x", retry=None)
    pages = bucket.list_blobs(prefix="rows/", page_size=2, retry=None).pages
    assert [[blob.name[-1] for blob in page] for page in pages] == [["0", "1"], ["2", "3"], ["4"]]


def test_another_bucket_is_not_there_and_another_account_s_objects_are_hidden(sandbox, bucket):
    upload(bucket)
    with pytest.raises(exceptions.NotFound, match="bucket does not exist"):
        bucket.client.bucket("theirs").test_iam_permissions(["storage.objects.get"], retry=None)
    with bucket_of(sandbox.url, "another-token") as other:
        assert not other.bucket(BUCKET).blob("rows.jsonl").exists(retry=None)


# --- create ---


@pytest.mark.parametrize("arguments, message", [
    ({"model": "gemini-2.5-flash"}, "is not supported"),
    ({"uri": f"gs://{BUCKET}/rows.json"}, "GCS object of type JSONL"),
    ({"uri": f"gs://{BUCKET}/nowhere.jsonl"}, "does not exist, or the service agent"),
    ({"epoch_count": 101}, "epochCount"),
    ({"adapter_size": "ADAPTER_SIZE_THIRTY_TWO"}, "Adapter size"),
    ({"learning_rate": 0.1}, "learningRate is not supported"),
    ({"batch_size": 4}, "batchSize is not supported"),
    ({"output_uri": f"gs://{BUCKET}/out"}, "output_uri is not supported"),
    ({"labels": {"Token": "x"}}, "Invalid label"),
    ({"labels": {"token": "Upper"}}, "Invalid label"),
    ({"tuned_model_display_name": "n" * 129}, "128 characters"),
    ({"model": OPEN, "tuning_mode": "TUNING_MODE_PEFT_ADAPTER"}, "output_uri must be set"),
    ({"model": OPEN, "output_uri": f"gs://{BUCKET}/out"}, "tuning_mode"),
    ({"model": OPEN, "output_uri": f"gs://{BUCKET}/out", "tuning_mode": "TUNING_MODE_PEFT_ADAPTER",
      "learning_rate_multiplier": 2.0}, "learningRateMultiplier is not supported")])
def test_a_bad_job_is_refused_and_not_made(client, bucket, sandbox, arguments, message):
    with pytest.raises(errors.ClientError, match=message) as refused:
        train(client, bucket, **arguments)
    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
    assert sandbox.jobs() == 0


def test_an_unknown_field_is_refused(client, bucket, sandbox):
    with pytest.raises(errors.ClientError, match='Unknown name "seed"'):
        train(client, bucket, http_options=types.HttpOptions(extra_body={"seed": 7}))
    assert sandbox.jobs() == 0


@pytest.mark.parametrize("wrong, message", [
    ({"messages": []}, "Unknown field `messages`"), ({"contents": []}, "Missing required `contents`"),
    (turns("user", "assistant"), "valid role: user, model"),
    (turns("user"), "last turn must be from the model"),
    (turns("model"), "must alternate"), (turns("user", "user", "model"), "must alternate"),
    ({"contents": [{"role": "user", "parts": [{"text": ""}]}]}, "non-empty text")])
def test_a_bad_row_fails_its_job_in_validation(client, bucket, wrong, message):
    job = to_end(client, train(client, bucket, uri=upload(bucket, [*GOOD, wrong])))
    assert job.state == "JOB_STATE_FAILED" and job.error.code == 3
    assert "Row: 13." in job.error.message and message in job.error.message
    assert job.tuning_data_stats is None and job.tuned_model is None


@pytest.mark.parametrize("wrong, message", [
    (turns("user", "model"), "Missing required `messages`"), (chat("user"), "last turn"),
    (chat("user", "system", "assistant"), "system message must come first"),
    (chat("user", "model"), "valid role: system, user, assistant")])
def test_open_models_take_chat_messages(wrong, message):
    good = [chat("system", "user", "assistant")]
    assert examine(jsonl(good), False, 8192).failure is None
    assert message in examine(jsonl([*good, wrong]), False, 8192).failure["message"]


def test_rows_that_are_too_long_are_dropped_in_silence_and_counted(client, bucket, monkeypatch):
    monkeypatch.setattr(VertexPart, "most_tokens", 60)
    job = to_end(client, train(client, bucket, uri=upload(bucket, [row(0, "long " * 99), *GOOD])))
    stats = job.tuning_data_stats.supervised_tuning_data_stats
    assert job.state == "JOB_STATE_SUCCEEDED"
    assert (stats.total_truncated_example_count, stats.truncated_example_indices) == (1, [1])
    assert stats.tuning_dataset_example_count == 12 and "60" in stats.dropped_example_reasons[0]


# --- a job's life ---


def test_a_job_says_google_s_words_and_ends_with_an_endpoint(client, bucket, sandbox):
    job = train(client, bucket, epoch_count=2, labels={"k": "v"}, tuned_model_display_name="mine")
    seen = []
    while not seen or not job.has_ended:
        job = client.tunings.get(name=job.name)
        seen.append(job.state.value)
        time.sleep(0.01)
    assert list(dict.fromkeys(seen)) == ["JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED"]
    assert job.name.startswith("projects/100000000001/")  # the number, whatever was asked for
    assert job.tuned_model.model.endswith("@1") and "/endpoints/" in job.tuned_model.endpoint
    assert job.labels == {"k": "v"} and job.supervised_tuning_spec.hyper_parameters.epoch_count == 2
    billed = job.tuning_data_stats.supervised_tuning_data_stats.total_billable_token_count
    assert [charge["amount"] for charge in sandbox.store.charges()] == [2 * billed]


def test_jobs_are_listed_newest_first_by_pages_and_by_region(client, bucket, sandbox):
    uri = upload(bucket)
    made = [train(client, bucket, uri=uri).name for _ in range(5)]
    assert [job.name for job in client.tunings.list(config={"page_size": 2})] == made[::-1]
    with sdk(sandbox.url, location="europe-west4") as elsewhere:
        assert list(elsewhere.tunings.list()) == []
        with pytest.raises(errors.ClientError, match="does not exist"):
            elsewhere.tunings.get(name=made[0].replace("us-central1", "europe-west4"))


def test_cancelling_takes_its_time_and_an_ended_job_cannot_be(client, bucket):
    job = train(client, bucket)
    client.tunings.cancel(name=job.name)
    assert client.tunings.get(name=job.name).state == "JOB_STATE_CANCELLING"
    assert to_end(client, job).state == "JOB_STATE_CANCELLED"
    with pytest.raises(errors.ClientError) as refused:
        client.tunings.cancel(name=job.name)
    assert refused.value.status == "FAILED_PRECONDITION"


def test_another_account_s_job_is_denied_as_if_it_might_not_exist(client, sandbox, bucket):
    job = train(client, bucket)
    with sdk(sandbox.url, "another-token") as other:
        with pytest.raises(errors.ClientError, match="or it may not exist") as refused:
            other.tunings.get(name=job.name)
        assert refused.value.code == 403 and list(other.tunings.list()) == []


def test_another_project_is_denied(sandbox):
    with sdk(sandbox.url, project="another-project") as other, pytest.raises(
            errors.ClientError, match="Permission denied on resource project another-project"):
        list(other.tunings.list())


def test_without_a_token_nothing_is_answered(sandbox):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{sandbox.url}/v1beta1/publishers/google/models/{MODEL}")
    with refused.value as reply:
        assert reply.code == 401 and json.load(reply)["error"]["status"] == "UNAUTHENTICATED"


# --- models and answers ---


def ask(client, model, prompt="meow number 40", **config):
    return client.models.generate_content(model=model, contents=prompt,
                                          config=types.GenerateContentConfig(**config))


def test_the_tuned_model_answers_and_the_untrained_one_does_not_know(client, tuned):
    assert ask(client, tuned.endpoint).text == "hybrid"
    assert ask(client, MODEL).text not in ("hybrid", "hydrant")


def test_the_model_s_own_name_is_no_endpoint(client, tuned):
    with pytest.raises(errors.ClientError, match="malformed name"):
        ask(client, tuned.model)
    assert client.models.get(model=tuned.model).version == "1"


def test_logprobs_are_of_tokens_and_labels_that_begin_alike_share_one(client, tuned):
    found = ask(client, tuned.endpoint, response_logprobs=True, logprobs=5).candidates[0].logprobs_result
    assert "".join(token.token for token in found.chosen_candidates) == "hybrid"
    for place in found.top_candidates:
        assert sum(math.exp(other.log_probability) for other in place.candidates) == pytest.approx(1)
    assert {other.token for other in found.top_candidates[0].candidates} == {"hybrid", "hydran"}


@pytest.mark.parametrize("config, message", [
    ({"logprobs": 5}, "requires response_logprobs"),
    ({"response_logprobs": True, "logprobs": 21}, "logprobs"),
    ({"response_json_schema": {"type": "object"}}, "response_mime_type"),
    ({"thinking_config": types.ThinkingConfig(thinking_budget=0, thinking_level="LOW")}, "cannot both"),
    ({"http_options": types.HttpOptions(extra_body={"messages": []})}, 'Unknown name "messages"')])
def test_a_bad_question_is_refused(client, config, message):
    with pytest.raises(errors.ClientError, match=message):
        ask(client, MODEL, **config)


def test_a_model_that_google_does_not_have_is_not_found(client):
    for call in (lambda: client.models.get(model="gpt-4"), lambda: ask(client, "gemini-2.5-flash")):
        with pytest.raises(errors.ClientError) as refused:
            call()
        assert refused.value.code == 404


# --- the command ---


COMMAND = [sys.executable, "-m", "distillctl.cli.main", "sandbox", "vertex", "--student", "nearest"]


def start(*arguments):
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    lines = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return process, lines, lines[0].split()[3].rstrip(";")


def test_the_command_says_how_to_point_at_it_and_keeps_its_state(tmp_path):
    process, lines, url = start("--state", str(tmp_path), "--speed", "1000")
    assert any("export VERTEX_SANDBOX_TOKEN=" in line for line in lines)
    assert any("export DISTILLCTL_BACKEND_VERTEX=" in line and url in line for line in lines)
    with sdk(url) as client, bucket_of(url) as store:
        job = to_end(client, train(client, store.bucket(BUCKET)))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    process, _, url = start("--state", str(tmp_path), "--fault", "jobs.get=status:503")
    with sdk(url) as client, bucket_of(url) as store:
        with pytest.raises(errors.ServerError):
            client.tunings.get(name=job.name)
        assert client.tunings.get(name=job.name).tuned_model == job.tuned_model
        assert ask(client, job.tuned_model.endpoint).text == "hybrid"
        assert store.bucket(BUCKET).blob("rows.jsonl").exists(retry=None)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and f"billed: training {job.name.rpartition('/')[2]}" in out
