"""Chat templates run in a process of their own: real ones write what transformers makes of them, hostile
ones are refused with the reason."""

from __future__ import annotations

import copy
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from distillctl_local import templates
from distillctl_local.encode import Encoder
from support.tiny_models import tiny_tokenizer

from distillctl.errors import StudentError

USER = [{"role": "user", "content": "why?"}]
ANSWERED = [{"role": "system", "content": "Be brief."}, *USER, {"role": "assistant", "content": "Because."}]
DOUBLING = ("{% set ns = namespace(x='0123456789abcdef') %}"
            "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}")


@pytest.fixture
def tokenizer():
    """A copy that a test may change."""
    return copy.deepcopy(tiny_tokenizer())


@pytest.mark.parametrize("name", ["llama3", "llama3_2", "qwen2_5", "qwen3", "qwen3_training", "phi3",
                                  "gemma3_training", "deepseekv3", "gptoss"])
def test_a_model_s_own_template_writes_what_transformers_makes_of_it(tokenizer, name: str) -> None:
    template = files("trl") / "chat_templates" / f"{name}.jinja"
    if not template.is_file():
        pytest.skip(f"this version of TRL brings no template {name}")
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    still = "{% macro strftime_now(format) %}01 January 2026{% endmacro %}" + tokenizer.chat_template
    for messages, start_answer in ((USER, True), (ANSWERED, False)):
        assert templates.render(tokenizer, messages, start_answer=start_answer) == (
            tokenizer.apply_chat_template(messages, chat_template=still, tokenize=False,
                                          add_generation_prompt=start_answer, enable_thinking=False))


@pytest.mark.parametrize(("template", "reason"), [
    ("{{ cycler.__init__.__globals__.os.system('touch pwned') }}", "reaches for Python's own parts"),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "reaches for Python's own parts"),
    ("{{ messages.append(1) }}", "reaches for Python's own parts"),
    ("{{ namespace(__class__=1) }}", "reaches for Python's own parts"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    ("{% for i in range(99999) %}0123456789abcdef{% endfor %}", "more than 1048576 characters"),
    ("{{ 'x' * 10 ** 10 }}", "more than 256 MiB of memory"),
    ("{{ '%9999999999d' % 1 }}", "more than 256 MiB of memory"),
    (DOUBLING, "more than 256 MiB of memory"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
    ("{{ 1 // 0 }}", "division"),
    ("{% if %}", "Expected an expression"),
], ids=["globals", "subclasses", "changing", "dunder", "file", "range", "flood", "memory", "padding",
        "doubling", "recursion", "error", "syntax"])
def test_a_hostile_template_is_refused_with_the_reason(
        tokenizer, template: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.chat_template = template
    with pytest.raises(StudentError, match=reason):
        Encoder(tokenizer).prompt(USER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",  # one operation, which nothing within its process could stop
], ids=["loops", "power"])
def test_a_template_that_never_ends_is_stopped(
        tokenizer, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    tokenizer.chat_template = template
    with pytest.raises(StudentError, match=r"not done after 0.5 seconds"):
        Encoder(tokenizer).prompt(USER)


def test_a_template_whose_process_dies_is_refused(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    tokenizer.chat_template = "{{ messages[0].content }} "
    with pytest.raises(StudentError, match="the process that runs it ended with 1"):
        Encoder(tokenizer).prompt(USER)


def test_several_templates_without_a_default_are_refused(tokenizer) -> None:
    tokenizer.chat_template = {"one": "x", "two": "y"}
    with pytest.raises(StudentError, match="no default"):
        Encoder(tokenizer).prompt(USER)
