"""What the tests of predictors and collection share."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distillctl.collect import Collected, CollectOptions, collect
from distillctl.predictors.openai_chat import OpenAIPredictor
from distillctl.prices import PricePoint, Rate
from distillctl.retry import Timing
from distillctl.secrets import Secret
from distillctl.store.ledger import Ledger, answer_key
from distillctl.testing.chat_server import ChatServer
from distillctl.types import Answer, Request

KEY = "sk-test-canary-0123456789abcdef"
PRICE = PricePoint(Rate(1.0, 2.0), "test")


class FakeTiming:
    """A clock that only sleeping moves; `slept` has every wait."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time = max(self.time, self.time + seconds)
        await asyncio.sleep(0)

    def timing(self, dice: float = 0.5) -> Timing:
        return Timing(lambda: self.time, self._sleep, lambda: dice)


def prompt(number: int) -> Request:
    return Request(f"row-{number}", [{"role": "user", "content": f"question {number}"}])


def prompts(count: int) -> list[Request]:
    return [prompt(number) for number in range(count)]


def predictor_for(server: ChatServer, **options) -> OpenAIPredictor:
    options.setdefault("max_tokens", 16)
    return OpenAIPredictor("some-model", base_url=server.base_url, api_key=Secret("TEST_KEY", KEY), **options)


def collect_all(server: ChatServer, folder: Path, requests: list[Request], *, budget=None, paid=False,
                price=None, timing: Timing | None = None, on_progress=None, kind="teacher",
                **options) -> Collected:
    """One whole collection in its own event loop, over the ledger in `folder`."""
    async def go() -> Collected:
        predictor = predictor_for(server, price=price)
        try:
            with Ledger(folder / "ledger.db") as ledger:
                return await collect(
                    predictor, requests, ledger=ledger, run="run", kind=kind, paid=paid, budget=budget,
                    options=CollectOptions(max_cost=predictor.max_cost, **options), on_progress=on_progress,
                    timing=timing or FakeTiming().timing())
        finally:
            await predictor.aclose()

    return asyncio.run(go())


def kept_answers(server: ChatServer, folder: Path, requests: list[Request]) -> dict[str, Answer]:
    """What the ledger in `folder` holds of `requests`, by request id."""
    keys = {answer_key(predictor_for(server).identity, request): request.id for request in requests}
    with Ledger(folder / "ledger.db") as ledger:
        return {keys[key]: answer for key, answer in ledger.answers(list(keys)).items()}
