"""Personal data in texts that may leave this machine, found by datafog's patterns (extra `pii`).

E-mail addresses, phone numbers, US social security numbers, payment cards, IPv4 addresses. Names, postal
addresses and all that only a reader would know are not found: no finding does not mean that there is none.
A value is never shown whole.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from distillctl.errors import MissingExtra, Problem
from distillctl.evaluate.wording import plural
from distillctl.types import Example, Message

KINDS = {"EMAIL": "an e-mail address", "PHONE": "a phone number", "SSN": "a social security number",
         "CREDIT_CARD": "a payment card's number", "IP_ADDRESS": "an IP address"}
SHOWN = 10
NOT_SENT = "not sent: "  # how the error of a prompt that was kept back begins
_KNOWINGLY = "take it out of the data, or go on knowingly: --set data.pii=warn (for an import: --pii warn)"

Text = tuple[str, str, str]  # where ("file:line"), field, text


@dataclass(frozen=True)
class Finding:
    """What looks like personal data: its place and kind, and of its text only the ends."""

    where: str
    field: str
    kind: str
    masked: str

    def __str__(self) -> str:
        return f"{self.where} `{self.field}`: what looks like {self.kind} ({self.masked})"


def available() -> bool:
    """Whether the extra is installed; does not import it."""
    return find_spec("datafog") is not None


def find_pii(texts: Iterable[Text]) -> list[Finding]:
    """What is found, one of each kind in each text. Raises MissingExtra."""
    check_installed()
    found: dict[tuple[str, str, str], Finding] = {}
    for where, field, text in texts:
        for kind, value in _entities(text):
            found.setdefault((where, field, kind), Finding(where, field, kind, _masked(value)))
    return list(found.values())


def check_installed() -> None:
    """Raises MissingExtra where the extra is not installed."""
    if not available():
        raise MissingExtra(Problem("looking for personal data needs the package datafog, which is not "
                                   "installed", field="data.pii", hint="pip install 'distillctl[pii]'"))


class Guard:
    """Looks at prompts on their way out of this machine.

    refuse: one with personal data is not sent. own: the recipe's own words; what stands there is no finding.
    found: how many prompts held what, by kind. Raises MissingExtra.
    """

    def __init__(self, refuse: bool, own: str) -> None:
        check_installed()
        self.refuse = refuse
        self.found: Counter[str] = Counter()
        self._own = own

    def why_kept(self, messages: Sequence[Message]) -> str | None:
        """Why a prompt is not sent; None where it may be."""
        held = {kind: _masked(value) for message in messages for kind, value in _entities(message["content"])
                if value not in self._own}
        self.found.update(held.keys())
        if not self.refuse or not held:
            return None
        said = ", ".join(f"{kind} ({masked})" for kind, masked in held.items())
        return f"{NOT_SENT}it holds what looks like {said}, and `data.pii` is refuse"

    def told(self) -> str | None:
        """What was found, for people; None where that is nothing."""
        if not self.found:
            return None
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in self.found.most_common())
        return f"personal data: prompts held what looks like {kinds}; " + (
            "they were not sent" if self.refuse else "they were sent")


def _entities(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of what looks like personal data."""
    os.environ["DATAFOG_NO_TELEMETRY"] = "1"  # it sends none unless asked; nothing may ask it to
    import datafog  # 0.4 s

    for one in datafog.scan_prompt(text, engine="regex", entity_types=list(KINDS)).entities:
        yield KINDS[one.type], one.text


def sent_texts(splits: Mapping[str, Sequence[Example]], variables: frozenset[str]) -> Iterator[Text]:
    """What prompts show of the examples: the fields that the prompt uses."""
    for examples in splits.values():
        for example in examples:
            for name in sorted(variables & example.fields.keys()):
                value = example.fields[name]
                yield example.source, name, value if isinstance(value, str) else json.dumps(
                    value, ensure_ascii=False)


def as_warnings(found: Sequence[Finding]) -> list[str]:
    """What a person is told: how much of what, and the first places."""
    if not found:
        return []
    counts = Counter(one.kind for one in found).most_common()
    kinds = ", ".join(f"{kind} ({count:,})" for kind, count in counts)
    rest = [f"and in {len(found) - SHOWN:,} more places"] if len(found) > SHOWN else []
    return [f"personal data in {plural(len(found), 'place')}: what looks like {kinds}",
            *map(str, found[:SHOWN]), *rest]


def as_problems(found: Sequence[Finding]) -> list[Problem]:
    """Why nothing is sent."""
    if not found:
        return []
    more = f"; and {len(found) - SHOWN:,} more places" if len(found) > SHOWN else ""
    told = [Problem(f"holds what looks like {one.kind} ({one.masked})", one.where, one.field)
            for one in found[:SHOWN]]
    last = told[-1]
    return [*told[:-1], Problem(last.what + more, last.where, last.field, hint=_KNOWINGLY)]


def _masked(text: str) -> str:
    """The first and the last character, and how long it is."""
    return f"{text[:1]}…{text[-1:]}, {len(text)} characters"
