"""Two other intervals of a paired difference, from their papers, to hold Tango's against."""

from __future__ import annotations

import math

from distillctl.evaluate.stats import wilson, z_value


def newcombe(n11: int, n10: int, n01: int, n00: int) -> tuple[float, float]:
    """Newcombe's square-and-add interval (Stat. Med. 1998, 17:2635, method 10), with the
    continuity correction of the correlation."""
    n = n11 + n10 + n01 + n00
    first, second = n11 + n10, n11 + n01
    (l1, u1), (l2, u2) = wilson(first, n), wilson(second, n)
    p1, p2 = first / n, second / n
    margins = first * (n - first) * second * (n - second)
    together = n11 * n00 - n10 * n01
    if together > 0:
        together = max(together - n / 2, 0)
    phi = together / math.sqrt(margins) if margins else 0.0
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return p1 - p2 - math.sqrt(below), p1 - p2 + math.sqrt(above)


def bonett_price(n10: int, n01: int, n: int) -> tuple[float, float]:
    """Bonett and Price's adjusted Wald interval (Br. J. Math. Stat. Psych. 2012, 65:200)."""
    p10, p01 = (n10 + 1) / (n + 2), (n01 + 1) / (n + 2)
    half = z_value() * math.sqrt((p10 + p01 - (p10 - p01) ** 2) / (n + 2))
    return p10 - p01 - half, p10 - p01 + half
