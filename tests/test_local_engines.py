"""Which engine trains, what Unsloth is told, and who is told of the curve. Unsloth itself needs a GPU."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from distillctl_local import engines, hardware, models, tracking, unsloth_engine
from distillctl_local.backend import LocalBackend
from distillctl_local.data import Row
from distillctl_local.engines import choose_engine
from distillctl_local.settings import LocalSettings
from support.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer

from distillctl.backend import TERMINAL, BackendEnv
from distillctl.errors import UsageError
from distillctl.recipe.models import LoraSpec, TrainSpec
from distillctl.testing.examples import example_job


@pytest.fixture
def gpu_with_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has both."""
    monkeypatch.setattr(hardware, "_gpus_there", lambda: 1)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class TestChoice:
    def test_without_a_gpu_it_is_peft(self, gpu_with_unsloth: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hardware, "_gpus_there", lambda: 0)
        assert choose_engine(LocalSettings(), TrainSpec(), 1.0) == (
            "peft", "there is no GPU, which Unsloth needs")

    def test_a_gpu_that_is_hidden_is_none(self, gpu_with_unsloth: None,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert choose_engine(LocalSettings(), TrainSpec(), 1.0)[0] == "peft"

    def test_without_unsloth_it_is_peft(self, gpu_with_unsloth: None,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "find_spec", lambda name: None)
        assert choose_engine(LocalSettings(), TrainSpec(), 1.0) == ("peft", "Unsloth is not installed")

    @pytest.mark.parametrize(("ratio", "engine"), [(1.3, "unsloth"), (None, "unsloth"), (4.0, "peft")])
    def test_it_is_peft_where_sharing_saves_more_than_kernels(self, gpu_with_unsloth: None,
                                                              ratio: float | None, engine: str) -> None:
        assert choose_engine(LocalSettings(), TrainSpec(), ratio)[0] == engine

    @pytest.mark.parametrize("setting", [{"keep": "best"}, {"learn": "choice"}, {"lora_plus": 4.0},
                                         {"devices": 2}, {"patience": 2}, {"precision": "fp32"},
                                         {"shared_prefix": "on"}, {"layers": 1}])
    def test_a_setting_that_unsloth_does_not_know_keeps_peft(self, gpu_with_unsloth: None,
                                                             setting: dict[str, object]) -> None:
        engine, why = choose_engine(LocalSettings(**setting), TrainSpec(), 1.0)
        assert (engine, why.startswith("Unsloth does not know")) == ("peft", True)
        (problem,) = engines.why_not_unsloth(LocalSettings(engine="unsloth", **setting))
        assert next(iter(setting)) in problem.what

    def test_every_weight_is_trained_by_our_own_trainer(self, gpu_with_unsloth: None) -> None:
        engine, why = choose_engine(LocalSettings(), TrainSpec(lora=None), 1.0)
        assert (engine, "adapters alone" in why) == ("peft", True)

    def test_what_the_recipe_says_holds(self, gpu_with_unsloth: None) -> None:
        assert choose_engine(LocalSettings(engine="unsloth"), TrainSpec(), 9.0)[0] == "unsloth"
        assert choose_engine(LocalSettings(engine="peft"), TrainSpec(), 1.0)[0] == "peft"
        assert engines.why_not_unsloth(LocalSettings(engine="unsloth")) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def backend(folder: Path, offline: bool = False, **settings: object) -> LocalBackend:
    env = BackendEnv(folder / "workspace", lambda name: None, time.time, offline)
    return LocalBackend(LocalSettings(device="cpu", **settings), env)


class TestRefusals:
    @pytest.mark.skipif(engines.has_gpu(), reason="says what is said where there is no GPU")
    def test_unsloth_where_it_cannot_run(self, tmp_path: Path, model: str) -> None:
        job = example_job(tmp_path, "classification", model, TrainSpec())
        problems = backend(tmp_path, engine="unsloth").preflight(job).problems
        assert {problem.field for problem in problems} == {"backends.local.engine"}
        assert "NVIDIA GPU" in problems[0].what
        assert "engine: peft" in problems[0].hint
        assert "distillctl[unsloth]" in problems[1].hint

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantised_weights_on_a_processor(self, tmp_path: Path, model: str, bits: int) -> None:
        job = example_job(tmp_path, "classification", model, TrainSpec())
        (problem,) = backend(tmp_path, bits=bits).preflight(job).problems
        assert (problem.field, problem.value) == ("backends.local.bits", bits)
        assert "NVIDIA GPUs" in problem.what

    def test_the_plan_says_which_engine_and_why(self, tmp_path: Path, model: str) -> None:
        job = example_job(tmp_path, "classification", model, TrainSpec())
        note = backend(tmp_path).preflight(job).notes[0]
        assert "transformers, PEFT and TRL on the processor (there is no GPU" in note


class TestWhatUnslothIsTold:
    def test_qlora_as_in_the_lesson(self) -> None:
        spec = TrainSpec(lora=LoraSpec(rank=16, alpha=16), seed=5)
        told = unsloth_engine.model_arguments(Path("/base"), 2048, spec, LocalSettings())
        assert (told["load_in_4bit"], told["load_in_8bit"], told["load_in_16bit"]) == (True, False, False)
        assert (told["model_name"], told["max_seq_length"], told["random_state"]) == ("/base", 2048, 5)
        assert told["trust_remote_code"] is False
        adapter = unsloth_engine.adapter_arguments(spec, LocalSettings())
        assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (16, 16, 0)
        assert len(adapter["target_modules"]) == 7
        assert adapter["use_gradient_checkpointing"] == "unsloth"

    def test_other_bits(self) -> None:
        told = unsloth_engine.model_arguments(Path("/base"), 64, TrainSpec(), LocalSettings(bits=16))
        assert (told["load_in_4bit"], told["load_in_16bit"]) == (False, True)

    @pytest.mark.parametrize(("batch", "rows"), [(16, 4), (6, 3), (2, 2), (7, 1)])
    def test_micro_batches_make_the_whole_batch(self, batch: int, rows: int) -> None:
        assert unsloth_engine.fitting_rows(batch) == rows
        told = unsloth_engine.trainer_arguments(TrainSpec(batch_size=batch), rows)
        assert told["per_device_train_batch_size"] * told["gradient_accumulation_steps"] == batch

    def test_its_module_imports_nothing_that_it_must_come_before(self) -> None:
        """Unsloth patches transformers, PEFT and TRL; what was imported before stays as it was."""
        code = ("import sys, distillctl_local.trainer, distillctl_local.unsloth_engine\n"
                "print(*{'torch', 'transformers', 'peft', 'trl'} & set(sys.modules))")
        import subprocess

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout.split()) == (0, []), done.stderr

    @pytest.mark.parametrize(("step", "epochs"), [(3, 3), (9, 0)])
    def test_one_that_was_killed_after_its_last_step_makes_no_other(self, step: int, epochs: int,
                                                                    tmp_path: Path) -> None:
        from transformers import TrainerState

        TrainerState(global_step=step, max_steps=9).save_to_json(str(tmp_path / "trainer_state.json"))
        made = []

        class Trainer:
            def __init__(self, _: int) -> None:
                self.args = SimpleNamespace(max_steps=-1, num_train_epochs=3)
                made.append(self)

            def train(self, resume_from_checkpoint: str | None) -> None:
                assert resume_from_checkpoint == str(tmp_path)

        unsloth_engine.fit(tiny_model("llama"), Trainer, 16, lambda: tmp_path, print)
        assert made[0].args.num_train_epochs == epochs

    def test_fewer_rows_at_once_where_memory_is_short(self, tmp_path: Path) -> None:
        import torch
        from transformers import TrainerState

        TrainerState(global_step=3, max_steps=9).save_to_json(str(tmp_path / "trainer_state.json"))
        tried, said = [], []

        class Trainer:
            def __init__(self, rows: int) -> None:
                self.rows = rows

            def train(self, resume_from_checkpoint: str | None) -> None:
                tried.append((self.rows, resume_from_checkpoint))
                if self.rows > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        unsloth_engine.fit(tiny_model("llama"), Trainer, 16, lambda: tmp_path,
                           lambda message, **_: said.append(message))
        assert tried == [(rows, str(tmp_path)) for rows in (4, 2, 1)]
        assert ["2 rows" in said[0], "1 rows" in said[1]] == [True, True]

    def test_memory_that_ends_before_the_first_checkpoint_lets_no_step_count_twice(self) -> None:
        import torch

        weight = torch.nn.Linear(1, 1, bias=False).weight
        model = torch.nn.ParameterList([weight])
        before = weight.item()

        class Trainer:
            def __init__(self, rows: int) -> None:
                self.rows = rows

            def train(self, resume_from_checkpoint: str | None) -> None:
                weight.data += 1.0
                if self.rows > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        unsloth_engine.fit(model, Trainer, 16, lambda: None, lambda *_, **__: None)
        assert weight.item() == pytest.approx(before + 1.0)

    def test_a_mixture_keeps_its_experts(self, tmp_path: Path) -> None:
        """Unsloth's own adapter on them could not be opened after training."""
        sizes = {"num_local_experts": 2, "num_experts_per_tok": 1}
        folder = str(save_tiny_model(tmp_path / "mixture", "mixtral", **sizes))
        assert models.has_experts(folder)
        told = unsloth_engine.adapter_arguments(TrainSpec(), LocalSettings(), experts=True)
        assert told["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
        asked = TrainSpec(lora=LoraSpec(targets=["q_proj", "down_proj"]))
        with pytest.raises(UsageError, match="experts"):
            unsloth_engine.adapter_arguments(asked, LocalSettings(), experts=True)
        told = unsloth_engine.adapter_arguments(asked, LocalSettings())
        assert told["target_modules"] == ["q_proj", "down_proj"]


def test_rows_as_unsloth_gets_them_are_learnt_as_ours_are(tmp_path: Path) -> None:
    """Through TRL's own trainer and the collator that Unsloth uses, with a pad token that is the end token:
    the loss of the first step is that of our trainer, so prompt and padding are masked, the end token not."""
    from distillctl_local.adapter import add_adapter
    from distillctl_local.fit import arguments
    from distillctl_local.losses import next_token
    from distillctl_local.prefix import accumulate
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    end = tiny_tokenizer().eos_token_id
    rows = [Row([*range(10, 40 + number), 50 + number, end], [50 + number, end]) for number in range(6)]
    spec = TrainSpec(max_steps=1, batch_size=6)
    wanted = accumulate(add_adapter(tiny_model("llama"), spec).get_base_model(), rows, 1000, next_token)

    tokenizer = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer,
                                           eos_token="<|im_end|>")
    tokenizer = unsloth_engine.with_padding(tokenizer)
    assert tokenizer.pad_token_id == end
    seen: list[float] = []
    config = SFTConfig(**arguments(tmp_path, spec, LocalSettings()), max_length=100, use_cpu=True, bf16=False,
                       **unsloth_engine.trainer_arguments(spec, 3))
    trainer = SFTTrainer(model=add_adapter(tiny_model("llama"), spec), args=config,
                         train_dataset=unsloth_engine.as_dataset(rows), processing_class=tokenizer,
                         data_collator=DataCollatorForSeq2Seq(tokenizer))
    trainer.log = lambda logs, *_: seen.append(logs.get("loss"))
    trainer.train()
    assert seen[0] == pytest.approx(wanted, rel=1e-3)


