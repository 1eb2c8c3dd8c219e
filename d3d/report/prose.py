"""Sentences and tables of the chapters, made from records and verdicts; they read correctly whatever was measured."""

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from d3d.report.claims import Condition, read_claims
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
from d3d.report.labels import NEEDS_DATA, contrast_label, label, metric_label, number_text, percent_text
from d3d.report.ledger import REFUTED, SUPPORTED, Finding, Verdict, measure, outcome, verdict_of
from d3d.report.stats import Interval
from d3d.report.wording import CONDITION_WORDS, amount_text, arm_text, difference_text, join_names

# Metrics of H2's conditions on motion; its other conditions are on appearance.
MOTION_METRICS = ("motion/r2_within", "target_epe")
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


def comparison_text(table: pd.DataFrame, contrast: str, metric: str, *, quantity: str = "top-1") -> str:
    """Formats the difference of two arms as a clause: `top-1 is 0.033 [0.016, 0.051] lower for D3D than for RGB`."""
    first, second = map(label, contrast.split(" - "))
    amount = amount_text(table, contrast, metric)
    if amount == NEEDS_DATA:
        return f"{quantity} for {first} against {second} {NEEDS_DATA}"
    return f"{quantity} is {amount} for {first} than for {second}"


def _is(value: Interval | None) -> str:
    return NEEDS_DATA if value is None else f"is {number_text(value)}"


def _sentence(clause: str) -> str:
    return f"{clause[0].upper()}{clause[1:]}."


def _conclusion(statement: str, word: str, *, refuted: str, few_seeds: str = "") -> str:
    """The sentence that a verdict's word allows.

    Args:
        statement: the claim as a clause, such as `ensembling improves D3D`.
        word: the word of the verdict.
        refuted: the sentence for a refuted claim.
        few_seeds: such as `2 of 10 seeds`, where these are too few; empty otherwise.
    """
    if word == SUPPORTED:
        return _sentence(statement)
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
    two_stream = measure(table, Condition("two_stream", "iid/top1")).interval
    motion, texture = (comparison_text(table, "flow - rgb", f"iid/{group}/top1") for group in ("motion", "appearance"))
    return (
        f"{conclusion} Two-stream averages the predictions of RGB (the spatial stream) and flow (the temporal stream), "
        f"RGB + RGB those of two RGB networks. The top-1 of two-stream {_is(two_stream)}. "
        f"{_sentence(comparison_text(table, 'two_stream - rgb_rgb', 'iid/top1'))} On classes that differ only in "
        f"motion, {motion}. On classes that differ only in texture, {texture}."
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
        f"{conclusion} A small decoder predicts optical flow from the features at {tested}, a layer of S3D-G. Its "
        f"error on the target, in px per frame: RGB {rgb}; the same network tuned for flow {tuned}; random weights "
        f"{random}. The missing part, m = {contrast_label(ratio.contrast)}, {_is(m)}: 0 is as good as tuned for flow, "
        "1 as bad as random weights."
    )


def distillation(verdicts: Sequence[Verdict], table: pd.DataFrame) -> str:
    """Says whether distillation adds motion to the spatial stream (H2) and whether D3D is on par with two streams."""
    motion_verdict = verdict_of(verdicts, "H2")
    motion_conclusion = _conclusion_of(
        motion_verdict,
        "distillation adds motion to the spatial stream without losing appearance",
        refuted="H2, which asks for more motion and no loss of appearance, is refuted by the rule fixed beforehand.",
    )
    parity_conclusion = _conclusion_of(
        verdict_of(verdicts, "H3"),
        "D3D is on par with two-stream",
        refuted="By the rule fixed beforehand, D3D is not on par with two-stream, the average of the predictions of "
        "RGB and flow.",
    )
    on_motion, on_appearance = (_counts(outcomes) for outcomes in condition_outcomes(motion_verdict))
    violated = f" Violated: {motion_verdict.reason}." if motion_verdict.word == REFUTED else ""
    tested = ratio_condition(verdicts, "H1").metric.split("/")[0]
    explained = "the fraction of the variance of motion within a class that a linear probe explains there (R²)"
    motion = comparison_text(table, "d3d - rgb_longer", f"{tested}/motion/r2_within", quantity=explained)
    ratio = ratio_condition(verdicts, "H3")
    contrasts = [ratio.contrast, ratio.contrast.replace("d3d", "rgb_longer")]
    closed, by_control = (percent_text(measure(table, Condition(c, ratio.metric)).interval) for c in contrasts)
    top1 = [comparison_text(table, f"d3d - {base}", "iid/top1") for base in ("rgb_longer", "two_stream")]
    return (
        "D3D is the RGB network after distillation from the flow network, RGB-longer the RGB network after as much "
        f"further training without a teacher. {motion_conclusion} Its conditions at {tested}, a layer of S3D-G: on "
        f"motion {on_motion}; on appearance {on_appearance}.{violated} {_sentence(motion)} {_sentence(top1[0])} "
        f"{parity_conclusion} {_sentence(top1[1])} The part of the gap in top-1 between RGB and two-stream that is "
        f"closed: D3D {closed}; RGB-longer {by_control}."
    )


def condition_outcomes(verdict: Verdict) -> tuple[list[str], list[str]]:
    """Returns the outcomes of H2's conditions on motion and of those on appearance."""
    seeds = read_claims().seeds
    by_kind: dict[bool, list[str]] = {True: [], False: []}
    for finding in verdict.findings:
        by_kind[finding.condition.metric.endswith(MOTION_METRICS)].append(outcome(finding, seeds))
    return by_kind[True], by_kind[False]


