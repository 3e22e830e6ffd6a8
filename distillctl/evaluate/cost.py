"""What 1,000 requests cost: from tokens and a price, from what was billed, or from a machine's price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distillctl.evaluate.results import Cost, Latency, Role, Throughput
from distillctl.evaluate.wording import money, percent
from distillctl.prices import PricePoint
from distillctl.recipe.models import EconomicsSpec, TeacherCost
from distillctl.types import Answer

DAY = 24 * 3600


def cost(answers: Sequence[Answer], price: PricePoint | None) -> Cost | None:
    """Mean cost of the requests that were answered, times 1,000; None where it is not known of each.

    The tokens at the price where there is one, else the cost that came with the answers. A request that
    failed is in neither mean: what it cost is not known.
    """
    answered = [answer for answer in answers if answer.output is not None]
    if not answered:
        return None
    if price is not None:
        by_price = [price.cost(a.tokens_in, a.tokens_out, a.tokens_cached) for a in answered]
        if None not in by_price:
            return Cost(usd_per_1000=1000 * sum(by_price) / len(by_price), source=f"tokens at {_of(price)}")
    billed = [answer.cost_usd for answer in answered]
    if None not in billed:
        return Cost(usd_per_1000=1000 * sum(billed) / len(billed), source="recorded with the answers")
    return None


def teacher_cost(answers: Sequence[Answer], price: PricePoint | None, spec: TeacherCost) -> Cost | None:
    """As `cost`; where the answers have no tokens, those that the recipe names. A batch costs half."""
    found = cost(answers, price)
    if found is None and price is not None and spec.tokens is not None:
        tokens = spec.tokens
        usd = price.cost(tokens.input, tokens.output, tokens.cached_input)
        cached = f" ({tokens.cached_input:,} of them cached)" if tokens.cached_input else ""
        found = Cost(usd_per_1000=1000 * usd,
                     source=f"{tokens.input:,} tokens in{cached} and {tokens.output:,} out, as the recipe "
                            f"says, at {_of(price)}")
    if found is not None and spec.batch:
        return Cost(usd_per_1000=found.usd_per_1000 / 2, source=f"half, by batch, of {found.source}")
    return found


@dataclass(frozen=True)
class Server:
    """What answers as the student and is paid by time. per_second: how much it answers, None where that was
    not measured; one_at_a_time: the same when it is asked that way."""

    what: str
    usd_per_hour: float
    always_on: bool
    hosted: bool = False
    per_second: float | None = None
    one_at_a_time: float | None = None

    @property
    def capacity(self) -> float:
        """Requests that one answers in a day; without end where that is not known."""
        return math.inf if self.per_second is None else self.per_second * DAY

    def cost(self, volume: int | None) -> Cost | None:
        """Paid while it answers; or round the clock, shared by the day's requests (unknown without their
        number)."""
        if not self.always_on and self.per_second:
            return Cost(usd_per_1000=1000 * self.usd_per_hour / 3600 / self.per_second,
                        source=f"{self.what}, {self.per_second:.3g} requests per second")
        if volume is None:
            return None
        count = machines(volume, self.capacity)
        return Cost(usd_per_1000=1000 * count * 24 * self.usd_per_hour / volume,
                    source=f"{self.what} round the clock, {count:,} for {volume:,} requests a day"
                           f"{self._busy(volume, count)}")

    def _busy(self, volume: int, count: int) -> str:
        if self.per_second is not None:
            return f", busy {percent(volume / (count * self.capacity))} of the time"
        if self.one_at_a_time is None:
            return ""
        share = volume / (self.one_at_a_time * DAY)
        often = f"busy {percent(share)} of the time" if share <= 1 else (
            f"which takes {math.ceil(share):,} at once all the time")
        return f", {often} as fast as it was measured one at a time"


def server(spec: EconomicsSpec, role: Role, throughput: Throughput | None, latency: Latency | None = None,
           usd_per_hour: float | None = None) -> Server | None:
    """What serves a learner and is paid by time; None where there is no such price, or, for a machine of
    one's own, no throughput.

    usd_per_hour: of the endpoint that gave the answers. The recipe's prices override it; its endpoint is the
    student's, and no baseline's.
    """
    measured = throughput.per_second if throughput and throughput.per_second > 0 else None
    alone = 1 / latency.p50.value if latency and latency.p50.value > 0 else None
    minute = spec.endpoint_usd_per_minute
    if minute is not None and role != "baseline":
        return Server(f"an endpoint at {money(minute)} a minute", 60 * minute, True, True, measured, alone)
    if usd_per_hour is not None and spec.student_price is None:
        return Server(f"its endpoint at {money(usd_per_hour)} an hour", usd_per_hour, True, True, measured,
                      alone)
    if spec.hardware_usd_per_hour is None or measured is None:
        return None
    hourly = spec.hardware_usd_per_hour
    return Server(f"own hardware at {money(hourly)} an hour", hourly, spec.always_on, False, measured)


def machines(volume: float, capacity: float) -> int:
    """How many machines answer this volume, when one answers `capacity` in the same time; at least one."""
    return max(1, -int(-volume // capacity))


def _of(price: PricePoint) -> str:
    return f"{price.source}, {price.date}" if price.date else price.source
