"""Secrets stay hidden, prices are right or unknown, the budget keeps its books."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle

import pytest

from distillctl import secrets
from distillctl.budget import Budget
from distillctl.prices import PricePoint, Rate, estimate, price_of, prompt_tokens_at_most
from distillctl.types import Request

VALUE = "sk-canary-a1b2c3d4e5f6"


@pytest.fixture
def secret(monkeypatch) -> secrets.Secret:
    monkeypatch.setenv("CANARY_KEY", f"  {VALUE}\n")
    return secrets.get("CANARY_KEY")


def test_a_secret_gives_its_value_only_when_asked(secret):
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>5}", json.dumps({"key": secret}),
             str(vars(secret)), repr({"a": [secret]}), str(pickle.loads(pickle.dumps(secret))),
             copy.deepcopy(secret)]
    assert not [text for text in shown if VALUE in text]
    assert secret.reveal() == VALUE == secrets.value("CANARY_KEY")
    assert secret.name == "CANARY_KEY"


@pytest.mark.parametrize("content", [None, "", "   "])
def test_a_secret_that_is_not_set_is_none(monkeypatch, content):
    if content is not None:
        monkeypatch.setenv("CANARY_KEY", content)
    assert secrets.get("CANARY_KEY") is None and secrets.value("CANARY_KEY") is None


def test_redaction_is_by_value_in_every_form(secret, monkeypatch):
    monkeypatch.setenv("ODD_KEY", 'with "quotes" & spaces')
    secrets.get("ODD_KEY")
    text = secrets.redact(f"Bearer {VALUE} with \\\"quotes\\\" & spaces with%20%22quotes%22%20%26%20spaces")
    assert text == "Bearer *** *** ***"


def test_a_short_value_does_not_blot_out_words(monkeypatch):
    monkeypatch.setenv("LOCAL_KEY", "none")
    secrets.get("LOCAL_KEY")
    assert secrets.redact("none of this") == "none of this"


def test_logs_and_their_tracebacks_are_redacted(secret, monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    secrets.redact_logs()
    secrets.redact_logs()
    stream = io.StringIO()
    logger = logging.getLogger("canary")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        logger.error("sent %s", {"Authorization": f"Bearer {VALUE}"})
        try:
            raise ValueError(VALUE)
        except ValueError:
            logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    assert VALUE not in stream.getvalue() and "ValueError: ***" in stream.getvalue()


# --- prices ---

def test_the_table_knows_a_common_model_with_source_and_date():
    price = price_of("gpt-4.1-mini-2025-04-14", "openai")
    assert price.rate.input > 0 and price.rate.output > price.rate.input
    assert "openai/gpt-4.1-mini" in price.source and price.date >= "2026"


@pytest.mark.parametrize(("model", "provider", "url"), [
    ("no-such-model-at-all", "openai", None), ("llama", "no-such-provider", None),
    ("gpt-4.1-mini", None, "http://127.0.0.1:8000/v1")])
def test_what_the_table_does_not_know_is_unknown(model, provider, url):
    assert price_of(model, provider, url) is None


def test_cost_counts_cached_tokens_at_their_price():
    price = PricePoint(Rate(2.0, 10.0, 0.5), "test")
    assert price.cost(1_000_000, 0, 0) == 2.0
    assert price.cost(1_000_000, 100_000, 400_000) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 1.0)
    assert price.cost(None, 5) is None and price.cost(5, None) is None


def test_a_long_prompt_costs_its_tier():
    price = PricePoint(Rate(1.0, 2.0), "test", tiers=((100, Rate(5.0, 10.0)),))
    assert price.cost(100, 0) == pytest.approx(100 / 1e6)
    assert price.cost(101, 0) == pytest.approx(101 * 5 / 1e6)


def test_an_estimate_is_an_upper_bound_and_unknown_without_a_price():
    requests = [Request(str(n), [{"role": "user", "content": "word " * 100}]) for n in range(10)]
    known = estimate(requests, PricePoint(Rate(1.0, 1.0), "test"), max_tokens=10)
    assert known.calls == 10 and known.tokens_in >= 10 * 101
    assert known.usd_at_most == pytest.approx((known.tokens_in + 100) / 1e6)
    assert estimate(requests, None, 10).usd_at_most is None


@pytest.mark.parametrize(("text", "tokens"), [
    ("word " * 400, 400), ("数据蒸馏" * 100, 400), ("{}[]()<>+-" * 40, 160)])
def test_the_token_bound_is_not_below_what_tokenizers_give(text, tokens):
    assert prompt_tokens_at_most([{"role": "user", "content": text}]) >= tokens


# --- budget ---

def test_the_budget_refuses_what_would_pass_the_cap():
    budget = Budget(1.0, spent=0.5)
    assert budget.reserve(0.3)
    assert not budget.reserve(0.3)
    budget.settle(0.3, 0.1)
    assert budget.reserve(0.3)
    assert budget.left == pytest.approx(0.1)


def test_a_call_that_fits_exactly_fits_in_spite_of_rounding():
    budget = Budget(0.3)
    assert all(budget.reserve(0.1) for _ in range(3))
    assert not budget.reserve(0.001)
