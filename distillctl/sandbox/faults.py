"""Faults that a sandbox shows when it is told to: `ROUTE=WHAT[:VALUE][*TIMES]`.

    jobs.create=drop_after          the next create makes a job, and its reply is lost
    jobs.get=status:503*20          twenty status requests fail
    jobs.list=hide:1*3              three listings do not show the newest job yet
    jobs.get=word:reticulating*     an unknown state, for good
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from distillctl.errors import Problem, UsageError

What = Literal["status", "status_after", "refuse", "drop_before", "drop_after", "stall", "truncate", "garble",
               "hide", "repeat", "word"]
"""status:N  an HTTP status, nothing done; status_after:N  the same after it was done; refuse  the provider's
refusal, nothing done; drop_before, drop_after  the connection breaks; stall:S  done, and the reply comes S
real seconds late; truncate  half the reply; garble  a proxy's page instead of the reply; hide:N  listings
lack the newest N; repeat  listings show entries twice; word:W  the state is W."""

BEFORE = frozenset({"status", "refuse", "drop_before"})
_TEXT = re.compile(r"([\w.*]+)=(\w+)(?::([^*]+))?(\*(\d*))?")
_NUMBER = frozenset({"status", "status_after", "stall", "hide"})


@dataclass(frozen=True)
class Fault:
    """What befalls calls of `route` ("*": of every route), `times` times; None: always."""

    route: str
    what: What
    value: str = ""
    times: int | None = 1

    @property
    def number(self) -> int:
        return int(self.value)


class Faults:
    """The faults that are still to come, in order. Not thread-safe by itself."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._coming = list(faults)

    def add(self, fault: Fault) -> None:
        self._coming.append(fault)

    def remove(self, fault: Fault) -> None:
        self._coming = [other for other in self._coming if other is not fault]

    def take(self, route: str) -> Fault | None:
        """The fault for the next call of `route`; used up by this."""
        for index, fault in enumerate(self._coming):
            if fault.route in (route, "*"):
                if fault.times == 1:
                    del self._coming[index]
                elif fault.times is not None:
                    self._coming[index] = replace(fault, times=fault.times - 1)
                return fault
        return None


def parse_fault(text: str, routes: Iterable[str]) -> Fault:
    """A fault as a user writes it. Raises UsageError that lists what there is."""
    found = _TEXT.fullmatch(text)
    known = sorted({*routes, "*"})
    if found is None or found[1] not in known or found[2] not in get_args(What):
        raise UsageError(Problem(
            "is not a fault: ROUTE=WHAT[:VALUE][*TIMES]", field="--fault", value=text,
            hint=f"routes: {', '.join(known)}; faults: {', '.join(get_args(What))}"))
    what, value = found[2], found[3] or ""
    if (what in _NUMBER and not value.isdecimal()) or (what == "word" and not value):
        raise UsageError(Problem(f"`{what}` needs a value after a colon", field="--fault", value=text))
    times = 1 if found[4] is None else int(found[5]) if found[5] else None
    return Fault(found[1], what, value, times)
