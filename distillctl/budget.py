"""The spend cap: money is set aside before a call and settled after it, so no number of calls at once
can go past it."""

from __future__ import annotations

from collections.abc import Sequence

from distillctl.errors import BudgetError, Problem
from distillctl.store.ledger import Ledger


class Budget:
    """What one run, or the runs of a sweep, may still spend, in US dollars; made anew from the ledger at each
    start.

    Spent counts what may have been spent: an item without a known cost counts with its upper bound.
    """

    def __init__(self, max_usd: float, spent: float = 0.0) -> None:
        self.max_usd = max_usd
        self.spent = spent
        self.reserved = 0.0

    @classmethod
    def of(cls, ledger: Ledger, run: str | Sequence[str], max_usd: float) -> Budget:
        """The budget of a run, or of several together, less what the ledger says was spent."""
        spent = ledger.spent(*((run,) if isinstance(run, str) else run))
        return cls(max_usd, spent.usd + spent.at_most)

    @property
    def left(self) -> float:
        """What is neither spent nor set aside."""
        return self.max_usd - self.spent - self.reserved

    def reserve(self, usd: float) -> bool:
        """Set `usd` aside; False, and nothing set aside, where that would pass the cap."""
        if usd > self.left + 1e-9 * self.max_usd:  # sums of floats: a call that fits exactly fits
            return False
        self.reserved += usd
        return True

    def settle(self, reserved: float, spent: float) -> None:
        """Of what was set aside, `spent` was spent; the rest is free again."""
        self.reserved -= reserved
        self.spent += spent

    def exhausted(self, usd: float, what: str = "answer") -> BudgetError:
        """The next `what`, of up to `usd`, does not fit any more."""
        return BudgetError(Problem(
            f"the next {what} could cost {usd:.4g} US dollars; {self.spent:.4g} of {self.max_usd:g} are "
            "spent, or may be", field="budget.max_usd",
            hint="raise it, or lower max_tokens, and run again to go on"))


def unknown_price(kind: str) -> BudgetError:
    """The cap cannot be kept for calls whose price nobody knows. kind: who is asked, "teacher"."""
    return BudgetError(Problem(
        f"the price of the {kind} is unknown, so `budget.max_usd` cannot be kept", field=f"{kind}.price",
        hint="give it in US dollars per million tokens, for example {input: 0.4, output: 1.6}, or "
             "{input: 0, output: 0} for a server of your own"))
