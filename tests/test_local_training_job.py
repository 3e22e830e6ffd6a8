"""Local training jobs: a folder each, a trainer that may be killed anywhere, the same adapter at the end."""

from __future__ import annotations

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
from distillctl_local import process
from distillctl_local.backend import LocalBackend
from safetensors import safe_open
from support.tiny_models import save_tiny_model

from distillctl.backend import TERMINAL, BackendEnv, JobHandle, Snapshot, TrainJob
from distillctl.errors import BackendError
from distillctl.recipe.models import TrainSpec
from distillctl.store.files import digest_file, digest_tree, write_jsonl
from distillctl.testing.examples import example_job

TRAIN = TrainSpec(max_steps=6, batch_size=4, learning_rate=1e-2)
PATIENCE_S = 250


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


class Desk:
    """A backend in a folder with a job for it."""

    def __init__(self, folder: Path, model: str, train: TrainSpec = TRAIN, **settings: object) -> None:
        env = BackendEnv(folder / "workspace", lambda name: None, time.time)
        self.backend = LocalBackend(LocalBackend.Settings(
            **{"precision": "fp32", "threads": 1, "checkpoint_steps": 2, **settings}), env)
        self.job: TrainJob = example_job(folder, "classification", model, train)
        self.folder = folder
        self.seen: list[Snapshot] = []

    def submit(self, token: str = "one") -> JobHandle:
        return self.backend.submit(self.job, self.backend.stage(self.job), token)

    def jobs_folder(self, token: str = "one") -> Path:
        return self.folder / "workspace" / "jobs" / token

    def until(self, handle: JobHandle, *states: str) -> Snapshot:
        """Poll until the job is in one of `states`, or ended."""
        give_up = time.monotonic() + PATIENCE_S
        cursor = self.seen[-1].cursor if self.seen else None
        while True:
            self.seen.append(self.backend.poll(handle, cursor))
            cursor = self.seen[-1].cursor
            if self.seen[-1].state in TERMINAL | set(states):
                return self.seen[-1]
            assert time.monotonic() < give_up, self.seen[-1]
            time.sleep(0.05)

    def events(self) -> list[str]:
        return [event.message for snapshot in self.seen for event in snapshot.events]


@pytest.fixture
def desk(tmp_path: Path, model: str) -> Iterator[Desk]:
    desk = Desk(tmp_path, model)
    yield desk
    if desk.jobs_folder().exists():
        process.end(desk.jobs_folder())


def kill_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    monkeypatch.setenv("DISTILLCTL_CRASH_AT", point)


def succeed_though_killed_at(monkeypatch: pytest.MonkeyPatch, point: str, desk: Desk) -> None:
    """Let a desk's job succeed, its trainer killed once at a crash point; at "nowhere", not at all."""
    kill_at(monkeypatch, point)
    handle = desk.submit()
    while process.is_alive(desk.jobs_folder()):
        time.sleep(0.05)
    kill_at(monkeypatch, "nowhere")
    assert desk.until(handle).state == "succeeded", desk.events()


