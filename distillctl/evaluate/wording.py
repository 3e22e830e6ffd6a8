"""Figures inside the sentences of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping

from distillctl.evaluate.results import Interval
from distillctl.types import JSON


def percent(share: float) -> str:
    """0.784 -> "78.4 %"; never "100.0 %" or "0.0 %" unless it is exactly that."""
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0.0, 100.0) or share in (0, 1):
            break
    return f"{text} %"


def points(share: float, digits: int = 1) -> str:
    """A difference of shares in points, without a sign for zero: 0.0512 -> "5.1"."""
    text = f"{100 * share:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def money(usd: float) -> str:
    """US dollars with at least two significant digits: "$12.40", "$0.0031", "$0"."""
    if usd == 0:
        return "$0"
    if abs(usd) >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.{1 - math.floor(math.log10(abs(usd)))}f}"


def times(ratio: float) -> str:
    """8.249 -> "8.24 times": three digits, cut and not rounded, so that 1.999 is not "2 times"."""
    if ratio >= 100:
        return f"{math.floor(ratio):,} times"
    scale = 100 if ratio < 10 else 10
    return f"{math.floor(ratio * scale + 1e-9) / scale:g} times"


def gap(drop: float) -> str:
    """Where the student stands: "21.2 points below", "1.2 points above", "level with"."""
    if points(drop) == points(0):
        return "level with"
    return f"{points(abs(drop))} points {'below' if drop > 0 else 'above'}"


def gap_range(drop: Interval) -> str:
    """The interval of a drop: "16.3 to 26.7", or with sides where it has both: "1.1 above to 5.3 below"."""
    if drop.low >= 0:
        return f"{points(drop.low)} to {points(drop.high)}"
    if drop.high <= 0:
        return f"{points(-drop.high)} to {points(-drop.low)}"
    return f"{points(-drop.low)} above to {points(drop.high)} below"


def about(count: int, noun: str) -> str:
    """An estimated count with two digits that mean something: 1234 -> "about 1,200 items"."""
    return f"about {plural(int(float(f'{count:.2g}')), noun)}"


def plural(count: int, noun: str) -> str:
    """"1 item", "1,200 items"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def settings_text(settings: Mapping[str, JSON]) -> str:
    """Settings by dotted field, in one line: "student.model a, learning_rate 0.001, lora {rank: 8}"."""
    return ", ".join(f"{name.removeprefix('train.')} {_setting(value)}" for name, value in settings.items())


def _setting(value: JSON) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_setting(one)}" for name, one in value.items()) + "}"
    return "null" if value is None else str(value)
