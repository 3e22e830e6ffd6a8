"""Intervals, tests and sample sizes: the statistics that the verdict rests on, as functions of counts.

Shares are in [0, 1] and levels two-sided unless said. Teacher and student answer the same items, so their
difference is one of paired shares: `n10` counts the items on which only the first is right, `n01` those on
which only the second is. numpy and scipy are imported by the functions that need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DRAWS = 10_000
SEED = 20_240_229  # any fixed number: the same predictions must give the same report
_CELLS_AT_ONCE = 4_000_000  # doubles in memory while resampling, 32 MB


def z_value(level: float = 0.95) -> float:
    """The normal quantile that leaves (1 - level)/2 above it."""
    return NormalDist().inv_cdf((1 + level) / 2)


# --- one share --------------------------------------------------------------------------------------------


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); never of zero width. `k` and `n` may be effective counts.

    Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not (0 <= k <= n and n > 0):
        raise ValueError(f"{k} of {n} is not a share")
    z2 = z_value(level) ** 2
    share = k / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def clopper_pearson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934): covers at least at its level. `k` and `n` may
    be effective counts.

    Raises ValueError unless 0 <= k <= n and n > 0.
    """
    from scipy.special import betaincinv

    if not (0 <= k <= n and n > 0):
        raise ValueError(f"{k} of {n} is not a share")
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return low, high


# --- the difference of two paired shares ------------------------------------------------------------------


def tango(n10: float, n01: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of (n10 - n01)/n, a difference of paired shares (Stat. Med. 1998, 17:891).

    Its upper bound at level 1 - 2a under a margin is the non-inferiority test at level a. Never of zero
    width. Counts may be effective ones. Raises ValueError unless n10, n01 >= 0, n10 + n01 <= n and n > 0.
    """
    import numpy as np

    if not (n10 >= 0 and n01 >= 0 and n > 0 and n10 + n01 <= n * (1 + 1e-12)):
        raise ValueError(f"{n10} and {n01} of {n} are not counts of pairs")
    low, high = tango_bounds(np.float64(n10), np.float64(n01), float(n), level)
    return float(low), float(high)


def tango_bounds(n10: np.ndarray, n01: np.ndarray, n: float, level: float = 0.95,
                 ) -> tuple[np.ndarray, np.ndarray]:
    """`tango` for arrays of counts.

    The score statistic falls as the supposed difference rises, so each bound is where it passes ±z.
    Bisection needs no more than that: the statistic is 0/0 at the ends of the scale and at the estimate
    when no pair is discordant, where root finders that look at its value go wrong.
    """
    import numpy as np

    estimate = (n10 - n01) / n
    z = z_value(level)

    def passes(start: np.ndarray, end: np.ndarray, at: float) -> np.ndarray:
        for _ in range(60):
            middle = (start + end) / 2
            above = _tango_statistic(middle, n10, n01, n) > at
            start, end = np.where(above, middle, start), np.where(above, end, middle)
        return (start + end) / 2

    ones = np.ones_like(estimate)
    low = np.where(estimate <= -1, -1.0, passes(-ones, estimate, z))
    high = np.where(estimate >= 1, 1.0, passes(estimate, ones, -z))
    return low, high


def _tango_statistic(d: np.ndarray, n10: np.ndarray, n01: np.ndarray, n: float) -> np.ndarray:
    import numpy as np

    gap = n10 - n01 - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / np.sqrt(n * _tango_variance(d, n10, n01, n)))


def _tango_variance(d: np.ndarray, n10: np.ndarray, n01: np.ndarray, n: float) -> np.ndarray:
    """The variance of one pair, 2q + d(1 - d), with q, the share of second-only pairs that is most likely
    if the difference is d: the larger root of 2n·q² + b·q - n01·d(1 - d) = 0."""
    import numpy as np

    b = (2 * n - n10 + n01) * d - n10 - n01
    root = np.sqrt(np.maximum(b * b + 8 * n * n01 * d * (1 - d), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        # the second form of the root where the first would subtract nearly equal numbers
        q = np.where(b > 0, 2 * n01 * d * (1 - d) / (b + root), (root - b) / (4 * n))
    return np.maximum(2 * q + d * (1 - d), 0)


def tango_statistic(d: float, n10: float, n01: float, n: float) -> float:
    """The score statistic, standard normal if the difference is `d`; large where the true one is above."""
    import numpy as np

    return float(_tango_statistic(np.float64(d), np.float64(n10), np.float64(n01), float(n)))


def drop_within(n10: np.ndarray, n01: np.ndarray, n: float, margin: float, level: float,
                ) -> np.ndarray:
    """Whether (n10 - n01)/n shows, with this one-sided confidence, that the true difference is within
    `margin`: Tango's score test, corrected for continuity by half an item.

    Over all outcomes of 60 to 300 items and all shares of second-only pairs, the corrected test errs no more
    often than 1 - level; uncorrected it does where few pairs are discordant.
    """
    return _tango_statistic(margin, _corrected(n10, n01, n), n01, n) <= -NormalDist().inv_cdf(level)


def drop_at_most(n10: np.ndarray, n01: np.ndarray, n: float, level: float) -> np.ndarray:
    """The upper bound, with this one-sided confidence, that belongs to `drop_within`."""
    return tango_bounds(_corrected(n10, n01, n), n01, n, 2 * level - 1)[1]


def _corrected(n10: np.ndarray, n01: np.ndarray, n: float) -> np.ndarray:
    import numpy as np

    return np.minimum(n10 + 0.5, n - n01)


def mcnemar_exact(n10: int, n01: int) -> float:
    """Two-sided p of the exact McNemar test: binomial on the discordant pairs; 1 where there are none."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(n10, n01), n10 + n01, 0.5))) if n10 + n01 else 1.0


def mcnemar_mid_p(n10: int, n01: int) -> float:
    """Two-sided mid-p of the exact McNemar test (Fagerland et al., BMC Med. Res. Meth. 2013, 13:91)."""
    from scipy.special import bdtr

    few, all_ = min(n10, n01), n10 + n01
    if n10 == n01:
        return 1 - _binomial_half(few, all_) / 2 if all_ else 1.0
    return 2 * float(bdtr(few, all_, 0.5)) - _binomial_half(few, all_)


def _binomial_half(k: int, n: int) -> float:
    """Chance of k heads in n fair throws."""
    return math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))


