"""The linear backend: what it learns, what it refuses, and what a kill leaves."""

import asyncio
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from distillctl_linear.backend import LinearBackend, LinearSettings
from distillctl_linear.model import FLOOR, LinearModel, fit
from safetensors.numpy import load_file, save_file

from distillctl import registry
from distillctl.backend import BackendEnv, Rejected, TrainJob
from distillctl.errors import MissingExtra, RecipeError, StudentError
from distillctl.recipe.load import load_recipe
from distillctl.recipe.models import ClassificationSpec, EvaluateSpec, TrainSpec
from distillctl.store.files import digest_file, digest_tree, read_json, read_jsonl, write_json, write_jsonl
from distillctl.task import build_task
from distillctl.testing.examples import example_job, example_requests
from distillctl.types import Request

RECIPES = Path(__file__).parents[1] / "recipes"


def backend_in(folder, **settings):
    env = BackendEnv(folder / "work", lambda name: None, lambda: 1e9)
    return LinearBackend(LinearSettings(**settings), env)


def job_of(folder, pairs, labels):
    """A job of (question, answer) pairs for a task with these labels."""
    task = build_task(ClassificationSpec(kind="classification", labels=labels,
                                         prompt="Sort this.\nQ: {{ q }}\nSort:"))
    write_jsonl(folder / "train.jsonl", [
        {"id": str(n), "messages": task.render({"q": q}), "completion": answer,
         "source": f"data.jsonl:{n + 1}"}
        for n, (q, answer) in enumerate(pairs)])
    return TrainJob("sort", task, TrainSpec(), "m", folder / "train.jsonl", None, len(pairs),
                    digest_file(folder / "train.jsonl"))


def trained(folder, job, **settings):
    """The student of a job: its reference and folder, and the backend."""
    backend = backend_in(folder, **settings)
    handle = backend.submit(job, backend.stage(job), "token")
    into = folder / "student"
    into.mkdir()
    return backend, backend.collect(handle, into), into


def answers(backend, student, into, job, requests):
    with backend.open(student, into, job.task, EvaluateSpec()) as predictor:
        return asyncio.run(predictor.answer(requests))


@pytest.fixture
def notes(tmp_path):
    return example_job(tmp_path, "classification", "m", TrainSpec())


def test_beats_the_majority_by_far_on_the_fixed_routing_split(tmp_path):
    """700 training rows; always saying the commonest label would be right on 58 of the 200 test rows."""
    task = load_recipe(RECIPES / "routing.yaml").task
    examples = {row["id"]: row for row in read_jsonl(RECIPES / "data/routing.jsonl")}
    said = {row["id"]: row["output"] for row in read_jsonl(RECIPES / "data/routing.teacher.jsonl")}
    split = read_json(RECIPES / "data/routing.fixed-split.json")
    write_jsonl(tmp_path / "train.jsonl", [
        {"id": name, "messages": task.render(examples[name]), "completion": said[name]}
        for name in split["train"]])
    job = TrainJob("routing", task, TrainSpec(), "m", tmp_path / "train.jsonl", None, 700,
                   digest_file(tmp_path / "train.jsonl"))
    requests = [Request(name, task.render(examples[name])) for name in split["test"]]
    given = answers(*trained(tmp_path, job), job, requests)
    right = sum(answer.output == examples[name]["expected_label"]
                for answer, name in zip(given, split["test"], strict=True))
    assert right / len(given) > 0.65


def test_the_same_rows_give_the_same_bytes(tmp_path, notes):
    _, one, _ = trained(tmp_path, notes)
    (tmp_path / "again").mkdir()
    _, two, _ = trained(tmp_path / "again", notes)
    assert one.files == two.files


def test_a_saved_model_answers_as_the_fitted_one(tmp_path, notes):
    rows = list(read_jsonl(notes.train_file))
    prompts = [row["messages"] for row in rows]
    model = fit(prompts, [row["completion"] for row in rows], c=10.0)
    model.save(tmp_path / "saved")
    again = LinearModel.load(tmp_path / "saved")
    np.testing.assert_allclose(again.log_probabilities(prompts, ["cat", "dog"]),
                               model.log_probabilities(prompts, ["cat", "dog"]), atol=1e-6)


def test_lines_of_the_template_are_no_features(tmp_path, notes):
    _, _, into = trained(tmp_path, notes)
    kept = read_json(into / "vocabulary.json")
    assert "Is this note about a cat or a dog?" in kept["template"]
    assert "this" not in kept["terms"][0]


def test_a_label_without_rows_keeps_a_tiny_probability(tmp_path):
    job = job_of(tmp_path, [("red apple", "a"), ("blue sky", "b")] * 3, ["a", "b", "never"])
    answer, = answers(*trained(tmp_path, job), job, [Request("1", job.task.render({"q": "red"}))])
    assert answer.label_logprobs["never"] == pytest.approx(math.log(FLOOR), abs=1e-6)


def test_three_labels_are_told_apart(tmp_path):
    pairs = [("red apple", "a"), ("blue sky", "b"), ("green frog", "c")]
    job = job_of(tmp_path, pairs * 3, ["a", "b", "c"])
    requests = [Request(q, job.task.render({"q": q})) for q, _ in pairs]
    assert [answer.output for answer in answers(*trained(tmp_path, job), job, requests)] == ["a", "b", "c"]


def test_a_higher_c_fits_closer(tmp_path, notes):
    requests = example_requests(notes.task)[:1]
    shares = []
    for c in (0.1, 100.0):
        folder = tmp_path / str(c)
        folder.mkdir()
        answer, = answers(*trained(folder, notes, c=c), notes, requests)
        shares.append(answer.label_logprobs["cat"])
    assert shares[0] < shares[1]


