"""What is known before training: problems with their places, and what was chosen and why."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distillctl_local import models, preflight
from distillctl_local.backend import LocalBackend
from distillctl_local.models import ModelFacts
from distillctl_local.preflight import Memory, adapter_parameters, linear_parameters
from support.tiny_models import save_tiny_model, tiny_model
from support.tiny_students import STATEFUL

from distillctl.backend import BackendEnv, Preflight
from distillctl.recipe.models import LoraSpec, TrainSpec
from distillctl.testing.examples import example_job

SMOLLM2 = ModelFacts(family="llama", hidden_size=576, intermediate_size=1536, layers=30, heads=9, kv_heads=3,
                     head_dim=64, vocab=49152, context=8192, parameters=134_515_008)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def examine(folder: Path, model: str, train: TrainSpec | None = None, offline: bool = False,
            **settings: object) -> Preflight:
    env = BackendEnv(folder / "workspace", lambda name: None, time.time, offline)
    train = train or TrainSpec(epochs=2, batch_size=8)
    job = example_job(folder, "classification", model, train)
    return LocalBackend(LocalBackend.Settings(**{"device": "cpu", **settings}), env).preflight(job)


def test_plan_says_what_was_chosen_and_how_long_it_takes(tmp_path: Path, model: str) -> None:
    found = examine(tmp_path, model)
    assert found.problems == ()
    assert any("on the processor" in note for note in found.notes)
    assert any("begin alike" in note and "fewer tokens" in note for note in found.notes)
    assert any("GiB of memory" in note for note in found.notes)
    assert 0 < found.duration_s[0] < found.duration_s[1]
    assert found.cost_usd == (0.0, 0.0)
    assert found.sends_to == ()


def test_plan_says_why_a_prefix_is_not_shared(tmp_path: Path, model: str) -> None:
    found = examine(tmp_path, model, TrainSpec(lora=LoraSpec(dropout=0.1)))
    assert any("computed whole: LoRA dropout is 0.1" in note for note in found.notes)


def test_a_prefix_that_cannot_be_shared_is_a_problem_where_it_was_asked_for(tmp_path: Path,
                                                                           model: str) -> None:
    found = examine(tmp_path, model, TrainSpec(lora=LoraSpec(dropout=0.1)), shared_prefix="on")
    assert [problem.field for problem in found.problems] == ["backends.local.shared_prefix"]


def test_plan_says_on_which_layers_the_adapter_sits_and_reckons_with_it(tmp_path: Path, model: str) -> None:
    every, upper = (examine(tmp_path / name, model, layers=layers)
                    for name, layers in (("every", None), ("upper", 1)))
    assert any("on the upper 1 of 2 layers; those below are computed once" in note for note in upper.notes)
    assert upper.duration_s < every.duration_s


def test_plan_says_that_a_student_is_asked_prompt_by_prompt(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    model = save_tiny_model(tmp_path / "tiny", "lfm2", **STATEFUL["lfm2"])
    assert any("asked prompt by prompt" in note for note in examine(tmp_path / "job", str(model)).notes)


def test_plan_says_why_the_layers_below_are_computed_at_every_step(tmp_path: Path) -> None:
    found = examine(tmp_path, str(save_tiny_model(tmp_path / "tiny", "gemma4_text")), layers=2)
    assert found.problems == ()
    assert any("at every step: those above attend to their keys and values" in note for note in found.notes)


def test_more_layers_than_the_model_has_are_a_problem(tmp_path: Path, model: str) -> None:
    (problem,) = examine(tmp_path, model, layers=3).problems
    assert (problem.field, problem.value) == ("backends.local.layers", 3)


def test_rows_that_are_too_long_are_named(tmp_path: Path, model: str) -> None:
    found = examine(tmp_path, model, TrainSpec(max_length=60))
    assert found.problems[0].where == "notes.jsonl:1"
    assert "and 14 more rows" in found.problems[-1].what


def test_no_rows_are_a_problem(tmp_path: Path, model: str) -> None:
    job = example_job(tmp_path, "classification", model, TrainSpec())
    job.train_file.write_text("")
    env = BackendEnv(tmp_path / "workspace", lambda name: None, time.time)
    (problem,) = LocalBackend(LocalBackend.Settings(device="cpu"), env).preflight(job).problems
    assert "no rows" in problem.what


def test_without_the_tokenizer_lengths_and_time_are_estimated_from_words(
        tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "tokenizer_file", lambda model, revision: None)
    found = examine(tmp_path, model, TrainSpec(max_length=60))
    assert found.problems == ()  # a guess at a length refuses nothing
    assert any("begin alike" in note for note in found.notes)
    assert found.duration_s


def test_a_model_that_is_not_here_is_a_problem_offline(tmp_path: Path) -> None:
    (problem,) = examine(tmp_path, "nobody/no-such-model", offline=True).problems
    assert problem.field == "student.model"


def test_too_little_memory_is_a_problem(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_available", lambda: 2**20)
    (problem,) = examine(tmp_path, model).problems
    assert "GiB of memory" in problem.what


def test_the_adapter_is_counted_as_peft_counts_it() -> None:
    from distillctl_local.models import facts_of
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    facts = facts_of(model.config)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert adapter_parameters(facts, 4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_memory_follows_the_base_the_adapter_and_the_tokens() -> None:
    """Each part of the formula by itself, for the student of the demo."""
    train = TrainSpec(lora=LoraSpec(rank=16))
    base = Memory(SMOLLM2, train, 2).kept(0)
    assert Memory(SMOLLM2, train, 4).kept(0) - base == 2 * SMOLLM2.parameters
    more = Memory(SMOLLM2, train.model_copy(update={"lora": LoraSpec(rank=32)}), 2).kept(0) - base
    assert more == 16 * adapter_parameters(SMOLLM2, 16)
    assert Memory(SMOLLM2, train, 2, side_by_side=3).kept(0) - base == 12 * adapter_parameters(SMOLLM2, 16)
    assert Memory(SMOLLM2, train, 2).kept(2000) > Memory(SMOLLM2, train, 2).kept(1000) > base


@pytest.mark.parametrize(("facts", "low", "high"), [
    (ModelFacts(family="qwen2", hidden_size=2048, intermediate_size=11008, layers=36, heads=16, kv_heads=2,
                head_dim=128, vocab=151936, context=32768, parameters=3_085_938_688), 6, 8),
    (ModelFacts(family="qwen2", hidden_size=3584, intermediate_size=18944, layers=28, heads=28, kv_heads=4,
                head_dim=128, vocab=152064, context=32768, parameters=7_615_616_512), 10, 12)],
    ids=["3B", "7B"])
def test_qlora_needs_what_is_known_of_it(facts: ModelFacts, low: float, high: float) -> None:
    """Four rows of 2,048 tokens with checkpointing, as people report it: 6 to 8 GB and 10 to 12 GB."""
    assert low < Memory(facts, TrainSpec(), 2, bits=4).checkpointed(4 * 2048) / 1e9 < high


_MEASURE = """
import re, sys, torch
from pathlib import Path
from distillctl_local.data import Row
from distillctl_local.losses import next_token
from distillctl_local.models import facts_of
from distillctl_local.prefix import accumulate, compute_once
from distillctl_local.preflight import Memory, _at_once
from distillctl_local.settings import LocalSettings
from distillctl_local.sharing import bytes_below, share_prefixes
from distillctl_local.adapter import add_adapter
from distillctl.recipe.models import TrainSpec
from support.tiny_models import tiny_model