@pytest.fixture(scope="session")
def ended(model: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk whose job "one" was trained without anything in between."""
    desk = Desk(tmp_path_factory.mktemp("ended"), model)
    assert desk.until(desk.submit()).state == "succeeded", desk.events()
    return desk


class TestTraining:
    def test_the_student_is_an_adapter_without_paths_of_this_machine(self, ended: Desk, model: str,
                                                                     tmp_path: Path) -> None:
        (handle,) = ended.backend.find("one")
        student = ended.backend.collect(handle, tmp_path)
        assert sorted(student.files) == ["adapter_config.json", "adapter_model.safetensors"]
        assert (student.kind, student.model) == ("adapter", model)
        assert str(tmp_path.parent.parent) not in (tmp_path / "adapter_config.json").read_text()

    def test_the_curve_is_told_step_by_step(self, ended: Desk) -> None:
        curve = [event.data for snapshot in ended.seen for event in snapshot.events if "loss" in event.data]
        assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]
        assert {point["total_steps"] for point in curve} == {6}
        assert curve[-1]["loss"] < curve[0]["loss"]
        assert all(point["seconds_per_step"] > 0 for point in curve)

    def test_the_shared_prefix_changes_nothing_but_the_time(self, ended: Desk, tmp_path: Path,
                                                            model: str) -> None:
        whole = Desk(tmp_path, model, shared_prefix="off")
        assert whole.until(whole.submit()).state == "succeeded", whole.events()
        assert any("tokens, computed once a step" in message for message in ended.events())
        assert any("every row is computed whole" in message for message in whole.events())
        curves = [[event.data["loss"] for snapshot in desk.seen for event in snapshot.events
                   if "loss" in event.data] for desk in (ended, whole)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)

    def test_a_family_that_a_shared_prefix_does_not_suit_is_trained_without(self, tmp_path: Path) -> None:
        desk = Desk(tmp_path, str(save_tiny_model(tmp_path / "model", "stablelm")))
        assert desk.until(desk.submit()).state == "succeeded", desk.events()
        assert any("computed whole: stablelm does not compute as is known here" in message
                   for message in desk.events())

    def test_other_ways_of_lora_train_another_adapter(self, ended: Desk, tmp_path: Path, model: str) -> None:
        desk = Desk(tmp_path, model, rslora=True, lora_plus=4.0)
        assert desk.until(desk.submit()).state == "succeeded", desk.events()
        config = json.loads((desk.jobs_folder() / "result" / "adapter_config.json").read_text())
        assert config["use_rslora"] is True
        assert digest_tree(desk.jobs_folder() / "result") != digest_tree(ended.jobs_folder() / "result")

    def test_no_secret_reaches_the_trainer(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "canary-of-a-key")
        monkeypatch.setenv("HF_TOKEN", "canary-of-a-token")
        desk.submit()
        pid = int((desk.jobs_folder() / "pid").read_text())
        assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()

    def test_the_order_that_gpus_are_counted_in_reaches_the_trainer(self, desk: Desk,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
        """CUDA_VISIBLE_DEVICES names another GPU in another order."""
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        desk.submit()
        pid = int((desk.jobs_folder() / "pid").read_text())
        assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def test_a_row_that_is_too_long_fails_with_its_place(self, tmp_path: Path, model: str) -> None:
        desk = Desk(tmp_path, model, TRAIN.model_copy(update={"max_length": 60}))
        last = desk.until(desk.submit())
        assert last.state == "failed"
        assert "notes.jsonl:1:" in last.message
        assert "the limit is 60" in last.message

    def test_a_prefix_that_cannot_be_shared_is_refused_where_it_was_asked_for(self, tmp_path: Path,
                                                                              model: str) -> None:
        train = TRAIN.model_copy(update={"lora": TRAIN.lora.model_copy(update={"dropout": 0.1})})
        desk = Desk(tmp_path, model, train, shared_prefix="on")
        last = desk.until(desk.submit())
        assert last.state == "failed"
        assert "dropout" in last.message


class TestKilled:
    @pytest.mark.parametrize(("point", "steps"), [
        ("before-checkpoint-mark:2", [1, 2, 3, 4, 3, 4, 5, 6]), ("before-result", [1, 2, 3, 4, 5, 6])])
    def test_the_adapter_is_the_unkilled_one_to_the_byte(
            self, desk: Desk, point: str, steps: list[int], ended: Desk,
            monkeypatch: pytest.MonkeyPatch) -> None:
        succeed_though_killed_at(monkeypatch, point, desk)
        assert any("started again, 1 of 3" in message for message in desk.events())
        assert digest_tree(desk.jobs_folder() / "result") == digest_tree(ended.jobs_folder() / "result")
        assert [event.data["step"] for snapshot in desk.seen for event in snapshot.events
                if "loss" in event.data] == steps

    def test_so_is_that_of_a_trainer_killed_three_times_at_random(self, desk: Desk, ended: Desk) -> None:
        handle = desk.submit()
        killed = []
        for steps in ((0, 1, 2), (3, 4), (5,)):
            step, delay = random.choice(steps), random.uniform(0, 0.02)
            killed.append((step, delay))
            self.kill_after(desk, step, delay)
            assert desk.backend.poll(handle, None).raw == "restarted", killed
        assert desk.until(handle).state == "succeeded", (killed, desk.events())
        found, wanted = (digest_tree(there.jobs_folder() / "result") for there in (desk, ended))
        assert found == wanted, killed

    def kill_after(self, desk: Desk, step: int, delay: float) -> None:
        """SIGKILL the trainer soon after it told of a step; 0: of the beginning."""
        told = f'"step {step}"' if step else '"loading the model"'
        path = desk.jobs_folder() / "events.jsonl"
        while not (path.exists() and told in path.read_text()):
            assert process.is_alive(desk.jobs_folder()), step
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(int((desk.jobs_folder() / "pid").read_text()), signal.SIGKILL)
        while process.is_alive(desk.jobs_folder()):
            time.sleep(0.01)

    def test_so_is_that_of_an_adapter_on_the_upper_layers_alone(
            self, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        unkilled, killed = (Desk(tmp_path / name, model, layers=1) for name in ("unkilled", "killed"))
        succeed_though_killed_at(monkeypatch, "nowhere", unkilled)
        succeed_though_killed_at(monkeypatch, "before-checkpoint-mark:2", killed)
        assert any("1 layers below the adapter" in message for message in unkilled.events())
        results = [desk.jobs_folder() / "result" for desk in (unkilled, killed)]
        assert digest_tree(results[0]) == digest_tree(results[1])
        with safe_open(results[0] / "adapter_model.safetensors", "pt") as adapter:
            names = list(adapter.keys())
        assert names and all(".layers.1." in name for name in names)

    @pytest.mark.parametrize(("train", "settings", "point", "looks"), [
        ({"max_steps": 2, "batch_size": 4, "schedule": "constant"}, {}, "after-training", []),
        ({"max_steps": 2, "batch_size": 4, "schedule": "constant"},
         {"keep": "best", "devices": 2, "threads": 2}, "after-checkpoint", [2]),
        ({"epochs": 4, "batch_size": 24}, {"patience": 1}, "after-training", [1, 2]),
        ({"epochs": 4, "batch_size": 24}, {"patience": 1}, "after-checkpoint", [1, 2])])
    def test_one_killed_after_its_last_step_trains_no_further(
            self, tmp_path: Path, model: str, train: dict, settings: dict, point: str, looks: list[int],
            monkeypatch: pytest.MonkeyPatch) -> None:
        """At step 2: by max_steps, within an epoch of six; or as the second epoch brought nothing."""
        desk = Desk(tmp_path, model, TrainSpec(learning_rate=1e-9, **train), **settings)
        if looks:
            desk.job = replace(desk.job, dev_file=desk.job.train_file)
        succeed_though_killed_at(monkeypatch, point, desk)
        assert process.restarts(desk.jobs_folder()) == 1
        told = [event.data for snapshot in desk.seen for event in snapshot.events]
        assert [data["step"] for data in told if "loss" in data] == [1, 2]
        assert [data["step"] for data in told if "eval_score" in data] == looks
        result, last = (desk.jobs_folder() / folder / "adapter_model.safetensors"
                        for folder in ("result", "checkpoints/checkpoint-2"))
        assert digest_file(result) == digest_file(last)

    def test_a_trainer_that_nobody_looks_for_leaves_no_zombie(self, desk: Desk) -> None:
        desk.submit()
        pid = int((desk.jobs_folder() / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        give_up = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()

    def test_a_trainer_that_keeps_dying_is_given_up(self, tmp_path: Path, model: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
        kill_at(monkeypatch, "before-checkpoint-mark")
        desk = Desk(tmp_path, model, restarts=1)
        last = desk.until(desk.submit())
        assert (last.state, last.raw) == ("failed", "died")
        assert "died 2 times" in last.message

    def test_events_that_were_cut_off_are_not_told_twice(self, desk: Desk) -> None:
        desk.jobs_folder().mkdir(parents=True)
        from distillctl_local.trainer import Events

        path = desk.jobs_folder() / "events.jsonl"
        Events(path).tell("whole")
        with path.open("a") as file:
            file.write('{"key": "2", "mess')
        Events(path).tell("after")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(row["key"], row["message"]) for row in rows] == [("1", "whole"), ("2", "after")]


class TestJobs:
    def test_a_second_create_with_the_same_token_makes_no_second_job(self, desk: Desk) -> None:
        from distillctl.backend import Ambiguous

        first = desk.submit()
        with pytest.raises(Ambiguous):
            desk.submit()
        assert desk.backend.find("one") == [first]

    def test_a_job_that_was_created_but_not_started_is_started_by_a_poll(
            self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(process, "start", lambda folder, **_: False)  # as if killed before it
            handle = desk.submit()
        assert desk.backend.poll(handle, None).raw == "started"
        assert process.is_alive(desk.jobs_folder())
        assert process.restarts(desk.jobs_folder()) == 0

    def test_a_cancelled_job_ends_and_stays_so(self, desk: Desk) -> None:
        handle = desk.submit()
        desk.backend.cancel(handle)
        assert desk.until(handle).state == "cancelled"
        assert desk.backend.poll(handle, None).state == "cancelled"
        assert not process.is_alive(desk.jobs_folder())

    def test_the_trainer_outlives_the_process_that_started_it(self, desk: Desk) -> None:
        child = os.fork()
        if child == 0:
            desk.submit()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        (handle,) = desk.backend.find("one")
        assert desk.until(handle).state == "succeeded", desk.events()
        assert process.restarts(desk.jobs_folder()) == 0

    def test_an_adapter_that_was_changed_after_training_is_refused(self, ended: Desk, tmp_path: Path) -> None:
        shutil.copytree(ended.folder, tmp_path / "copy")
        copy = Desk(tmp_path / "copy", ended.job.model)
        with (copy.jobs_folder() / "result" / "adapter_model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(BackendError, match="changed after training"):
            copy.backend.collect(copy.backend.find("one")[0], tmp_path)

    def test_staged_rows_that_were_changed_are_staged_anew(self, desk: Desk) -> None:
        staged = desk.backend.stage(desk.job)
        path = desk.folder / "workspace" / "staged" / str(staged.data["folder"]) / "train.jsonl"
        path.write_text("{}\n")
        assert desk.backend.stage(desk.job) == staged
        assert digest_file(path) == desk.job.digest


def test_a_gpu_that_is_full_gets_smaller_micro_batches(model: str, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own error, raised where a GPU without room would raise it."""
    import torch
    from distillctl_local import sft
    from distillctl_local.adapter import add_adapter
    from distillctl_local.data import Row
    from distillctl_local.losses import next_token
    from distillctl_local.models import load_base, load_tokenizer
    from distillctl_local.prefix import accumulate
    from trl import SFTConfig

    tried: list[int] = []
    room = 64
    rows = [Row([*range(10, 40), number, 2], [number, 2]) for number in range(50, 54)]

    def full(base, rows, micro_tokens, *rest):
        tried.append(micro_tokens)
        found = accumulate(base, rows, micro_tokens, *rest)
        if micro_tokens > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    def train(micro_tokens: int) -> tuple[list[str], torch.Tensor]:
        base = load_base(model, dtype=torch.float32, device="cpu", attention="eager")
        adapted = add_adapter(base, TrainSpec(max_steps=2))
        said: list[str] = []
        config = SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=2, report_to="none",
            gradient_checkpointing=False, bf16=False, max_length=None, remove_unused_columns=False,
            use_cpu=True, save_strategy="no", disable_tqdm=True)
        sft.SharedPrefixTrainer(
            model=adapted, args=config, processing_class=load_tokenizer(model), rows=rows,
            micro_tokens=micro_tokens, loss=next_token, tell=said.append).train()
        return said, torch.cat([p.detach().flatten() for p in adapted.parameters() if p.requires_grad])

    monkeypatch.setattr(sft, "accumulate", full)
    said, weights = train(256)
    assert tried == [256, 128, 64, 64]
    assert [f"at most {tokens} tokens" in line for tokens, line in zip((128, 64), said, strict=True)] == [
        True, True]
    assert torch.equal(weights, train(64)[1])


