"""Sentences and tables of the chapters, made from records and verdicts; they read correctly whatever was measured."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from d3d.report.comparisons import (
    CONTROLS,
    EXPLORATION_SEEDS,
    GROUP_METRICS,
    STRESS_METRICS,
    against_controls,
    contrast_by_endpoint,
    differences_from,
    exploration_findings,
    exploration_halves,
    ratio_condition,
    variants,
)
from d3d.report.labels import NEEDS_DATA, contrast_label, label, metric_label, number_text
from d3d.report.ledger import (
    REFUTED,
    SUPPORTED,
    Condition,
    Finding,
    Verdict,
    measure,
    outcome,
    read_claims,
    verdict_of,
)
from d3d.report.stats import Interval, interval

# Comparisons that the chapters report and that decide no claim.
REPORTED_CONTRASTS = [
    ("two_stream_logits - two_stream", "iid/top1"),
    ("d3d - two_stream_logits", "iid/top1"),
    ("flow - rgb", "iid/motion/top1"),
    ("flow - rgb", "iid/appearance/top1"),
    ("flow_exact - flow", "iid/top1"),
    ("rgb_rgb", "iid/top1_gain"),
    ("d3d_rgb - rgb_rgb", "iid/top1_gain"),
    ("rgb - flow", "Mixed_4f/motion/r2_within"),
    ("rgb - flow", "Mixed_4f/target_epe"),
]


def arm_text(table: pd.DataFrame, arm: str, metric: str) -> str:
    """Formats an arm's metric over its seeds as `number_text` does."""
    values = table[(table["arm"] == arm) & (table["metric"] == metric)]["value"]
    return number_text(interval(values) if len(values) else None)


def difference_text(table: pd.DataFrame, contrast: str, metric: str) -> str:
    """Formats a contrast over its seeds as `number_text` does, with its sign."""
    return number_text(measure(table, Condition(contrast, metric)).interval, signed=True)


def _difference(table: pd.DataFrame, contrast: str, metric: str) -> str:
    """A contrast with its value as a clause: `D3D − RGB is +0.100 […]`, or `D3D − RGB needs data`."""
    finding = measure(table, Condition(contrast, metric))
    return f"{contrast_label(contrast)} {_is(finding.interval, signed=True)}"


def _is(value: Interval | None, *, verb: str = "is", signed: bool = False) -> str:
    return NEEDS_DATA if value is None else f"{verb} {number_text(value, signed=signed)}"


def _conclusion(statement: str, word: str, *, refuted: str, few_seeds: str = "") -> str:
    """The sentence that a verdict's word allows.

    Args:
        statement: the claim as a clause, such as `ensembles add to D3D`.
        word: the word of the verdict.
        refuted: the sentence for a refuted claim.
        few_seeds: such as `2 of 10 seeds`, where these are too few; empty otherwise.
    """
    if word == SUPPORTED:
        return f"{statement[0].upper()}{statement[1:]}."
    if word == REFUTED:
        return refuted
    if word == NEEDS_DATA:
        return f"Whether {statement} {NEEDS_DATA}."
    return f"It is not shown that {statement} ({word}{few_seeds and ': '}{few_seeds})."


def _conclusion_of(verdict: Verdict, statement: str, *, refuted: str) -> str:
    few_seeds = "" if verdict.deciding else verdict.reason
    return _conclusion(statement, verdict.word, refuted=refuted, few_seeds=few_seeds)


def streams(table: pd.DataFrame, *, seeds: int) -> str:
    """Says whether the two streams complement each other; `seeds` is the number that a verdict needs."""
    gap = measure(table, Condition("two_stream - rgb_rgb", "iid/top1", above=0))
    few_seeds = f"{gap.interval.n} of {seeds} seeds" if gap.interval and gap.interval.n < seeds else ""
    conclusion = _conclusion(
        "the two streams complement each other",
        outcome(gap, seeds),
        refuted="The two streams complement each other less than two RGB networks do.",
        few_seeds=few_seeds,
    )
    groups = [difference_text(table, "flow - rgb", f"iid/{group}/top1") for group in ("motion", "appearance")]
    return (
        f"{conclusion} Top-1: two-stream {arm_text(table, 'two_stream', 'iid/top1')}; "
        f"{contrast_label('two_stream - rgb_rgb')} {number_text(gap.interval, signed=True)}; "
        f"flow − RGB {groups[0]} on the motion pairs and {groups[1]} on the appearance pairs."
    )


