"""Latency of single requests and how many times faster one entrant is than another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distillctl.evaluate import stats
from distillctl.evaluate.results import Interval, Latency

MIN_FOR_MEDIAN = 6  # fewer values have no 95 % interval of their median
MIN_FOR_P95 = 59


def latency(seconds: Sequence[float], source: Literal["measured", "recorded"],
            machine: str | None = None) -> Latency | None:
    """p50 and p95 with order-statistic intervals, of wall times of one request each in seconds; machine: see
    `Latency`.

    None where there are none; p95 None under 59 values. Under 6 the interval of p50 is the range, and its
    method says so.
    """
    import numpy as np

    if not seconds:
        return None
    p50, p95 = (float(value) for value in np.quantile(seconds, [0.5, 0.95]))
    inner, outer = stats.quantile_interval(seconds, 0.5), stats.quantile_interval(seconds, 0.95)
    low, high = inner or (min(seconds), max(seconds))
    return Latency(
        source=source, machine=machine, n=len(seconds),
        p50=Interval(value=p50, low=low, high=high,
                     method="order statistics" if inner else "range, too few for an interval"),
        p95=Interval(value=p95, low=outer[0], high=outer[1], method="order statistics") if outer else None)


def speedup(teacher: Sequence[float], student: Sequence[float]) -> Interval | None:
    """The teacher's median latency over the student's, with a bootstrap interval.

    None, unknown, under 6 values on either side or where a clock was too coarse for the student.
    """
    import numpy as np

    if min(len(teacher), len(student)) < MIN_FOR_MEDIAN or min(student) <= 0:
        return None
    value = float(np.median(teacher) / np.median(student))
    low, high = stats.median_ratio(teacher, student)
    return Interval(value=value, low=min(low, value), high=max(high, value),
                    method=f"ratio of medians, bootstrap, {stats.DRAWS:,} draws")
