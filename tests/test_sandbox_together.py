"""Together's sandbox refuses what Together refuses, in its shapes, to its own SDK."""

import math
import time
from pathlib import Path

import httpx
import pytest
import together
from support.chat_rows import GOOD, jsonl, row

from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.together_data import examine

MODEL = "Qwen/Qwen3-0.6B"


@pytest.fixture
def sandbox(tmp_path):
    with Sandbox(part("together"), tmp_path / "state", tuner="nearest", speed=None) as sandbox:
        yield sandbox


def sdk(sandbox, key="a-key"):
    return together.Together(api_key=key, base_url=sandbox.url, max_retries=0)


@pytest.fixture
def client(sandbox):
    with sdk(sandbox) as client:
        client.project_id = client.whoami().project.id
        yield client


def upload(client, folder, rows=GOOD, validated=True):
    path = Path(folder) / "rows.jsonl"
    path.write_bytes(jsonl(rows))
    file = client.files.upload(path)
    while validated and client.files.retrieve(file.id).processing_status in ("QUEUED", "RUNNING"):
        pass
    return file.id


@pytest.fixture
def file(client, tmp_path):
    return upload(client, tmp_path)


def train(client, file, **more):
    return client.fine_tuning.create(**{
        "model": MODEL, "training_file": file, "lora": True, "lora_r": 8, "train_on_inputs": False,
        "batch_size": 8, **more})


def to_end(client, job):
    for _ in range(200):
        seen = client.fine_tuning.retrieve(job.id)
        if seen.status in ("completed", "error", "cancelled"):
            return seen
        time.sleep(0.02)
    raise AssertionError(seen)


@pytest.fixture
def tuned(client, file):
    return to_end(client, train(client, file))


# --- files ---


def test_a_file_is_validated_after_its_upload_step_by_step(client, tmp_path):
    file = upload(client, tmp_path, validated=False)
    seen = [client.files.retrieve(file).processing_status for _ in range(3)]
    assert seen == ["QUEUED", "RUNNING", "COMPLETED"]
    report = client.files.retrieve(file).validation_report
    assert (report.valid, report.dataset_format, report.nlines) == (True, "CONVERSATION", 12)


def test_the_same_content_is_there_once(client, tmp_path):
    first = upload(client, tmp_path)
    with pytest.raises(together.lib.resources.files.FileAlreadyExistsError) as known:
        client.files.upload(tmp_path / "rows.jsonl", raise_if_already_exists=True)
    assert known.value.file_id == first


def test_storage_takes_only_what_was_announced_at_a_signed_address(sandbox, client, tmp_path):
    file = upload(client, tmp_path)
    secret = sandbox.store.get("file", file)["secret"]
    assert httpx.put(f"{sandbox.url}/storage/{file}", content=jsonl(GOOD)).status_code == 403
    assert httpx.put(f"{sandbox.url}/storage/{file}?signature={secret}", content=b"{}").status_code == 400


@pytest.mark.parametrize("rows, message", [
    ([*GOOD, {"question": "a"}], "line 13: could not detect a format"),
    ([*GOOD, {**row(0), "text": "a"}], "fit multiple formats"),
    ([*GOOD, {**row(0), "id": 1}], "extra column 'id'"),
    ([*GOOD, {"prompt": "a", "completion": "b"}], "same dataset format"),
    ([{"messages": [{"role": "robot", "content": "x"}]}], "line 1: found invalid role 'robot'"),
    ([{"messages": row(0)["messages"][:2]}], "last message must be from the assistant"),
    ([{"messages": [*row(0)["messages"][1:2] * 2, row(0)["messages"][2]]}], "'user' after 'user'"),
    ([{"messages": [row(0)["messages"][1], *row(0)["messages"][::2]]}], "'system' after 'user'"),
    ([{"messages": [row(0)["messages"][2]]}], "must start with a system or user message"),
    ([row(0) | {"messages": [{"role": "user", "content": ""}, row(0)["messages"][2]]}], "has no content")])
