import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from d3d.report.stats import interval


def test_three_values_by_hand():
    # mean 2, standard deviation 1, t(.975, 2) = 4.3027, half width 4.3027 / sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert found.n == 3


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12), st.integers(0, 100))
def test_paired_differences_give_the_paired_t_interval(a, seed):
    a = np.array(a)
    b = a + np.random.default_rng(seed).normal(size=len(a))
    reference = scipy_stats.ttest_rel(a, b).confidence_interval()
    found = interval(a - b)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-6, abs=1e-9)


def test_one_value_has_no_interval():
    found = interval([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        interval([])
