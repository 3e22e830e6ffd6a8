"""What 1,000 requests cost: from tokens and a price, from what was billed, or from a machine's price."""

from __future__ import annotations

from collections.abc import Sequence

from distillctl.evaluate.results import Cost, Throughput
from distillctl.evaluate.wording import money
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
        found = Cost(usd_per_1000=1000 * usd, source=f"{tokens.input:,} and {tokens.output:,} tokens, as the "
                                                     f"recipe says, at {_of(price)}")
    if found is not None and spec.batch:
        return Cost(usd_per_1000=found.usd_per_1000 / 2, source=f"half, by batch, of {found.source}")
    return found


def hardware_cost(throughput: Throughput | None, spec: EconomicsSpec) -> Cost | None:
    """A machine of one's own at its measured throughput; None without its price, or its throughput.

    Paid while it answers; or round the clock, shared by the day's requests (unknown without their number).
    """
    hourly = spec.hardware_usd_per_hour
    if hourly is None or throughput is None or throughput.per_second <= 0:
        return None
    at = f"own hardware at {money(hourly)} an hour"
    if not spec.always_on:
        return Cost(usd_per_1000=1000 * hourly / 3600 / throughput.per_second,
                    source=f"{at}, {throughput.per_second:.3g} requests per second")
    volume = spec.requests_per_day
    if volume is None:
        return None
    count = machines(volume, throughput.per_second * DAY)
    return Cost(usd_per_1000=1000 * count * 24 * hourly / volume,
                source=f"{at} round the clock, {count:,} for {volume:,} requests a day")


def machines(volume: float, capacity: float) -> int:
    """How many machines answer this volume, when one answers `capacity` in the same time; at least one."""
    return max(1, -int(-volume // capacity))


def _of(price: PricePoint) -> str:
    return f"{price.source}, {price.date}" if price.date else price.source