def missing_motion(verdicts: Sequence[Verdict], table: pd.DataFrame) -> str:
    """Says whether motion is missing from the spatial stream (H1), and how much."""
    ratio = ratio_condition(verdicts, "H1")
    conclusion = _conclusion_of(
        verdict_of(verdicts, "H1"),
        "the spatial stream is missing motion that it could hold",
        refuted="By the rule fixed beforehand, the spatial stream is not missing motion that it could hold.",
    )
    rgb, tuned, random = (arm_text(table, arm, ratio.metric) for arm in ("rgb", "tuned", "random"))
    m = measure(table, Condition(ratio.contrast, ratio.metric)).interval
    tested = ratio.metric.split("/")[0]
    return (
        f"{conclusion} Error of decoded flow on the target at {tested}, in px per frame: RGB {rgb}; the same network "
        f"tuned for flow {tuned}; random weights {random}. The missing part is "
        f"m = {contrast_label(ratio.contrast)} {_is(m, verb='=')}; m = 0 is as good as tuned, m = 1 as bad as random "
        "weights."
    )


def distillation(verdicts: Sequence[Verdict], table: pd.DataFrame) -> str:
    """Says whether distillation puts motion into the spatial stream (H2) and whether D3D equals two streams (H3)."""
    motion_conclusion = _conclusion_of(
        verdict_of(verdicts, "H2"),
        "distillation puts motion into the spatial stream without losing appearance",
        refuted="By the rule fixed beforehand, distillation does not put motion into the spatial stream without losing "
        f"appearance: {verdict_of(verdicts, 'H2').reason}.",
    )
    parity_conclusion = _conclusion_of(
        verdict_of(verdicts, "H3"),
        "D3D is on par with two-stream",
        refuted="D3D does not meet the conditions of being on par with two-stream.",
    )
    tested = ratio_condition(verdicts, "H1").metric.split("/")[0]
    motion = difference_text(table, "d3d - rgb_longer", f"{tested}/motion/r2_within")
    top1 = difference_text(table, "d3d - rgb_longer", "iid/top1")
    ratio = ratio_condition(verdicts, "H3")
    contrasts = [ratio.contrast, ratio.contrast.replace("d3d", "rgb_longer")]
    recovered, by_control = (measure(table, Condition(contrast, ratio.metric)).interval for contrast in contrasts)
    return (
        f"{motion_conclusion} {parity_conclusion} D3D − RGB-longer: {motion} in R² of motion within class at {tested}, "
        f"{top1} in top-1. In top-1, {_difference(table, 'd3d - two_stream', 'iid/top1')}. The part of the gap between "
        f"RGB and two-stream that D3D recovers, {contrast_label(ratio.contrast)}, {_is(recovered)}; the part that "
        f"RGB-longer recovers {_is(by_control)}."
    )


def best_ablation(table: pd.DataFrame) -> str:
    """Compares the most accurate student of flow other than D3D with the controls; empty where there is none."""
    arms = variants(table)
    findings = dict(zip(arms, differences_from(table, arms, "iid/top1", base="rgb_longer"), strict=True))
    means = {arm: finding.interval.mean for arm, (_, finding) in findings.items() if finding.interval}
    if not means:
        return ""
    best = max(means, key=means.get)
    longer, teacher = (measure(table, Condition(f"{best} - {base}", "iid/top1")).interval for base in CONTROLS)
    return (
        f"The best of the {len(means)} students that differ from D3D in one thing is {label(best)}. In top-1, its "
        f"difference to RGB-longer {_is(longer, signed=True)} and its difference to RGB-teacher "
        f"{_is(teacher, signed=True)}. Picking the best of {len(means)} makes both look larger than they are."
    )


