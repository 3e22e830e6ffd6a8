"""A model's chat template is a stranger's program: it runs in a sandbox, in a process of its own.

That process (`distillctl_local.template_sandbox`) is given a bounded time and a bounded memory, of our
environment only where libraries lie, and may write no file; what it answers is bounded too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from distillctl.types import JSON, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0  # a template takes milliseconds, its process a tenth of a second on an idle machine
MEMORY = 256 << 20  # bytes; Python and Jinja take about 40 MB of it
LONGEST = 1 << 20  # characters
ASKED: Mapping[str, JSON] = {"enable_thinking": False}  # of every template, for every prompt
# The layout of `encode.Encoder` where there is no template.
_PLAIN = (r"{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n\n' }}"
          r"{% endif %}{% endfor %}{{ '\n' }}")


class TemplateRefused(Exception):
    """A template that does not give a prompt, and why."""


def exported(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that other programs get: it makes our prompts without being asked for anything."""
    if not tokenizer.chat_template:
        begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return ("{{ bos_token }}" if begins else "") + _PLAIN
    from distillctl_local.template_sandbox import TODAY

    template = tokenizer.get_chat_template()
    fixed = ("enable_thinking", "{%- set enable_thinking = false %}\n"), (
        "strftime_now", f"{{%- macro strftime_now(format) %}}{TODAY}{{% endmacro %}}\n")
    # the line breaks go with the blocks before them: chat templates are read with trim_blocks
    return "".join(line for name, line in fixed if name in template) + template


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, start_answer: bool,
           asked: Mapping[str, JSON] = ASKED) -> str:
    """The prompt that the tokenizer's chat template makes of messages. asked: what else the template is told.
    Raises TemplateRefused."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateRefused(str(error)) from None
    return _rendered(template, json.dumps({
        **tokenizer.special_tokens_map, "messages": list(messages), "tools": None, "documents": None,
        "add_generation_prompt": start_answer, **asked}), SECONDS)


@lru_cache(maxsize=256)  # the same template meets the same few roles again and again
def _rendered(template: str, variables: str, seconds: float) -> str:
    """What a template writes, given its variables as JSON. Raises TemplateRefused."""
    request = json.dumps({"template": template, "variables": json.loads(variables), "longest": LONGEST,
                          "memory": MEMORY, "seconds": seconds})
    try:
        done = subprocess.run(
            [sys.executable, "-S", "-P", "-m", "distillctl_local.template_sandbox"], input=request.encode(),
            capture_output=True, timeout=seconds, check=False,
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # where jinja2 is
                 "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")})
    except subprocess.TimeoutExpired:
        raise TemplateRefused(f"it was not done after {seconds:g} seconds") from None
    try:
        reply = json.loads(done.stdout)
        if "refused" in reply:
            raise TemplateRefused(reply["refused"])
        return reply["text"]
    except (ValueError, KeyError, TypeError):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise TemplateRefused(f"the process that runs it ended with {done.returncode} {last}".rstrip()
                              ) from None
