"""Intervals over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with its 95 % interval; low and high are NaN below two values."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean. Over paired per-seed differences it is the paired t test's interval.

    A percentile bootstrap over as few values as seeds would be too narrow. Raises ValueError for no value.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, int(x.size))


def share(right: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share, such as top-1 of one network over the clips of a test set."""
    found = stats.binomtest(right, total).proportion_ci(confidence, method="wilson")
    return Interval(right / total, float(found.low), float(found.high), total)
