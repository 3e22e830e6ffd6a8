"""Watching the dev split: the best epoch is kept, and training stops when nothing gets better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillctl_local import watch
from distillctl_local.adapter import add_adapter
from distillctl_local.encode import Encoder
from distillctl_local.models import load_base, load_tokenizer
from distillctl_local.watch import Watch, points
from support.tiny_models import save_tiny_model
from test_local_training_job import Desk, succeed_though_killed_at

from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.store.files import digest_tree, read_jsonl
from distillctl.testing.examples import example_job


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def adapted(model: str):
    base = load_base(model, dtype=torch.float32, device="cpu", attention="eager")
    return add_adapter(base, TrainSpec()), Encoder(load_tokenizer(model))


@pytest.mark.parametrize("kind", ["classification", "structured", "text"])
def test_every_kind_of_task_has_a_score(kind: str, model: str, tmp_path: Path) -> None:
    job = example_job(tmp_path, kind, model, TrainSpec())
    student, encoder = adapted(model)
    assert 0 <= points(student, encoder, job.task, list(read_jsonl(job.train_file))[:3], job.how) <= 3
    assert student.training


def test_it_is_asked_as_it_will_be(model: str, tmp_path: Path) -> None:
    """An untrained model that chooses a label is right by chance; one that writes freely is not."""
    job = example_job(tmp_path, "classification", model, TrainSpec())
    student, encoder = adapted(model)
    rows = list(read_jsonl(job.train_file))
    found = [points(student, encoder, job.task, rows, EvaluateSpec(generate=generate, max_tokens=4))
             for generate in (False, True)]
    assert found[0] > found[1] == 0


@pytest.fixture
def watched(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A watch whose scores are given, and its student, whose adapter is a number."""
    job = example_job(tmp_path, "classification", model, TrainSpec())
    job.train_file.rename(tmp_path / "dev.jsonl")
    student, encoder = adapted(model)

    def look(at: Watch, step: int, score: float) -> float:
        monkeypatch.setattr(watch, "points", lambda *given: score * len(given[3]))
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(step)
        return at.look(step)

    return student, look, lambda: Watch(tmp_path, student, encoder, job.task, job.how)


def weight(student: torch.nn.Module) -> float:
    return next(p for p in student.parameters() if p.requires_grad).flatten()[0].item()


def test_the_best_epoch_is_kept_and_of_equal_ones_the_later(watched) -> None:
    student, look, new = watched
    at = new()
    for step, score in ((2, 0.5), (4, 0.9), (6, 0.9), (8, 0.7)):
        look(at, step, score)
    at.restore_best()
    assert weight(student) == 6
    assert [at.epochs_in_vain(step) for step in (2, 4, 6, 8)] == [0, 0, 1, 2]


def test_going_on_from_an_earlier_step_finds_the_same_best(watched) -> None:
    student, look, new = watched
    first = new()
    for step, score in ((2, 0.5), (4, 0.9)):
        look(first, step, score)
    again = new()  # killed after epoch 4, resumed from before it
    assert again.epochs_in_vain(2) == 0
    for step, score in ((4, 0.9), (6, 0.8)):
        look(again, step, score)
    again.restore_best()
    assert weight(student) == 4


def watching(folder: Path, model: str, **settings: object) -> Desk:
    desk = Desk(folder, model, TrainSpec(epochs=4, batch_size=12, learning_rate=1e-2), **settings)
    desk.job = replace(desk.job, dev_file=desk.job.train_file)
    return desk


def test_a_killed_job_keeps_the_same_epoch(model: str, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name, point in (("unkilled", "nowhere"), ("killed", "after-checkpoint:3")):
        (tmp_path / name).mkdir()
        desk = watching(tmp_path / name, model, keep="best")
        succeed_though_killed_at(monkeypatch, point, desk)
        results.append(digest_tree(desk.jobs_folder() / "result"))
        scores = [event.data["eval_score"] for snapshot in desk.seen for event in snapshot.events
                  if "eval_score" in event.data]
        assert len(scores) == 4
    assert results[0] == results[1]


def test_training_stops_when_nothing_gets_better(model: str, tmp_path: Path) -> None:
    desk = watching(tmp_path, model, patience=1)
    desk.job = replace(desk.job, train=TrainSpec(epochs=6, batch_size=24, learning_rate=1e-9))
    assert desk.until(desk.submit()).state == "succeeded", desk.events()
    assert "stopped: no better for 1 epochs" in desk.events()
    assert sum("on the dev split" in message for message in desk.events()) == 2


def test_without_a_dev_split_it_is_a_problem_before_training(model: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, keep="best")
    assert [problem.what for problem in desk.backend.preflight(desk.job).problems] == [
        "there is no dev split to watch"]
