"""Several devices train as one would: two processes on a processor, over gloo. Nothing here needs a GPU, and
nothing shows how GPUs do with nccl."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distillctl_local import devices, preflight, process, shard
from distillctl_local.division import divide, in_step
from distillctl_local.losses import next_token
from distillctl_local.prefix import accumulate
from distillctl_local.preflight import Memory, linear_parameters
from distillctl_local.safety import WEIGHTS
from distillctl_local.settings import LocalSettings
from distillctl_local.sharing import share_prefixes
from safetensors.torch import load_file
from support.tiny_models import save_tiny_model
from test_local_training_job import Desk, succeed_though_killed_at
from test_local_training_prefix import adapted, assert_same, gradients, make_rows
from test_local_training_preflight import SMOLLM2

from distillctl.recipe.models import TrainSpec
from distillctl.store.files import digest_tree

# Batches of 23 rows and of 1, so that one of two devices has nothing to do in every second step.
TRAIN = TrainSpec(epochs=3, batch_size=23, learning_rate=1e-2)


class TestDivision:
    def tokens(self, part: list) -> int:
        return sum(row.rest for row in part) + sum(map(len, {tuple(row.ids[:row.prefix]) for row in part}))

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_every_row_is_in_one_part_and_no_part_has_much_more_tokens(self, count: int) -> None:
        rows = share_prefixes(make_rows(20, kinds=2), 20)
        parts = divide(rows, count)
        assert len(parts) == count
        assert sorted(row.ids for part in parts for row in part) == sorted(row.ids for row in rows)
        longest = max(row.prefix + row.rest for row in rows)
        assert max(map(self.tokens, parts)) <= sum(map(self.tokens, parts)) / count + longest

    def test_rows_of_a_prefix_stay_together_where_that_is_as_even(self) -> None:
        rows = share_prefixes(make_rows(12, shared=400, kinds=2), 12)
        assert [len({tuple(row.ids[:row.prefix]) for row in part}) for part in divide(rows, 2)] == [1, 1]

    def test_more_devices_than_rows_leave_some_without(self) -> None:
        assert sorted(map(len, divide(make_rows(2), 4))) == [0, 0, 1, 1]

    def test_gradients_of_the_parts_add_up_to_those_of_the_whole(self) -> None:
        rows = share_prefixes(make_rows(12, kinds=2), 12)
        wrapped, model = adapted("llama")
        loss = accumulate(model, rows, 100_000, next_token)
        wanted = gradients(wrapped)
        supervised = sum(len(row.completion) for row in rows)
        parts = [accumulate(model, part, 100_000, next_token, supervised) for part in divide(rows, 3)]
        assert sum(parts) == pytest.approx(loss, rel=1e-5)
        assert_same(gradients(wrapped), wanted)


class TestBeforeTraining:
    def examine(self, folder: Path, model: str, **settings: object):
        desk = Desk(folder, model, **{"device": "cpu", **settings})
        return desk.backend.preflight(desk.job)

    def test_plan_says_how_many_and_counts_the_memory_of_all(self, tmp_path: Path, model: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "cores", lambda: 8)
        one, four = (self.examine(tmp_path, model, devices=count) for count in (1, 4))
        assert four.problems == ()
        assert any("on the processor in 4 processes" in note for note in four.notes)
        assert [note for note in four.notes if "GiB of memory" in note] != [
            note for note in one.notes if "GiB of memory" in note]
        assert four.duration_s > one.duration_s
        assert "one process with all threads is as fast" in four.warnings[0]

    def test_more_than_there_are_cores_is_a_problem(self, tmp_path: Path, model: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "cores", lambda: 2)
        (problem,) = self.examine(tmp_path, model, devices=3).problems
        assert (problem.what, problem.field, problem.value) == (
            "there are 2 processor cores here", "backends.local.devices", 3)

    def test_more_than_there_are_gpus_is_a_problem(self, tmp_path: Path, model: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "gpus", lambda: 1)
        monkeypatch.setattr(preflight, "gpu_memory_available", lambda count: 2**40)
        (problem,) = self.examine(tmp_path, model, device="cuda", devices=2).problems
        assert problem.what == "there is 1 GPU here"

    def test_on_gpus_the_memory_is_that_of_each(self, tmp_path: Path, model: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "gpus", lambda: 4)
        monkeypatch.setattr(preflight, "gpu_memory_available", lambda count: 2**40)
        found = self.examine(tmp_path, model, device="cuda", devices=4)
        assert found.problems == found.warnings == ()
        assert any("on 4 GPUs" in note for note in found.notes)
        assert any("GiB of GPU memory on each" in note for note in found.notes)

    def test_a_batch_that_is_too_small_to_divide_is_told(self) -> None:
        settings = LocalSettings(device="cuda", devices=4)
        assert "a batch of 2 rows" in devices.warnings(settings, TrainSpec(batch_size=2))[0]

    @pytest.mark.parametrize(("seen", "count", "wanted"), [
        (None, 1, "0"), (None, 3, "0,1,2"), ("2,3,5", 2, "2,3"), ("2,3", 1, "2"), ("", 1, "")])
    def test_the_first_gpus_of_those_that_we_see_are_taken(self, seen: str | None, count: int, wanted: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if seen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        assert process.visible_gpus(count) == wanted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def on(count: int, folder: Path, model: str) -> Desk:
    desk = Desk(folder, model, TRAIN, devices=count, threads=count, keep="best")
    desk.job = replace(desk.job, dev_file=desk.job.train_file)
    return desk


def told(desk: Desk, what: str) -> list[float]:
    return [event.data[what] for snapshot in desk.seen for event in snapshot.events if what in event.data]


def weights(folder: Path) -> torch.Tensor:
    """All numbers of an adapter."""
    return torch.cat([part.flatten() for _, part in sorted(load_file(folder / WEIGHTS).items())])


@pytest.fixture(scope="module")
def ended(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Desk]:
    """The same job, trained on one device and on two."""
    desks = {count: on(count, tmp_path_factory.mktemp(f"on-{count}"), model) for count in (1, 2)}
    for desk in desks.values():
        assert desk.until(desk.submit()).state == "succeeded", desk.events()
    return desks


@pytest.fixture
def desk(tmp_path: Path, model: str) -> Iterator[Desk]:
    desk = on(2, tmp_path, model)
    yield desk
    if desk.jobs_folder().exists():
        process.end(desk.jobs_folder())


class TestTwoTrainAsOne:
    def test_with_the_same_curve_and_the_same_scores(self, ended: dict[int, Desk]) -> None:
        assert told(ended[2], "loss") == pytest.approx(told(ended[1], "loss"), rel=1e-5)
        assert told(ended[2], "step") == told(ended[1], "step")
        assert told(ended[2], "eval_score") == told(ended[1], "eval_score")
        assert any("on 2 × cpu" in message for message in ended[2].events())

    def test_to_the_same_adapter(self, ended: dict[int, Desk]) -> None:
        one, two = (weights(desk.jobs_folder() / "result") for desk in ended.values())
        assert_same(two, one)

    def test_and_one_of_them_tells_and_writes(self, ended: dict[int, Desk]) -> None:
        assert ended[2].events().count("loading the model") == 1
        (done,) = ended[2].backend.find("one")
        assert sorted(ended[2].backend.collect(done, ended[2].folder).files) == [
            "adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in Linux's /proc")
class TestKilled:
    def ranks(self, desk: Desk) -> dict[str, int]:
        """Process ids of a job's ranks, by their number."""
        launcher = (desk.jobs_folder() / "pid").read_text()
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                told = dict(line.split("=", 1) for line in path.read_text().split("\0") if "=" in line)
            except OSError:
                continue
            if told.get(process.LAUNCHER) == launcher and "RANK" in told:
                found[told["RANK"]] = int(path.parent.name)
        return found

    def wait_for(self, desk: Desk, step: int) -> None:
        path = desk.jobs_folder() / "events.jsonl"
        while not (path.exists() and f'"step {step}"' in path.read_text()):
            assert process.is_alive(desk.jobs_folder()), (desk.jobs_folder() / "trainer.log").read_text()
            time.sleep(0.01)

    def wait_for_the_end(self, desk: Desk) -> None:
        while process.is_alive(desk.jobs_folder()):
            time.sleep(0.05)
        assert self.ranks(desk) == {}

    def test_launcher_and_a_rank_the_adapter_is_the_unkilled_one_to_the_byte(
            self, desk: Desk, ended: dict[int, Desk]) -> None:
        handle = desk.submit()
        self.wait_for(desk, 2)
        assert sorted(self.ranks(desk)) == ["0", "1"]
        os.kill(int((desk.jobs_folder() / "pid").read_text()), signal.SIGKILL)
        self.wait_for_the_end(desk)
        assert desk.backend.poll(handle, None).raw == "restarted"
        self.wait_for(desk, 4)
        os.kill(self.ranks(desk)["1"], signal.SIGKILL)
        self.wait_for_the_end(desk)
        assert desk.until(handle).state == "succeeded", desk.events()
        assert any("started again, 2 of 3" in message for message in desk.events())
        found, wanted = (digest_tree(there.jobs_folder() / "result") for there in (desk, ended[2]))
        assert found == wanted

    def test_a_cancelled_job_leaves_no_rank(self, desk: Desk) -> None:
        handle = desk.submit()
        self.wait_for(desk, 1)
        desk.backend.cancel(handle)
        assert desk.until(handle).state == "cancelled"
        assert self.ranks(desk) == {}


