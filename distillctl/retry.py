"""When to try again, and how fast to ask: the only clock of the collection.

Everything here waits through `Timing`, so that a test can let hours pass in no time.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 120.0  # seconds; a provider that asks for more is asked again after this
_FIRST_WAIT = 0.5


@dataclass(frozen=True)
class Timing:
    """The clock (seconds, monotonic), the sleep and the dice that a collection uses."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait by a Retry-After header: seconds or an HTTP date (RFC 9110, 10.2.3).

    None where it is missing, garbage, negative or not finite; a date that has passed gives 0.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def back_off(attempt: int, retry_after: float | None, dice: float) -> float:
    """Seconds to wait before trying again; attempt counts from 1, dice is uniform in [0, 1).

    Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015) up to
    `LONGEST_WAIT`. What the provider asked for is waited out, up to the same bound, and a little more,
    so that those who wait do not all come back at once.
    """
    jitter = dice * min(LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
    if retry_after is None:
        return jitter
    return min(retry_after, LONGEST_WAIT) + min(jitter, 1.0)


class Gate:
    """How many calls may be under way: up to `most`, halved when the provider says "too many", and
    growing back by one for each full round of answers (additive increase, multiplicative decrease)."""

    def __init__(self, most: int, timing: Timing) -> None:
        self._most = most
        self._limit = float(most)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume_at = -math.inf
        self._cuts = 0
        self._timing = timing

    @property
    def limit(self) -> int:
        """Calls allowed at once, now."""
        return int(self._limit)

    async def enter(self) -> int:
        """Wait for a place; returns a ticket for `too_many`."""
        while self._active >= self.limit:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._active += 1
        try:
            while (wait := self._resume_at - self._timing.now()) > 0:
                await self._timing.sleep(wait)
        except BaseException:
            self.leave()
            raise
        return self._cuts

    def leave(self) -> None:
        self._active -= 1
        self._admit()

    def answered(self) -> None:
        """A call was answered."""
        self._limit = min(self._most, self._limit + 1 / self._limit)
        self._admit()

    def too_many(self, ticket: int) -> None:
        """The provider refused a call for its rate. Calls that started before the last cut were sent at
        the old speed and say nothing about the new one."""
        if ticket == self._cuts:
            self._limit = max(1.0, self._limit / 2)
            self._cuts += 1

    def pause(self, seconds: float) -> None:
        """Nobody enters for `seconds`: the provider asked for it."""
        self._resume_at = max(self._resume_at, self._timing.now() + seconds)

    def _admit(self) -> None:
        free = self.limit - self._active
        while free > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1


class Pace:
    """Lets through `per_minute` units a minute, evenly, without bursts; None: as many as come."""

    def __init__(self, per_minute: int | None, timing: Timing) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._next = -math.inf
        self._timing = timing

    async def take(self, units: int) -> None:
        """Wait for the turn of `units`."""
        if self._seconds:
            now = self._timing.now()
            turn = max(now, self._next)
            self._next = turn + units * self._seconds
            if turn > now:
                await self._timing.sleep(turn - now)

    def give_back(self, units: int) -> None:
        """`units` that were taken were not used (negative: more were)."""
        self._next -= units * self._seconds
