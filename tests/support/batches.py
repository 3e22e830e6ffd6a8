"""What the tests of batches share: one collection through the real SDKs, at a loopback provider.

As a program, `batches.py` collects in children (`support.children`): [provider, URL, count].
"""

from __future__ import annotations

import importlib
import sys
import time
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
from distillctl.types import Request

PROGRAM = __file__
RUN = "recipe/run"


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


def _collect_in_child(folder: Path, given: list) -> None:
    provider, url, count = given
    collect_in_batches(provider, url, folder, prompts(count))


def main() -> None:
    for sdk in ("anthropic", "openai"):
        importlib.import_module(sdk)
    serve(_collect_in_child)


if __name__ == "__main__":
    main()
