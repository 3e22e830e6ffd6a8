"""What comes of a vertex job: an open model's weights on this machine, or Gemini's answers."""

import asyncio
import json
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from distillctl_vertex import storage, weights
from distillctl_vertex.backend import VertexBackend
from distillctl_vertex.predictor import GeminiPredictor
from distillctl_vertex.settings import VertexSettings
from support.tiny_students import tiny_base, tiny_student

from distillctl.backend import BackendEnv, Unreachable
from distillctl.errors import BackendError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.faults import Fault
from distillctl.sandbox.server import Sandbox
from distillctl.sandbox.vertex import FINAL, VertexPart
from distillctl.sandbox.wire import Refused, fingerprint
from distillctl.store.files import digest_tree, write_json
from distillctl.testing.examples import example_job, example_requests
from distillctl.types import CallFailed, Request

GEMINI, OPEN = "gemini-3.5-flash-lite", "meta/llama3_1@llama-3.1-8b-instruct"
TOKEN = "a-token-0123456789"


class Given:
    """A tuner whose students are the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def train(self, rows, epochs, into, report, stop: threading.Event) -> None:
        shutil.copytree(self._folder, into / "student")

    @contextmanager
    def open(self, student, schema):
        raise AssertionError("nobody asks this sandbox")
        yield


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"not really weights")
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "some/base"})
    return folder


@pytest.fixture
def sandbox(tmp_path, adapter):
    with Sandbox(part("vertex"), tmp_path / "provider", tuner=Given(adapter), speed=None) as sandbox:
        yield sandbox


def opened(sandbox, tmp_path, **more):
    settings = VertexSettings(**{
        "model": OPEN, "project": "sandbox-project", "bucket": "sandbox-bucket", "base_url": sandbox.url,
        "price": {"input": 0, "output": 0}, **more})
    return VertexBackend(settings, BackendEnv(tmp_path / "workspace", lambda name: TOKEN, time.time))


def trained(backend, tmp_path):
    job = example_job(tmp_path, "classification", "any", TrainSpec(epochs=1))
    handle = backend.submit(job, backend.stage(job), new_token())
    for _ in range(200):
        seen = backend.poll(handle, None)
        if seen.state in ("succeeded", "failed"):
            return job, handle, seen
        time.sleep(0.02)
    raise AssertionError(seen)


def put(sandbox, handle, name, data=b"bytes"):
    """An object in the job's output folder."""
    sandbox.part.put_object(fingerprint(TOKEN), f"distillctl/students/{handle.token}/{name}", data)


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


# --- weights ---


def test_an_open_model_s_adapter_comes_to_this_machine(sandbox, tmp_path, into, adapter):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    student = backend.collect(handle, into)
    assert (student.kind, student.model, student.path) == (
        "adapter", "meta-llama/Llama-3.1-8B-Instruct", ".")
    assert digest_tree(into) == digest_tree(adapter) == student.files


def test_what_came_is_kept_and_what_was_cut_off_is_fetched_again(sandbox, tmp_path, into):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    sandbox.add_fault(Fault("objects.download", "status", "503"))
    with pytest.raises(Unreachable):
        backend.collect(handle, into)
    (into / ".tmp-adapter_model.safetensors-1").write_bytes(b"left by a kill")
    backend.collect(handle, into)
    before = sandbox.store.requests()["objects.download"]
    assert backend.collect(handle, into).files == digest_tree(into)
    assert sandbox.store.requests()["objects.download"] == before == 3


@pytest.mark.parametrize("what", ["truncate", "drop_after"])
def test_a_download_that_breaks_leaves_no_half_a_file(sandbox, tmp_path, into, what):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    sandbox.add_fault(Fault("objects.download", what))
    with pytest.raises(Unreachable):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_other_bytes_than_were_listed_are_not_taken(sandbox, tmp_path, into, monkeypatch):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    read = type(sandbox.store).read_blob
    monkeypatch.setattr(type(sandbox.store), "read_blob", lambda self, name: read(self, name)[:-1] + b"!")
    with pytest.raises(Unreachable, match="damaged"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_a_whole_model_comes_without_its_pickles(sandbox, tmp_path, into):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    for name in ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                 "model.safetensors.index.json", "tokenizer.json", "pytorch_model.bin", "modeling.py",
                 "optimizer.pt", "training_args.bin"):
        put(sandbox, handle, f"{FINAL}/{name}")
    student = backend.collect(handle, into)
    assert student.kind == "model" and sorted(student.files) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json"]