def endpoint_changes(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Tabulates in Markdown at which endpoints the interval of D3D minus a control excludes zero.

    Args:
        table: as `records.load` gives it.
        titles: score to name, such as `motion/r2_within`.
    """
    lines = ["| | D3D − RGB-longer | D3D − RGB-teacher |", "|---|---|---|"]
    for score, name in titles.items():
        cells = [_where(contrast_by_endpoint(table, f"d3d - {control}", score)) for control in CONTROLS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(by_endpoint: pd.DataFrame) -> str:
    """The endpoints whose interval lies above zero, then those below; three consecutive ones as `a to c`."""
    if not len(by_endpoint):
        return NEEDS_DATA
    phrases = []
    for word, beyond in {"above zero at": by_endpoint["low"] > 0, "below zero at": by_endpoint["high"] < 0}.items():
        runs = by_endpoint[beyond].groupby((~beyond).cumsum())["endpoint"].agg(list)
        names = [n for run in runs for n in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
        phrases += [f"{word} {join_names(names)}"] if names else []
    return "; ".join(phrases) or "nowhere"


def exploration(settled: pd.DataFrame) -> str:
    """Compares D3D with its controls where the streams trained longer; empty where that was not run."""
    if settled.empty:
        return ""
    explored, confirming = exploration_halves(settled).values()
    leads = [measure(confirming, Condition(f"d3d - {control}", "iid/top1", above=0)) for control in CONTROLS]
    confirmed = all(outcome(finding, len(EXPLORATION_SEEDS)) == SUPPORTED for finding in leads)
    longer, teacher = (_difference(confirming, f"d3d - {control}", "iid/top1") for control in CONTROLS)
    return (
        "An exploration, made after the study's numbers were known, trained the streams longer. There, in top-1, "
        f"{_difference(settled, 'rgb_longer - rgb', 'iid/top1')}. On the seeds that confirm, {longer} and {teacher}: "
        f"{'both' if confirmed else 'not both'} above zero. On the seeds that explored, "
        f"{_difference(explored, 'd3d - two_stream', 'iid/top1')}."
    )


def decorrelated(table: pd.DataFrame) -> str:
    """Compares D3D with its controls on decorrelated clips, which no claim tests."""
    longer, teacher = (_difference(table, f"d3d - {control}", "decorrelated/top1") for control in CONTROLS)
    return (
        f"Reported, not tested: in top-1 on decorrelated clips, where appearance does not help, {longer} and {teacher}."
    )


def ensembles(verdicts: Sequence[Verdict], table: pd.DataFrame) -> str:
    """Says whether ensembles add to D3D (H4), with the gain of two RGB networks for comparison."""
    conclusion = _conclusion_of(
        verdict_of(verdicts, "H4"),
        "ensembles add to D3D",
        refuted="By the rule fixed beforehand, ensembles do not add to D3D.",
    )
    gains = {arm: difference_text(table, arm, "iid/top1_gain") for arm in ("d3d_d3d", "d3d_rgb", "rgb_rgb")}
    listed = "; ".join(f"{label(arm)} {text}" for arm, text in gains.items())
    gap = measure(table, Condition("d3d_rgb - rgb_rgb", "iid/top1_gain")).interval
    return (
        f"{conclusion} Gain in top-1 over the better member: {listed}. The gain of D3D + RGB minus the gain of "
        f"RGB + RGB {_is(gap, signed=True)}."
    )


def ledger_summary(verdicts: Sequence[Verdict]) -> str:
    """Lists all verdicts by word: those on the paper's claims, on the hypotheses and on the rows of its tables."""
    claims, rows, hypotheses = (_by_word([v for v in verdicts if v.claim.id[0] == kind]) for kind in "ABH")
    return (
        f"The paper's claims: {claims}. This study's hypotheses: {hypotheses}. The rows of the paper's tables: {rows}."
    )


def _by_word(verdicts: Sequence[Verdict]) -> str:
    ids: dict[str, list[str]] = {}
    for verdict in verdicts:
        ids.setdefault(verdict.word, []).append(verdict.claim.id)
    return ", ".join(f"{word} ({join_names(names)})" for word, names in ids.items())


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
    holding = f"{sum(outcome(f, 2) == SUPPORTED for f in verdict.findings)} of {len(verdict.findings)} conditions hold"
    word = "closest to its bound" if verdict.word == SUPPORTED else verdict.word
    return f"{holding}; {word}: {verdict.reason}"


def claim_table(verdicts: Iterable[Verdict]) -> str:
    """Tabulates in Markdown the paper's claims and the hypotheses with their verdicts and what decided them."""
    lines = ["| | claim | verdict | what decided it |", "|---|---|---|---|"]
    for verdict in verdicts:
        claim = verdict.claim
        if claim.id[0] != "B":
            lines.append(f"| **{claim.id}** | {claim.statement} | **{verdict.word}** | {decision_text(verdict)} |")
    return "\n".join(lines)


def comparison_table(verdicts: Sequence[Verdict], table: pd.DataFrame, settled: pd.DataFrame) -> str:
    """Tabulates in Markdown every comparison made, except curves over endpoints.

    First come the conditions of the claims, then the comparisons that chapters only report, those of the exploration
    (`settled`) among them, and last the rows of the paper's tables.
    """
    seeds = read_claims().seeds
    head = [
        "| claim | comparison | metric | seeds | mean and 95 % interval | required | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = []
    for verdict in verdicts:
        claim = verdict.claim
        for finding in () if claim.follows else verdict.findings:
            status = f"test: {outcome(finding, claim.seeds or seeds)}" if claim.judged else "reported"
            lines.append(_comparison_line(claim.id, finding, status))
    reported = [measure(table, Condition(contrast, metric)) for contrast, metric in REPORTED_CONTRASTS]
    reported += against_controls(table, GROUP_METRICS + STRESS_METRICS)
    for base in ("d3d", "rgb_longer"):
        reported += [finding for _, finding in differences_from(table, variants(table), "iid/top1", base=base)]
    lines += [_comparison_line("—", finding, "reported") for finding in reported]
    lines += [_comparison_line("—", f, f"explored: {source}") for source, f in exploration_findings(table, settled)]
    return "\n".join([*head, *sorted(lines, key=lambda line: line.startswith("| B"))])


def _comparison_line(claim: str, finding: Finding, status: str) -> str:
    condition = finding.condition
    required = f"{'>' if condition.side > 0 else '<'} {condition.bound:g}".replace("-", "−") if condition.side else ""
    cells = [
        claim,
        contrast_label(condition.contrast),
        metric_label(condition.metric),
        str(finding.interval.n if finding.interval else 0),
        number_text(finding.interval, signed=True),
        required,
        status,
    ]
    return f"| {' | '.join(cells)} |"
