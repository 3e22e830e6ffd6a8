"""What tokens cost: the recipe's price, else a kept price table (genai-prices, MIT, works offline)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from distillctl.recipe.models import Price
from distillctl.types import JSON, Message, Request

_MILLION = 1_000_000


@dataclass(frozen=True)
class Rate:
    """US dollars per million tokens. cached_input is None where cached tokens cost what others do."""

    input: float
    output: float
    cached_input: float | None = None


@dataclass(frozen=True)
class PricePoint:
    """The price of one model, where it is from (`source`) and of when (`date`, ISO; None: not dated).

    tiers: (tokens, rate): a prompt of more than that many tokens costs that rate as a whole, ascending.
    """

    rate: Rate
    source: str
    date: str | None = None
    tiers: tuple[tuple[int, Rate], ...] = ()

    def cost(self, tokens_in: int | None, tokens_out: int | None, tokens_cached: int | None = None,
             ) -> float | None:
        """US dollars of one call, None where that hangs on token counts that are not known.

        tokens_in counts the whole prompt; tokens_cached, the part of it that the provider had cached.
        """
        rate = self.rate
        if rate.input == rate.output == 0:
            return 0.0
        if tokens_in is None or tokens_out is None:
            return None
        for start, above in self.tiers:
            if tokens_in > start:
                rate = above
        cached = min(tokens_cached or 0, tokens_in)
        cached_rate = rate.input if rate.cached_input is None else rate.cached_input
        whole = (tokens_in - cached) * rate.input + cached * cached_rate + tokens_out * rate.output
        return whole / _MILLION

    def as_json(self) -> dict[str, JSON]:
        return {"input": self.rate.input, "output": self.rate.output, "cached_input": self.rate.cached_input,
                "source": self.source, "date": self.date}


@dataclass(frozen=True)
class Estimate:
    """What asking would cost at most; None where no price is known."""

    calls: int
    tokens_in: int
    usd_at_most: float | None


def price_in_recipe(price: Price) -> PricePoint:
    """The recipe's own price."""
    return PricePoint(Rate(price.input, price.output, price.cached_input), "the recipe")


def halved(price: PricePoint) -> PricePoint:
    """What batches cost where no table says it: OpenAI and Anthropic bill them at half."""
    def half(rate: Rate) -> Rate:
        return Rate(rate.input / 2, rate.output / 2,
                    None if rate.cached_input is None else rate.cached_input / 2)
    return PricePoint(half(price.rate), f"half of {price.source}", price.date,
                      tuple((start, half(rate)) for start, rate in price.tiers))


def price_of(model: str, provider: str | None = None, base_url: str | None = None, *,
             batch: bool = False) -> PricePoint | None:
    """The table's price of `model` now, None where it does not know the model.

    provider: the table's id ("openai", "anthropic", "together", "google"); without it, the provider is
    told by `base_url`. batch: of requests in a batch; where the table has no price for these, half of the
    others'. Nothing is downloaded: the table is the one that was installed.
    """
    from genai_prices.data_snapshot import get_snapshot

    try:
        source, info = get_snapshot().find_provider_model(model, None, provider, base_url)
    except LookupError:
        return None
    given, answered, cached = _parts(info, {})
    in_batches = _parts(info, {"processing": "batch"}) if batch else (None, None, None)
    listed = batch and in_batches[:2] != (given, answered)
    if listed:
        given, answered, cached = in_batches
    if given is None or answered is None:
        return None  # priced by something other than tokens
    name, date = _table()
    starts = sorted({tier.start for part in (given, answered, cached) for tier in getattr(part, "tiers", ())})
    found = PricePoint(
        _rate(given, answered, cached, 0), f"{name}, {source.id}/{info.id}" + (", batch" if listed else ""),
        date, tuple((start, _rate(given, answered, cached, start + 1)) for start in starts))
    return halved(found) if batch and not listed else found


def _parts(info: Any, context: dict[str, str]) -> tuple[Any, Any, Any]:
    """The prices of input, output and cached input tokens."""
    prices = info.get_prices(datetime.now(UTC), context)
    return tuple(getattr(prices, name, None) for name in ("input_mtok", "output_mtok", "cache_read_mtok"))


def prompt_tokens_at_most(messages: Sequence[Message]) -> int:
    """An upper bound of a prompt's tokens that needs no tokenizer.

    Two bytes of UTF-8 a token: English has about four and Chinese about three in today's tokenizers;
    16 more per message for its frame.
    """
    return sum(len(message["content"].encode("utf-8", "replace")) // 2 + 16 for message in messages)


class PaidByToken:
    """What is billed by the token. price: None where it is not known. max_tokens: of an answer."""

    price: PricePoint | None
    max_tokens: int

    def max_cost(self, request: Request) -> float | None:
        """The most that one answer can cost, US dollars; None where no price is known."""
        return self.price and self.price.cost(prompt_tokens_at_most(request.messages), self.max_tokens)


def estimate(requests: Iterable[Request], price: PricePoint | None, max_tokens: int) -> Estimate:
    """What `requests` cost at most, each answered with `max_tokens` tokens."""
    calls = tokens = 0
    usd = 0.0
    for request in requests:
        most = prompt_tokens_at_most(request.messages)
        calls += 1
        tokens += most
        if price is not None:
            usd += price.cost(most, max_tokens) or 0.0
    return Estimate(calls, tokens, usd if price is not None else None)


def _rate(given: Any, answered: Any, cached: Any, tokens: int) -> Rate:
    return Rate(_at(given, tokens), _at(answered, tokens), None if cached is None else _at(cached, tokens))


def _at(price: Any, tokens: int) -> float:
    """A price, plain or in tiers, for a prompt of `tokens`."""
    amount = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tokens > tier.start:
            amount = tier.price
    return float(amount)


@cache
def _table() -> tuple[str, str | None]:
    """The table's name and the day of the last price change in it that has come into force."""
    from genai_prices import __version__
    from genai_prices.data_snapshot import get_snapshot

    today = datetime.now(UTC).date()
    dates = [start for provider in get_snapshot().providers for model in provider.models
             if isinstance(model.prices, list) for price in model.prices
             if (start := getattr(price.constraint, "start_date", None)) and start <= today]
    return f"genai-prices {__version__}", max(dates).isoformat() if dates else None
