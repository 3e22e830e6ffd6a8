"""The recipe's `gates` block: what a student must show before it may be deployed."""

from __future__ import annotations

from distillctl.recipe.strict import PositiveFloat, Share, Strict


class GateSpec(Strict):
    """What `distillctl gate` asks of a run. Each is held against the worse end of the 95 % interval; one
    that is not named is not asked for."""

    min_accuracy: Share | None = None
    """Smallest accuracy of the student; the lower end of its interval must reach it."""
    max_drop: Share | None = None
    """Largest drop against the teacher, a share; the upper end of its interval must stay within it."""
    min_speedup: PositiveFloat | None = None
    """Smallest ratio of the teacher's median latency to the student's; the lower end must reach it."""
    max_invalid: Share | None = None
    """Largest share of missing and unreadable answers; the upper end must stay within it."""
    max_regression: Share | None = None
    """Largest loss against the deployed run (`--against`) on the same items, a share; the worse end of
    the paired interval must stay within it."""