def test_a_bad_file_is_found_by_the_server(client, tmp_path, rows, message):
    file = client.files.retrieve(upload(client, tmp_path, rows))
    assert file.processing_status == "INVALID_FORMAT" and message in file.validation_report.error
    estimate = client.fine_tuning.estimate_price(training_file=file.id, model=MODEL)
    assert (estimate.estimation_available, estimate.unavailable_reason) == (False, "train_file_invalid")


@pytest.mark.parametrize("data, message", [(b"\xff", "UTF-8"), (b"{oops\n", "line 1: invalid JSON"),
                                           (b"[]\n", "expected a JSON object")])
def test_what_is_no_jsonl_is_named(data, message):
    assert message in examine(data).error


# --- create ---


@pytest.mark.parametrize("arguments, message", [
    ({"training_file": "file-nowhere"}, "not found"), ({"n_epochs": 21}, "n_epochs"),
    ({"learning_rate": 0.5}, "learning_rate"), ({"lora_r": 128}, "lora_r"), ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_trainable_modules": "experts"}, "lora_trainable_modules"), ({"suffix": "s" * 41}, "suffix"),
    ({"n_checkpoints": 0}, "n_checkpoints"), ({"random_seed": -1}, "random_seed")])
def test_a_bad_job_is_refused_and_not_made(client, sandbox, file, arguments, message):
    with pytest.raises(together.BadRequestError, match=message):
        train(client, file, **arguments)
    assert sandbox.jobs() == 0


def test_an_unknown_field_is_refused(client, sandbox, file):
    with pytest.raises(together.BadRequestError, match="Unknown field in the request: metadata"):
        client.post("/v1/fine-tunes", cast_to=httpx.Response, body={"training_file": file, "metadata": {}})


def test_an_unknown_model_has_no_limits(client):
    with pytest.raises(together.BadRequestError, match="gpt-2 is not supported"):
        client.fine_tuning.model_limits(model_name="gpt-2")


def test_a_file_must_be_validated_before_a_job_takes_it(client, sandbox, tmp_path):
    file = upload(client, tmp_path, validated=False)
    estimate = client.fine_tuning.estimate_price(training_file=file, model=MODEL)
    assert estimate.unavailable_reason == "train_file_not_validated"
    with pytest.raises(together.BadRequestError, match="not validated"):
        train(client, file)


# --- a job's life ---


def test_a_job_says_together_s_words_and_ends_with_a_model_and_a_bill(client, sandbox, file):
    job = train(client, file, suffix="mine", n_epochs=2)
    seen = [job.status]
    while seen[-1] != "completed":
        found = client.fine_tuning.retrieve(job.id)
        seen.append(found.status)
        time.sleep(0.01)
    assert list(dict.fromkeys(seen)) == ["pending", "queued", "running", "compressing", "uploading",
                                         "completed"]
    assert "Qwen3-0.6B-mine-" in found.x_model_output_name and found.api_model_object_id.startswith("ml_")
    (charge,) = sandbox.store.charges()
    estimate = client.fine_tuning.estimate_price(training_file=file, model=MODEL, n_epochs=2)
    assert found.total_price / 1e9 == pytest.approx(charge["amount"]) == estimate.estimated_total_price


def test_the_suffix_is_in_listings_alone(client, file):
    job = train(client, file, suffix="mine")
    assert [found.suffix for found in client.fine_tuning.list().data] == ["mine"]
    assert "suffix" not in client.fine_tuning.retrieve(job.id).to_dict()


def test_cancelling_takes_a_while_and_an_ended_job_cannot_be(client, file):
    job = train(client, file)
    assert client.fine_tuning.cancel(job.id).status == "cancel_requested"
    assert to_end(client, job).status == "cancelled"
    with pytest.raises(together.BadRequestError, match="already cancelled"):
        client.fine_tuning.cancel(job.id)
    assert [e.type for e in client.fine_tuning.list_events(job.id).data][-1] == "refund"


