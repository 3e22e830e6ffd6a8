"""What would fail after the teacher was paid is a problem in `plan`, and what `plan` reckons with is what the
trainer will take."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from distillctl_local import devices, hardware, preflight
from distillctl_local.backend import LocalBackend
from distillctl_local.hardware import gpu_memory_available
from pydantic import ValidationError
from support.tiny_models import save_tiny_model

from distillctl.backend import BackendEnv, Preflight
from distillctl.recipe.models import LoraSpec, TrainSpec
from distillctl.testing.examples import example_job

ELSEWHERE = "nobody/no-such-model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def examine(folder: Path, model: str, train: TrainSpec | None = None, *, rows: str | None = None,
            **settings: object) -> Preflight:
    """rows: the training file's text, None: that of the example."""
    job = example_job(folder, "classification", model, train or TrainSpec())
    if rows is not None:
        job.train_file.write_text(rows)
    env = BackendEnv(folder / "workspace", lambda name: None, time.time)
    return LocalBackend(LocalBackend.Settings(**{"device": "cpu", **settings}), env).preflight(job)


# --- the device ---------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: 0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_gpu_that_is_not_there_is_a_problem(tmp_path: Path, model: str, no_gpu: None, count: int) -> None:
    (problem,) = examine(tmp_path, model, device="cuda", devices=count).problems
    assert (problem.field, problem.value) == ("backends.local.device", "cuda")
    assert problem.hint == "set it to auto or cpu"


@pytest.mark.skipif(hardware.has_gpu(), reason="tells of a machine without a GPU of its own")
def test_a_gpu_that_windows_lends_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "WSL_CUDA", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.gpus() == 1


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, said: str) -> list[str]:
    """The driver's program as one that says this; returns the words that it will be called with."""
    called: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        called.extend(command)
        return subprocess.CompletedProcess(command, 0, said)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware.subprocess, "run", run)
    return called


@pytest.mark.parametrize(("said", "native"), [
    ("7.5\n", False), ("8.0\n", True), ("12.0\n", True), ("", True)])
