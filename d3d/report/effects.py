"""Effects beyond one interval: combined over cells, over seeds and clips at once, several claims, what could be seen.

cells = {"anchor": differences_of_12_seeds, "rho 0.5": differences_of_5_seeds}
combine(cells).mean                                  # with intervals for the mean and for another cell
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from d3d.report.stats import Interval

BOOTSTRAP_DRAWS = 10_000


class Combined(NamedTuple):
    """An effect combined over cells.

    Attributes:
        mean: the random-effects mean.
        low, high: its 95 % interval (Hartung and Knapp).
        next_low, next_high: 95 % prediction interval: where the effect of another such cell would lie.
        tau: standard deviation of the effect between cells.
        cells: number of cells.
    """

    mean: float
    low: float
    high: float
    next_low: float
    next_high: float
    tau: float
    cells: int


def combine(cells: Mapping[str, Sequence[float]]) -> Combined:
    """Combines an effect over cells by a random-effects model, with the variance between cells by Paule and Mandel.

    The interval of the mean is Hartung and Knapp's, with k - 1 degrees of freedom for k cells. The prediction interval
    adds the variance between cells and has k - 2 (Higgins et al. 2009).

    Args:
        cells: by name, the differences of the cell's seeds, two or more.

    Raises:
        ValueError: for fewer than three cells, or a cell of one seed, naming it.
    """
    # It takes a second to import.
    from statsmodels.stats.meta_analysis import combine_effects

    if len(cells) < 3:
        raise ValueError(f"effects of at least three cells can be combined, not of {len(cells)}")
    if single := [name for name, values in cells.items() if len(values) < 2]:
        raise ValueError(f"cell {single[0]} has one seed: its variance needs two or more")
    samples = [np.asarray(values, dtype=float) for values in cells.values()]
    effects, k = np.array([x.mean() for x in samples]), len(samples)
    # Differences of accuracies that agree on every seed have no variance; a cell may not get infinite weight for it.
    variances = np.maximum([x.var(ddof=1) / len(x) for x in samples], 1e-12)
    # It also computes ratios, unused here, that equal effects leave undefined.
    with np.errstate(divide="ignore"):
        combined = combine_effects(effects, variances, method_re="iterated")
    mean, error = float(combined.mean_effect_re), float(combined.sd_eff_w_re_hksj)
    tau2 = max(0.0, float(combined.tau2))
    half = stats.t.ppf(0.975, k - 1) * error
    half_next = stats.t.ppf(0.975, k - 2) * np.sqrt(tau2 + error**2)
    return Combined(mean, mean - half, mean + half, mean - half_next, mean + half_next, float(np.sqrt(tau2)), k)


def over_seeds_and_clips(differences: np.ndarray, *, seed: int = 0) -> Interval:
    """Bootstraps seeds and test clips at once: the percentile interval of a mean difference on other seeds and clips.

    Both are drawn with replacement, the same clips for all seeds, because all seeds are tested on the same clips.

    Args:
        differences: (S, N), for each seed and clip the score of one network minus that of another, such as 1 - 0 where
            only the first is right.
        seed: of the random draws.
    """
    return over_seeds_and_sources([(differences, np.arange(np.shape(differences)[1]))], seed=seed)


def over_seeds_and_sources(
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    minus: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    seed: int = 0,
) -> Interval:
    """Bootstraps seeds and the sources of the test clips: the interval of a mean difference on other seeds and sources.

    Clips that were cut from one source are alike, so that all of them are drawn together, in every split that tests
    them. The mean is over the clips of each split, then over the splits; a split of which a draw has no clip is left
    out of that draw.

    Args:
        splits: for each split, the differences (S, N) as in `over_seeds_and_clips`, of the same seeds, and the source
            of each clip (N,), whose names mean the same in all splits.
        minus: as `splits`, of other clips, with the same seeds: the interval is that of the mean over `splits` minus
            the mean over these, drawn at once.
        seed: of the random draws.
    """
    parts = [*splits, *minus]
    names, codes = np.unique(np.concatenate([sources for _, sources in parts]), return_inverse=True)
    codes = np.split(codes, np.cumsum([len(sources) for _, sources in parts])[:-1])
    differences = [np.asarray(x, dtype=float) for x, _ in parts]
    # By source: the sum of its clips' differences, and their number.
    sums = [np.stack([np.bincount(c, row, len(names)) for row in x]) for x, c in zip(differences, codes, strict=True)]
    counts = [np.bincount(c, minlength=len(names)) for c in codes]
    rng, seeds = np.random.default_rng(seed), len(differences[0])
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), BOOTSTRAP_DRAWS) / seeds
    means = np.empty(BOOTSTRAP_DRAWS)
    for part in np.array_split(np.arange(BOOTSTRAP_DRAWS), 100):
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), len(part)).astype(float)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no clip of a split was drawn
            of_splits = [
                np.einsum("ds,sg,dg->d", seed_weights[part], x, weights, optimize=True) / (weights @ n)
                for x, n in zip(sums, counts, strict=True)
            ]
        means[part] = _mean_of_drawn(of_splits[: len(splits)])
        if minus:
            means[part] -= _mean_of_drawn(of_splits[len(splits) :])
    low, high = np.nanquantile(means, [0.025, 0.975])
    mean = float(np.mean([x.mean() for x in differences[: len(splits)]]))
    if minus:
        mean -= float(np.mean([x.mean() for x in differences[len(splits) :]]))
    return Interval(mean, float(low), float(high), seeds)


def _mean_of_drawn(of_splits: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the splits of each draw, without those that are nan; nan where all are."""
    stacked = np.stack(of_splits)
    drawn = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(drawn, stacked, 0).sum(0) / drawn.sum(0)