def test_the_final_checkpoint_is_taken_among_others(sandbox, tmp_path, into):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        put(sandbox, handle, f"postprocess/node-0/checkpoints/1/{name}", b"{}")
    backend.collect(handle, into)
    assert (into / "adapter_model.safetensors").read_bytes() == b"not really weights"


@pytest.mark.parametrize("name", ["../escaped.safetensors", "a/../../escaped", "/etc/escaped", "a\\..\\b",
                                  f"{FINAL}/../../../../x"])
def test_a_name_that_leaves_its_folder_ends_the_fetching(sandbox, tmp_path, into, name):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    put(sandbox, handle, name)
    before = set(tmp_path.iterdir())
    with pytest.raises(BackendError, match="leaves its folder"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == [] and set(tmp_path.iterdir()) == before


def test_more_bytes_than_were_listed_are_not_written(sandbox, tmp_path, into, monkeypatch):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    read = type(sandbox.store).read_blob
    monkeypatch.setattr(type(sandbox.store), "read_blob", lambda self, name: read(self, name) * 1000)
    with pytest.raises(Unreachable, match="that were listed"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_names_that_differ_in_capitals_alone_are_refused(sandbox, tmp_path, into):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    for name in ("config.json", "model.safetensors", "Model.safetensors"):
        put(sandbox, handle, f"{FINAL}/{name}")
    with pytest.raises(BackendError, match="capitals"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_a_file_beside_the_weights_that_would_fill_the_memory_is_refused(sandbox, tmp_path, into,
                                                                         monkeypatch):
    monkeypatch.setattr(weights, "_MOST_BESIDE", 10)
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    with pytest.raises(BackendError, match=r"no such file of a student(?s:.*)adapter_config"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_a_student_that_the_disk_has_no_room_for_is_not_begun(sandbox, tmp_path, into, monkeypatch):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    full = shutil.disk_usage(into)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(BackendError, match="GiB are free"):
        backend.collect(handle, into)
    assert list(into.iterdir()) == []


def test_objects_without_end_are_not_listed_to_the_end(sandbox, tmp_path, into, monkeypatch):
    monkeypatch.setattr(storage, "_MOST_OBJECTS", 2)
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    put(sandbox, handle, "one-more")
    with pytest.raises(BackendError, match="more than 2 objects"):
        backend.collect(handle, into)


@pytest.mark.parametrize("named", ["/etc", "../../models/base", "~/base", "one-part", 7])
def test_an_adapter_names_no_folder_of_this_machine_as_its_base(tmp_path, named):
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": named})
    assert weights.base_named(tmp_path) is None


def test_a_folder_of_pickles_is_no_student(sandbox, tmp_path, into):
    backend = opened(sandbox, tmp_path)
    _, handle, _ = trained(backend, tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        sandbox.store.delete(
            "object", f"{fingerprint(TOKEN)}/distillctl/students/{handle.token}/{FINAL}/{name}")
    put(sandbox, handle, f"{FINAL}/pytorch_model.bin")
    with pytest.raises(BackendError, match="holds no student"):
        backend.collect(handle, into)


def test_a_fetched_student_answers_here_and_asks_nobody(tmp_path, into):
    base = tiny_base(tmp_path / "base")
    tiny_student(base, tmp_path / "tuned")
    with Sandbox(part("vertex"), tmp_path / "provider", tuner=Given(tmp_path / "tuned"),
                 speed=None) as sandbox:
        backend = opened(sandbox, tmp_path, hub_model=base.model)
        job, handle, _ = trained(backend, tmp_path)
        student = backend.collect(handle, into)
        with backend.open(student, into, job.task, EvaluateSpec()) as predictor:
            answers = asyncio.run(predictor.answer(example_requests(job.task)))
        assert {answer.output for answer in answers} <= set(job.task.labels)
        assert "generate" not in sandbox.store.requests()


def test_a_rehearsal_without_weights_fails_the_job_and_says_so(tmp_path):
    with Sandbox(part("vertex"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        _, _, seen = trained(opened(sandbox, tmp_path), tmp_path)
    assert seen.state == "failed" and "--student local" in seen.message


# --- answers ---


@pytest.fixture
def gemini(tmp_path):
    with Sandbox(part("vertex"), tmp_path / "provider", tuner="nearest", speed=None) as sandbox:
        yield sandbox


def ask(sandbox, tmp_path, prompt="purring kitten", labels=("cat", "dog"), how=None, **more):
    """What the tuned model says to a prompt, asked as the collection asks: again after a passing failure."""
    backend = opened(sandbox, tmp_path, model=GEMINI, **more)
    job, handle, _ = trained(backend, tmp_path)
    student = backend.collect(handle, tmp_path)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": prompt}]
    with backend.open(student, tmp_path, job.task, how or EvaluateSpec()) as predictor:
        return asyncio.run(_ask(predictor, Request("one", messages)))


async def _ask(predictor: GeminiPredictor, request):
    try:
        for last in (False, False, True):
            try:
                return (await predictor.answer([request]))[0]
            except CallFailed as failed:
                if last or failed.kind != "transient":
                    raise
    finally:
        await predictor.aclose()


def test_the_tuned_model_answers_with_label_probabilities_and_tokens(gemini, tmp_path):
    answer = ask(gemini, tmp_path, price={"input": 1e6, "output": 0})
    assert answer.output == "cat" and answer.label_logprobs["cat"] > answer.label_logprobs["dog"]
    assert answer.model == GEMINI and answer.tokens_out == 1
    assert answer.cost_usd == answer.tokens_in > 0


def test_an_answer_that_is_cut_says_so(gemini, tmp_path, monkeypatch):
    monkeypatch.setattr("distillctl.sandbox.vertex.tokens_of", list)  # a letter is a token
    answer = ask(gemini, tmp_path, how=EvaluateSpec(max_tokens=2))
    assert (answer.output, answer.finish) == ("ca", "length")


@pytest.mark.parametrize("word, kept", [("responseLogprobs", False), ("thinkingConfig", True)])
def test_a_model_that_lacks_an_option_is_asked_without(gemini, tmp_path, monkeypatch, word, kept):
    generate = VertexPart._generate

    def refuse(self, call, base, job):
        if word in json.loads(call.body)["generationConfig"]:
            raise Refused(400, "Logprobs is not enabled." if not kept else "Thinking is not supported.")
        return generate(self, call, base, job)
    monkeypatch.setattr(VertexPart, "_generate", refuse)
    answer = ask(gemini, tmp_path)
    assert answer.output == "cat" and (answer.label_logprobs is not None) == kept


@pytest.mark.parametrize("reply, finish", [
    ({"promptFeedback": {"blockReason": "SAFETY"}}, "refusal"),
    ({"candidates": [{"finishReason": "PROHIBITED_CONTENT"}]}, "refusal"),
    ({"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]}, "empty"),
    ({"candidates": [{"content": {"parts": [{"text": "hm", "thought": True}, {"text": "dog"}]},
                      "finishReason": "STOP"}]}, "stop")])
def test_blocked_and_empty_answers_are_told_apart(gemini, tmp_path, monkeypatch, reply, finish):
    monkeypatch.setattr(VertexPart, "_generate", lambda *_: reply)
    answer = ask(gemini, tmp_path)
    assert answer.finish == finish and answer.output in (None, "dog")


@pytest.mark.parametrize("status, kind", [("429", "rate_limited"), ("403", "auth"), ("404", "setup")])
def test_a_refused_question_is_classified(gemini, tmp_path, status, kind):
    gemini.add_fault(Fault("generate", "status", status))
    with pytest.raises(CallFailed) as failed:
        ask(gemini, tmp_path)
    assert failed.value.kind == kind
