"""Confidence intervals against values computed by hand and against SciPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from d3d.report.stats import interval, paired_difference, proportion_interval


def test_interval_of_three_values():
    # mean 2, standard deviation 1, t(.975, 2) = 4.3027, half width 4.3027 / sqrt(3)
    result = interval([1.0, 2.0, 3.0])
    assert result.mean == 2
    assert result.high - result.mean == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert result.n == 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12), st.integers(0, 100))
def test_paired_differences_give_the_paired_t_interval(a, seed):
    a = np.array(a)
    b = a + np.random.default_rng(seed).normal(size=len(a))
    reference = scipy_stats.ttest_rel(a, b).confidence_interval()
    result = interval(a - b)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high), rel=1e-6, abs=1e-9)


def test_one_value_has_no_interval():
    result = interval([0.5])
    assert result.mean == 0.5
    assert math.isnan(result.low)
    assert math.isnan(result.high)


def test_interval_of_no_value_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_wilson_interval_of_a_proportion():
    # For 2 of 4 the centre is 1/2, and half the width z sqrt(1/16 + z²/64) / (1 + z²/4).
    z = 1.959964
    half = z * (1 / 16 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert proportion_interval(2, 4) == pytest.approx((0.5, 0.5 - half, 0.5 + half, 4), rel=1e-6)


def paired(only_first, only_second, n=100):
    first = np.arange(n) < only_first
    second = (np.arange(n) >= only_first) & (np.arange(n) < only_first + only_second)
    return paired_difference(first, second)


def test_paired_difference_of_two_networks():
    """8 clips only the first gets right, 2 only the second: 9/102 and 3/102 with the added clips."""
    result = paired(8, 2)
    centre, half = 6 / 102, 1.959964 * math.sqrt((12 / 102 - (6 / 102) ** 2) / 102)
    assert (result.mean, result.n) == (pytest.approx(0.06), 100)
    assert (result.low, result.high) == pytest.approx((centre - half, centre + half), rel=1e-6)


def test_paired_difference_needs_six_clips_on_one_side():
    """As the exact sign test does: 2 (1/2)^5 is above 0.05, 2 (1/2)^6 below."""
    assert paired(5, 0).low < 0 < paired(6, 0).low


def test_networks_that_agree_on_every_clip_still_have_an_interval():
    # p = q = 1/102: half the width is z sqrt(2/102/102).
    result = paired(0, 0)
    assert result.mean == 0
    assert result.high == -result.low == pytest.approx(1.959964 * math.sqrt(2) / 102, rel=1e-6)