def test_an_adapter_on_a_quantised_base_is_trained_in_fp32(tmp_path: Path) -> None:
    """TRL would make it bf16, in which small steps are rounded away. The base is called quantised as
    transformers calls one."""
    import torch
    from distillctl_local import sft
    from distillctl_local.adapter import add_adapter
    from distillctl_local.data import Row
    from distillctl_local.losses import next_token
    from support.tiny_models import tiny_model, tiny_tokenizer
    from trl import SFTConfig

    base = tiny_model("llama").to(torch.bfloat16)
    base.is_loaded_in_4bit = True
    student = add_adapter(base, TrainSpec(max_steps=1))
    config = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=1, max_steps=1, learning_rate=1e-5,
        report_to="none", gradient_checkpointing=False, bf16=False, max_length=None,
        remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True)
    sft.SharedPrefixTrainer(
        model=student, args=config, processing_class=tiny_tokenizer(), rows=[Row([*range(10, 40), 2], [2])],
        micro_tokens=64, loss=next_token, tell=print).train()
    assert {parameter.dtype for parameter in student.parameters() if parameter.requires_grad} == {
        torch.float32}


def test_a_file_of_rows_is_read_as_it_was_written(tmp_path: Path) -> None:
    from distillctl_local.data import encode_rows
    from distillctl_local.encode import Encoder
    from support.tiny_models import tiny_tokenizer

    write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "messages": [{"role": "user", "content": "hi"}],
                                           "completion": "yes", "source": "x.jsonl:1"}])
    (row,) = encode_rows(tmp_path / "rows.jsonl", Encoder(tiny_tokenizer()), 100)
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(row.ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    assert tokenizer.decode(row.completion) == "yes<|im_end|>"