# --- what it refuses ------------------------------------------------------------------------------------


def test_one_label_alone_is_refused_before_training(tmp_path):
    job = job_of(tmp_path, [("red apple", "a"), ("blue sky", "a")], ["a", "b"])
    problem, = backend_in(tmp_path).preflight(job).problems
    assert "one label" in problem.what
    with pytest.raises(Rejected, match="one label"):
        backend_in(tmp_path).submit(job, backend_in(tmp_path).stage(job), "token")


def test_an_answer_that_is_no_label_is_refused_with_its_place(tmp_path):
    job = job_of(tmp_path, [("red apple", "a"), ("blue sky", "perhaps")], ["a", "b"])
    problem, = backend_in(tmp_path).preflight(job).problems
    assert (problem.where, problem.value) == ("data.jsonl:2", "perhaps")


def test_rows_that_differ_in_nothing_end_as_a_failed_job(tmp_path):
    job = job_of(tmp_path, [("same", "a"), ("same", "b")], ["a", "b"])
    backend = backend_in(tmp_path)
    seen = backend.poll(backend.submit(job, backend.stage(job), "token"), None)
    assert seen.state == "failed"
    assert seen.message


def test_a_missing_package_is_a_problem_before_anything_runs(tmp_path, notes, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    problem, = backend_in(tmp_path).preflight(notes).problems
    assert problem.hint == "pip install 'distillctl[linear]'"


def test_a_missing_package_is_named_when_a_student_is_opened(tmp_path, notes, monkeypatch):
    backend, student, into = trained(tmp_path, notes)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match="sklearn"), backend.open(
            student, into, notes.task, EvaluateSpec()):
        pass


@pytest.mark.parametrize("c", [0, -1, "10", float("inf"), True])
def test_a_penalty_that_is_none_is_refused(tmp_path, c):
    env = BackendEnv(tmp_path, lambda name: None, lambda: 0.0)
    with pytest.raises(RecipeError, match=r"backends\.linear\.c"):
        registry.open_backend("linear", {"c": c}, env)


def test_a_student_for_other_labels_is_refused(tmp_path, notes):
    backend, student, into = trained(tmp_path, notes)
    other = build_task(ClassificationSpec(kind="classification", labels=["cat", "bird"], prompt="{{ note }}"))
    with pytest.raises(StudentError, match="dog"), backend.open(student, into, other, EvaluateSpec()):
        pass


def _edit_weights(folder, change):
    arrays = load_file(folder / "weights.safetensors")
    change(arrays)
    save_file(arrays, folder / "weights.safetensors")


def _edit_words(folder, change):
    words = json.loads((folder / "vocabulary.json").read_text())
    change(words)
    write_json(folder / "vocabulary.json", words)


@pytest.mark.parametrize("damage", [
    lambda folder: _edit_weights(folder, lambda a: a["weights"].__setitem__((0, 0), np.nan)),
    lambda folder: _edit_weights(folder, lambda a: a.update(weights=a["weights"][:, :-1].copy())),
    lambda folder: _edit_weights(folder, lambda a: a.pop("idf.2")),
    lambda folder: _edit_words(folder, lambda w: w["terms"][0].pop()),
    lambda folder: _edit_words(folder, lambda w: w.update(terms=w["terms"] * 2)),
    lambda folder: _edit_words(folder, lambda w: w.update(format=2)),
    lambda folder: (folder / "vocabulary.json").write_text("[]"),
    lambda folder: (folder / "weights.safetensors").write_bytes(b"\x80\x04\x95pickle"),
], ids=["nan", "shape", "array", "term", "views", "format", "json", "pickle"])
def test_files_that_do_not_fit_together_are_refused(tmp_path, notes, damage):
    """Though the reference names them as they are."""
    backend, student, into = trained(tmp_path, notes)
    damage(into)
    student = dataclasses.replace(student, files=digest_tree(into))
    with pytest.raises(StudentError), backend.open(student, into, notes.task, EvaluateSpec()):
        pass


# --- kills ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from distillctl.recipe.models import TrainSpec
from distillctl.testing.examples import example_job
sys.path.insert(0, {tests!r})
from test_linear import backend_in
folder = Path({folder!r})
job = example_job(folder, "classification", "m", TrainSpec())
backend_in(folder).submit(job, backend_in(folder).stage(job), "token")
"""


@pytest.mark.parametrize("point", ["linear-training", "linear-trained"])
def test_a_killed_training_is_finished_by_the_next_look(tmp_path, notes, point):
    whole = tmp_path / "whole"
    whole.mkdir()
    _, expected, _ = trained(whole, notes)
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "DISTILLCTL_CRASH_AT": point},
                            capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    backend = backend_in(tmp_path)
    handle, = backend.find("token")
    assert backend.poll(handle, None).state == "succeeded"
    (tmp_path / "student").mkdir()
    assert backend.collect(handle, tmp_path / "student").files == expected.files


def test_a_killed_job_can_be_cancelled(tmp_path, notes):
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "DISTILLCTL_CRASH_AT": "linear-training"})
    backend = backend_in(tmp_path)
    handle, = backend.find("token")
    backend.cancel(handle)
    assert backend.poll(handle, None).state == "cancelled"


def test_submitting_a_token_again_gives_the_same_job(tmp_path, notes):
    backend = backend_in(tmp_path)
    staged = backend.stage(notes)
    assert backend.submit(notes, staged, "token") == backend.submit(notes, staged, "token")
    assert len(backend.find("token")) == 1
