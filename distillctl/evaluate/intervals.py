"""Figures with their intervals over the test items of one run, items in groups allowed for.

Rows that belong together (one conversation, one customer) say less than as many independent ones: shares
and differences then use effective counts, bootstraps draw whole groups. Without groups every item is its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from distillctl.evaluate import stats
from distillctl.evaluate.results import Contrast, Count, Interval

if TYPE_CHECKING:
    import numpy as np

IN_GROUPS = ", items in groups"
"""Ends the method of an interval that allows for groups."""


def count(flags: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Count:
    """How many of `flags` are set, with Wilson's interval. Raises ValueError when there are none at all."""
    k, n = sum(flags), len(flags)
    effect = stats.design_effect(flags, groups) if groups else 1.0
    low, high = stats.wilson(k / effect, n / effect)
    return Count(k=k, n=n, share=Interval(value=k / n, low=low, high=high, method=_named("Wilson", groups)))


def mean(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """The mean of values in [0, 1]: Wilson's interval where all are 0 or 1, else a bootstrap."""
    import numpy as np

    if all(value in (0, 1) for value in values):
        return count([value == 1 for value in values], groups).share
    units = np.column_stack([np.asarray(values, float), np.ones(len(values))])
    return bootstrapped(units, lambda sums: sums[:, 0] / sums[:, 1], groups)


def bootstrapped(units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray],
                 groups: Sequence[Hashable] | None = None) -> Interval:
    """A statistic of sums over items (`stats.bootstrap`), whole groups drawn where there are any."""
    import numpy as np

    if groups:
        _, which = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
        summed = np.zeros((which.max() + 1, units.shape[1]))
        np.add.at(summed, which, units)
        units = summed
    value = float(statistic(units.sum(0)[None])[0])
    low, high = stats.bootstrap(units, statistic)
    return Interval(value=value, low=min(low, value), high=max(high, value),
                    method=_named(f"bootstrap, {stats.DRAWS:,} draws", groups))


def difference(first: Sequence[bool], second: Sequence[bool], groups: Sequence[Hashable] | None = None,
               ) -> Interval:
    """Share of `first` less share of `second`, item by item the same items: Tango's interval."""
    only_first, only_second = discordant(first, second)
    n = len(first)
    apart = [a - b for a, b in zip(first, second, strict=True)]
    effect = stats.design_effect(apart, groups) if groups else 1.0
    low, high = stats.tango(only_first / effect, only_second / effect, n / effect)
    return Interval(value=(only_first - only_second) / n, low=low, high=high, method=_named("Tango", groups))


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """On how many items the first alone is right, and the second alone."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def contrast(first_name: str, first: Sequence[bool], second_name: str, second: Sequence[bool],
             groups: Sequence[Hashable] | None = None) -> Contrast:
    """Two entrants on the same items."""
    only_first, only_second = discordant(first, second)
    return Contrast(first=first_name, second=second_name, n=len(first), only_first=only_first,
                    only_second=only_second, difference=difference(first, second, groups),
                    p=stats.mcnemar_exact(only_first, only_second))


def _named(method: str, groups: Sequence[Hashable] | None) -> str:
    return method + IN_GROUPS if groups else method
