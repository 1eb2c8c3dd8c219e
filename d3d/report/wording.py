"""Numbers and verdicts in words and tables, for chapters and pages: no sentence about a direction is made here."""

from collections.abc import Iterable, Sequence

import pandas as pd

from d3d.report import effects
from d3d.report.claims import Condition
from d3d.report.labels import NEEDS_DATA, contrast_label, metric_label, number_text
from d3d.report.ledger import REFUTED, SUPPORTED, Finding, Verdict, measure, outcome
from d3d.report.stats import Interval, interval

# Words for the outcome of a condition where it is not that of a verdict.
CONDITION_WORDS = {SUPPORTED: "met", REFUTED: "violated"}


def arm_text(table: pd.DataFrame, arm: str, metric: str) -> str:
    """Formats an arm's metric over its seeds as `number_text` does."""
    values = table[(table["arm"] == arm) & (table["metric"] == metric)]["value"]
    return number_text(interval(values) if len(values) else None)


def difference_text(table: pd.DataFrame, contrast: str, metric: str) -> str:
    """Formats a contrast over its seeds as `number_text` does, with its sign."""
    return number_text(measure(table, Condition(contrast, metric)).interval, signed=True)


def amount_text(table: pd.DataFrame, contrast: str, metric: str, *, more: str = "higher", less: str = "lower") -> str:
    """Formats a contrast over its seeds, direction in words instead of a sign: `0.033 [0.016, 0.051] lower`."""
    value = measure(table, Condition(contrast, metric)).interval
    if value is None or value.mean >= 0:
        return NEEDS_DATA if value is None else f"{number_text(value)} {more}"
    return f"{number_text(Interval(-value.mean, -value.high, -value.low, value.n))} {less}"


def join_names(names: Sequence[str]) -> str:
    """Joins names as `a, b and c`; three or more consecutive numbers, such as H5, H6, H7, become `H5 to H7`."""
    runs: list[list[str]] = []
    for name in names:
        last = runs[-1][-1] if runs else ""
        follows = name[1:].isdigit() and last[1:].isdigit() and name == f"{last[0]}{int(last[1:]) + 1}"
        runs[-1:] = [[*runs[-1], name]] if follows else [*runs[-1:], [name]]
    words = [word for run in runs for word in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def decision_text(verdict: Verdict) -> str:
    """Says what decided a verdict: its deciding conditions, or the records or seeds that are missing."""
    if verdict.claim.follows:
        return f"follows {verdict.claim.follows}"
    if missing := dict.fromkeys(metric_label(f.condition.metric) for f in verdict.findings if f.interval is None):
        return verdict.reason if verdict.claim.data else f"no records of {'; '.join(missing)}"
    if not verdict.deciding:
        return verdict.reason
    met = f"{sum(outcome(f, 2) == SUPPORTED for f in verdict.findings)} of {len(verdict.findings)} conditions met"
    word = "tightest" if verdict.word == SUPPORTED else CONDITION_WORDS.get(verdict.word, verdict.word)
    return f"{met}; {word}: {verdict.reason}"


def claim_table(verdicts: Iterable[Verdict]) -> str:
    """Tabulates in Markdown the paper's claims and the hypotheses with their verdicts and what decided them."""
    lines = ["| id | claim | verdict | what decided it |", "|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        if claim.id[0] != "B":
            lines.append(f"| **{claim.id}** | {claim.statement} | **{verdict.word}** | {decision_text(verdict)} |")
    return "\n".join(lines)


def condition_table(verdicts: Iterable[Verdict], claims: Sequence[str], *, seeds: int) -> str:
    """Tabulates in Markdown the conditions of some claims: what is required, what was measured, what could have been.

    Args:
        verdicts: on all claims.
        claims: the claims, in the order of the table.
        seeds: the seeds that a verdict needs, for claims that do not say.
    """
    by_id = {verdict.claim.id: verdict for verdict in verdicts}
    lines = [
        "| claim | comparison | of | mean and 95 % interval | required | outcome | detectable |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in claims:
        for finding in by_id[name].findings:
            lines.append(_condition_line(by_id[name], finding, seeds))
    return "\n".join(lines)


def value_text(finding: Finding) -> str:
    """Formats a difference with its intervals: `+0.015 [+0.002, +0.028]; over clips [−0.010, +0.041]`."""
    text = number_text(finding.interval, signed=True)
    if finding.over_clips:
        low, high = (f"{end:+.3f}".replace("-", "−") for end in (finding.over_clips.low, finding.over_clips.high))
        text += f"; over clips [{low}, {high}]"
    return text


def _condition_line(verdict: Verdict, finding: Finding, seeds: int) -> str:
    condition, measured = finding.condition, finding.interval
    required = f"{'>' if condition.side > 0 else '<'} {condition.bound:g}".replace("-", "−") if condition.side else ""
    several = measured is not None and measured.n > 1
    cells = [
        verdict.claim.id,
        contrast_label(condition.contrast),
        metric_label(condition.metric),
        value_text(finding),
        required,
        outcome(finding, verdict.claim.seeds or seeds),
        f"{effects.detectable(finding.values):.3f}" if several else "—",
    ]
    return f"| {' | '.join(cells)} |"