def test_another_account_s_job_model_and_project_are_not_there(client, sandbox, tuned):
    with sdk(sandbox, "another-key") as other:
        with pytest.raises(together.NotFoundError):
            other.fine_tuning.retrieve(tuned.id)
        with pytest.raises(together.PermissionDeniedError):
            other.models.retrieve(tuned.api_model_object_id, project_id=client.project_id)


# --- deployments and answers ---


def deploy(client, model, name="mine", **more):
    endpoint = client.endpoints.create(name=name)
    resource = f"projects/{client.project_id}/models/{model}"
    (config,) = client.models.configs.list(reference_model=client.models.retrieve(model).base_model)
    deployment = client.endpoints.deployments.create(endpoint.id, **{
        "name": name, "model": resource, "config": f"projects/{config.project_id}/configs/{config.id}",
        "autoscaling": {"min_replicas": 1, "max_replicas": 1}, "inactive_timeout": 30, **more})
    return endpoint, deployment


def ready(client, endpoint, deployment):
    while client.endpoints.deployments.retrieve(
            deployment.id, endpoint_id=endpoint.id).status.state != "DEPLOYMENT_STATE_READY":
        pass
    client.endpoints.update(endpoint.id, traffic_split=[{"deployment_id": deployment.id, "weight": 1.0}])


@pytest.fixture
def deployed(client, tuned):
    endpoint, deployment = deploy(client, tuned.api_model_object_id)
    ready(client, endpoint, deployment)
    return endpoint, deployment


def ask(client, model, **more):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "meow number 40"}], **more)


def test_the_tuned_model_answers_once_it_is_routed_to(client, tuned):
    endpoint, deployment = deploy(client, tuned.api_model_object_id)
    with pytest.raises(together.InternalServerError, match="No ready deployment"):
        ask(client, endpoint.name)
    ready(client, endpoint, deployment)
    assert ask(client, endpoint.name).choices[0].message.content == "hybrid"
    assert ask(client, deployment.name).choices[0].message.content == "hybrid"


def test_the_untrained_model_does_not_know(client, sandbox):
    (listed,) = client.models.list_supported(search=MODEL)
    profile = listed.deployment_profiles[0]
    endpoint = client.endpoints.create(name="base")
    deployment = client.endpoints.deployments.create(
        endpoint.id, name="base", model=profile.model, config=profile.config,
        autoscaling={"min_replicas": 1, "max_replicas": 1})
    ready(client, endpoint, deployment)
    assert ask(client, endpoint.name).choices[0].message.content not in ("hybrid", "hydrant")


def test_logprobs_are_lists_beside_the_tokens(client, deployed):
    given = ask(client, deployed[0].name, logprobs=5).choices[0].logprobs
    assert "".join(given.tokens) == "hybrid" and len(given.token_logprobs) == len(given.tokens)
    for alternatives in given.top_logprobs:
        assert sum(map(math.exp, alternatives.values())) == pytest.approx(1)


def test_an_answer_is_cut_at_its_limit(client, tmp_path):
    rows = [row(n, f"answer number {n} is quite long") for n in range(12)]
    tuned = to_end(client, train(client, upload(client, tmp_path, rows)))
    endpoint, deployment = deploy(client, tuned.api_model_object_id)
    ready(client, endpoint, deployment)
    choice = ask(client, endpoint.name, max_tokens=1).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "answer")


@pytest.mark.parametrize("arguments", [
    {"logprobs": 21}, {"max_tokens": 0}, {"extra_body": {"labels": ["a"]}},
    {"extra_body": {"logprobs": True}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}])
def test_a_bad_question_is_refused(client, deployed, arguments):
    with pytest.raises(together.BadRequestError):
        ask(client, deployed[0].name, **arguments)


