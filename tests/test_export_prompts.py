"""Exported files make the prompts that the student was trained with, and answer greedily, unasked."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.finished import tiny_run
from support.tiny_models import tiny_model, tiny_tokenizer
from support.tiny_students import tiny_base

torch = pytest.importorskip("torch", reason="needs the `local` extra")
gguf = pytest.importorskip("gguf", reason="needs the `local` extra")
from distillctl_local import export, export_gguf, result  # noqa: E402
from distillctl_local.encode import Encoder  # noqa: E402
from distillctl_local.templates import exported  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: E402

from distillctl.backend import StudentRef  # noqa: E402
from distillctl.cli.main import cli  # noqa: E402
from distillctl.context import Context  # noqa: E402

CHATML = tiny_tokenizer().chat_template
THINKS = CHATML + ("{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
                   "{{ '<think>\n\n</think>\n\n' }}{% endif %}")  # as Qwen 3
DATED = ("\n{% macro day() %}{{ strftime_now('%d') if strftime_now is defined }}{% endmacro %}"
         "{% for m in messages %}{{ day() + m['content'] }}{% endfor %}")  # as Llama 3.2
CONVERSATIONS = ([{"role": "user", "content": "hi"}],
                 [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why"}])


def tokenizer_with(template: str | None, bos: bool = False):
    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A student of a base whose template thinks unless it is asked not to."""
    return run_with(THINKS, tmp_path_factory.mktemp("thinks"))


def run_with(template: str | None, folder: Path) -> Context:
    base = tiny_base(folder / "base", "qwen3", head_dim=128)
    for path in (folder / "base").glob("chat_template*"):
        path.unlink()
    tokenizer_with(template).save_pretrained(folder / "base")
    return tiny_run(folder / "workspace", StudentRef("local", "model", base.model))


def call(run: Context, form: str, into: Path) -> dict:
    done = CliRunner().invoke(cli, [
        "export", run.run_name, "--workspace", str(run.workspace.root), "--to", form, "-o", str(into),
        "--verify", "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


@pytest.mark.parametrize("template", [CHATML, THINKS, DATED, None])
@pytest.mark.parametrize("bos", [False, True])
def test_an_exported_template_makes_the_students_prompts_unasked(template: str | None, bos: bool) -> None:
    ours, theirs = tokenizer_with(template, bos), tokenizer_with(template, bos)
    theirs.chat_template = exported(ours)
    for messages in CONVERSATIONS:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == Encoder(ours).prompt(messages)


def test_a_template_that_nobody_needs_to_ask_stays_as_it_is() -> None:
    assert exported(tiny_tokenizer()) == CHATML


@pytest.mark.parametrize("template", [THINKS, None])
@pytest.mark.parametrize("form", ["merged", "gguf", "vllm"])
def test_every_form_makes_the_students_prompts(run: Context, tmp_path: Path, form: str,
                                               template: str | None) -> None:
    run = run if template else run_with(template, tmp_path)
    found = call(run, form, tmp_path / "out")
    assert (found["check"]["changed"], found["check"]["passed"]) == (0, True)
    if form == "vllm":
        told = ("--chat-template '{% for" if template is None else
                """--default-chat-template-kwargs '{"enable_thinking": false}'""")
        assert told in found["notes"][0]
        return
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out") if form == "merged" else tokenizer_with(
        gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields["tokenizer.chat_template"].contents())
    (messages, _) = CONVERSATIONS
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == Encoder(tokenizer_with(template)).prompt(messages)


@pytest.mark.parametrize("form", ["merged", "gguf", "vllm"])
def test_the_check_finds_prompts_of_another_kind(run: Context, tmp_path: Path, form: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the base's own template were exported, and vLLM told nothing."""
    for module in (export, export_gguf):
        monkeypatch.setattr(module, "exported", lambda tokenizer: tokenizer.chat_template)
    monkeypatch.setattr(export, "ASKED", {})
    check = call(run, form, tmp_path / "out")["check"]
    assert check["changed"] > 0 and not check["passed"]


def test_the_check_tokenises_a_prompt_in_one_piece() -> None:
    encoder = export.AsOthers(tiny_tokenizer())
    marked = [{"role": "user", "content": "<|im_end|>"}]  # other programs read it as the token
    assert len(encoder.prompt(marked)) < len(Encoder(tiny_tokenizer()).prompt(marked))


def test_generation_by_default_is_greedy_whatever_the_base_says(tmp_path: Path) -> None:
    model, encoder = tiny_model("qwen2", bos_token_id=1), Encoder(tiny_tokenizer())
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, min_p=0.1, typical_p=0.9,
        repetition_penalty=1.5, no_repeat_ngram_size=2, suppress_tokens=[7], bos_token_id=1, pad_token_id=0,
        max_new_tokens=12)
    result.answer_as_trained(model, encoder)
    model.save_pretrained(tmp_path)
    made = json.loads((tmp_path / "generation_config.json").read_text())
    assert made.keys() - {"transformers_version", "_from_model_config"} == {
        "do_sample", "bos_token_id", "pad_token_id", "eos_token_id", "max_new_tokens"}
    ids = prompt = torch.tensor([encoder.prompt(CONVERSATIONS[0])])
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if int(ids[0, -1]) == encoder.end_id:
                break
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    assert found.tolist() == ids.tolist()
