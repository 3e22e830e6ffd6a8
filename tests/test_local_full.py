"""Full fine-tuning, `train.lora: null`: every weight is trained, and the student is a whole model."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillctl_local import process
from distillctl_local.backend import LocalBackend
from distillctl_local.encode import Encoder
from distillctl_local.losses import next_token
from distillctl_local.models import load_base, load_tokenizer
from distillctl_local.predictor import open_local
from distillctl_local.prefix import accumulate
from distillctl_local.scoring import plain_scores
from distillctl_local.sharing import share_prefixes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_models import FAMILIES, save_tiny_model, tiny_model
from test_local_training_job import Desk, succeed_though_killed_at
from test_local_training_prefix import assert_same, gradients, make_rows, reference

from distillctl.backend import StudentRef
from distillctl.errors import BackendError, StudentError
from distillctl.recipe.models import EvaluateSpec, TrainSpec
from distillctl.store.files import digest_tree, read_jsonl
from distillctl.types import Request

ALL = TrainSpec(max_steps=6, batch_size=4, learning_rate=1e-2, lora=None)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def ended(model: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk whose job "one" was trained without anything in between."""
    desk = Desk(tmp_path_factory.mktemp("ended"), model, ALL)
    assert desk.until(desk.submit()).state == "succeeded", desk.events()
    return desk


@pytest.fixture
def student(ended: Desk, tmp_path: Path) -> tuple[StudentRef, Path]:
    into = tmp_path / "student"
    into.mkdir()
    return ended.backend.collect(ended.backend.find("one")[0], into), into


class TestGradients:
    """Of every weight, with what all prompts begin with computed once."""

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("micro_tokens", [100_000, 50], ids=["at once", "in micro-batches"])
    def test_are_the_plain_ones(self, family: str, micro_tokens: int) -> None:
        rows = share_prefixes(make_rows(), 7)
        assert {row.prefix for row in rows} == {40}
        model = tiny_model(family).train()
        loss = reference(model, rows)
        wanted = gradients(model)
        assert accumulate(model, rows, micro_tokens, next_token) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(model), wanted)


