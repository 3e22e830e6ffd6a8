"""Prompts and answers as tokens, the same for training, scoring and generating.

A prompt is the tokenizer's own chat template around the messages, up to where the answer begins. What a
message says is tokenised apart from the template, so that `<|im_start|>` in a user's text stays text; the
answer is tokenised apart from the prompt, so that no token spans the boundary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from distillctl.errors import Problem, StudentError
from distillctl.types import Message
from distillctl_local.templates import TemplateRefused, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FRAMES = 256  # sequences of roles whose frames are kept
_MARK = "\ue000{}\ue001"  # private-use characters: in no template
_SPACE = "\u2003"  # white space that no template writes


class Layout(NamedTuple):
    """What a chat template makes of messages, whatever they say. around: what it writes before, between and
    after their contents; strips: whether it drops the white space that a content begins and ends with."""

    around: list[str]
    strips: list[tuple[bool, bool]]

    def contents(self, messages: Sequence[Message]) -> list[str]:
        """The messages' contents as they stand in the prompt."""
        found = []
        for message, (begins, ends) in zip(messages, self.strips, strict=True):
            text = message["content"].lstrip() if begins else message["content"]
            found.append(text.rstrip() if ends else text)
        return found


class Encoder:
    """Encodes for one tokenizer. Prompts that only differ in what the messages say share the template.

    A tokenizer without a chat template gets a plain layout: the contents of the messages in their order,
    a blank line between them and a line break after the last.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._frames: dict[tuple[str, ...], tuple[Layout, list[list[int]]]] = {}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, up to where the answer begins.

        Raises StudentError where the template does not take such messages, or the tokenizer such text.
        """
        layout, frame = self._frame(tuple(message["role"] for message in messages))
        ids = list(frame[0])
        for content, after in zip(layout.contents(messages), frame[1:], strict=True):
            ids += self._text(content)
            ids += after
        return ids

    def completion(self, text: str) -> list[int]:
        """Token ids of an answer with the end token at which generation stops."""
        return [*self._text(text), self.end_id]

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: what the chat template closes a turn with, else the tokenizer's
        end of sequence. Raises StudentError where there is neither."""
        if self.tokenizer.chat_template:
            closed = self._render([{"role": "user", "content": _MARK.format(0)},
                                   {"role": "assistant", "content": _MARK.format(1)}], start_answer=False)
            for token in self._special(closed.split(_MARK.format(1))[-1]):
                if token in self.tokenizer.added_tokens_decoder:
                    return token
        if self.tokenizer.eos_token_id is None:
            raise StudentError(Problem("its tokenizer has no end token, so answers would never end",
                                       where=self.tokenizer.name_or_path))
        return self.tokenizer.eos_token_id

    @property
    def stops(self) -> list[int]:
        """Every token that ends an answer: `end_id`, and the tokenizer's end of sequence."""
        return sorted({self.end_id, self.tokenizer.eos_token_id} - {None})

    def _frame(self, roles: tuple[str, ...]) -> tuple[Layout, list[list[int]]]:
        """The layout of messages with these roles, and what it writes around their contents as tokens."""
        if roles not in self._frames:
            if len(self._frames) >= FRAMES:  # a server's clients choose them
                self._frames.clear()
            layout = self.layout(roles)
            self._frames[roles] = layout, [self._special(text) for text in layout.around]
        return self._frames[roles]

    def layout(self, roles: tuple[str, ...]) -> Layout:
        """What the template makes of messages with these roles.

        Raises StudentError where it does not take such messages.
        """
        marks = [_MARK.format(number) for number in range(len(roles))]
        messages = [{"role": role, "content": _SPACE + mark + _SPACE}
                    for role, mark in zip(roles, marks, strict=True)]
        text = self._render(messages, start_answer=True)
        around, strips = [], []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                raise self._refuses(f"it leaves out one of the messages {', '.join(roles)}")
            around.append(before.removesuffix(_SPACE))
            strips.append((not before.endswith(_SPACE), not text.startswith(_SPACE)))
            text = text.removeprefix(_SPACE)
        return Layout([*around, text], strips)

    def _render(self, messages: list[Message], *, start_answer: bool) -> str:
        if not self.tokenizer.chat_template:
            begins = self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
            text = "\n\n".join(message["content"] for message in messages) + "\n"
            return self.tokenizer.bos_token + text if begins else text
        try:
            return render(self.tokenizer, messages, start_answer=start_answer)
        except TemplateRefused as error:
            raise self._refuses(str(error)) from None

    def _refuses(self, why: str) -> StudentError:
        return StudentError(Problem(
            f"the model's chat template does not take this prompt: {why}", where=self.tokenizer.name_or_path,
            hint="some templates have no system turn: move `task.system` into `task.prompt` then"))

    @cached_property
    def _structure(self) -> re.Pattern[str] | None:
        """Added tokens that the template writes but a tokenizer does not count as special, as <think>."""
        template = self.tokenizer.chat_template or ""
        found = [token.content for token in self.tokenizer.added_tokens_decoder.values()
                 if not token.special and token.content.strip() and token.content in str(template)]
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None

    def _text(self, text: str) -> list[int]:
        """Text as text: what spells a special token is split into ordinary ones."""
        pieces = [text]
        if self._structure:
            cuts = [0, *(match.start() + 1 for match in self._structure.finditer(text)), len(text)]
            pieces = [text[start:stop] for start, stop in pairwise(cuts)]
        try:
            return [token for piece in pieces if piece for token in
                    self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True).input_ids]
        except TypeError:  # the tokenizers library's word for it
            raise StudentError(Problem("holds half a surrogate pair, which is no character")) from None

    def _special(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with alike."""
    if not sequences:
        return 0
    first, last = min(sequences), max(sequences)
    shortest = min(len(first), len(last))
    return next((n for n in range(shortest) if first[n] != last[n]), shortest)
