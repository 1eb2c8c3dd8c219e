"""The ledger: evaluates the conditions of the claims (d3d/report/claims.py) from run records, and decides the verdicts.

A contrast is computed seed by seed, and its 95 % interval is Student's t over the seeds. On request there is a second
interval, over seeds and clips, which must lie beyond the bound as well. A condition over clips is about one network,
such as released weights, and its interval is Wilson's over the clips that were scored. A verdict's
`word` is one of

    supported          every interval lies beyond its bound
    refuted            at least one interval lies wholly on the wrong side of its bound
    practically zero   no condition is refuted, and for at least one with bound zero, the mean is equivalent to zero:
                       within ± the metric's margin, by two one-sided t tests (TOST) at 5 %
    undecided          an interval contains its bound, or there are too few seeds or clips
    reported           the rule has no bound to test
    needs data         the records lack a metric of a condition

If the ledger says `correction: holm`, a supported claim must also be significant among all claims that are judged on
this study's own data: the largest p value of each claim's conditions is adjusted by Holm's method, and from 5 % on the
claim is undecided.

A claim that follows another is not measured itself: its supported, refuted or practically zero gets the suffix
` on sprites`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.messages import printable
from d3d.report import effects
from d3d.report.claims import Claim, Condition, Ledger, read_claims
from d3d.report.contrasts import ClaimError, evaluate, parse
from d3d.report.labels import NEEDS_DATA, contrast_label, metric_label, number_text
from d3d.report.stats import Interval, interval, proportion_interval
from d3d.study import records

SUPPORTED, REFUTED, ZERO, UNDECIDED = "supported", "refuted", "practically zero", "undecided"
REPORTED = "reported"
# Gives the interval of a condition over seeds and clips, as `ClipScores.interval` does; None for metrics without one.
OverClips = Callable[[Condition], Interval | None]


@dataclass(frozen=True)
class Finding:
    """A condition measured on records.

    Attributes:
        condition: the condition.
        interval: mean and 95 % interval; None where the records lack the metric.
        values: one per seed; over clips that of the one network, whose interval has as many values as clips.
        missing: the arms and metrics that the records lack.
        over_clips: a second interval, over seeds and the sources of the test clips; None where it is not asked for, or
            the metric has none.
    """

    condition: Condition
    interval: Interval | None
    values: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()
    over_clips: Interval | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim.

    Attributes:
        claim: the claim.
        word: see the module's docstring.
        reason: short explanation.
        findings: all conditions as measured.
        deciding: the findings that decided the verdict.
    """

    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...] = ()
    deciding: tuple[Finding, ...] = ()


def verdicts(results: str | Path) -> list[Verdict]:
    """Returns the verdicts on all claims from the records of a working folder or an archive."""
    return judge(read_claims(), records.load(results))


def judge(ledger: Ledger, table: pd.DataFrame, *, over_clips: OverClips | None = None) -> list[Verdict]:
    """Returns the verdicts on all claims, in order.

    Args:
        ledger: the claims.
        table: as `records.load` gives it.
        over_clips: gives the second interval of a condition, such as `ClipScores.interval`. Where there is one, both
            must lie beyond the bound for a condition to hold or to fail. None: there is no second interval.
    """
    measured = partial(measure, over_clips=over_clips)
    direct = {c.id: _verdict(c, table, c.seeds or ledger.seeds, measured) for c in ledger.claims if not c.follows}
    if ledger.correction == "holm":
        direct |= _corrected(direct)
    in_order = []
    for claim in ledger.claims:
        verdict = direct[claim.follows or claim.id]
        if claim.follows:
            word = f"{verdict.word} on sprites" if verdict.word in (SUPPORTED, REFUTED, ZERO) else verdict.word
            verdict = replace(verdict, claim=claim, word=word, reason=f"follows {claim.follows}: {verdict.reason}")
        in_order.append(verdict)
    return in_order


def verdict_of(verdicts: Iterable[Verdict], claim_id: str) -> Verdict:
    """Returns the verdict on the claim with this id.

    Raises:
        ClaimError: there is no such claim.
    """
    for verdict in verdicts:
        if verdict.claim.id == claim_id:
            return verdict
    raise ClaimError(f"there is no claim {claim_id} in the ledger, which the book's sentences are about")