def test_bf16_is_native_from_ampere_on(said: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(monkeypatch, said)
    assert hardware.gpu_computes_bf16() is native


def test_a_gpu_without_bf16_gets_none_by_itself(tmp_path: Path, model: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch and the driver tell of a T4, on which bf16 is emulated."""
    import torch

    nvidia_smi(monkeypatch, "7.5\n")
    for name, said in {"is_available": True, "current_device": 0, "get_device_properties": Turing,
                       "_check_bf16_tensor_supported": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, said=said: said)
    settings = LocalBackend.Settings(device="cuda")
    assert hardware.choose(settings) == ("cuda", torch.float32)
    assert "the base in fp32" in examine(tmp_path, model, device="cuda").notes[0]


class Turing:
    major = 7


@pytest.mark.parametrize(("seen", "count", "asked"), [
    (None, 1, None), ("2,3", 1, "--id=2"), ("3, 1", 2, "--id=3,1"), ("GPU-8932f937", 1, "--id=GPU-8932f937")])
def test_the_memory_is_that_of_the_gpus_that_we_see(seen: str | None, count: int, asked: str | None,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    called = nvidia_smi(monkeypatch, "700\n300\n"[:4 * count])
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert gpu_memory_available(count) == (700 if count == 1 else 300) * 2**20
    assert [word for word in called if word.startswith("--id")] == ([asked] if asked else [])


# --- a model that is still to be downloaded -----------------------------------------------------------


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"patience": 2}])
def test_no_dev_rows_are_a_problem_before_the_model_is_here(tmp_path: Path,
                                                            setting: dict[str, object]) -> None:
    (problem,) = examine(tmp_path, ELSEWHERE, **setting).problems
    assert "no dev split" in problem.what


def test_no_rows_are_a_problem_before_the_model_is_here(tmp_path: Path) -> None:
    (problem,) = examine(tmp_path, ELSEWHERE, rows="").problems
    assert problem.field == "data.examples"


def test_a_model_that_is_not_here_says_that_it_will_be_and_no_more(tmp_path: Path) -> None:
    found = examine(tmp_path, ELSEWHERE, TrainSpec(lora=LoraSpec(targets=["q_porj"])))
    assert found.problems == ()
    assert "downloaded" in found.notes[0]


# --- the layers that an adapter sits on ---------------------------------------------------------------


def test_a_layer_that_the_model_has_not_is_a_problem(tmp_path: Path, model: str) -> None:
    targets = ["q_porj", "v_proj", "attention.wq"]
    slip, other = examine(tmp_path, model, TrainSpec(lora=LoraSpec(targets=targets))).problems
    assert (slip.field, slip.value) == ("train.lora.targets", "q_porj")
    assert "q_proj" in slip.hint
    assert "down_proj" not in slip.hint
    assert (other.value, "down_proj" in other.hint) == ("attention.wq", True)


@pytest.mark.parametrize("target", ["q_proj", "self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"])
def test_a_layer_that_the_model_has_is_none(tmp_path: Path, model: str, target: str) -> None:
    assert examine(tmp_path, model, TrainSpec(lora=LoraSpec(targets=[target]))).problems == ()


def test_the_names_of_a_mixtures_layers_are_not_those_of_its_file(tmp_path: Path) -> None:
    mixture = save_tiny_model(tmp_path / "mixture", "mixtral", num_local_experts=2)
    spec = TrainSpec(lora=LoraSpec(targets=["gate_up_proj"]))
    assert examine(tmp_path, str(mixture), spec).problems == ()


# --- the warm-up, time and precision ------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_a_warm_up_is_a_share_of_the_steps(tmp_path: Path, warmup: float) -> None:
    from distillctl_local.fit import arguments
    from transformers import TrainingArguments

    told = arguments(tmp_path, TrainSpec(warmup=warmup), LocalBackend.Settings())["warmup_steps"]
    assert TrainingArguments(str(tmp_path), warmup_steps=told).get_warmup_steps(100) == round(100 * warmup)


def test_a_warm_up_of_all_steps_is_refused() -> None:
    with pytest.raises(ValidationError, match="warmup"):  # transformers takes 1 for one step
        TrainSpec(warmup=1.0)


def test_the_time_is_that_of_the_cores_that_we_may_use(tmp_path: Path, model: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(name: str, **settings: object) -> float:
        """Of computing alone."""
        found = examine(tmp_path / name, model, TrainSpec(epochs=100), **settings).duration_s
        return found[0] - preflight._START_S[0]

    monkeypatch.setattr(preflight, "cores", lambda: 8)
    all_cores = seconds("all")
    assert seconds("two", threads=2) == pytest.approx(4 * all_cores)
    assert seconds("many", threads=64) == pytest.approx(all_cores)
    monkeypatch.setattr(preflight, "cores", lambda: 4)
    assert seconds("half") == pytest.approx(2 * all_cores)


@pytest.mark.parametrize(("native", "precision", "said"), [
    (True, "auto", "bf16"), (False, "auto", "fp32"), (False, "bf16", "bf16"), (True, "fp32", "fp32")])
def test_the_precision_is_the_one_that_the_trainer_takes(
        tmp_path: Path, model: str, native: bool, precision: str, said: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for module in (preflight, hardware):
        monkeypatch.setattr(module, "cpu_computes_bf16", lambda: native)
    settings = LocalBackend.Settings(device="cpu", precision=precision)
    assert hardware.choose(settings)[1] == {"bf16": torch.bfloat16, "fp32": torch.float32}[said]
    found = examine(tmp_path, model, precision=precision)
    assert f"the base in {said}" in found.notes[0]


def test_bf16_that_the_processor_has_not_is_no_faster(tmp_path: Path, model: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "cpu_computes_bf16", lambda: False)
    bf16, fp32 = (examine(tmp_path / name, model, precision=name).duration_s for name in ("bf16", "fp32"))
    assert bf16 == fp32
