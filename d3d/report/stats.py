"""Confidence intervals: of a mean over seeds, of a proportion of clips, of a difference on the same clips."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: the estimate.
        low: lower end; NaN where there is only one value.
        high: upper end; NaN where there is only one value.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Returns Student's t interval of a mean; of paired differences, it is the interval of the paired t test.

    A percentile bootstrap of so few values as there are seeds would be too narrow.

    Args:
        values: one per seed.
        confidence: the level.

    Raises:
        ValueError: there is no value.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, int(x.size))


def proportion_interval(correct: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Returns Wilson's interval of correct / total, such as the top-1 of one network over the clips of a test set."""
    ends = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return Interval(correct / total, float(ends.low), float(ends.high), total)


def paired_difference(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> Interval:
    """Returns the difference of two networks' top-1 on the same clips, with the interval of Bonett and Price (2012).

    The interval adds one clip that only the first network gets right and one that only the second gets right. It
    therefore keeps a width where two networks agree on every clip. Its centre is slightly closer to zero than `mean`.

    Args:
        first: (N,), whether the first network is right on each clip.
        second: (N,), the same of the second network.
        confidence: the level.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    p, q = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * ((p + q - (p - q) ** 2) / (n + 2)) ** 0.5
    return Interval((only_first - only_second) / n, p - q - half, p - q + half, n)
