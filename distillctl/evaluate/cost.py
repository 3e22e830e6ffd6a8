"""What 1,000 requests cost, from the answers' tokens and a price, or from what was billed."""

from __future__ import annotations

from collections.abc import Sequence

from distillctl.evaluate.results import Cost
from distillctl.prices import PricePoint
from distillctl.types import Answer


def cost(answers: Sequence[Answer], price: PricePoint | None) -> Cost | None:
    """Mean cost of the requests that were answered, times 1,000; None where it is not known of each.

    The tokens at the price where there is one, else the cost that came with the answers. A request that
    failed is in neither mean: what it cost is not known.
    """
    answered = [answer for answer in answers if answer.output is not None]
    if not answered:
        return None
    if price is not None:
        source = f"{price.source}, {price.date}" if price.date else price.source
        by_price = [price.cost(a.tokens_in, a.tokens_out, a.tokens_cached) for a in answered]
        if None not in by_price:
            return Cost(usd_per_1000=1000 * sum(by_price) / len(by_price), source=f"tokens at {source}")
    billed = [answer.cost_usd for answer in answered]
    if None not in billed:
        return Cost(usd_per_1000=1000 * sum(billed) / len(billed), source="recorded with the answers")
    return None
