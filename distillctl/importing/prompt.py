"""The prompt that many logged calls share, as a recipe's template with one field, `input`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distillctl.errors import DataError, Problem
from distillctl.importing.calls import NotUsable
from distillctl.types import Message

_ESCAPED = {"{": '{{ "{" }}', "\r": '{{ "\\r" }}'}
_MARKS = ("{", "%", "#", "\r", "")  # after a brace, these make it template code


@dataclass(frozen=True)
class Template:
    """What all calls share around the part that varies."""

    system: str | None
    before: str
    after: str

    @property
    def prompt(self) -> str:
        """The Jinja2 template of the user turn; what is in the texts themselves is no template code."""
        return f"{escaped(self.before)}{{{{ input }}}}{escaped(self.after)}"

    def input_of(self, user: str) -> str:
        """The varying part of a user turn."""
        return user[len(self.before):len(user) - len(self.after)]


def turns_of(messages: Sequence[Message]) -> tuple[str | None, str]:
    """The system text and the user text of a call; blanks around the user's are dropped, as a recipe's
    prompt has none. Raises NotUsable for a conversation, which a recipe's prompt is not."""
    system = [one["content"] for one in messages if one["role"] == "system"]
    rest = [one for one in messages if one["role"] != "system"]
    if len(rest) != 1 or rest[0]["role"] != "user" or len(system) > 1 or messages[-1]["role"] != "user":
        raise NotUsable(f"is a conversation of {len(messages)} turns; a recipe's prompt is one user turn "
                        "after at most one system turn")
    if not rest[0]["content"].strip():
        raise NotUsable("has an empty prompt")
    return (system[0] or None) if system else None, rest[0]["content"].strip()


def common_system(systems: Sequence[str | None], where: str) -> str | None:
    """The system text of most calls. Raises DataError where no text is that of at least half of them."""
    system, count = Counter(systems).most_common(1)[0]
    if count * 2 < len(systems):
        raise DataError(Problem(
            f"the calls have {len(set(systems))} different system prompts, none is that of half of them",
            where, hint="export one task at a time: a recipe has one system prompt, the same for all"))
    return system


def common_template(system: str | None, users: Sequence[str]) -> Template:
    """What all of `users` (at least two different ones) begin and end with, cut at blanks so that no word is
    split between the prompt and its input."""
    shortest = min(map(len, users))
    before = _beginning(users)
    before = before[:max((i + 1 for i, char in enumerate(before) if char.isspace()), default=0)]
    after = _beginning([user[::-1] for user in users])[::-1]
    after = after[len(after) - min(len(after), shortest - len(before)):]
    start = next((i for i, char in enumerate(after) if char.isspace()), len(after))
    return Template(system, before, after[start:])


def _beginning(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last in order do."""
    low, high = min(texts), max(texts)
    same = next((i for i, char in enumerate(low) if char != high[i:i + 1]), len(low))
    return low[:same]


def escaped(text: str) -> str:
    """A text as a Jinja2 template that gives this text."""
    code = {i for i, char in enumerate(text) if char == "\r" or (char == "{" and text[i + 1:i + 2] in _MARKS)}
    return "".join(_ESCAPED[char] if i in code else char for i, char in enumerate(text))