def p_value(values: Sequence[float], bound: float, side: int) -> float:
    """Returns the two-sided p value of a t test of a mean against its bound; 1 where it lies on the wrong side.

    It is below .05 exactly where the 95 % interval lies beyond the bound.

    Args:
        values: one per seed, two or more.
        bound: the bound.
        side: 1 if the mean must lie above it, -1 if below.
    """
    x = side * (np.asarray(values, dtype=float) - bound)
    if x.mean() <= 0:
        return 1.0
    return 0.0 if np.ptp(x) == 0 else float(stats.ttest_1samp(x, 0.0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusts the p values of several claims by Holm's method; one below .05 stays significant among all of them."""
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(p_values.values()), method="holm")[1] if p_values else ()
    return dict(zip(p_values, map(float, adjusted), strict=True))


def detectable(values: Sequence[float], *, power: float = 0.8) -> float:
    """Returns the mean difference that a t test at 5 % over as many seeds would find with this probability.

    Args:
        values: one difference per seed, two or more, of which only the spread counts.
        power: the probability.
    """
    from statsmodels.stats.power import TTestPower

    in_deviations = TTestPower().solve_power(nobs=len(values), alpha=0.05, power=power)
    return float(in_deviations * np.std(values, ddof=1))


def detectable_on_clips(disagreement: float, clips: int, *, power: float = 0.8) -> float:
    """Returns the difference in top-1 of two networks that a test at 5 % on the same clips would find.

    Args:
        disagreement: share of the clips on which only one of the two is right; with none, half a clip is assumed.
        clips: number of test clips.
        power: the probability of finding it.
    """
    deviations = stats.norm.ppf(0.975) + stats.norm.ppf(power)
    return float(deviations * np.sqrt(max(disagreement, 0.5 / clips) / clips))


def clips_to_detect(disagreement: float, difference: float, *, power: float = 0.8) -> int:
    """Returns how many clips it takes to find a difference in top-1: the inverse of `detectable_on_clips`."""
    deviations = stats.norm.ppf(0.975) + stats.norm.ppf(power)
    return int(np.ceil(max(disagreement, difference) * (deviations / difference) ** 2))
