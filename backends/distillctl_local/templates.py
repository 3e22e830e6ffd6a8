"""A model's chat template is a stranger's program: it runs in transformers' Jinja sandbox, for a bounded
time, and what it writes is bounded too."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distillctl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 10.0  # a template takes milliseconds; the first rendering also compiles it
LONGEST = 1 << 20  # characters

# Some templates write today's date: a prompt would then differ from the one that was trained.
_STILL = "{% macro strftime_now(format) %}01 January 2026{% endmacro %}"


class TemplateRefused(Exception):
    """A template that does not give a prompt, and why."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, start_answer: bool) -> str:
    """The prompt that the tokenizer's chat template makes of messages. Raises TemplateRefused."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    template = _STILL + tokenizer.get_chat_template()
    try:
        text = _bounded(lambda: tokenizer.apply_chat_template(
            list(messages), chat_template=template, tokenize=False, add_generation_prompt=start_answer,
            enable_thinking=False))
    except TimeoutError:
        raise TemplateRefused(f"it was not done after {SECONDS:g} seconds") from None
    except SecurityError as error:
        raise TemplateRefused(f"it reaches for Python's own parts ({error})") from None
    except (TemplateError, ValueError, TypeError, ArithmeticError, MemoryError, RecursionError) as error:
        raise TemplateRefused(str(error) or type(error).__name__) from None
    if len(text) > LONGEST:
        raise TemplateRefused(f"it writes {len(text)} characters around short messages")
    return text


def _bounded(work: Callable[[], str]) -> str:
    """What `work` returns or raises; TimeoutError after `SECONDS`, and then it is stopped: by an exception
    raised in its thread, which a template has no means to catch."""
    outcome: list[str | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # handed to the caller
            outcome.append(error)

    thread = threading.Thread(target=run, name="chat-template", daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident),
                                                   ctypes.py_object(TimeoutError))
        raise TimeoutError
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