def test_a_mistake_that_all_ranks_find_is_told_once_and_not_tried_again(tmp_path: Path, model: str) -> None:
    desk = Desk(tmp_path, model, TRAIN.model_copy(update={"max_length": 60}), devices=2)
    last = desk.until(desk.submit())
    assert (last.state, last.raw) == ("failed", "done")
    assert "the limit is 60" in last.message
    assert process.restarts(desk.jobs_folder()) == 0


def test_what_a_rank_failed_of_unforeseen_ends_the_log_and_the_job_can_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    assert process.start(tmp_path, devices=2)
    while process.is_alive(tmp_path):
        time.sleep(0.05)
    assert re.search(r"rank [01] of 2 was the first to fail: KeyError: 'train'\n$",
                     (tmp_path / "trainer.log").read_text())
    assert not (tmp_path / "done.json").exists()


def two_ranks(program: str, *arguments: str) -> list[list[str]]:
    """Run a program as two ranks; what each said, in a line "said|...|..."."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen([sys.executable, "-c", program, str(number), *arguments],
                              stdout=subprocess.PIPE, text=True, env=environment) for number in (0, 1)]
    outputs = [rank.communicate()[0] for rank in ranks]
    return [line.split("|")[1:] for output in outputs for line in output.splitlines()
            if line.startswith("said|")]


_FULL = '''
"""One of two ranks: RANK, a folder, and for each training the tokens for which the second one has room."""
import sys, torch
from distillctl.errors import BackendError
from distillctl.recipe.models import TrainSpec
from distillctl_local import sft
from distillctl_local.data import Row
from distillctl_local.losses import next_token
from distillctl_local.prefix import accumulate
from distillctl_local.ranks import Ranks
from distillctl_local.adapter import add_adapter
from support.tiny_models import tiny_model, tiny_tokenizer
from trl import SFTConfig

number, folder, rooms = int(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
ranks = Ranks(number, 2, {"RANK": str(number), "WORLD_SIZE": "2"})
ranks.meet("cpu")

def full(base, rows, micro_tokens, *rest):
    found = accumulate(base, rows, micro_tokens, *rest)
    if number == 1 and micro_tokens > room:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return found

sft.accumulate = full
config = SFTConfig(output_dir=folder, per_device_train_batch_size=4, max_steps=2, report_to="none",
                   gradient_checkpointing=False, bf16=False, max_length=None, remove_unused_columns=False,
                   use_cpu=True, save_strategy="no", disable_tqdm=True)
rows = [Row([*range(10, 40), number, 2], [number, 2]) for number in range(50, 54)]
for room in rooms:
    said = []
    trainer = sft.SharedPrefixTrainer(
        model=add_adapter(tiny_model("llama"), TrainSpec(max_steps=2)), args=config,
        processing_class=tiny_tokenizer(), rows=rows, micro_tokens=256, loss=next_token, tell=said.append,
        ranks=ranks)
    try:
        trainer.train()
        said.append("ended: trained")
    except BackendError as error:
        said.append(f"`{error.problems[0].field}`: {error.problems[0].what}")
    print("said", *said, sep="|")
'''


def test_where_one_rank_has_no_room_all_compute_less_at_once_or_all_end(tmp_path: Path) -> None:
    """With torch's own error, raised on one rank where a GPU without room would raise it."""
    said = two_ranks(_FULL, str(tmp_path), "64", "0")
    some_room = [*(f"at most {tokens} tokens at once from here on" for tokens in (128, 64)), "trained"]
    no_room = [*(f"at most {tokens} tokens at once from here on" for tokens in (128, 64, 32, 16)),
               "out of GPU memory with one row of 31 tokens at a time"]
    assert [[part.split(": ")[1].split(", ")[0] for part in parts] for parts in said] == [
        some_room, no_room, some_room, no_room]


