"""What a comparison of runs says: the shape of `compare --json`, read by the report and the API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillctl.evaluate.results import Contrast, Economics, Evaluation, Interval, Result, Verdict
from distillctl.types import JSON


class ComparedRun(Result):
    """One run in a comparison: its student, and what was decided about it. settings: of its student and its
    training, those in which the compared runs differ."""

    run: str
    settings: dict[str, JSON] = Field(default_factory=dict)
    student: Evaluation
    drop: Interval  # against the teacher of its own run
    speedup: Interval | None
    economics: Economics | None = None
    verdict: Verdict


class SweetSpot(Result):
    """The student to take if not the best: of those within one standard error of the best on dev, the
    cheapest, or the fastest where not all costs are known, or the best where not all latencies are.

    within: all of those runs. The rule is Breiman's (Classification and Regression Trees, 1984, 3.4.3), with
    the standard error of the paired difference.
    """

    run: str
    by: Literal["cost", "latency", "accuracy"]
    within: list[str]
    sentence: str


class ComparisonTable(Result):
    """Runs side by side on the same test items, the best student first.

    ranked_on: the split whose accuracy says who is best; "test" only where not all runs have answered the
    same dev items. sweet_spot: None for a single run, and where it could only be chosen on test.
    references: teachers, base models and baselines of the runs, equal ones once. contrasts: the first
    student against each of the others on test; where it was picked on test, adjusted for all pairs.
    """

    task_kind: str
    gold: bool
    test_digest: str
    n: int
    ranked_on: Literal["dev", "test"] = "test"
    sweet_spot: SweetSpot | None = None
    runs: list[ComparedRun]
    references: list[Evaluation]
    contrasts: list[Contrast]
    notes: list[str]