class TestTracking:
    def test_nobody_is_told_unless_named(self, tmp_path: Path) -> None:
        from distillctl_local.fit import arguments

        assert arguments(tmp_path, TrainSpec(), LocalSettings())["report_to"] == "none"
        assert tracking.variables([]) == tracking.hosts([]) == tracking.problems([], offline=False) == []

    def test_keys_of_a_tracker_are_for_that_tracker(self) -> None:
        assert "WANDB_API_KEY" in tracking.variables(["wandb"])
        assert "WANDB_API_KEY" not in tracking.variables(["mlflow", "tensorboard"])

    def test_a_tracker_that_is_not_installed_is_a_problem(self, tmp_path: Path, model: str,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracking, "find_spec", lambda name: None)
        job = example_job(tmp_path, "classification", model, TrainSpec())
        (problem,) = backend(tmp_path, report_to=["wandb"]).preflight(job).problems
        assert (problem.field, problem.hint.split(",")[0]) == (
            "backends.local.report_to", "pip install wandb")

    def test_what_leaves_the_machine_is_told_and_refused_offline(self, tmp_path: Path, model: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracking, "find_spec", lambda name: object())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example:5000")
        job = example_job(tmp_path, "classification", model, TrainSpec())
        told = backend(tmp_path, report_to=["mlflow"]).preflight(job)
        assert any("go to mlflow.example" in note for note in told.notes)
        (problem,) = backend(tmp_path, offline=True, report_to=["mlflow"]).preflight(job).problems
        assert "mlflow.example" in problem.what
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/tmp/runs")
        assert backend(tmp_path, offline=True, report_to=["mlflow"]).preflight(job).problems == ()


@pytest.mark.gpu
@pytest.mark.skipif(not engines.has_gpu() or engines.find_spec("unsloth") is None,
                    reason="needs an NVIDIA GPU and the unsloth extra")
def test_unsloth_trains_an_adapter(tmp_path: Path) -> None:
    """On the model that DISTILLCTL_GPU_MODEL names, else a small one from the Hub."""
    model = os.environ.get("DISTILLCTL_GPU_MODEL", "Qwen/Qwen2.5-0.5B-Instruct")
    there = LocalBackend(LocalSettings(engine="unsloth"),
                         BackendEnv(tmp_path / "workspace", lambda name: None, time.time))
    job = example_job(tmp_path, "classification", model, TrainSpec(max_steps=4, batch_size=8))
    handle = there.submit(job, there.stage(job), "one")
    while (seen := there.poll(handle, None)).state not in TERMINAL:
        time.sleep(1)
    assert seen.state == "succeeded", seen
    assert set(there.collect(handle, tmp_path).files) == {"adapter_config.json", "adapter_model.safetensors"}