_SHARDED = '''
"""One of two ranks: how far its gradients are from those with the whole base, what part of it it held, and
how many of its weights were whole when all layers had been computed."""
import sys, torch
from distillctl_local import lora
from distillctl_local.division import in_step
from distillctl_local.losses import next_token
from distillctl_local.prefix import accumulate, run
from distillctl_local.ranks import Ranks
from distillctl_local.readout import backbone
from distillctl_local.shard import shard
from distillctl_local.sharing import share_prefixes
from test_local_training_prefix import adapted, gradients, make_rows

number = int(sys.argv[1])
ranks = Ranks(number, 2, {"RANK": str(number), "WORLD_SIZE": "2"})
ranks.meet("cpu")
kinds = share_prefixes(make_rows(12, kinds=2), 12)
whole = make_rows(3, seed=9)
said = []
for family in ("llama", "qwen3", "gemma2", "phi3"):
    for rows in (kinds, whole, kinds + whole[:1]):
        wrapped, model = adapted(family)
        lora.fuse(wrapped)
        accumulate(model, rows, 60, next_token)
        wanted = gradients(wrapped)
        shard(model, "cpu", ranks)
        held = sum(p.to_local().numel() for p in model.parameters() if hasattr(p, "to_local"))
        of = sum(p.numel() for p in model.parameters() if hasattr(p, "to_local"))
        whole_ones = []
        def loss(logits, rows):
            whole_ones.append(sum(not (p.requires_grad or hasattr(p, "to_local"))
                                  for layer in backbone(model).layers for p in layer.parameters()))
            return next_token(logits, rows)
        for _ in range(2):
            run(model, in_step(rows, 2, 60)[number], loss, sum(len(row.completion) for row in rows))
            ranks.add_gradients([p for p in wrapped.parameters() if p.requires_grad])
            off = (gradients(wrapped) - wanted).norm() / wanted.norm()
            said.append(f"{off.item():.1e} {held / of:.2f} {max(whole_ones)}")
print("said", *said, sep="|")
'''