def peak():
    # not ru_maxrss: it starts at what the process that started this one held
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

family, dtype, length, shared = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), sys.argv[4]
every = sys.argv[5] == "every"
upper = None if sys.argv[5] in ("every", "all") else int(sys.argv[5])
answer = [5] * (int(sys.argv[6]) - 1) + [2]
sizes = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
             num_key_value_heads=4, head_dim=64, vocab_size=4000)
if len(answer) > 2:
    sizes = dict(hidden_size=64, intermediate_size=128, vocab_size=32_000)
torch.set_num_threads(2)
torch.nn.Linear(8, 8)(torch.ones(1, 8))
spec = TrainSpec()
add_adapter(tiny_model(family), spec)  # what it imports is not counted
before = peak()
model = tiny_model(family, max_position_embeddings=2048, **sizes).to(dtype)
facts = facts_of(model.config, parameters=sum(p.numel() for p in model.parameters()))
if every:
    spec = TrainSpec(lora=None)
adapted = model.requires_grad_() if every else add_adapter(model, spec, layers=upper)
rows = [Row([*range(10, 110), *[200 + n] * (length + n % 7), *answer], answer) for n in range(16)]
rows = share_prefixes(rows, 16) if shared == "shared" else rows
settings = LocalSettings(layers=upper)
known = compute_once(model, rows, 8 - upper if upper else 0, 8192)
optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
for _ in range(2):
    accumulate(model, rows, 8192, next_token, known=known)
    optimizer.step()
    optimizer.zero_grad()
libraries = 2**30
memory = Memory(facts, spec, dtype.itemsize, side_by_side=2, adapted=upper)
needed = (memory.kept(*_at_once(rows, spec, settings, False)) - libraries
          + bytes_below(rows, facts, settings, dtype.itemsize))
print((peak() - before) / needed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("what", ["qwen3 bfloat16 120 shared all 2", "phi3 float32 30 whole all 2",
                                  "qwen3 float32 60 shared 4 2", "qwen3 float32 60 shared every 2",
                                  "llama float32 10 whole every 2", "llama float32 10 shared all 100"])
def test_the_peak_that_is_measured_is_about_the_one_that_is_foretold(what: str) -> None:
    done = subprocess.run([sys.executable, "-c", _MEASURE, *what.split()], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 1.15, done.stdout


def test_linear_layers_are_counted_as_the_model_has_them() -> None:
    from distillctl_local.models import facts_of

    model = tiny_model("llama")
    layers = model.model.layers.named_parameters()
    assert linear_parameters(facts_of(model.config)) == sum(p.numel() for _, p in layers if p.dim() == 2)


def test_preflight_needs_no_torch(tmp_path: Path, model: str) -> None:
    code = f"""
import sys, time
from pathlib import Path
from distillctl.backend import BackendEnv
from distillctl.recipe.models import TrainSpec
from distillctl.testing.examples import example_job
from distillctl_local.backend import LocalBackend
folder = Path({str(tmp_path)!r})
job = example_job(folder, "classification", {model!r}, TrainSpec())
backend = LocalBackend(LocalBackend.Settings(), BackendEnv(folder, lambda name: None, time.time))
assert any("begin alike" in note for note in backend.preflight(job).notes)
print(*[name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