def hits_above_chance(counts: Sequence[Sequence[int]]) -> float | None:
    """How many standard errors the hits of a confusion table lie above what answers that have nothing to do
    with the expected ones would give; None where all items are expected alike, so that nothing can be told.

    counts: (labels, answers), the answers in the labels' order first. Mean and variance are those over every
    way of giving the same answers to the same items.
    """
    import numpy as np

    table = np.asarray(counts, float)
    n, expected = table.sum(), table.sum(1)
    if (expected > 0).sum() < 2:
        return None
    said = table.sum(0)[:len(expected)]
    both = expected * said
    alone = both @ ((n - expected) * (n - said))
    variance = (alone + both.sum() ** 2 - both @ both) / (n * n * (n - 1))
    hits = float(np.trace(table[:, :len(expected)]) - both.sum() / n)
    return hits / math.sqrt(variance) if variance > 1e-12 else 0.0


def items_needed(difference: float, discordance: float, bound: float, *, level: float = 0.95,
                 power: float = 0.8) -> int | None:
    """Items with which Tango's interval of a paired difference leaves `bound` out, with this chance
    (`power`), if these are the true difference and share of discordant pairs. None on the bound itself
    (nearer than a millionth): no number would do.

    (z·s0 + z_power·s1)²/(bound - difference)²: s1² = discordance - difference² is the variance if that is
    true, s0² the one that the score statistic takes at the bound (Liu et al., Stat. Med. 2002, 21:231).
    With s1 in both places the power falls short where few pairs are discordant.
    """
    import numpy as np

    if abs(bound - difference) < 1e-6:
        return None
    n10, n01 = (discordance + difference) / 2, (discordance - difference) / 2
    at_bound = math.sqrt(float(_tango_variance(np.float64(bound), max(n10, 0.0), max(n01, 0.0), 1.0)))
    true = math.sqrt(max(discordance - difference ** 2, 0.0))
    width = z_value(level) * at_bound + NormalDist().inv_cdf(power) * true
    return max(1, math.ceil((width / (bound - difference)) ** 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# --- items that belong together ---------------------------------------------------------------------------


def design_effect(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """How many times larger the variance of the mean of `values` is because items come in groups; at
    least 1. Dividing counts by it gives effective counts (Rao and Scott, Biometrics 1992, 48:577).

    Where the values do not vary, groups cannot be told from items and each group counts as one item.
    """
    import numpy as np

    x = np.asarray(values, float)
    _, which = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    count = int(which.max()) + 1
    if count == len(x):
        return 1.0
    apart = x - x.mean()
    if count == 1 or not apart.any():
        return len(x) / count
    sums = np.bincount(which, apart)
    return max(1.0, float(count / (count - 1) * (sums @ sums) / (apart @ apart)))


# --- bootstrap and order statistics -----------------------------------------------------------------------


def bootstrap(units: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], level: float = 0.95,
              ) -> tuple[float, float]:
    """BCa bootstrap interval (Efron 1987) of a statistic of sums; only for what has no closed form.

    units: (items or groups, m): what each adds to the m sums. statistic: (draws, m) sums -> (draws,); it
    must not depend on the number of units but through the sums (a ratio of sums, an F1). 10,000 draws,
    fixed seed. Units that are alike are drawn together as one multinomial, so that labels cost the same
    for any number of items. Percentile interval where BCa is not defined. No spread, no width: the caller
    must not take it for certainty.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    rows, weights = np.unique(np.asarray(units, float), axis=0, return_counts=True)
    total = weights @ rows
    rng = np.random.default_rng(SEED)
    size = max(1, _CELLS_AT_ONCE // len(rows))
    draws = np.concatenate([
        statistic(rng.multinomial(len(units), weights / len(units), min(size, DRAWS - start)) @ rows)
        for start in range(0, DRAWS, size)])
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    value = statistic(total[None])[0]
    with np.errstate(all="ignore"):
        without = statistic(total - rows)  # the jackknife: each unit left out once
        apart = weights @ without / len(units) - without
        bias = ndtri((draws < value).mean() + (draws == value).mean() / 2)
        skew = weights @ apart ** 3 / (6 * (weights @ apart ** 2) ** 1.5)
        shifted = bias + ndtri(tails)
        corrected = ndtr(bias + shifted / (1 - skew * shifted))
    low, high = np.quantile(draws, corrected if np.isfinite(corrected).all() else tails)
    return float(low), float(high)


def median_ratio(first: Sequence[float], second: Sequence[float], level: float = 0.95,
                 ) -> tuple[float, float]:
    """Percentile bootstrap interval of median(first)/median(second), two samples drawn apart."""
    import numpy as np

    rng = np.random.default_rng(SEED)

    def medians(values: Sequence[float]) -> np.ndarray:
        x = np.asarray(values, float)
        size = max(1, _CELLS_AT_ONCE // len(x))
        return np.concatenate([np.median(x[rng.integers(0, len(x), (min(size, DRAWS - start), len(x)))], 1)
                               for start in range(0, DRAWS, size)])

    low, high = np.quantile(medians(first) / medians(second), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def quantile_interval(values: Sequence[float], q: float, level: float = 0.95) -> tuple[float, float] | None:
    """Order-statistic interval of the q-quantile, free of any distribution; None where n is too small.

    At 95 % the median needs 6 values, the 95th percentile 59. The tails are equal where that can be had;
    else what one end leaves over is given to the other (David and Nagaraja, Order Statistics, 7.1).
    """
    import numpy as np
    from scipy.special import bdtr

    x = np.sort(np.asarray(values, float))
    n = len(x)
    # P(at most k values lie below the quantile), k = 0..n
    below = bdtr(np.arange(n + 1), n, q)
    least, most = float(below[0]), float(1 - below[n - 1])  # that none, or all, do
    if n == 0 or least + most > 1 - level:
        return None
    tail = (1 - level) / 2
    tail_low = tail if most <= tail else 1 - level - most
    tail_high = tail if least <= tail else 1 - level - least
    low = int(np.searchsorted(below, tail_low, side="right")) - 1
    high = int(np.searchsorted(below, 1 - tail_high, side="left")) + 1
    return float(x[max(low, 0)]), float(x[min(high, n) - 1])