class TestADividedBase:
    def test_gives_the_gradients_of_the_whole_one_and_holds_no_layer_longer_than_it_computes(self) -> None:
        said = two_ranks(_SHARDED)
        assert [len(parts) for parts in said] == [24, 24]
        off, held, whole = zip(*(map(float, part.split()) for parts in said for part in parts), strict=True)
        assert max(off) < 1e-5
        assert (set(held), set(whole)) == ({0.5}, {0})

    def test_gives_the_adapter_of_the_whole_one_also_to_a_job_that_was_killed(
            self, tmp_path: Path, model: str, ended: dict[int, Desk],
            monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk(tmp_path, model, TRAIN, devices=2, threads=2, shard=True)
        succeed_though_killed_at(monkeypatch, "after-checkpoint:1", desk)
        assert process.restarts(desk.jobs_folder()) == 1
        assert told(desk, "loss") == pytest.approx(told(ended[1], "loss"), rel=1e-5)
        last = ended[1].jobs_folder() / "checkpoints" / "checkpoint-6"  # its result is the best epoch's
        assert_same(weights(desk.jobs_folder() / "result"), weights(last))

    def test_is_computed_in_equally_many_passes_by_every_device(self) -> None:
        rows = [*share_prefixes(make_rows(13, kinds=2), 13), *make_rows(1, seed=9)]
        plans = in_step(rows, 3, 60)
        shapes = [[(kind.prefix, len(kind.batches)) for kind in plan] for plan in plans]
        assert shapes[0] == shapes[1] == shapes[2]
        counted = [row for plan in plans for kind in plan for batch in kind.batches if batch.counts
                   for row in batch.rows]
        assert sorted(row.ids for row in counted) == sorted(row.ids for row in rows)

    def test_needs_less_memory_on_each_device(self) -> None:
        facts = replace(SMOLLM2, parameters=4 * SMOLLM2.parameters, layers=120)
        whole, half = (Memory(facts, TRAIN, 2, parts=parts).kept(0) for parts in (1, 2))
        assert whole - half == pytest.approx(2 * linear_parameters(facts) * (1 / 2 - 2 / 120))

    @pytest.mark.parametrize(("settings", "train", "why"), [
        ({"devices": 1}, {}, "one device"), ({}, {"lora": None}, "every weight"),
        ({"bits": 4}, {}, "quantised"), ({"keep": "best"}, {}, "dev split"),
        ({"patience": 1}, {}, "dev split"), ({"layers": 1}, {}, "without an adapter")])
    def test_is_refused_where_there_is_none(self, settings: dict, train: dict, why: str) -> None:
        asked = LocalSettings(**{"shard": True, "devices": 2, **settings})
        (problem,) = shard.problems(asked, TrainSpec(**train))
        assert (why in problem.what, problem.field) == (True, "backends.local.shard")
