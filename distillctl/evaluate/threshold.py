"""The threshold of a cascade, chosen on dev so that the whole keeps within the allowed drop with a stated
confidence.

From the strictest threshold to the loosest each is tested, and the walk stops at the first that fails:
tests in an order that the results do not change need no correction for their number (fixed-sequence testing;
Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052). What is tested is what the verdict is about:
the drop of the whole against the teacher on the same items, where a deferred item loses nothing. So over
many dev splits no more than 1 - level of the chosen thresholds lose more than `max_drop` in truth. That
takes the confidences as given; the temperature that was fitted on the same items, one number, is not allowed
for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distillctl.evaluate import stats
from distillctl.evaluate.cascade import Sure
from distillctl.evaluate.results import CascadeStep
from distillctl.evaluate.wording import about, percent, plural, points

if TYPE_CHECKING:
    import numpy as np

MOST_STEPS = 60  # that are kept to be shown
_MOST_DEV = 100_000  # dev items, up to which a size is named that would do


@dataclass(frozen=True)
class Walk:
    """Every threshold that dev can tell apart, the strictest first: (steps,) arrays.

    lost, won: items that the student answers and on which the teacher alone, or the student alone, is right;
    like n, effective counts where items come in groups. dev_n: the items themselves.
    """

    confidence: np.ndarray
    share: np.ndarray
    lost: np.ndarray
    won: np.ndarray
    n: float
    dev_n: int

    @classmethod
    def over(cls, dev: Sequence[Sure], groups: Sequence[Hashable] | None = None) -> Walk:
        """groups: of the dev items, where they come in some."""
        import numpy as np

        known = [one for one in dev if one.confidence is not None]
        confidence = np.array([one.confidence for one in known], float)
        order = np.argsort(-confidence, kind="stable")
        confidence = confidence[order]
        loss = np.array([one.teacher - one.student for one in known], int)[order]
        steps = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True)[:len(known)])
        effect = _effect(dev, groups) if groups else 1.0
        return cls(confidence[steps], (steps + 1) / max(len(dev), 1), np.cumsum(loss > 0)[steps] / effect,
                   np.cumsum(loss < 0)[steps] / effect, len(dev) / effect, len(dev))

    def threshold(self, max_drop: float, level: float) -> float | None:
        """The loosest threshold before the first with which dev does not show, at this one-sided confidence,
        that the whole is at most `max_drop` below the teacher. None where the strictest does not.

        0 where the student may answer everything. Of the thresholds that part dev alike, the one with the
        fewest digits.
        """
        passed = self._passed(max_drop, level)
        if not passed:
            return None
        if passed == len(self.confidence):
            return 0.0
        return _between(float(self.confidence[passed]), float(self.confidence[passed - 1]))

    def steps(self, max_drop: float, level: float) -> list[CascadeStep]:
        """The thresholds that passed, thinned out evenly where many, and the first that did not."""
        import numpy as np

        last = min(self._passed(max_drop, level), len(self.confidence) - 1)
        spread = np.linspace(0, max(last - 1, 0), min(last, MOST_STEPS)).round().astype(int)
        at = np.unique(np.append(spread, last))
        at_most = stats.drop_at_most(self.lost[at], self.won[at], self.n, level)
        drop = (self.lost[at] - self.won[at]) / self.n
        return [CascadeStep(threshold=float(t), share=float(s), drop=float(d), at_most=float(most))
                for t, s, d, most in zip(self.confidence[at], self.share[at], drop, at_most, strict=True)]

    def why_none(self, max_drop: float, level: float) -> str:
        """Why no threshold can be chosen, and what would help."""
        if not len(self.confidence):
            return "No threshold can be chosen: no dev item has a probability."
        text = f"No threshold can be chosen on {plural(self.dev_n, 'dev item')}: "
        kept = (f"the whole is at most {points(max_drop)} points below the teacher ({100 * level:g} % "
                "confidence)")
        lost, won, n = float(self.lost[0]), float(self.won[0]), self.n
        least = dev_needed(max_drop, level)
        if least is None:
            return (f"{text}hardly any number of them could show that {kept}. Allow a larger "
                    "verdict.max_drop.")
        if n < least:
            items = plural(math.ceil(least * self.dev_n / n), "item")
            return (f"{text}even if the student lost nothing on them, they could not show that {kept}. "
                    f"{items} could: give the dev split a larger share in data.split.")
        text += (f"where the student is surest, on {percent(float(self.share[0]))} of them, they do not show "
                 f"that {kept}")
        drop, apart = (lost - won) / n, (lost + won) / n
        more = stats.items_needed(drop, apart, max_drop, level=2 * level - 1) if drop < max_drop else None
        if more is None:
            return f"{text}, and more of them would not: its probabilities do not tell where it is right."
        items = about(math.ceil(more * self.dev_n / n), "dev item")
        return f"{text}. {items[0].upper()}{items[1:]} would, if this holds."

    def _passed(self, max_drop: float, level: float) -> int:
        """How many of the strictest thresholds keep within `max_drop`, before the first that does not."""
        fails = ~stats.drop_within(self.lost, self.won, self.n, max_drop, level)
        return int(fails.argmax()) if fails.any() else len(fails)


def dev_needed(max_drop: float, level: float) -> int | None:
    """The least dev items with which a threshold can pass, if the student loses nothing on them; None where
    100,000 are not enough."""
    import numpy as np

    n = np.arange(1.0, _MOST_DEV + 1)
    enough = stats.drop_within(np.zeros_like(n), np.zeros_like(n), n, max_drop, level)
    return int(n[enough.argmax()]) if enough.any() else None


def _effect(dev: Sequence[Sure], groups: Sequence[Hashable]) -> float:
    """The design effect where the student answers all it can: at stricter thresholds there are too few losses
    to see it."""
    return stats.design_effect([0 if one.confidence is None else one.teacher - one.student for one in dev],
                               groups)


def _between(low: float, high: float) -> float:
    """A number with few digits in (low, high]."""
    for digits in range(1, 16):
        rounded = math.floor(high * 10 ** digits) / 10 ** digits
        if low < rounded <= high:
            return rounded
    return high
