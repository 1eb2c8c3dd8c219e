"""Effects against formulas written out, simulations, and what must hold of any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from d3d.report import effects
from d3d.report.stats import interval

CELLS = {"a": [0.01, 0.02, 0.03], "b": [0.06, 0.05, 0.07, 0.06], "c": [-0.01, 0.0, 0.02], "d": [0.03, 0.02, 0.04]}


def test_a_combined_effect_by_the_formulas():
    """Paule and Mandel's variance makes Cochran's Q its expectation; the rest follows from it."""
    combined = effects.combine(CELLS)
    y = np.array([np.mean(v) for v in CELLS.values()])
    v = np.array([np.var(v, ddof=1) / len(v) for v in CELLS.values()])
    w = 1 / (v + combined.tau**2)
    mean = (w * y).sum() / w.sum()
    assert combined.mean == pytest.approx(mean)
    assert (w * (y - mean) ** 2).sum() == pytest.approx(3, rel=1e-3)
    error = np.sqrt((w * (y - mean) ** 2).sum() / 3 / w.sum())
    assert combined.high - mean == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert combined.next_high - mean == pytest.approx(stats.t.ppf(0.975, 2) * np.sqrt(combined.tau**2 + error**2))
    assert combined.cells == 4


def test_equal_effects_have_no_variance_between_cells():
    combined = effects.combine({name: [0.01, 0.02, 0.03] for name in "abcd"})
    assert combined.tau == pytest.approx(0, abs=1e-5)
    assert combined.mean == pytest.approx(0.02)


def test_cells_that_cannot_be_combined_are_named():
    with pytest.raises(ValueError, match="at least three cells can be combined, not of 2"):
        effects.combine({"a": [0, 1], "b": [0, 1]})
    with pytest.raises(ValueError, match="cell b has one seed"):
        effects.combine({"a": [0, 1], "b": [0], "c": [0, 1]})


def test_the_interval_over_seeds_and_clips_holds_both_kinds_of_chance():
    """Its variance is that of the means of seeds plus that of the means of clips, to a good approximation."""
    rng = np.random.default_rng(0)
    of_seeds, of_clips = rng.normal(0, 0.02, (12, 1)), rng.normal(0, 0.5, (1, 400))
    differences = 0.1 + of_seeds + of_clips
    measured = effects.over_seeds_and_clips(differences)
    expected = np.sqrt(of_seeds.var() / 12 + of_clips.var() / 400)
    assert (measured.high - measured.low) / 2 / 1.96 == pytest.approx(expected, rel=0.05)
    assert measured.mean == pytest.approx(differences.mean())
    assert measured.n == 12
    alike = effects.over_seeds_and_clips(np.full((5, 30), 0.25))
    assert alike == (pytest.approx(0.25), pytest.approx(0.25), pytest.approx(0.25), 5)


@settings(max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=12, unique=True), st.sampled_from([-1, 1]))
def test_a_p_value_says_what_the_interval_says(values, side):
    measured = interval(values)
    beyond = measured.low > 0.1 if side > 0 else measured.high < 0.1
    distance = min(abs(measured.low - 0.1), abs(measured.high - 0.1))
    if distance > 1e-9:
        assert (effects.p_value(values, 0.1, side) < 0.05) == beyond


def test_p_values_at_the_ends():
    assert effects.p_value([0.2, 0.2, 0.2], 0.1, 1) == 0
    assert effects.p_value([0.2, 0.2, 0.2], 0.1, -1) == 1


def test_holm_by_hand():
    """The smallest p counts three times, the next twice, and no adjusted value is below one before it."""
    adjusted = effects.holm({"H1": 0.01, "H2": 0.04, "H3": 0.03})
    assert adjusted == {"H1": pytest.approx(0.03), "H2": pytest.approx(0.06), "H3": pytest.approx(0.06)}
    assert effects.holm({}) == {}


def test_the_detectable_difference_is_found_as_often_as_said():
    values = np.array([0.01, 0.03, -0.02, 0.0, 0.015, 0.005])
    size = effects.detectable(values)
    samples = np.random.default_rng(0).normal(size, values.std(ddof=1), (20_000, len(values)))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_the_clips_that_show_a_difference():
    """A fifth of 500 clips splits the networks: standard error sqrt(.2 / 500) = .02, times 1.96 + .842."""
    assert effects.detectable_on_clips(0.2, 500) == pytest.approx(0.0560, abs=1e-4)
    assert effects.clips_to_detect(0.2, 0.056) == pytest.approx(500, abs=2)
    # Networks that agree on every clip may still differ on others, and cannot differ on fewer than they are apart.
    assert effects.detectable_on_clips(0.0, 50) == effects.detectable_on_clips(0.01, 50)
    assert effects.clips_to_detect(0.0, 0.02) == effects.clips_to_detect(0.02, 0.02)


def test_clips_of_one_source_are_drawn_together():
    """Ten sources of twenty equal clips say as much as ten clips, not as two hundred."""
    by_source = np.random.default_rng(0).normal(0.1, 0.2, 10)
    clips, sources = np.repeat(by_source, 20)[None].repeat(3, 0), np.repeat([f"film {k}" for k in range(10)], 20)
    measured = effects.over_seeds_and_sources([(clips, sources)])
    as_clips = effects.over_seeds_and_clips(by_source[None].repeat(3, 0))
    assert measured.mean == pytest.approx(by_source.mean())
    assert measured.high - measured.low == pytest.approx(as_clips.high - as_clips.low, rel=0.05)
    alone = effects.over_seeds_and_clips(clips)
    assert measured.high - measured.low > 3 * (alone.high - alone.low)


def test_splits_count_alike_and_share_their_sources():
    few, many = np.full((2, 10), 0.3), np.full((2, 90), 0.1)
    splits = [(few, np.arange(10)), (many, np.arange(90))]
    assert effects.over_seeds_and_sources(splits) == pytest.approx((0.2, 0.2, 0.2, 2))
    # Two splits that test the same clips tell no more than one.
    x = np.random.default_rng(1).normal(0, 1, (4, 50))
    once, twice = (effects.over_seeds_and_sources([(x, np.arange(50))] * n) for n in (1, 2))
    assert twice == pytest.approx(once)
    disjoint = effects.over_seeds_and_sources([(x, np.arange(50)), (x, np.arange(50, 100))])
    assert disjoint.high - disjoint.low < 0.85 * (once.high - once.low)


def test_a_split_of_which_a_draw_has_no_clip_is_left_out_of_it():
    """Film a has the clips of the first split, film b those of the second: a draw has a, b, or both."""
    splits = [(np.full((2, 3), 0.2), np.array(["a"] * 3)), (np.full((2, 3), 0.6), np.array(["b"] * 3))]
    interval = effects.over_seeds_and_sources(splits)
    assert interval == pytest.approx((0.4, 0.2, 0.6, 2))


def test_the_difference_of_two_groups_of_clips_draws_seeds_for_both_at_once():
    """What a seed adds to both groups cancels; drawn one by one, each would have an interval as wide as the seeds."""
    of_seed = np.array([[0.0], [1.0]])
    films = np.array(["a", "b", "c"])
    one = [(of_seed + 0.3 + np.zeros((2, 3)), films)]
    other = [(of_seed + np.zeros((2, 3)), np.array(["d", "e", "f"]))]
    assert effects.over_seeds_and_sources(one).high == pytest.approx(1.3)
    assert effects.over_seeds_and_sources(one, minus=other) == pytest.approx((0.3, 0.3, 0.3, 2))