class TestStudent:
    def test_is_a_whole_model_with_its_bases_tokenizer(self, student: tuple[StudentRef, Path],
                                                       model: str) -> None:
        ref, folder = student
        assert (ref.kind, ref.model, ref.path) == ("model", model, ".")
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(ref.files)
        assert ref.files == digest_tree(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (folder / name).read_bytes() == (Path(model) / name).read_bytes()

    def test_names_no_path_of_this_machine(self, student: tuple[StudentRef, Path], model: str) -> None:
        for path in student[1].glob("*.json"):
            assert str(Path(model).parent) not in path.read_text(), path.name

    def test_is_stored_in_fp32_with_tied_weights_once(self, student: tuple[StudentRef, Path]) -> None:
        with safe_open(student[1] / "model.safetensors", "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        loaded = load_base(str(student[1]), dtype="auto", device="cpu")
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight

    def test_every_weight_was_trained(self, student: tuple[StudentRef, Path], model: str) -> None:
        before, after = (load_base(name, dtype=torch.float32, device="cpu").state_dict()
                         for name in (model, str(student[1])))
        assert [name for name, weight in after.items() if torch.equal(weight, before[name])] == []

    @pytest.mark.parametrize("precision", ["auto", "bf16"])
    def test_answers_as_its_weights_do_whatever_the_hardware_is_fast_in(
            self, ended: Desk, student: tuple[StudentRef, Path], precision: str,
            monkeypatch: pytest.MonkeyPatch) -> None:
        """In fp32: rounded to bf16, weights that moved by less than half a step are the base's again."""
        monkeypatch.setattr("distillctl_local.hardware.cpu_computes_bf16", lambda: True)
        task, ref = ended.job.task, student[0]
        rows = list(read_jsonl(ended.job.train_file))[:4]
        with open_local(ref, student[1], task, EvaluateSpec(), precision=precision) as predictor:
            found = asyncio.run(predictor.answer([Request(row["id"], row["messages"]) for row in rows]))
        encoder = Encoder(load_tokenizer(ref.model))
        plain = load_base(str(student[1]), dtype=torch.float32, device="cpu")
        labels = [encoder.completion(task.target(label)) for label in task.labels]
        for row, answer in zip(rows, found, strict=True):
            wanted = plain_scores(plain, encoder.prompt(row["messages"]), labels).log_softmax(-1)
            assert list(answer.label_logprobs.values()) == pytest.approx(wanted.tolist(), abs=1e-4)

    def test_other_programs_stop_where_it_does(self, student: tuple[StudentRef, Path], model: str) -> None:
        made = json.loads((student[1] / "generation_config.json").read_text())
        assert made["eos_token_id"] == Encoder(load_tokenizer(model)).end_id
        assert not made.get("do_sample", False)

    def test_with_a_shared_prefix_is_the_one_without(self, ended: Desk, model: str, tmp_path: Path) -> None:
        whole = Desk(tmp_path, model, ALL, shared_prefix="off")
        assert whole.until(whole.submit()).state == "succeeded", whole.events()
        curves = [[event.data["loss"] for snapshot in desk.seen for event in snapshot.events
                   if "loss" in event.data] for desk in (ended, whole)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)
        assert curves[0][-1] < curves[0][0]

    def test_of_two_devices_is_that_of_one(self, ended: Desk, model: str, tmp_path: Path) -> None:
        two = Desk(tmp_path, model, ALL, devices=2, threads=2)
        assert two.until(two.submit()).state == "succeeded", two.events()
        found, wanted = (load_file(desk.jobs_folder() / "result" / "model.safetensors")
                         for desk in (two, ended))
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            assert (found[name] - weight).norm() < 1e-3 * weight.norm(), name

    def test_that_was_changed_after_training_is_not_collected(self, ended: Desk, tmp_path: Path) -> None:
        shutil.copytree(ended.folder, tmp_path / "copy")
        copy = Desk(tmp_path / "copy", ended.job.model, ALL)
        with (copy.jobs_folder() / "result" / "model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(BackendError, match="changed after training"):
            copy.backend.collect(copy.backend.find("one")[0], tmp_path)


class TestHostileFolder:
    @pytest.mark.parametrize(("name", "said"), [
        ("pytorch_model.bin", "pickle"), ("modeling.py", "code"), ("tokenizer.json", "not as it was"),
        ("model.safetensors", "not as it was")])
    def test_is_refused(self, student: tuple[StudentRef, Path], ended: Desk, name: str, said: str) -> None:
        ref, folder = student
        known = name in ref.files
        (folder / name).write_bytes(b"{}")
        if not known:  # as a job that was tampered with would list it
            ref = replace(ref, files=digest_tree(folder))
        with pytest.raises(StudentError, match=said), open_local(
                ref, folder, ended.job.task, EvaluateSpec()):
            pass

    def test_of_weights_that_are_no_numbers_is_refused(self, student: tuple[StudentRef, Path],
                                                       ended: Desk) -> None:
        ref, folder = student
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(StudentError, match="NaN"), open_local(
                replace(ref, files=digest_tree(folder)), folder, ended.job.task, EvaluateSpec()):
            pass


class TestKilled:
    @pytest.fixture
    def desk(self, tmp_path: Path, model: str) -> Iterator[Desk]:
        desk = Desk(tmp_path, model, ALL)
        yield desk
        if desk.jobs_folder().exists():
            process.end(desk.jobs_folder())

    def test_the_student_is_the_unkilled_one_to_the_byte(self, desk: Desk, ended: Desk) -> None:
        """SIGKILL at a random moment after a step."""
        handle = desk.submit()
        killed = random.randint(1, 5), random.uniform(0, 0.02)
        self.kill_after(desk, *killed)
        assert desk.backend.poll(handle, None).raw == "restarted", killed
        assert desk.until(handle).state == "succeeded", (killed, desk.events())
        found, wanted = (digest_tree(there.jobs_folder() / "result") for there in (desk, ended))
        assert found == wanted, killed

    def kill_after(self, desk: Desk, step: int, delay: float) -> None:
        path = desk.jobs_folder() / "events.jsonl"
        while not (path.exists() and f'"step {step}"' in path.read_text()):
            assert process.is_alive(desk.jobs_folder()), desk.events()
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(int((desk.jobs_folder() / "pid").read_text()), signal.SIGKILL)
        while process.is_alive(desk.jobs_folder()):
            time.sleep(0.01)

    def test_the_same_epoch_is_kept(self, model: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
        results = []
        for name, point in (("unkilled", "nowhere"), ("killed", "after-checkpoint:3")):
            (tmp_path / name).mkdir()
            train = TrainSpec(epochs=4, batch_size=12, learning_rate=1e-2, lora=None)
            desk = Desk(tmp_path / name, model, train, keep="best")
            desk.job = replace(desk.job, dev_file=desk.job.train_file)
            succeed_though_killed_at(monkeypatch, point, desk)
            results.append(digest_tree(desk.jobs_folder() / "result"))
            best = digest_tree(desk.jobs_folder() / "best")["model.safetensors"]
            assert results[-1]["model.safetensors"] == best
        assert results[0] == results[1]


def test_the_trainer_itself_refuses_what_is_an_adapters(model: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path, model, ALL, rslora=True, lora_plus=4.0)
    last = desk.until(desk.submit())
    assert last.state == "failed"
    assert "rslora" in last.message and "lora_plus" in last.message


class TestPreflight:
    def found(self, folder: Path, model: str, train: TrainSpec = ALL, **settings: object):
        desk = Desk(folder, model, train, **settings)
        return LocalBackend(LocalBackend.Settings(**{"device": "cpu", **settings}),
                            desk.backend._env).preflight(desk.job)

    def test_says_what_is_trained_in_what(self, tmp_path: Path, model: str) -> None:
        found = self.found(tmp_path, model, precision="auto")
        assert found.problems == ()
        assert any("every weight trained, in fp32" in note for note in found.notes)
        assert any("GiB on disk" in note for note in found.notes)

    def test_names_all_that_is_an_adapters_at_once(self, tmp_path: Path, model: str) -> None:
        found = self.found(tmp_path, model, layers=1, rslora=True, lora_plus=2.0, precision="bf16", bits=4,
                           engine="unsloth")
        assert [problem.field for problem in found.problems] == [
            f"backends.local.{name}"
            for name in ("layers", "rslora", "lora_plus", "precision", "bits", "engine")]

    @pytest.mark.parametrize(("rate", "told"), [(2e-4, True), (1e-4, False), (1e-5, False)])
    def test_warns_of_an_adapters_learning_rate(self, tmp_path: Path, model: str, rate: float,
                                                told: bool) -> None:
        found = self.found(tmp_path, model, ALL.model_copy(update={"learning_rate": rate}))
        assert any("a tenth" in warning for warning in found.warnings) == told
        adapter = self.found(tmp_path, model, TrainSpec(learning_rate=rate))
        assert adapter.warnings == ()

    def test_too_little_memory_is_a_problem_that_names_the_adapter(
            self, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from distillctl_local import preflight

        monkeypatch.setattr(preflight, "memory_available", lambda: 2**20)
        (problem,) = self.found(tmp_path, model).problems
        assert "GiB of memory" in problem.what and "train.lora.rank" in problem.hint
