"""OpenAI's sandbox refuses what OpenAI refuses, in its words and shapes, to its own SDK."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import openai
import pytest
from support.chat_rows import GOOD, jsonl, row

from distillctl.sandbox import part
from distillctl.sandbox.openai_data import examine, tokens_of
from distillctl.sandbox.server import Sandbox

MODEL = "gpt-4.1-mini-2025-04-14"


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("openai"), tmp_path, tuner="nearest", speed=None) as sandbox:
        yield sandbox


def sdk(sandbox, key="a-key"):
    return openai.OpenAI(api_key=key, base_url=f"{sandbox.url}/v1", max_retries=0)


@pytest.fixture
def client(sandbox):
    with sdk(sandbox) as client:
        yield client


def upload(client, rows=GOOD, name="rows.jsonl"):
    return client.files.create(file=(name, jsonl(rows)), purpose="fine-tune").id


def train(client, **more):
    return client.fine_tuning.jobs.create(**{"model": MODEL, "training_file": upload(client), **more})


def to_end(client, job):
    for _ in range(200):
        seen = client.fine_tuning.jobs.retrieve(job.id)
        if seen.status in ("succeeded", "failed", "cancelled"):
            return seen
        time.sleep(0.02)
    raise AssertionError(seen)


@pytest.fixture
def tuned(client):
    return to_end(client, train(client)).fine_tuned_model


# --- files ---


@pytest.mark.parametrize("arguments, message", [
    ({"file": ("rows.txt", b"{}"), "purpose": "fine-tune"}, "Must be .jsonl"),
    ({"file": ("rows.jsonl", b""), "purpose": "fine-tune"}, "File is empty"),
    ({"file": ("rows.jsonl", b"{}"), "purpose": "training"}, "purpose")])
def test_a_bad_upload_is_refused(client, arguments, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.files.create(**arguments)


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(client):
    file = client.files.create(file=("rows.jsonl", jsonl(GOOD)), purpose="fine-tune")
    assert (file.status, file.filename, file.bytes) == ("processed", "rows.jsonl", len(jsonl(GOOD)))
    assert client.files.content(file.id).read() == jsonl(GOOD)
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


# --- create ---


@pytest.mark.parametrize("arguments, code", [
    ({"model": "gpt-2"}, "model_not_available"),
    ({"training_file": "file-nowhere"}, "invalid_file"),
    ({"suffix": "s" * 65}, None),
    ({"seed": -1}, None),
    ({"metadata": {"k": "v" * 513}}, None),
    ({"metadata": {str(n): "v" for n in range(17)}}, None),
    ({"hyperparameters": {"n_epochs": 51}}, "invalid_value"),
    ({"hyperparameters": {"lora_rank": 8}}, "unknown_parameter"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 0}}}},
     "invalid_value"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate": 0.1}}}},
     "unknown_parameter"),
    ({"method": {"type": "dpo"}}, "invalid_value"),
    ({"extra_body": {"lora": True}}, None)])
def test_a_bad_job_is_refused_and_not_made(client, sandbox, arguments, code):
    with pytest.raises(openai.BadRequestError) as refused:
        train(client, **arguments)
    assert (refused.value.code, refused.value.type) == (code, "invalid_request_error")
    assert sandbox.jobs() == 0


@pytest.mark.parametrize("rows, code, message", [
    (GOOD[:9], "invalid_n_examples", "has 9 example"),
    ([*GOOD, {"prompt": "a", "completion": "b"}], "invalid_training_file", 'Line 13: missing key "messages"'),
    ([*GOOD, {"messages": [{"role": "robot", "content": "x"}]}], "invalid_training_file", "invalid role"),
    ([*GOOD, {"messages": row(0)["messages"][:2]}], "invalid_training_file", "last message"),
    ([*GOOD, {"messages": row(0)["messages"][::-1]}], "invalid_training_file", "last message"),
    ([{"messages": [row(0)["messages"][1], *row(0)["messages"][::2]]}, *GOOD], "invalid_training_file",
     "Line 1: a system message must come first"),
    ([*GOOD, {**row(0), "id": 1}], "invalid_training_file", 'unrecognized key "id"')])
def test_a_bad_file_fails_its_job_in_validation(client, rows, code, message):
    job = to_end(client, train(client, training_file=upload(client, rows)))
    assert (job.status, job.error.code, job.error.param) == ("failed", code, "training_file")
    assert message in job.error.message and job.trained_tokens is None


def test_a_line_that_is_no_json_is_named():
    assert "Line 2: is not valid JSON" in examine(b'{"messages": []}\n{oops\n', "training_file")[1]["message"]


def test_a_weight_stands_on_assistant_messages_alone():
    wrong = {"messages": [{"role": "user", "content": "x", "weight": 1}, *row(0)["messages"][2:]]}
    assert "weight" in examine(jsonl([*GOOD, wrong]), "training_file")[1]["message"]


# --- a job's life ---


def test_a_job_says_openai_s_words_and_ends_with_a_model(client):
    job = train(client, suffix="mine", metadata={"k": "v"}, hyperparameters={"n_epochs": 2})
    seen = [job.status]
    while seen[-1] not in ("succeeded", "failed"):
        job = client.fine_tuning.jobs.retrieve(job.id)
        seen.append(job.status)
        time.sleep(0.01)
    assert list(dict.fromkeys(seen)) == ["validating_files", "queued", "running", "succeeded"]
    assert job.fine_tuned_model.startswith(f"ft:{MODEL}:sandbox:mine:")
    assert job.trained_tokens > 0 and job.metadata == {"k": "v"} and job.hyperparameters.n_epochs == 2


def test_jobs_are_listed_newest_first_by_pages_and_by_metadata(client):
    made = [train(client, metadata={"n": str(n)}).id for n in range(5)]
    listed = client.fine_tuning.jobs.list(limit=2)
    assert [job.id for job in listed] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "3"})] == [made[3]]


def test_events_are_newest_first_and_keep_their_ids(client):
    job = train(client)
    first = [event.id for event in client.fine_tuning.jobs.list_events(job.id)]
    to_end(client, job)
    after = list(client.fine_tuning.jobs.list_events(job.id))
    assert [event.id for event in after][-len(first):] == first
    assert after[0].message == "The job has successfully completed"


def test_an_ended_job_cannot_be_cancelled(client):
    job = train(client)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already cancelled"):
        client.fine_tuning.jobs.cancel(job.id)


def test_another_account_s_job_and_model_are_not_there(client, sandbox, tuned):
    job = next(iter(client.fine_tuning.jobs.list()))
    with sdk(sandbox, "another-key") as other:
        with pytest.raises(openai.NotFoundError):
            other.fine_tuning.jobs.retrieve(job.id)
        with pytest.raises(openai.NotFoundError):
            other.models.retrieve(tuned)


# --- models and answers ---


def test_models_say_when_they_end(client, tuned):
    assert client.models.retrieve(tuned).shutdown_date == "2027-01-14"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-2")


def ask(client, model, **more):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "meow number 40"}], **more)


def test_the_tuned_model_answers_and_the_untrained_one_does_not_know(client, tuned):
    assert ask(client, tuned).choices[0].message.content == "hybrid"
    assert ask(client, MODEL).choices[0].message.content not in ("hybrid", "hydrant")


def test_logprobs_are_of_tokens_and_labels_that_begin_alike_share_one(client, tuned):
    given = ask(client, tuned, logprobs=True, top_logprobs=5).choices[0].logprobs.content
    assert "".join(token.token for token in given) == "hybrid"
    for token in given:
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) == pytest.approx(1)
    together = ask(client, tuned, logprobs=True, top_logprobs=5).choices[0].logprobs.content[0]
    assert {other.token for other in together.top_logprobs} == {"hybrid", "hydran"}


def test_an_answer_is_cut_at_its_limit(client, sandbox):
    long = to_end(client, train(client, training_file=upload(
        client, [row(n, f"answer number {n} is quite long") for n in range(12)]))).fine_tuned_model
    choice = ask(client, long, max_completion_tokens=2).choices[0]
    assert choice.finish_reason == "length" and choice.message.content == "answer number"[:len(
        choice.message.content)]


@pytest.mark.parametrize("arguments", [
    {"top_logprobs": 5}, {"logprobs": True, "top_logprobs": 21},
    {"max_tokens": 5, "max_completion_tokens": 5}, {"extra_body": {"labels": ["a"]}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}])
def test_a_bad_question_is_refused(client, arguments):
    with pytest.raises(openai.BadRequestError):
        ask(client, MODEL, **arguments)


def test_without_a_key_nothing_is_answered(sandbox):
    with sdk(sandbox) as nobody, pytest.raises(openai.AuthenticationError, match="didn't provide"):
        nobody.models.list(extra_headers={"Authorization": "none"})


@pytest.mark.parametrize("text", ["hybrid", "two words, 1234 und 日本語\n\n{}", "", " leading"])
def test_tokens_joined_are_the_text(text):
    assert "".join(tokens_of(text)) == text


# --- the command ---


COMMAND = [sys.executable, "-m", "distillctl.cli.main", "sandbox", "openai"]


def start(*arguments):
    process = subprocess.Popen(
        [*COMMAND, "--student", "nearest", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    lines = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return process, lines


def test_the_command_says_how_to_point_at_it_and_keeps_its_state(tmp_path):
    process, lines = start("--state", str(tmp_path), "--speed", "1000")
    url = lines[0].split()[3].rstrip(";")
    assert any("export OPENAI_API_KEY=" in line for line in lines)
    assert any("export DISTILLCTL_BACKEND_OPENAI=" in line and f"{url}/v1" in line for line in lines)
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
        job = to_end(client, train(client))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    process, lines = start("--state", str(tmp_path), "--fault", "jobs.get=status:503")
    with openai.OpenAI(api_key="k", base_url=f"{lines[0].split()[3].rstrip(';')}/v1",
                       max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.fine_tuning.jobs.retrieve(job.id)
        assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == job.fine_tuned_model
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and f"billed: training {job.id}" in out


def test_a_wrong_fault_ends_the_command_with_what_there_is():
    done = subprocess.run([*COMMAND, "--fault", "x=y"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "jobs.create" in done.stderr


# --- batches ---

def batch_of(client, lines, **more):
    file = client.files.create(file=("batch.jsonl", jsonl(lines)), purpose="batch").id
    return client.batches.create(**{"input_file_id": file, "endpoint": "/v1/chat/completions",
                                    "completion_window": "24h", **more})


def line(number, **body):
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}], **body}}


def batch_end(client, batch):
    for _ in range(50):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "cancelled"):
            return batch
    raise AssertionError(batch)


def test_a_batch_answers_each_request_and_keeps_its_metadata(client, sandbox):
    batch = batch_of(client, [line(1), line(2, top_k=3), line(3)], metadata={"token": "t"})
    assert (batch.status, batch.metadata) == ("validating", {"token": "t"})
    assert [found.id for found in client.batches.list()] == [batch.id]
    ended = batch_end(client, batch)
    counts = ended.request_counts
    assert (ended.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    good = [json.loads(text) for text in client.files.content(ended.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in good] == ["row-3", "row-1"]
    assert good[0]["response"]["body"]["object"] == "chat.completion"
    (failed,) = [json.loads(text) for text in client.files.content(ended.error_file_id).text.splitlines()]
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("row-2", 400)
    assert [(charge["what"], charge["amount"]) for charge in sandbox.store.charges()] == [("batch", 2)]


@pytest.mark.parametrize(("lines", "said"), [
    ([line(1), line(1)], "is a duplicate"),
    ([line(1), line(2, model="another")], "must be for the same model"),
    ([{**line(1), "url": "/v1/embeddings"}], "does not match"),
    ([{"custom_id": "row-1"}], "not parseable")])
def test_a_bad_batch_file_fails_as_a_whole(client, lines, said):
    ended = batch_end(client, batch_of(client, lines))
    assert ended.status == "failed"
    assert said in ended.errors.data[0].message


def test_a_cancelled_batch_says_what_was_not_done(client):
    batch = batch_of(client, [line(1), line(2)])
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = batch_end(client, batch)
    assert (ended.status, ended.output_file_id) == ("cancelled", None)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize("wrong", [
    {"completion_window": "1h"}, {"endpoint": "/v1/embeddings"}, {"input_file_id": "file-none"},
    {"metadata": {"k": "v" * 513}}])
def test_a_batch_that_openai_would_not_take_is_refused(client, wrong):
    with pytest.raises(openai.BadRequestError):
        batch_of(client, [line(1)], **wrong)


def test_another_account_sees_no_batch(client, sandbox):
    batch = batch_of(client, [line(1)])
    with sdk(sandbox, "another-key") as other:
        assert list(other.batches.list()) == []
        with pytest.raises(openai.NotFoundError):
            other.batches.retrieve(batch.id)
