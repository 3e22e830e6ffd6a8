"""How far a predictor's label probabilities can be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distillctl.evaluate.results import Calibration, CalibrationBin

if TYPE_CHECKING:
    import numpy as np

Stated = tuple[Mapping[str, float] | None, str | None]
"""What was stated of one item and what is expected: log-probability per label, and the label."""

MIN_DEV = 10
MAX_BINS = 10
_LEAST = -700.0  # exp of anything below is 0
_RANGE = (math.log(0.05), math.log(20.0))


def calibration(labels: Sequence[str], test: Sequence[Stated], dev: Sequence[Stated]) -> Calibration | None:
    """Temperature from dev; Brier score and calibration error on test, after it.

    Over the items that have a probability for every label and an expected one; None where test has none.
    Guo et al. 2017 (arXiv 1706.04599); bins of equal mass: Nixon et al. 2019 (arXiv 1904.01685).
    """
    import numpy as np

    logs, truth = _table(labels, test)
    if not len(truth):
        return None
    dev_logs, dev_truth = _table(labels, dev)
    temperature = fit_temperature(dev_logs, dev_truth) if len(dev_truth) >= MIN_DEV else None
    p = _probabilities(logs, temperature)
    sure, right = p.max(1), p.argmax(1) == truth
    order = np.argsort(sure, kind="stable")
    bins = [CalibrationBin(n=len(part), confidence=float(sure[part].mean()),
                           accuracy=float(right[part].mean()))
            for part in np.array_split(order, max(1, min(MAX_BINS, len(truth) // 10)))]
    return Calibration(
        temperature=temperature, bins=bins,
        brier=float(((p - np.eye(len(labels))[truth]) ** 2).sum(1).mean()),
        ece=sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / len(truth))


def fit_temperature(logs: np.ndarray, truth: np.ndarray) -> float:
    """The temperature in [0.05, 20] with the least negative log-likelihood.

    logs: (items, labels) log-probabilities. truth: (items,) label positions. As in Platt 1999, 1/(n + 2) of
    each item is spread over the other labels: without it, items that are all right give the temperature 0,
    which claims certainty.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    spread = 1 / (len(truth) + 2)
    target = np.full_like(logs, spread / (logs.shape[1] - 1))
    target[np.arange(len(truth)), truth] = 1 - spread
    found = minimize_scalar(lambda t: -float((target * log_softmax(logs / math.exp(t), axis=1)).sum()),
                            bounds=_RANGE, method="bounded")
    return math.exp(found.x)


def confidence(stated: Mapping[str, float] | None, label: object, temperature: float | None) -> float | None:
    """The probability that was given to `label`, after the temperature; None where none was stated."""
    import numpy as np

    if not stated or label not in stated:
        return None
    logs = np.maximum(np.array([list(stated.values())], float), _LEAST)
    return float(_probabilities(logs, temperature)[0, list(stated).index(label)])


def _table(labels: Sequence[str], items: Sequence[Stated]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    usable = [(stated, expected) for stated, expected in items
              if stated and expected is not None and all(label in stated for label in labels)]
    logs = np.array([[stated[label] for label in labels] for stated, _ in usable], float)
    truth = np.array([list(labels).index(expected) for _, expected in usable], int)
    return np.maximum(logs.reshape(len(usable), len(labels)), _LEAST), truth


def _probabilities(logs: np.ndarray, temperature: float | None) -> np.ndarray:
    from scipy.special import softmax

    return softmax(logs / (temperature or 1.0), axis=1)