def _verdict(
    claim: Claim, table: pd.DataFrame, min_seeds: int, measured: Callable[[pd.DataFrame, Condition], Finding]
) -> Verdict:
    real = table[~table["stand_in"].astype(bool)] if claim.data else table
    findings = tuple(measured(real, condition) for condition in claim.conditions)
    # Of alternatives, those that the records cannot measure, or with too few seeds or clips, are left out.
    considered = tuple(f for f in findings if f.interval) if claim.any_measured else findings
    if not considered or any(f.missing for f in considered):
        missing = list(dict.fromkeys(name for f in findings for name in f.missing))
        return Verdict(claim, NEEDS_DATA, _needs(claim, table, missing), findings)
    if not claim.judged:
        return Verdict(claim, REPORTED, "reported, not judged", findings)
    needed = {"seeds": min_seeds, "clips": claim.clips}
    enough = tuple(f for f in considered if f.interval.n >= needed[f.condition.over])
    if not enough or (len(enough) < len(considered) and not claim.any_measured):
        pick = max if claim.any_measured else min
        short = pick((f for f in considered if f not in enough), key=lambda f: f.interval.n / needed[f.condition.over])
        over = short.condition.over
        return Verdict(claim, UNDECIDED, f"{short.interval.n:,} of {needed[over]:,} {over}", findings)
    words = {f: outcome(f, needed[f.condition.over]) for f in enough}
    word = next((word for word in (REFUTED, ZERO, UNDECIDED) if word in words.values()), SUPPORTED)
    if word == SUPPORTED:
        deciding = (min(enough, key=_distance_to_bound),)
    else:
        deciding = tuple(f for f in enough if words[f] == word)
    return Verdict(claim, word, "; ".join(map(condition_text, deciding)), findings, deciding)


def _needs(claim: Claim, table: pd.DataFrame, missing: Sequence[str]) -> str:
    """Says what a claim needs, and that stand-ins are no substitute where the records have some."""
    if not claim.data:
        return f"no records of {', '.join(missing)}"
    metrics = {condition.metric for condition in claim.conditions}
    stand_ins = table[table["stand_in"].astype(bool) & table["metric"].isin(metrics)]
    return f"needs {claim.data}" + ("; the records here are of a stand-in for it" if len(stand_ins) else "")


