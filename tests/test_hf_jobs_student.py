"""What comes of an hf-jobs job: a sound adapter or model with its answers on this machine, or a refusal."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from distillctl_hf_jobs import bundle
from support.hf_jobs import KEY, backend, delivering, trained
from support.tiny_models import save_tiny_model

from distillctl.backend import JobHandle, Prompts
from distillctl.errors import BackendError, DistillctlError, StudentError
from distillctl.jobs import new_token
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.sandbox import part
from distillctl.sandbox.server import Sandbox
from distillctl.store.files import digest_file, digest_tree, read_jsonl, write_jsonl
from distillctl.testing.examples import example_job
from distillctl.types import Request


@pytest.fixture
def sandbox(tmp_path):
    with delivering(tmp_path / "provider") as sandbox:
        yield sandbox


def collected(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    handle = trained(ours, job)
    into = tmp_path / "into"
    into.mkdir()
    return ours.collect(handle, into), into


def test_a_student_comes_home_as_two_files(sandbox, tmp_path, job):
    student, into = collected(sandbox, tmp_path, job)
    assert (student.kind, student.model, student.path) == ("adapter", "smollm2-135m", ".")
    assert student.files == digest_tree(into)
    assert sorted(student.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert KEY not in json.dumps(student.as_json())


def test_more_files_in_the_repo_are_left_there(sandbox, tmp_path, job):
    sandbox.part.container.files["../../evil.py"] = b"boom"
    sandbox.part.container.result = {"files": {
        name: digest for name, digest in _digests(sandbox.part.container).items() if "evil" not in name}}
    _, into = collected(sandbox, tmp_path, job)
    assert sorted(path.name for path in into.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"]


def test_what_a_job_answered_comes_home_beside_the_adapter(sandbox, tmp_path, job):
    sandbox.part.container.files["answers.json"] = b"{}"
    student, into = collected(sandbox, tmp_path, job)
    assert student.path == "adapter" and student.files == digest_tree(into / "adapter")
    assert student.answers == {"answers.json": digest_file(into / "answers.json")}


def test_answers_are_asked_for_with_prompts_and_said_to_be_the_job_s(sandbox, tmp_path, job):
    prompts = tmp_path / "prompts.jsonl"
    write_jsonl(prompts, [{"id": "1", "split": "test", "messages": [{"role": "user", "content": "?"}]}])
    asked = replace(job, prompts=Prompts(prompts, digest_file(prompts), EvaluateSpec()))
    notes = "\n".join(backend(sandbox, tmp_path, answer=True).preflight(asked).notes)
    assert "their prompts go along, without what is expected, and latency is that of `l4x1`" in notes
    made = bundle.make_bundle(asked, "smollm2-135m", {}, False, tmp_path / "bundle")
    assert made.files["prompts.jsonl"] == prompts
    assert made.folder != bundle.make_bundle(job, "smollm2-135m", {}, False, tmp_path / "bundle").folder


@pytest.mark.parametrize("change", [
    {"files": {"adapter_model.safetensors": "sha256:0"}}, {"model": 7}, {"rows": "many"},
    {"folder": "../../outside", "model": "base/mine"}])
def test_a_result_that_does_not_fit_is_refused_and_leaves_nothing(sandbox, tmp_path, job, change):
    sandbox.part.container.result = change
    with pytest.raises(DistillctlError):
        collected(sandbox, tmp_path, job)
    assert list((tmp_path / "into").iterdir()) == []


def test_a_whole_model_that_a_job_trained_comes_home_and_answers(tmp_path):
    """With the real trainer, in what stands for a container."""
    model = str(save_tiny_model(tmp_path / "tiny"))
    job = example_job(tmp_path, "classification", model,
                      TrainSpec(max_steps=2, batch_size=4, learning_rate=1e-2, lora=None))
    with Sandbox(part("hf-jobs"), tmp_path / "provider", speed=None) as sandbox:
        ours = backend(sandbox, tmp_path, trainer={"threads": 1})
        handle = ours.submit(job, ours.stage(job), new_token())
        give_up = time.monotonic() + 250
        while (seen := ours.poll(handle, None)).state in ("queued", "running"):
            assert time.monotonic() < give_up, seen
            time.sleep(0.2)
        assert seen.state == "succeeded", seen
        into = tmp_path / "into"
        into.mkdir()
        student = ours.collect(handle, into)
    assert (student.kind, student.model, student.path) == ("model", model, ".")
    assert student.files == digest_tree(into) and "model.safetensors" in student.files
    (row, *_) = read_jsonl(job.train_file)
    with ours.open(student, into, job.task, EvaluateSpec()) as predictor:
        (answer,) = asyncio.run(predictor.answer([Request(row["id"], row["messages"])]))
    assert answer.output in job.task.labels


def test_a_student_that_is_neither_adapter_nor_model_is_refused(sandbox, tmp_path, job):
    sandbox.part.container.files = {"config.json": b"{}", "weights.npz": b"numbers"}
    with pytest.raises(StudentError, match="neither an adapter nor a model"):
        collected(sandbox, tmp_path, job)


def test_what_is_an_adapters_does_not_go_with_training_every_weight(sandbox, tmp_path, job):
    every = replace(job, train=TrainSpec(lora=None))
    found = backend(sandbox, tmp_path, trainer={"rslora": True, "bits": 4}).preflight(every)
    assert [problem.field for problem in found.problems] == [
        "backends.hf-jobs.trainer.rslora", "backends.hf-jobs.trainer.bits"]
    assert any("a tenth" in warning for warning in found.warnings)


def test_an_adapter_on_more_layers_than_there_are_is_a_problem(sandbox, tmp_path, job):
    found = backend(sandbox, tmp_path, trainer={"layers": 1000}).preflight(job)
    assert [problem.field for problem in found.problems] == ["backends.hf-jobs.trainer.layers"]


def test_a_pickle_under_the_name_of_weights_is_refused(sandbox, tmp_path, job):
    sandbox.part.container.files["adapter_model.safetensors"] = b"\x80\x04cos\nsystem\n"
    with pytest.raises(StudentError, match="no sound safetensors"):
        collected(sandbox, tmp_path, job)


def test_a_folder_of_another_workspace_is_named(sandbox, tmp_path, job):
    sandbox.part.container.result = {"model": "base/mine", "folder": "0" * 32}
    with pytest.raises(BackendError, match="folder of another workspace"):
        collected(sandbox, tmp_path, job)


def test_a_job_without_a_student_has_none_to_collect(sandbox, tmp_path, job):
    ours = backend(sandbox, tmp_path)
    handle = ours.submit(job, ours.stage(job), new_token())
    with pytest.raises(BackendError, match="no student"):
        ours.collect(handle, tmp_path)


@pytest.mark.parametrize("data", [{}, {"namespace": "../x"}, {"namespace": 5}])
def test_a_handle_that_names_no_namespace_is_lost(sandbox, tmp_path, data):
    handle = JobHandle("hf-jobs", "0" * 24, new_token(), data=data)
    assert backend(sandbox, tmp_path).poll(handle, None).state == "lost"


def _digests(delivery):
    return {name: "sha256:" + hashlib.sha256(data).hexdigest() for name, data in delivery.files.items()}


def test_the_job_s_program_refuses_rows_that_are_not_its_own(tmp_path, job):
    made = bundle.make_bundle(job, "smollm2-135m", {}, False, tmp_path / "bundle")
    folder = tmp_path / "mounted"
    folder.mkdir()
    for name, path in made.files.items():
        (folder / name).write_bytes(path.read_bytes())
    (folder / "train.jsonl").write_text("{}\n")
    done = subprocess.run([sys.executable, "-m", "distillctl_hf_jobs.job", str(folder), "--to", "a/b",
                           "--name", "x"], capture_output=True, text=True)
    assert done.returncode == 1 and "not those of this job" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
