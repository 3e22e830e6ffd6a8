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
from distillctl.types import Example

KINDS = {"EMAIL": "an e-mail address", "PHONE": "a phone number", "SSN": "a social security number",
         "CREDIT_CARD": "a payment card's number", "IP_ADDRESS": "an IP address"}
SHOWN = 10
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
    if not available():
        raise MissingExtra(Problem("looking for personal data needs the package datafog, which is not "
                                   "installed", field="data.pii", hint="pip install 'distillctl[pii]'"))
    os.environ["DATAFOG_NO_TELEMETRY"] = "1"  # it sends none unless asked; nothing may ask it to
    import datafog  # 0.4 s

    found: dict[tuple[str, str, str], Finding] = {}
    for where, field, text in texts:
        for one in datafog.scan_prompt(text, engine="regex", entity_types=list(KINDS)).entities:
            found.setdefault((where, field, one.type),
                             Finding(where, field, KINDS[one.type], _masked(one.text)))
    return list(found.values())


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