def _counts(outcomes: Sequence[str]) -> str:
    """Such as `1 met, 5 undecided`."""
    return ", ".join(f"{count} {CONDITION_WORDS.get(word, word)}" for word, count in Counter(outcomes).items())


def best_ablation(table: pd.DataFrame) -> str:
    """Compares the most accurate variant of D3D with the controls; empty where there is none."""
    arms = variants(table)
    findings = dict(zip(arms, differences_from(table, arms, "iid/top1", base="rgb_longer"), strict=True))
    means = {arm: finding.interval.mean for arm, (_, finding) in findings.items() if finding.interval}
    if not means:
        return ""
    best = max(means, key=means.get)
    to_controls = [_sentence(comparison_text(table, f"{best} - {base}", "iid/top1")) for base in CONTROLS]
    return (
        f"Of the {len(means)} variants of D3D, other values of λ included, {label(best)} has the highest top-1. "
        f"{' '.join(to_controls)} These differences are biased upwards, because {label(best)} is the best of "
        f"{len(means)}."
    )


def endpoint_changes(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Tabulates in Markdown at which endpoints D3D is better or worse than a control, by intervals that exclude zero.

    Args:
        table: as `records.load` gives it.
        titles: score to name, such as `motion/r2_within`.
    """
    lines = ["| score | D3D against RGB-longer | D3D against RGB-teacher |", "|---|---|---|"]
    for score, name in titles.items():
        sign = -1 if score.endswith("epe") else 1
        cells = [_where(contrast_by_endpoint(table, f"d3d - {control}", score), sign) for control in CONTROLS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _where(by_endpoint: pd.DataFrame, sign: int) -> str:
    """The endpoints where D3D is better, then those where it is worse; three consecutive ones as `a to c`.

    Args:
        by_endpoint: as `contrast_by_endpoint` gives it.
        sign: 1 where higher is better, -1 where lower is.
    """
    if not len(by_endpoint):
        return NEEDS_DATA
    phrases = []
    above, below = by_endpoint["low"] > 0, by_endpoint["high"] < 0
    better, worse = (above, below) if sign > 0 else (below, above)
    for word, beyond in {"better at": better, "worse at": worse}.items():
        runs = by_endpoint[beyond].groupby((~beyond).cumsum())["endpoint"].agg(list)
        names = [n for run in runs for n in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
        phrases += [f"{word} {join_names(names)}"] if names else []
    return "; ".join(phrases) or "no difference shown"


def exploration(settled: pd.DataFrame) -> str:
    """Compares D3D with its controls where the streams trained longer; empty where that was not run."""
    if settled.empty:
        return ""
    explored, confirming = exploration_halves(settled).values()
    leads = [measure(confirming, Condition(f"d3d - {control}", "iid/top1", above=0)) for control in CONTROLS]
    confirmed = all(outcome(finding, len(EXPLORATION_SEEDS)) == SUPPORTED for finding in leads)
    longer, teacher = (comparison_text(confirming, f"d3d - {control}", "iid/top1") for control in CONTROLS)
    return (
        "A follow-up, designed after the study's numbers were known, trained the streams longer. There, "
        f"{comparison_text(settled, 'rgb_longer - rgb', 'iid/top1')}. On seeds 0 to 4, the first that were run, "
        f"{comparison_text(explored, 'd3d - two_stream', 'iid/top1')}. On seeds 5 to 9, which were run to confirm, "
        f"{longer}. On the same seeds, {teacher}. {'Both' if confirmed else 'Not both'} of the last two intervals lie "
        "above zero."
    )


def decorrelated(table: pd.DataFrame) -> str:
    """Compares D3D with its controls on decorrelated clips, which no claim tests."""
    longer, teacher = (comparison_text(table, f"d3d - {control}", "decorrelated/top1") for control in CONTROLS)
    return (
        "Two comparisons belong to no hypothesis. On decorrelated clips, where appearance does not predict the class, "
        f"{longer}. On the same clips, {teacher}."
    )


def ensembles(verdicts: Sequence[Verdict], table: pd.DataFrame) -> str:
    """Says whether ensembling improves D3D (H4), with the gain of two RGB networks for comparison."""
    conclusion = _conclusion_of(
        verdict_of(verdicts, "H4"),
        "ensembling improves D3D",
        refuted="By the rule fixed beforehand, ensembling does not improve D3D.",
    )
    gains = {arm: difference_text(table, arm, "iid/top1_gain") for arm in ("d3d_d3d", "d3d_rgb", "rgb_rgb")}
    listed = "; ".join(f"{label(arm)} {text}" for arm, text in gains.items())
    gap = comparison_text(table, "d3d_rgb - rgb_rgb", "iid/top1_gain", quantity="this gain")
    return f"{conclusion} Gain in top-1 over the better of the two networks: {listed}. {_sentence(gap)}"


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


def comparison_table(verdicts: Sequence[Verdict], table: pd.DataFrame, settled: pd.DataFrame) -> str:
    """Tabulates in Markdown every comparison made, except curves over endpoints.

    First come the conditions of the claims, then the comparisons that chapters only report, those of the exploration
    (`settled`) among them, and last the rows of the paper's tables.
    """
    seeds = read_claims().seeds
    head = [
        "| claim | comparison | metric | seeds | mean and 95 % interval | required | status |",
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
