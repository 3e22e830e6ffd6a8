"""What the tests of batches share: one collection through the real SDKs, at a loopback provider.

As a program, `batches.py` collects in children (`support.children`): [provider, URL, count].
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.chat import KEY, PRICE, prompts
from support.children import serve

from distillctl.batches import BatchOptions, collect_batches, known_batches
from distillctl.budget import Budget
from distillctl.collect import Collected
from distillctl.predictors.anthropic_batch import AnthropicBatches
from distillctl.predictors.anthropic_chat import AnthropicPredictor
from distillctl.predictors.batch import BatchService
from distillctl.predictors.openai_batch import OpenAIBatches
from distillctl.predictors.openai_chat import OpenAIPredictor
from distillctl.prices import halved
from distillctl.secrets import Secret
from distillctl.store.ledger import Ledger
from distillctl.testing.chat_server import Reply
from distillctl.types import Request

PROGRAM = __file__
RUN = "recipe/run"
PROVIDERS = ("openai", "anthropic")


def number(asked) -> int:
    return int(asked.prompt.rpartition(" ")[2])


def echo(asked) -> Reply:
    return Reply(f"answer {number(asked)}")


def spent(folder: Path):
    with Ledger(folder / "ledger.db") as ledger:
        return ledger.spent(RUN)


def outputs(collected) -> list[str | None]:
    return [answer.output for answer in collected.answers]


def right(count: int) -> list[str]:
    return [f"answer {n}" for n in range(count)]


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now = time.time()
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


def service_for(provider: str, url: str, folder: Path, ledger: Ledger, price=PRICE,
                model: str = "some-model") -> BatchService:
    key = Secret("TEST_KEY", KEY)
    half = price and halved(price)
    if provider == "openai":
        predictor = OpenAIPredictor(model, base_url=f"{url}/v1", api_key=key, max_tokens=16)
        return OpenAIBatches(predictor, key, half)
    predictor = AnthropicPredictor(model, base_url=url, api_key=key, max_tokens=16)
    return AnthropicBatches(predictor, key, half, folder / "batches", lambda: known_batches(ledger))


def collect_in_batches(provider: str, url: str, folder: Path, requests: list[Request], *, max_usd=1.0,
                       price=PRICE, model: str = "some-model", limits: dict | None = None,
                       clock: Clock | None = None, events: list | None = None, **options) -> Collected:
    """limits: other limits of the provider than its own, by their names."""
    clock = clock or Clock()
    with Ledger(folder / "ledger.db") as ledger:
        service = service_for(provider, url, folder, ledger, price, model)
        for name, value in (limits or {}).items():
            setattr(service, name, value)
        return collect_batches(
            service, requests, ledger=ledger, run=RUN, clock=clock, sleep=clock.sleep,
            options=BatchOptions(folder / "batches", lambda: Budget.of(ledger, RUN, max_usd), **options),
            on_event=(events if events is not None else []).append)


def collecting_at(provider: str, url: str, folder: Path) -> Callable[..., Collected]:
    """One collection of so many prompts; what it takes beyond its defaults is `collect_in_batches`'s."""
    def collect(count: int, **options) -> Collected:
        return collect_in_batches(provider, url, folder, prompts(count), **options)
    return collect


def _collect_in_child(folder: Path, given: list) -> None:
    provider, url, count = given
    collect_in_batches(provider, url, folder, prompts(count))


def main() -> None:
    for sdk in ("anthropic", "openai"):
        importlib.import_module(sdk)
    serve(_collect_in_child)


if __name__ == "__main__":
    main()