def _corrected(verdicts: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts on the claims that Holm's method takes together, after it."""
    family = {name: v for name, v in verdicts.items() if v.claim.judged and not v.claim.data}
    # A claim that could not be decided yet counts, so that nothing is gained by leaving it out.
    largest = {
        name: max(effects.p_value(f.values, f.condition.bound, f.condition.side) for f in v.findings)
        if v.deciding
        else 1.0
        for name, v in family.items()
    }
    adjusted = effects.holm(largest)
    return {
        name: replace(
            v,
            word=UNDECIDED,
            reason=f"{v.reason}; p = {adjusted[name]:.2f} with Holm's correction for {len(family)} claims",
        )
        for name, v in family.items()
        if v.word == SUPPORTED and adjusted[name] >= 0.05
    }


def outcome(finding: Finding, min_seeds: int) -> str:
    """Returns the word of a verdict on one condition alone; undecided with fewer seeds, or over clips fewer clips."""
    measured, bound, side = finding.interval, finding.condition.bound, finding.condition.side
    if measured is None or not side:
        return REPORTED if measured else NEEDS_DATA
    if measured.n < max(2, min_seeds):
        return UNDECIDED
    intervals = [measured, finding.over_clips] if finding.over_clips else [measured]
    ends = [sorted((side * (i.low - bound), side * (i.high - bound))) for i in intervals]
    if all(nearest > 0 for nearest, _ in ends):
        return SUPPORTED
    if all(farthest < 0 for _, farthest in ends):
        return REFUTED
    return ZERO if bound == 0 and _practically_zero(finding) else UNDECIDED


def _practically_zero(finding: Finding) -> bool:
    """Whether two one-sided t tests at 5 % show equivalence: the 90 % interval lies within ± margin."""
    margin = finding.condition.equivalence_margin
    if margin is None:
        return False
    inner = interval(finding.values, confidence=0.9)
    return -margin < inner.low and inner.high < margin


def _distance_to_bound(finding: Finding) -> float:
    """Returns the distance of a mean from its bound, in half-widths of its interval."""
    half = finding.interval.high - finding.interval.mean
    return abs(finding.interval.mean - finding.condition.bound) / max(1e-12, half)


def condition_text(finding: Finding) -> str:
    """Formats a finding as text: contrast, metric, mean with interval, and the required bound."""
    condition = finding.condition
    required = f", must be {'>' if condition.side > 0 else '<'} {condition.bound:g}" if condition.side else ""
    compared = f"{contrast_label(condition.contrast)} in {metric_label(condition.metric)}:"
    # Only differences get a plus sign.
    signed = " - " in condition.contrast or condition.metric.endswith("_gain")
    over = f" over {finding.interval.n:,} clips" if condition.over == "clips" else ""
    if finding.over_clips:
        low, high = (f"{x:{'+' if signed else ''}.3f}" for x in (finding.over_clips.low, finding.over_clips.high))
        over += f", over clips [{low}, {high}]".replace("-", "−")
    return f"{compared} {number_text(finding.interval, signed=signed)}{over}{required.replace('-', '−')}"


def measure(table: pd.DataFrame, condition: Condition, *, over_clips: OverClips | None = None) -> Finding:
    """Evaluates a condition seed by seed; it need not belong to a claim.

    Args:
        table: a table of `records.load`; seeds that lack an arm of the contrast are ignored.
        condition: any contrast and metric.
        over_clips: gives its second interval; None: there is none.

    Raises:
        ClaimError: the contrast does not parse.
        ValueError: a value is NaN, or an arm has two values for a seed.
    """
    if condition.over == "clips":
        return _measure_over_clips(table, condition)
    rows = table[table["metric"] == condition.metric]
    contrast = parse(condition.contrast)
    arms = sorted(contrast.arms.values())
    if absent := [arm for arm in arms if arm not in set(rows["arm"])]:
        # If no arm has the metric, only the metric is named.
        missing = (condition.metric,) if rows.empty else tuple(f"{arm} {condition.metric}" for arm in absent)
        return Finding(condition, None, missing=missing)
    measured = rows[rows["arm"].isin(arms)]
    for row in measured[measured["value"].isna() | measured.duplicated(["seed", "arm"])].itertuples():
        problem = "is nan" if row.value != row.value else "has two values"
        raise ValueError(f"{printable(condition.metric)} of {printable(row.arm)} {problem} for seed {row.seed}")
    # What is missing now are seeds that lack an arm.
    wide = measured.pivot(index="seed", columns="arm", values="value").dropna()
    if wide.empty:
        return Finding(condition, None, missing=(f"{condition.metric} of all of {', '.join(arms)} for the same seed",))
    # A ratio whose denominator is zero is infinite, and its interval NaN.
    with np.errstate(invalid="ignore"):
        values = evaluate(contrast, {arm: wide[arm] for arm in arms}).to_numpy()
        finding = Finding(condition, interval(values), tuple(values))
    return replace(finding, over_clips=over_clips(condition)) if over_clips else finding


def _measure_over_clips(table: pd.DataFrame, condition: Condition) -> Finding:
    """Evaluates the top-1 of one network, whose number of clips stands beside it."""
    counted = f"{condition.metric.rpartition('/')[0]}/clips"
    values = []
    for metric in (condition.metric, counted):
        of_arm = table.loc[(table["metric"] == metric) & (table["arm"] == condition.contrast), "value"]
        if of_arm.empty:
            return Finding(condition, None, missing=(f"{condition.contrast} {metric}",))
        if len(of_arm) > 1 or of_arm.isna().any():
            problem = "is nan" if of_arm.isna().any() else f"has {len(of_arm)} values, but it is about one network"
            raise ValueError(f"{metric} of {condition.contrast} {problem}")
        values.append(float(of_arm.iloc[0]))
    top1, clips = values[0], round(values[1])
    return Finding(condition, proportion_interval(round(top1 * clips), clips), (top1,))