@pytest.mark.parametrize("arguments, message", [
    ({"inactive_timeout": 29}, "inactiveTimeout"), ({"config": "projects/x/configs/y"}, "not compatible"),
    ({"autoscaling": {"min_replicas": 0, "max_replicas": 1}}, "minReplicas"),
    ({"name": "Not A Label"}, "name")])
def test_a_bad_deployment_is_refused(client, sandbox, tuned, arguments, message):
    with pytest.raises(together.BadRequestError, match=message):
        deploy(client, tuned.api_model_object_id, **arguments)
    assert sandbox.paid_servers() == 0


def test_endpoint_names_are_unique_in_a_project(client):
    client.endpoints.create(name="mine")
    with pytest.raises(together.ConflictError, match="already exists"):
        client.endpoints.create(name="mine")


def test_what_serves_cannot_be_deleted_before_it_was_stopped(client, sandbox, deployed):
    endpoint, deployment = deployed
    here = {"endpoint_id": endpoint.id}
    with pytest.raises(together.ConflictError, match="still has deployments"):
        client.endpoints.delete(endpoint.id)
    with pytest.raises(together.ConflictError, match="live traffic"):
        client.endpoints.deployments.delete(deployment.id, **here)
    client.endpoints.update(endpoint.id, update_mask="trafficSplit", traffic_split=[])
    with pytest.raises(together.ConflictError, match="not stopped"):
        client.endpoints.deployments.delete(deployment.id, **here)
    client.endpoints.deployments.update(deployment.id, **here,
                                        autoscaling={"min_replicas": 0, "max_replicas": 0})
    assert client.endpoints.deployments.retrieve(deployment.id, **here).status.state.endswith("STOPPING")
    client.endpoints.deployments.delete(deployment.id, **here)
    client.endpoints.delete(endpoint.id)
    assert [(charge["what"], charge["unit"]) for charge in sandbox.store.charges()] == [
        ("training", "USD"), ("serving", "minutes")]


def test_an_empty_split_without_a_mask_changes_nothing(client, deployed):
    endpoint, _ = deployed
    assert client.endpoints.update(endpoint.id, traffic_split=[]).traffic_split


def test_an_idle_deployment_stops_by_itself_and_is_billed_until_then(tmp_path):
    with Sandbox(part("together"), tmp_path, tuner="nearest", speed=100_000.0) as sandbox, sdk(
            sandbox) as client:
        client.project_id = client.whoami().project.id
        tuned = to_end(client, train(client, upload(client, tmp_path)))
        endpoint, deployment = deploy(client, tuned.api_model_object_id)
        until = time.monotonic() + 10
        while sandbox.paid_servers() and time.monotonic() < until:
            time.sleep(0.02)  # 30 of its minutes are 18 ms
        state = client.endpoints.deployments.retrieve(deployment.id, endpoint_id=endpoint.id).status.state
        assert state == "DEPLOYMENT_STATE_STOPPED"
        assert sandbox.store.charges()[-1]["amount"] >= 30


def test_everything_outlives_a_restart(tmp_path):
    for turn in range(2):
        with Sandbox(part("together"), tmp_path / "state", tuner="nearest", speed=None) as sandbox, sdk(
                sandbox) as client:
            client.project_id = client.whoami().project.id
            if turn == 0:
                tuned = to_end(client, train(client, upload(client, tmp_path)))
                endpoint, deployment = deploy(client, tuned.api_model_object_id)
                ready(client, endpoint, deployment)
            assert sandbox.paid_servers() == 1
            assert ask(client, endpoint.name).choices[0].message.content == "hybrid"


def test_without_a_key_nothing_is_answered(sandbox):
    with sdk(sandbox) as nobody, pytest.raises(together.AuthenticationError, match="Missing API key"):
        nobody.fine_tuning.list(extra_headers={"Authorization": "none"})
